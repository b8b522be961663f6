"""Acting together: the worked examples, and what every kind of learner does with them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import ddpg, dqn, sac, td3
from popjax.core import as_arrays
from popjax.envs import make
from popjax.population import acting, learners, policy
from popjax.population.learners import Multihead

SPEC, DISCRETE = make("probe/corridor").spec, make("probe/corridor-discrete").spec
KINDS = {
    "sac": (sac.Config(hidden=(8,)), sac.Hyper(), 2),
    "td3": (td3.Config(hidden=(8,)), td3.Hyper(), 2),
    "ddpg": (ddpg.Config(hidden=(8,), critic_branch=4, critic_hidden=4), ddpg.Hyper(), 1),
    "multihead": (Multihead(hidden=(8,)), sac.Hyper(), 2),
    "dqn": (dqn.Config(hidden=(8,)), dqn.Hyper(), 1),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
NUMBERS = as_arrays(acting.Hyper())


@lru_cache
def made(kind, population=3):
    """Learners, their states, and the number of critics of each."""
    config, hyper, critics = KINDS[kind]
    crew = learners.build(DISCRETE if kind == "dqn" else SPEC, config, population)
    outputs, values, policies = map(jax.jit, (crew.outputs, crew.values, crew.policies))
    crew = crew._replace(outputs=outputs, values=values, policies=policies, act=jax.jit(crew.act))
    return crew, jax.jit(crew.init)(jax.random.key(1), as_arrays(hyper)), critics


def observations(shape=(3, 2)):
    return jax.random.normal(jax.random.key(2), (*shape, 1))


def test_the_worked_example_of_the_farthest_action():
    candidates = jnp.array([[0.0, 0], [1, 1], [-1, 0.5]])
    references = jnp.array([[[9.0, 9], [9, 9]], [[0.5, 0.5], [0.2, -0.1]], [[-0.5, 0], [0, 1]]])
    assert int(acting.farthest(candidates, references, 0)) == 1
    assert int(acting.farthest(candidates[jnp.array([2, 0])], references, 0)) == 0


def test_the_farthest_action_has_the_largest_sum_of_squares():
    """From (0, 0) and (3, 0) the first has squares 3.25 and 3.25, the second 9 and 0; of the distances
    themselves, and of absolute differences, the first has the larger sum."""
    candidates, references = jnp.array([[1.5, 1.0], [3.0, 0.0]]), jnp.array([[[0.0, 0.0], [3.0, 0.0]]])
    assert int(acting.farthest(candidates, references, 1)) == 1
    # One reference of each of two agents says the same as two of one.
    assert int(acting.farthest(candidates, references.transpose(1, 0, 2), 2)) == 1


@pytest.mark.parametrize(
    ("inverse", "expected"), [(1.0, [0.331499, 0.546549, 0.121952]), (10.0, [0.006693, 0.993307, 0.0])]
)
def test_the_worked_example_of_the_softmax(inverse, expected):
    values, keys = jnp.array([10.0, 10.5, 9.0]), jax.random.split(jax.random.key(0), 20_000)
    hyper = acting.Hyper(softmax_inv_temp=inverse)
    drawn = jax.vmap(lambda k: acting.boltzmann(k, values, hyper))(keys)
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / len(keys), expected, atol=0.01)
    modes = jax.vmap(lambda k: acting.boltzmann(k, values, replace(hyper, softmax_eps=0.0)))(keys[:50])
    assert (modes == 1).all()


def test_the_worked_example_of_the_upper_confidence():
    values = jnp.array([[1.0, 0.0], [1.2, 0.0], [0.8, 0.0], [1.4, 3.0]])
    assert int(acting.upper_confidence(values, 0.0)) == 0
    assert int(acting.upper_confidence(values, 1.0)) == 1  # 0.75 + 1.30 exceeds 1.1 + 0.22
    for sure, index in ((1.1 + 0.2235, 0), (1.1 + 0.2237, 1)):  # the deviation is 0.223607
        assert int(acting.upper_confidence(values.at[:, 1].set(sure), 1.0)) == index


def test_agents_that_have_diverged_are_not_elected(key):
    """A NaN action has NaN values under every critic; a NaN critic values every action so."""
    bad = jnp.nan
    values = jnp.array([[1.0, bad, 2.0], [bad, bad, bad], [1.5, bad, 3.0]])
    assert int(acting.upper_confidence(values, 1.0)) == 2
    values, always = jnp.array([bad, 1.0, jnp.inf, 1.0]), replace(NUMBERS, softmax_eps=1.0)
    drawn = jax.vmap(lambda k: acting.boltzmann(k, values, always))(jax.random.split(key, 100))
    assert sorted(set(drawn.tolist())) == [1, 3]
    assert int(acting.boltzmann(key, values, replace(NUMBERS, softmax_eps=0.0))) == 1
    candidates, others = jnp.array([[bad], [1.0], [3.0]]), jnp.array([[[bad]] * 3, [[0.0]] * 3])
    assert int(acting.farthest(candidates, others, 2)) == 2


@pytest.mark.parametrize("kind", ["sac", "dqn"])
def test_eps_greedy_acts_at_random_with_probability_epsilon(kind, key):
    crew, states, _ = made(kind)
    plain = policy.everyone(crew.act, crew.policies(states), 0.0)
    obs = jnp.broadcast_to(observations((3, 1)), (3, 400, 1))
    greedy = jax.jit(plain)((), obs, key).action
    for epsilon in (0.0, 0.3):
        spec = DISCRETE if kind == "dqn" else SPEC
        action = jax.jit(acting.eps_greedy(plain, spec, epsilon))((), obs, key).action
        same = (action == greedy).reshape(3, 400, -1).all(-1).mean()
        chance = 1 / 2 if kind == "dqn" else 0  # that a random action is the greedy one
        assert float(same) == pytest.approx(1 - epsilon * (1 - chance), abs=0.03)


@pytest.mark.parametrize("kind", ["sac", "td3", "multihead"])
def test_epsilon_zero_acts_as_without_collaboration_and_one_drives_agents_apart(kind, key):
    crew, states, _ = made(kind)
    obs = jnp.zeros((3, 200, 1))

    @jax.jit
    def actions(epsilon, scale):
        hyper = replace(NUMBERS, epsilon=epsilon)
        act = acting.together("eps_collab", crew, states, SPEC, scale, hyper)
        return act((), obs, key).action[..., 0]  # [3, 200]

    def distance(action):
        return float(jnp.square(action[:, None] - action[None]).mean())

    assert distance(actions(1.0, 1.0)) > 1.2 * distance(actions(0.0, 1.0))
    greedy = jax.jit(acting.together(None, crew, states, SPEC, 0.0, NUMBERS))((), obs, key)
    np.testing.assert_allclose(actions(0.0, 0.0), greedy.action[..., 0], atol=1e-6)


@every_kind
def test_values_and_proposals_are_the_agents_own(kind, key):
    """Agent i's critics value agent i's proposal; a greedy proposal is what the agent does itself."""
    crew, states, critics = made(kind)
    policies, obs = crew.policies(states), observations()
    greedy = acting.proposals(crew, policies, obs, key, 0.0)
    over = jax.vmap(jax.vmap(crew.act, (None, 0, 0, 0, None)), (None, 0, 0, 0, None))
    own = jax.vmap(over, (0, None, None, None, None))(policies, (), obs, jax.random.split(key, (3, 2)), 0.0)
    np.testing.assert_allclose(greedy, own.action, atol=1e-6)
    values = crew.values(states, obs, greedy)
    assert values.shape == (3, critics, 3, 2)
    np.testing.assert_allclose(acting.greedy_values(crew, states, obs), values.min(1), atol=1e-6)
    everything = acting.all_values(crew, states, obs, greedy)
    assert everything.shape == (3, 2, 3 * critics, 3)
    last = critics - 1
    np.testing.assert_allclose(everything[1, 0, 2 * critics + last, 2], values[2, last, 1, 0], atol=1e-6)


@every_kind
@pytest.mark.parametrize("mode", ["ucb", "softmax"])
def test_all_elect_one_proposal_for_every_lane(kind, mode, key):
    """Also in lanes that belong to nobody, as SUNRISE's do."""
    crew, states, _ = made(kind)
    obs = observations((1, 4))
    hyper = replace(NUMBERS, softmax_eps=0.0)
    spec = DISCRETE if kind == "dqn" else SPEC
    action = jax.jit(acting.together(mode, crew, states, spec, 0.0, hyper))((), obs, key).action
    proposed = acting.proposals(crew, crew.policies(states), obs, key, 0.0)
    if mode == "ucb":
        scores = acting.all_values(crew, states, obs, proposed)  # [1, 4, C, P]
        best = (scores.mean(-2) + scores.std(-2)).argmax(-1)
    else:
        best = acting.greedy_values(crew, states, obs).argmax(0)
    for lane in range(4):
        np.testing.assert_allclose(action[0, lane], proposed[best[0, lane], 0, lane], atol=1e-6)
