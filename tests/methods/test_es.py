"""Evolution strategies over policies: what is played, seen, told and deployed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import normalize, tree
from popjax.envs import make
from popjax.evolution import strategies
from popjax.methods import es
from tests.support import Case, equal

TINY = es.Config(population=6, trials=2, hidden=(4,))


@lru_cache
def compiled(task, config=TINY):
    method = es.build(make(task), config)
    return method, jax.jit(method.init), jax.jit(method.step)


@lru_cache
def history(task, config=TINY, generations=3, **numbers):
    method, init, step = compiled(task, config)
    states = [init(jax.random.key(2), replace(method.hyper, **numbers))]
    for _ in range(generations):
        states.append(step(states[-1]))
    return states


def test_fitness_is_the_mean_return_of_whole_episodes():
    """In the corridor a policy's return is where it ends; a greedy policy always ends in the same place."""
    method = compiled("probe/corridor")[0]
    env = make("probe/corridor")
    before, after = history("probe/corridor")[:2]
    policies = jax.vmap(method.act, (0, None, 0, None, None))

    def play(place):
        total, done, steps = np.zeros(6), np.zeros(6, bool), 0
        while not done.all() and steps < env.spec.episode_length:
            # Seen through the statistics from before the generation.
            seen = (method.individuals(after)[0], tree.repeat(before.statistics, 6))
            action = policies(seen, (), place[:, None], jax.random.key(0), 0.0).action[:, 0]
            action, steps = np.where(done, 0, action), steps + 1
            place, total = place + action, total + action
            done |= place > 1
        return total

    np.testing.assert_allclose(after.metrics.fitness, play(np.zeros(6, np.float32)), rtol=1e-4, atol=1e-4)


def test_playing_a_generation_draws_no_noise():
    """Only the initial states, the search and the numbers of the next generation are drawn."""
    method = compiled("probe/corridor")[0]
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    equations = jax.make_jaxpr(method.step)(state).jaxpr.eqns
    loops = [str(each) for each in equations if each.primitive.name == "while"]
    assert loops
    assert not any("random_bits" in loop for loop in loops)


def test_statistics_are_of_all_steps_of_everyone():
    for state in history("probe/observation"):
        assert int(state.statistics.count) == int(state.env_steps)
    mean = float(state.statistics.mean[0])
    assert abs(mean) < 1
    assert float(state.statistics.variance[0]) == pytest.approx(1 - mean**2, abs=1e-5)  # of +1 and -1


def test_everyone_begins_in_the_same_states():
    """Almost equal policies return almost the same, whatever the contexts of a generation are."""
    fitness = np.array([state.metrics.fitness for state in history("probe/context", std=1e-5)[1:]])
    assert np.ptp(fitness, 1).max() < 1e-3
    assert np.ptp(fitness[:, 0]) > 1e-3


def test_who_has_diverged_is_told_and_leaves_no_trace():
    """Where an action above 0 makes reward and observation NaN, mean and statistics stay finite."""
    plain = make("probe/corridor")

    def step(state, action):
        state, timestep = plain.step(state, action)
        lost = jnp.where(action[0] > 0, jnp.nan, 0.0)
        return state, timestep.replace(reward=timestep.reward + lost, obs=timestep.obs + lost)

    method = es.build(plain._replace(step=step), replace(TINY, strategy="Sep_CMA_ES"))
    state = jax.jit(method.init)(jax.random.key(4), replace(method.hyper, std=1.0))
    after = jax.jit(method.step)(state)
    assert 0 < int(after.metrics.diverged) < 6
    kept = (after.metrics, after.statistics, method.policy(after))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


def test_a_policy_acts_by_normalized_observations():
    method = compiled("probe/corridor")[0]
    state = history("probe/corridor")[-1]
    params, statistics = method.policy(state)
    equal(statistics, state.statistics)
    plain = compiled("probe/corridor", replace(TINY, normalize_obs=False))[0]
    for obs in (jnp.array([0.3]), jnp.array([100.0])):
        seen = normalize.normalize(statistics, obs, clip=5.0)
        args = ((), obs, jax.random.key(0), 0.0)
        expected = plain.act(params, (), seen, jax.random.key(0), 0.0)
        np.testing.assert_allclose(method.act((params, statistics), *args).action, expected.action)


def test_the_mean_of_the_distribution_is_deployed():
    states = history("probe/corridor")
    for before, after in pairwise(states):
        params = compiled("probe/corridor")[0].policy(after)[0]
        np.testing.assert_array_equal(jax.flatten_util.ravel_pytree(params)[0], after.search.mean)
        moved = np.linalg.norm(after.search.mean - before.search.mean)
        assert float(after.metrics.moved) == pytest.approx(moved, rel=1e-5)
        assert moved > 0


def test_the_spread_is_that_of_all_parameters_of_the_generation():
    for state in history("probe/corridor", std=0.3)[1:]:
        flat = np.array([jax.flatten_util.ravel_pytree(tree.take(state.population, i))[0] for i in range(6)])
        assert float(state.metrics.spread) == pytest.approx(flat.std(0).mean(), rel=1e-5)
        assert 0.1 < state.metrics.spread < 0.5


@pytest.mark.parametrize("task", ["probe/context", "probe/context-discrete"])
def test_it_learns_what_to_do_where(task):
    config = es.Config("Sep_CMA_ES", population=16, trials=16, hidden=())
    method, init, step = compiled(task, config)
    state = init(jax.random.key(0), replace(method.hyper, std=0.5))
    for _ in range(40):
        state = step(state)
    for obs in (-1.0, 1.0):
        choice = method.act(method.policy(state), (), jnp.array([obs]), jax.random.key(0), 0.0)
        if task.endswith("discrete"):
            assert int(choice.action) == (obs > 0)
        else:
            assert float(choice.action[0]) == pytest.approx(obs / 2, abs=0.2)


def test_images_are_seen_by_convolutions():
    method = es.build(make("gymnax/Breakout-MinAtar"), TINY)
    shapes = jax.eval_shape(method.policy, jax.eval_shape(method.init, jax.random.key(0), method.hyper))
    assert "convolutions" in shapes[0]
    assert shapes[1].mean.shape == (10, 10, 4)


def test_a_number_without_effect_is_told():
    env = make("probe/delay")
    said = [
        es.remarks(env, es.Config(strategy), strategies.Hyper(lr=0.1), 100) for strategy in ("CMA_ES", "PGPE")
    ]
    assert said == [["hyper.lr 0.1 changes nothing: CMA_ES has no Adam"], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"hidden": (4, 0)}, "hidden must have sizes of at least 1, got 4 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        es.Config(**options)


CASES = {
    "es": Case(lambda: es.build(make("probe/delay"), TINY), 6, mean=True, slow_members=True),
    "es-cma": Case(
        lambda: es.build(
            make("probe/corridor-discrete"), replace(TINY, strategy="CMA_ES", normalize_obs=False)
        ),
        6,
        mean=True,
        slow=True,
        members=False,  # eigenvectors of nearly equal eigenvalues turn with the last bit of the covariance
    ),
}
