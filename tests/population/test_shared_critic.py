"""Gradient steps of a critic that actors share, by hand."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.core import Spec, Transition, as_arrays
from popjax.population import shared_critic

SPEC = Spec("task", (2,), 1, 10)
HYPER = as_arrays(replace(shared_critic.Hyper(), target_noise=0.0, polyak=0.1))


def compiled(count=2):
    """Critics of two layers of eight units, every function of which is compiled as a whole."""
    critic = shared_critic.build(SPEC, (8, 8), count, "test")
    functions = {name: jax.jit(getattr(critic, name)) for name in ("init", "learn", "begin", "climb")}
    return critic._replace(actor=critic.actor._replace(init=jax.jit(critic.actor.init)), **functions)


def rows(count=6):
    keys = jax.random.split(jax.random.key(5), 4)
    obs, next_obs = (jax.random.normal(key, (count, 2)) for key in keys[:2])
    action = jax.random.uniform(keys[2], (count, 1), minval=-1, maxval=1)
    discount = jnp.where(jnp.arange(count) == 0, 0.0, 0.9)
    batch = Transition(obs, action, jax.random.normal(keys[3], (count,)), discount, next_obs)
    return jax.tree.map(np.asarray, batch)


def value(params, obs, action):
    """The critic's layers in NumPy: leaky ReLU between them."""
    x = np.concatenate([obs, action], -1)
    layers = [layer["linear"] for _, layer in sorted(params["mlp"].items())]
    for place, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        x = np.where(x > 0, x, 0.01 * x) if place < len(layers) - 1 else x
    return x[:, 0]


def policy(params, obs):
    x = obs
    for _, layer in sorted(params["mlp"].items()):
        x = np.tanh(x @ np.asarray(layer["linear"]["kernel"]) + np.asarray(layer["linear"]["bias"]))
    return x


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_of_the_critics(count):
    critic = compiled(count)
    state, actor, batch = critic.init(jax.random.key(0), HYPER), critic.actor.init(jax.random.key(1)), rows()
    state = replace(state, target=jax.tree.map(lambda x: 0.5 * x, state.params))
    action = policy(actor, batch.next_obs)
    following = np.stack([value(tree.take(state.target, i), batch.next_obs, action) for i in range(count)])
    target = batch.reward + batch.discount * following.min(0)
    errors = [value(tree.take(state.params, i), batch.obs, batch.action) - target for i in range(count)]
    after, loss = critic.learn(state, actor, batch, HYPER, jax.random.key(2))
    np.testing.assert_allclose(loss, np.square(errors).mean(1).sum(), rtol=1e-5)
    # Adam's first step is its rate in every component, towards less error.
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after.params, state.params)
    np.testing.assert_allclose(jax.tree.leaves(moved), 1e-3, rtol=0.02)
    assert critic.learn(after, actor, batch, HYPER, jax.random.key(2))[1] < loss
    soft = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, state.target, after.params)
    for found, expected in zip(jax.tree.leaves(after.target), jax.tree.leaves(soft), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_noise_moves_the_target_action_and_is_clipped():
    critic = compiled()
    state, actor = critic.init(jax.random.key(0), HYPER), critic.actor.init(jax.random.key(1))

    def loss(**numbers):
        hyper = replace(HYPER, **jax.tree.map(jnp.float32, numbers))
        return float(critic.learn(state, actor, rows(), hyper, jax.random.key(2))[1])

    plain = loss()
    assert loss(target_noise=0.5) != plain
    assert loss(target_noise=0.5, target_noise_clip=0.0) == plain


def test_an_actor_climbs_its_judge():
    critic = compiled()
    state, batch = critic.init(jax.random.key(0), HYPER), rows()
    judge = tree.take(state.params, 0)
    start = critic.begin(critic.actor.init(jax.random.key(1)), HYPER)
    climbing = start
    for step in range(30):
        before = climbing[0]
        climbing, loss = critic.climb(climbing, judge, batch.obs, HYPER)
        np.testing.assert_allclose(
            loss, -value(judge, batch.obs, policy(before, batch.obs)).mean(), rtol=1e-4, atol=1e-6
        )
        if step == 0:
            first = loss
    assert loss < first - 1e-3


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="test needs continuous actions; task has 1 discrete ones"):
        shared_critic.build(SPEC._replace(discrete=True), (8,), 2, "test")
