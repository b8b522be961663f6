"""Agents that learn side by side: each from its own rewards, whatever the others do."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from popjax import tree
from popjax.agents import ddpg, sac
from popjax.core import Transition, as_arrays
from popjax.envs import make
from popjax.population import learners
from popjax.population.learners import Multihead
from tests.support import close, same

SPEC = make("probe/corridor").spec
DDPG = ddpg.Config(hidden=(8,), critic_branch=4, critic_hidden=4)


def random_rows(key, population, size=12):
    """Common transitions with rewards of everyone's own, [P, B]."""
    keys = jax.random.split(key, 4)
    obs, next_obs = jax.random.normal(keys[0], (2, size, 1))
    action = jnp.tanh(jax.random.normal(keys[1], (size, 1)))
    rows = tree.repeat(Transition(obs, action, obs[:, 0], jnp.full(size, 0.9), next_obs), population)
    return replace(rows, reward=jax.random.normal(keys[2], (population, size)))


def test_agents_apart_learn_as_each_alone(key):
    """Of an agent that draws nothing at random, bit for bit what its own ``learn`` returns."""
    agent, hyper = ddpg.build(SPEC, DDPG), as_arrays(ddpg.Hyper())
    crew, rows = learners.build(SPEC, DDPG, 3), random_rows(key, 3)
    states = jax.jit(crew.init)(key, hyper)
    after, losses = jax.jit(crew.learn)(states, rows, hyper, key)
    for i in range(3):
        alone = jax.jit(agent.learn)(*tree.take((states, rows), i), hyper, key)
        close((tree.take(after, i), tree.take(losses, i)), alone, atol=1e-6)


def test_the_reward_of_one_agent_is_nothing_to_another(key):
    crew, hyper = learners.build(SPEC, sac.Config(hidden=(8,)), 3), as_arrays(sac.Hyper())
    states, rows = jax.jit(crew.init)(key, hyper), random_rows(key, 3)
    one, _ = jax.jit(crew.learn)(states, rows, hyper, key)
    two, _ = jax.jit(crew.learn)(states, replace(rows, reward=rows.reward.at[1].add(1.0)), hyper, key)
    assert same(tree.take(one, 0), tree.take(two, 0))
    assert not same(tree.take(one, 1), tree.take(two, 1))


def test_multihead_agents_share_their_torso(key):
    crew, hyper = learners.build(SPEC, Multihead(hidden=(16,)), 3), as_arrays(sac.Hyper())
    states, rows = jax.jit(crew.init)(key, hyper), random_rows(key, 3)
    after, losses = jax.jit(crew.learn)(states, rows, hyper, key)
    assert losses.temperature.shape == losses.entropy.shape == losses.critic_loss.shape == (3,)
    other, _ = jax.jit(crew.learn)(states, replace(rows, reward=rows.reward.at[1].add(1.0)), hyper, key)
    heads = [x.critics["heads"]["Dense_0"]["linear"]["kernel"][0] for x in (after, other)]  # [2, 3, ...]
    assert heads[0].shape[1] == 3
    assert not same(after.critics["torso"], other.critics["torso"])
    assert not (heads[0][:, 1] == heads[1][:, 1]).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [({"hidden": ()}, "hidden is empty"), ({"hidden": (4,), "normalize_obs": True}, "normalize_obs is for")],
)
def test_what_heads_cannot_share_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        learners.build(SPEC, Multihead(**config), 3)


def test_agents_that_normalize_see_every_row(key):
    config = replace(DDPG, normalize=True)
    crew, hyper = learners.build(SPEC, config, 2), as_arrays(ddpg.Hyper())
    obs = jax.random.normal(key, (7, 1)) + 3
    states = crew.observe(jax.jit(crew.init)(key, hyper), obs, jnp.ones(7, bool))
    mean = jax.tree.leaves(jax.vmap(lambda s: s.statistics.mean)(states))[0]
    assert mean.ravel().tolist() == pytest.approx([float(obs.mean())] * 2, abs=1e-5)
