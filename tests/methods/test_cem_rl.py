"""CEM-RL generation by generation: who trains, what moves the search, and who plays again."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.core import as_arrays
from popjax.envs import make
from popjax.evolution import cem
from popjax.methods import cem_rl
from popjax.population import shared_critic
from tests.support import Case, close, equal, same

TINY = cem_rl.Config(population=4, trained=2, hidden=(4,), batch=4, capacity=400, warmup=5)
CONFIGS = {
    "plain": TINY,
    "elite": replace(TINY, elitism=True, trials=2),
    "mixing": replace(TINY, mixing=True),
    "one row": replace(TINY, batch=1, capacity=1, warmup=0),
}


@lru_cache
def compiled(name):
    method = cem_rl.build(make("probe/corridor"), CONFIGS[name])
    return method, jax.jit(method.init), jax.jit(method.step)


@lru_cache
def history(name, generations=4):
    method, init, step = compiled(name)
    states = [init(jax.random.key(1), method.hyper)]
    for _ in range(generations):
        states.append(step(states[-1]))
    return states


def with_numbers(state, **numbers):
    return replace(state, hyper=replace(state.hyper, **jax.tree.map(jnp.float32, numbers)))


def test_mean_and_variance_move_to_the_best_half():
    """Two parents of four: weights log 3 and log 1.5 over their sum; deviations from the old mean."""
    for before, after in pairwise(history("plain")):
        order = np.argsort(-np.asarray(after.metrics.fitness), kind="stable")
        first, second = np.asarray(after.population)[order[:2]]
        np.testing.assert_allclose(after.search.mean, 0.730423 * first + 0.269577 * second, atol=1e-6)
        old, damp = np.asarray(before.search.mean), 0.95 * float(before.search.damp) + 0.05 * 1e-5
        squares = 0.730423 * (first - old) ** 2 + 0.269577 * (second - old) ** 2
        np.testing.assert_allclose(after.search.variance, squares / 2 + damp, rtol=1e-4)
        close(after.before, before.search)
        assert int(after.metrics.trained_parents) == (order[:2] < 2).sum()


def test_the_first_individuals_climb_once_the_warm_up_is_over():
    start, played = history("plain")[:2]
    assert int(start.env_steps) == 0
    assert int(played.env_steps) > TINY.warmup
    step = compiled("plain")[2]
    for state, learns in ((start, False), (played, True)):
        after, idle = step(state), step(with_numbers(state, updates_per_step=0.0))
        equal(after.population[2:], idle.population[2:])
        assert same(after.population[:2], idle.population[:2]) is not learns
        assert same(after.critic, idle.critic) is not learns
        # Those who did not climb mirror each other around the mean of the search.
        drawn = np.asarray(idle.population)
        np.testing.assert_allclose((drawn[:2] + drawn[2:]) / 2, np.stack([state.search.mean] * 2), atol=1e-6)


def test_who_has_diverged_ranks_last_and_leaves_nothing_in_the_replay():
    """With a rate that is no number both trained actors are lost; the others move the search."""
    state = history("plain")[2]
    learner = replace(state.hyper.learner, actor_lr=jnp.float32(jnp.nan))
    after = compiled("plain")[2](replace(state, hyper=replace(state.hyper, learner=learner)))
    assert not np.isfinite(after.population[:2]).any()
    assert (int(after.metrics.diverged), int(after.metrics.trained_parents)) == (2, 0)
    assert after.length[:2].tolist() == [0, 0]
    assert int(after.metrics.steps) > int(after.length.sum()), "their steps are counted"
    kept = (after.replay, after.search, after.metrics.fitness)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept) if x.dtype == jnp.float32)


def test_gradient_steps_are_the_steps_of_the_last_generation():
    for before, after in pairwise(history("plain")[1:]):
        count = int(before.metrics.steps)
        assert int(after.metrics.gradient_steps) == count
        counts = [int(s.critic.optimizer[1][0].count) for s in (before, after)]
        assert counts[1] - counts[0] == count // 2 * 2


def test_side_by_side_is_one_after_the_other():
    """Algorithm 1 in Python. A replay of one row makes every batch known, and so is the target action."""
    method, init, step = compiled("one row")
    state = step(init(jax.random.key(1), method.hyper))
    learner = replace(state.hyper.learner, target_noise=jnp.float32(0))
    state = replace(state, hyper=replace(state.hyper, learner=learner))
    idle, after = step(with_numbers(state, updates_per_step=0.0)), step(state)
    parts = shared_critic.build(make("probe/corridor").spec, TINY.hidden, 2, "cem_rl")
    learn, climb = jax.jit(parts.learn), jax.jit(parts.climb)
    drawn = method.individuals(idle)
    rows, critic, count = state.replay.rows, state.critic, int(state.metrics.steps)
    for i in range(2):
        policy = tree.take(drawn, i)
        for _ in range(count // 2):
            critic = learn(critic, policy, rows, learner, jax.random.key(0))[0]
        climber = parts.begin(policy, learner)
        for _ in range(count):
            climber = climb(climber, tree.take(critic.params, 0), rows.obs, learner)[0]
        close(tree.take(method.individuals(after), i), climber[0], rtol=2e-3, atol=2e-4)
    close(after.critic.params, critic.params, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["plain", "elite", "mixing"])
def test_the_replay_holds_what_everyone_played(name):
    for before, after in pairwise(history(name)):
        rewards = np.asarray(after.replay.rows.reward)
        for i in range(4):
            slots = (int(after.start[i]) + np.arange(int(after.length[i]))) % len(rewards)
            total = rewards[slots].sum() / CONFIGS[name].trials
            assert total == pytest.approx(float(after.metrics.fitness[i]), abs=1e-4)
        gained = (int(after.replay.position) - int(before.replay.position)) % len(rewards)
        assert gained == int(after.length.sum()) % len(rewards)
        assert int(after.env_steps - before.env_steps) == int(after.metrics.steps)


def test_an_elite_is_the_best_of_the_generation_before():
    states = history("elite")
    for before, after in pairwise(states[1:]):
        best = int(np.argmax(before.metrics.fitness))
        equal(after.population[-1], before.population[best])
    assert not same(states[1].population[-1], states[0].population[int(np.argmax(states[0].metrics.fitness))])


def test_an_elite_has_not_diverged_even_among_equals():
    state = history("elite")[-1]
    equals = replace(state.metrics, fitness=jnp.ones(4))
    lost = replace(state, population=state.population.at[0].set(jnp.nan), metrics=equals)
    equal(compiled("elite")[2](lost).population[-1], state.population[1])


def test_those_who_stay_are_not_played_again():
    method, init, step = compiled("mixing")
    state = step(init(jax.random.key(1), method.hyper))
    assert int(state.metrics.reused) == 0
    still = step(replace(state, before=state.search))  # a search that stands still keeps everyone
    assert int(still.metrics.reused) == 2
    equal(still.population[2:], state.population[2:])
    equal(still.metrics.fitness[2:], state.metrics.fitness[2:])
    equal(still.length[2:], state.length[2:])
    assert int(still.metrics.steps) == int(still.length[:2].sum())
    moved = step(replace(state, search=replace(state.search, mean=state.search.mean + 100)))
    assert int(moved.metrics.reused) == 0
    assert int(moved.metrics.steps) == int(moved.length.sum())


def test_the_mean_actor_is_deployed():
    method = compiled("plain")[0]
    state = history("plain")[-1]
    np.testing.assert_array_equal(
        jax.flatten_util.ravel_pytree(method.policy(state))[0], np.asarray(state.search.mean)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"trained": 11}, "trained 11 exceeds the population 10; lower it"),
        ({"trained": 10, "mixing": True}, "all 10 train; lower trained"),
        ({"mixing": True, "elitism": True}, "choose one"),
        ({"hidden": (0,)}, "hidden must have sizes of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cem_rl.Config(**options)


def test_a_replay_that_cannot_hold_a_generation_cannot_mix():
    with pytest.raises(ValueError, match="up to 500 transitions back from the replay; raise capacity 499"):
        cem_rl.build(make("probe/corridor"), cem_rl.Config(mixing=True, capacity=499))


def test_defaults_are_the_papers():
    hyper = as_arrays(cem_rl.Hyper())
    assert cem_rl.Config().search == cem.Config(population=10, parents=5, antithetic=True)
    assert [round(float(x), 6) for x in jax.tree.leaves(hyper.search)] == [1e-3, 1e-3, 1e-5, 0.95]


CASES = {
    "cem_rl": Case(
        lambda: cem_rl.build(make("probe/delay"), replace(TINY, warmup=4, batch=2)),
        4,
        mean=True,
        slow_members=True,
    ),
    "cem_rl-mixing": Case(
        lambda: cem_rl.build(make("probe/delay"), replace(TINY, warmup=4, batch=2, mixing=True)),
        4,
        mean=True,
        slow=True,
    ),
}
