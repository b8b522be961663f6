"""Returns in fresh episodes, and the order of individuals, in which one that has diverged comes last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from popjax import tree
from popjax.agents import sac
from popjax.core import Choice
from popjax.envs import make
from popjax.methods import independent
from popjax.population import exchange, judging, scoring
from tests.support import same

NAN = jnp.nan


def test_returns_are_those_of_the_task():
    """As evaluations count them, whatever rewards are learned from."""

    def act(action, memory, obs, key, scale):
        return Choice(memory, action, action, jnp.float32(0))

    env, actions = make("probe/action", reward_scale=-2.0, reward_clip=0.1), jnp.array([[0.5], [0.0]])
    found = scoring.returns(env, act, actions, (), jax.random.key(0), 3)
    np.testing.assert_array_equal(found, [[1.0] * 3, [0.75] * 3])


def test_nan_is_behind_every_number_and_ahead_of_none():
    ahead = exchange.ahead(jnp.array([NAN, 0.0, 50.0]), 100.0)
    np.testing.assert_array_equal(ahead, [[0, 1, 1], [0, 0, 0], [0, 0, 0]])


def test_an_individual_that_has_diverged_is_last_whatever_its_fitness():
    weights = jnp.array([[1.0, NAN], [0.0, 1.0], [jnp.inf, 0.0], [1.0, 1.0]])
    params = {"weights": weights, "count": jnp.arange(4)}
    fitness = judging.sound(jnp.array([9.0, 1.0, 8.0, 2.0]), params)
    np.testing.assert_array_equal(fitness, [-jnp.inf, 1, -jnp.inf, 2])
    np.testing.assert_array_equal(judging.shown(fitness), [1, 1, 1, 2])


def test_an_agent_that_has_diverged_is_not_deployed():
    config = independent.Config(agent=sac.Config(hidden=(4,)), population=3, capacity=300)
    method = independent.build(make("probe/context"), config)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    for fitness, best in (([NAN, 1.0, 2.0], 2), ([2.0, NAN, 1.0], 0)):
        judged = state.replace(metrics=state.metrics.replace(fitness=jnp.array(fitness)))
        assert same(method.policy(judged), tree.take(method.individuals(judged), best))
    lost = jax.tree.map(lambda x: x.at[0].set(NAN), state.agents.actor)
    judged = judged.replace(agents=judged.agents.replace(actor=lost))
    assert same(method.policy(judged), tree.take(method.individuals(judged), 2))
