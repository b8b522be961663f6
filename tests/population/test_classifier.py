"""The Q-classifier learns the returns that followed a state under the agent that played it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from popjax import nets, tree
from popjax.core import Spec
from popjax.population import classifier
from popjax.replay.episodes import Episodic
from popjax.replay.ring import add, ring
from tests.support import equal

SPEC = Spec("two states", (1,), 1, 2)
REWARDS = np.array([[1.0, 0.0], [2.0, 5.0]])  # [step of an episode, agent]
JUDGE = classifier.build(SPEC, (2, 1), horizon=5)
RETURNS = [[3.0, 5.0], [2.0, 5.0]]  # to the end of the episode


def replay(episodes):
    """A ring of the first ``episodes`` of eight, which two agents play side by side. They have two steps; the
    observation is the number of the step. The last two, which nothing shows to be over, have rewards of 100.
    """
    rewards = np.concatenate([REWARDS, REWARDS, REWARDS, np.full((2, 2), 100.0)]).ravel()
    step = np.arange(16) // 2
    rows = Episodic(
        obs=jnp.float32(step % 2)[:, None],
        action=jnp.zeros((16, 1)),
        reward=jnp.float32(rewards),
        discount=jnp.ones(16),
        next_obs=jnp.float32(step % 2)[:, None],
        episode=jnp.int32(step // 2),
    )
    return add(ring(16).init(tree.take(rows, 0)), rows, jnp.arange(16) < 2 * episodes)


@jax.jit
def trained(state, store, steps):
    """The classifier's state after ``steps`` gradient steps."""

    def step(i, state):
        return JUDGE.learn(state, store, lambda obs: obs, 16, 3e-3, jax.random.key(i))

    return jax.lax.fori_loop(0, steps, step, state)


def test_predictions_become_the_returns_of_each_agent(key):
    state = trained(jax.jit(JUDGE.init)(key), replay(8), 400)
    network = nets.mlp(1, classifier.HIDDEN, 2)
    found = jax.vmap(network.apply, (None, 0))(state.params, jnp.array([[0.0], [1.0]]))
    np.testing.assert_allclose(found, RETURNS, atol=0.05)
    assert int(JUDGE.choose(state.params, JUDGE.memory, jnp.zeros(1))[0]) == 1


def test_nothing_is_learned_before_a_return_is_known(key):
    state = jax.jit(JUDGE.init)(key)
    equal(trained(state, replay(2), 3).params, state.params)
