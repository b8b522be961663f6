"""PDERL generation by generation on a walk whose episodes differ in length, and its configurations."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import agents, tree
from popjax.agents import ddpg, dqn, sac, sac2018, td3
from popjax.core import Spec
from popjax.envs import make
from popjax.envs.episodic import episodic
from popjax.evolution.crossover import Distillation
from popjax.evolution.mating import Mating
from popjax.evolution.select import replaceable
from popjax.intrinsic import contrastive, diayn
from popjax.methods import erl, pderl
from popjax.replay.ring import latest
from tests.support import Case, close, same, slow_except

LIMIT = 12
TINY = pderl.Config(
    population=6,
    elite_fraction=0.2,
    trials=2,
    sync_period=2,
    memory=30,
    mutation_batch=8,
    capacity=400,
    batch=32,
    distillation=Distillation(batch=8, epochs=2),
    agent=ddpg.Config(hidden=(4, 4), critic_branch=4, critic_hidden=4),
)
VARIANTS = {
    "pderl": TINY,
    "derl": replace(TINY, mutation="gaussian", mating=Mating(score="distance")),
    "perl": replace(TINY, crossover="n_point", elite_fraction=0.4),
    "erl": replace(TINY, crossover="n_point", mutation="gaussian", population=2),
}
SOME = slow_except(["pderl"], VARIANTS)


def walk():
    """Walks from a random place by the action, until it is beyond 0.6 or 12 steps are over."""

    def reset(key):
        place = jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return place, place

    def step(place, action):
        place = place + 0.3 * action
        return place, place, action.sum(), jnp.abs(place[0]) > 0.6

    return episodic(Spec("walk", (2,), 2, LIMIT), reset, step)


@lru_cache
def compiled(name):
    method = pderl.build(walk(), VARIANTS[name])
    return method, jax.jit(method.init), jax.jit(method.step)


@lru_cache
def history(name, generations=5, **numbers):
    """States before the first generation and after each."""
    method, init, step = compiled(name)
    states = [init(jax.random.key(3), replace(method.hyper, **numbers))]
    for _ in range(generations):
        states.append(step(states[-1]))
    return states


def generations(name, **numbers):
    states = history(name, **numbers)
    return list(pairwise(states))


def played(before, after):
    """Return the rows that replay gained in a generation, split into episodes; the time limit is terminal in
    the default."""
    rows, valid = latest(after.replay, after.replay.capacity)
    rows = jax.tree.map(lambda x: np.asarray(x)[np.asarray(valid)][-int(after.metrics.steps) :], rows)
    ends = np.flatnonzero(rows.discount == 0) + 1
    return [
        jax.tree.map(lambda x, a=a, b=b: x[a:b], rows) for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]


def test_worked_example_6_the_noise():
    noise, found = jnp.zeros(1), []
    for normal in (1.0, -0.5, 0.2):
        noise = ddpg.ornstein_uhlenbeck(noise, jnp.array([normal]), 0.15, 0.2)
        found.append(float(noise[0]))
    np.testing.assert_allclose(found, [0.2, 0.07, 0.0995], rtol=1e-5)
    np.testing.assert_allclose(0.3 * np.array(found), [0.06, 0.021, 0.02985], rtol=1e-5)
    normals = jax.random.normal(jax.random.key(0), (200_000,))
    walked = jax.lax.scan(lambda x, z: (ddpg.ornstein_uhlenbeck(x, z, 0.15, 0.2),) * 2, 0.0, normals)[1]
    assert 0.3 * float(walked.std()) == pytest.approx(0.1139, rel=0.02)


@pytest.mark.parametrize(
    ("task", "elites", "trials", "sync", "std", "steps"),
    [
        ("gym/Swimmer-v4", 1, 1, 10, 0.1, 2e6),
        ("brax/halfcheetah", 1, 1, 10, 0.1, 6e6),
        ("brax/hopper", 2, 3, 1, 0.1, 4e6),
        ("gym/Walker2d-v2", 2, 5, 1, 0.1, 6e6),
        ("brax/ant", 2, 1, 1, 0.01, 6e6),
    ],
)
def test_presets_are_the_papers(task, elites, trials, sync, std, steps):
    config, hyper, env_steps, _ = pderl.preset(task)
    assert (config.elites, config.trials, config.sync_period) == (elites, trials, sync)
    assert (hyper.mutation_std, env_steps) == (std, steps)
    assert config == replace(
        pderl.Config(), elite_fraction=config.elite_fraction, trials=trials, sync_period=sync
    )


@pytest.mark.parametrize(
    ("task", "elites", "trials", "sync", "steps"),
    [
        ("swimmer", 1, 1, 10, 2e6),
        ("halfcheetah", 1, 1, 10, 2e6),
        ("hopper", 3, 5, 1, 4e6),
        ("walker2d", 2, 3, 10, 8e6),
        ("ant", 3, 1, 1, 6e6),
        ("reacher", 2, 5, 10, 2e6),
    ],
)
def test_presets_of_erl(task, elites, trials, sync, steps):
    config, _, env_steps, _ = erl.preset(f"brax/{task}")
    assert (config.elites, config.trials, config.sync_period, env_steps) == (elites, trials, sync, steps)
    assert (config.crossover, config.mutation) == ("n_point", "gaussian")
    assert erl.preset("gymnax/Pendulum-v1") is None


def test_the_defaults_are_the_papers():
    config, hyper = pderl.Config(), pderl.Hyper()
    assert (config.population, config.tournament, config.memory, config.capacity) == (10, 3, 8000, 1_000_000)
    assert (config.batch, config.learning_starts, config.mutation_batch) == (128, 640, 256)
    assert config.distillation == Distillation(128, 12, "mode")
    assert config.mating == Mating("greedy", 256, 1000)
    assert (config.agent.hidden, config.agent.critic_branch, config.agent.critic_hidden) == (
        (128, 128),
        200,
        300,
    )
    assert (hyper.mutation_probability, hyper.crossover_lr, hyper.sensitivity_floor) == (0.9, 1e-3, 0.01)
    assert (hyper.noise_theta, hyper.noise_sigma, hyper.noise_scale) == (0.15, 0.2, 0.3)
    learner = hyper.agent
    assert (learner.discount, learner.polyak, learner.max_grad_norm) == (0.99, 0.001, 10)
    assert (learner.actor_lr, learner.critic_lr, hyper.updates_per_step) == (5e-5, 5e-4, 1)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"population": 3, "elite_fraction": 0.7}, "elites 2 exceed half of population 3"),
        ({"population": 1}, "elites 1 exceed half of population 1"),
        ({"capacity": 640}, "capacity 640 must exceed the 640 transitions after which the learner starts"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"sync_period": -1}, "sync_period must be at least 1, got -1"),
        ({"memory": 1}, "at least 2 states, one of each parent, got 1"),
        ({"crossover": "npoint"}, "one of 'distil', 'n_point', got 'npoint'"),
        ({"mutation": "gauss"}, "one of 'proximal', 'gaussian', got 'gauss'"),
        ({"drive": diayn.Config()}, "which a learner and individuals with one network cannot use; set drive"),
    ],
)
def test_senseless_configs_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        pderl.Config(**numbers)


@pytest.mark.parametrize("kind", slow_except([dqn], [td3, sac, sac2018, dqn]))
def test_every_kind_of_agent_evolves(kind):
    """A learner enters as it is, children are born, and the elite's copy survives."""
    env = make("probe/corridor-discrete" if kind is dqn else "probe/corridor")
    config = replace(TINY, agent=kind.Config(hidden=(4,)), trials=1, batch=3)
    method = pderl.build(env, config)
    state, step = jax.jit(method.init)(jax.random.key(0), method.hyper), jax.jit(method.step)
    children = 0
    for _ in range(4):
        before, state = state, step(state)
        children += int(state.metrics.children)
        best = int(np.argsort(state.metrics.fitness, stable=True)[-1])  # of equals the last
        assert same(tree.take(state.actors, int(state.elite_copy)), tree.take(before.actors, best))
    agent = agents.build(env.spec, config.agent)
    assert same(tree.take(state.actors, int(state.synced)), agent.policy(state.learner))
    assert children > 0
    assert int(state.metrics.gradient_steps) > 0


def test_agents_that_cannot_be_shared_or_distilled_are_refused():
    with pytest.raises(ValueError, match="needs continuous actions"):
        pderl.build(make("probe/action-discrete"))
    with pytest.raises(ValueError, match="must be a network alone; choose an agent that"):
        pderl.build(walk(), replace(TINY, agent=ddpg.Config(normalize=True)))
    with pytest.raises(ValueError, match="imitate kl needs a stochastic policy"):
        pderl.build(walk(), replace(TINY, distillation=Distillation(imitate="kl")))


@pytest.mark.parametrize("name", SOME)
def test_every_variant_trains(name):
    """All numbers stay finite; environment and gradient steps are counted exactly."""
    config, total = VARIANTS[name], 0
    for generation, (before, after) in enumerate(generations(name), 1):
        floats = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert all(np.isfinite(x).all() for x in floats)
        steps, players = int(after.metrics.steps), config.population * config.trials + 1
        total += steps
        assert int(after.env_steps) == total
        assert int(after.generation) == generation
        assert players <= steps <= players * LIMIT
        assert int(after.replay.size) == min(total, config.capacity)
        assert int(after.replay.position) == total % config.capacity
        learning = int(after.replay.size) > 160
        assert int(after.metrics.gradient_steps) == (steps if learning else 0)
        assert same(before.learner, after.learner) != learning
        assert (float(after.metrics.losses.critic_loss) != 0) == learning
    assert int(history(name)[1].metrics.gradient_steps) == 0
    assert learning


def test_replay_is_written_individual_by_individual_the_learner_last():
    config = TINY
    for before, after in generations("pderl")[:3]:
        episodes = played(before, after)
        assert len(episodes) == config.population * config.trials + 1
        assert sum(len(e.reward) for e in episodes) == int(after.metrics.steps)
        agent = ddpg.build(walk().spec, config.agent)
        returns = np.array([e.reward.sum() for e in episodes])
        for i, e in enumerate(episodes[:-1]):
            actor = tree.take(before.actors, i // config.trials)
            np.testing.assert_allclose(e.action, agent.actor.apply(actor, e.obs), atol=1e-5)
            np.testing.assert_array_equal(e.obs[1:], e.next_obs[:-1])
        np.testing.assert_allclose(
            after.metrics.fitness, returns[:-1].reshape(6, 2).mean(1), rtol=1e-4, atol=1e-5
        )
        assert float(after.metrics.learner_return) == pytest.approx(returns[-1], rel=1e-4)
        last = episodes[-1]
        greedy = agent.actor.apply(before.learner.actor, last.obs)
        expected = np.clip(greedy[-1] + 0.3 * after.noise, -1, 1)  # noise moved on its played steps only
        np.testing.assert_allclose(last.action[-1], expected, atol=1e-5)
        assert np.abs(last.action - greedy).max() > 1e-3
        assert np.abs(last.action).max() <= 1


def test_noise_advances_on_the_learners_played_steps_only():
    """Without new noise it shrinks by 1 - theta in each step of the episode, and goes on in the next."""
    method, init, step = compiled("pderl")
    state = init(jax.random.key(0), replace(method.hyper, noise_sigma=0.0)).replace(noise=jnp.ones(2))
    turns = 0
    for _ in range(3):
        before, state = state, step(state)
        turns += len(played(before, state)[-1].reward)
        np.testing.assert_allclose(state.noise, 0.85**turns, rtol=1e-4)


def test_the_learners_memory_holds_its_own_episodes():
    before, first, second = history("pderl")[:3]
    rows, valid = latest(second.learner_memory, 30)
    mine = [played(before, first)[-1], played(first, second)[-1]]
    expected = np.concatenate([episode.obs for episode in mine])
    np.testing.assert_array_equal(np.asarray(rows.obs)[valid], expected)


@pytest.mark.parametrize("name", SOME)
def test_the_elite_copy_survives_an_epoch_bit_for_bit(name):
    """Whatever mates and mutates; its memory is the elite's, newest experience included."""
    for before, after in generations(name):
        best = int(jnp.argmax(after.metrics.fitness))
        copy = int(after.elite_copy)
        elite = tree.take(before.actors, best)
        assert same(after.champion, elite)
        assert copy != int(after.synced)
        assert same(tree.take(after.actors, copy), elite)
        own = np.concatenate([e.obs for e in played(before, after)[2 * best : 2 * best + 2]])
        rows, valid = latest(tree.take(after.memories, copy), 30)
        np.testing.assert_array_equal(np.asarray(rows.obs)[valid][-len(own) :], own[-30:])


@pytest.mark.parametrize("name", SOME)
def test_the_learner_enters_on_time_and_takes_the_least_fit_slot(name):
    for generation, (_, after) in enumerate(generations(name), 1):
        slot = int(after.synced)
        if generation % 2:
            assert slot == -1
            continue
        assert slot == int(replaceable(after.metrics.fitness, after.elite_copy))
        assert same(tree.take(after.actors, slot), after.learner.actor)
        assert same(tree.take(after.memories, slot), after.learner_memory)


@pytest.mark.parametrize("name", SOME)
def test_fates_count_what_became_of_each_entry(name):
    entries = 0
    for before, after in generations(name):
        entered, change = int(before.synced), np.asarray(after.fates - before.fates)
        entries += entered >= 0
        assert int(after.fates.sum()) == entries
        assert change.sum() == (entered >= 0)
        if entered >= 0:
            elite = np.argsort(after.metrics.fitness, stable=True)[::-1][: VARIANTS[name].elites]
            assert change[0] == (entered in elite)
        rates = [after.metrics.elite_rate, after.metrics.selected_rate, after.metrics.discarded_rate]
        np.testing.assert_allclose(rates, np.asarray(after.fates) / max(entries, 1), rtol=1e-6)
    assert entries == 2


def test_a_slot_that_keeps_its_genome_was_selected_and_one_that_does_not_was_discarded():
    """Table 2's rows, of one generation and an entry into each slot. The parents of a generation tell whose
    genome a slot has before mutation."""
    before = history("pderl")[4]
    found = []
    for slot in range(6):
        after = compiled("pderl")[2](replace(before, synced=jnp.int32(slot)))
        told = np.asarray(after.fates - before.fates).tolist()
        if slot == int(jnp.argmax(after.metrics.fitness)):
            assert told == [1, 0, 0]
            continue
        kept = after.metrics.parents[slot].tolist() == [slot, -1]
        assert told == ([0, 1, 0] if kept else [0, 0, 1])
        found.append(kept)
    assert set(found) == {True, False}


def test_without_training_and_mutation_a_child_is_the_second_of_its_parents():
    """The less fit one, from which distillation starts."""
    children = 0
    for before, after in generations("pderl", mutation_probability=0.0, crossover_lr=0.0):
        for slot, (first, second) in enumerate(after.metrics.parents.tolist()):
            if second >= 0 and slot != int(after.synced):
                assert same(tree.take(after.actors, slot), tree.take(before.actors, second))
                children += first != second
    assert children > 3


def test_without_mutation_a_slot_is_itself_an_elite_copy_or_a_child():
    for before, after in generations("pderl", mutation_probability=0.0):
        best, synced = int(jnp.argmax(after.metrics.fitness)), int(after.synced)
        assert best == synced or same(tree.take(after.actors, best), after.champion)
        new = 0
        for slot in set(range(6)) - {synced, int(after.elite_copy)}:
            new += not same(tree.take(after.actors, slot), tree.take(before.actors, slot))
        children = int(after.metrics.children)
        assert new == children or (synced >= 0 and new == children - 1)
    assert sum(int(s.metrics.children) for s in history("pderl", mutation_probability=0.0)) > 3


def test_with_certain_mutation_only_the_elite_copy_stays():
    for before, after in generations("pderl", mutation_probability=1.0):
        kept = {int(after.elite_copy), int(after.synced)}
        for slot in set(range(6)) - kept:
            assert not same(tree.take(after.actors, slot), tree.take(before.actors, slot))


def test_the_number_of_gradient_steps_scales_with_updates_per_step():
    after = history("pderl", updates_per_step=0.5)[-1]
    assert int(after.metrics.gradient_steps) == int(after.metrics.steps) // 2


@pytest.mark.parametrize("name", ["erl", "pderl"])
def test_the_bound_on_steps_holds(name):
    method = compiled(name)[0]
    assert method.steps_bound == (VARIANTS[name].population * 2 + 1) * LIMIT
    assert all(int(s.metrics.steps) <= method.steps_bound for s in history(name))


def test_the_champion_is_what_would_be_deployed(key):
    method = compiled("pderl")[0]
    state = history("pderl")[-1]
    assert method.policy(state) is state.champion
    action = method.act(method.policy(state), method.memory, jnp.ones(2), key, 0.0).action
    assert action.shape == (2,)
    assert np.abs(action).max() <= 1
    np.testing.assert_allclose(method.exploration(state), 0.1)  # DDPG's, not noise of deviation 1


@pytest.mark.parametrize("weight", [jnp.nan, jnp.inf])
def test_an_individual_that_has_diverged_is_no_champion(weight):
    """With NaN it earns NaN; an infinite bias of the outputs makes it earn more than any other."""
    state = history("pderl")[0]
    lost = jax.tree.map(lambda x: x.at[0].set(weight) if x.shape[1:] == (2,) else x, state.actors)
    after = compiled("pderl")[2](replace(state, actors=lost))
    assert after.metrics.fitness[0] == after.metrics.fitness[1:].min()
    assert int(after.metrics.diverged) == 1
    best = 1 + after.metrics.fitness[1:].argmax()
    assert same(after.champion, tree.take(state.actors, int(best)))
    steps = float(after.metrics.steps)
    assert 0 < float(after.replay.size) < steps, "its episode is played, and leaves nothing"
    kept = jax.tree.leaves((after.replay, after.learner, after.memories))
    assert all(np.isfinite(x).all() for x in kept if x.dtype == jnp.float32)


@pytest.mark.parametrize("name", slow_except(["pderl"], ["pderl", "perl", "erl"]))
def test_everybodys_parents_are_told(name):
    """Without mutation a slot of one parent is that parent; the learner's has none, a child has two."""
    config, children = VARIANTS[name], 0
    for before, after in generations(name, mutation_probability=0.0):
        slot = int(after.synced)
        parents = np.asarray(after.metrics.parents)
        assert parents[after.elite_copy, 0] == int(jnp.argmax(after.metrics.fitness))
        for heir, (one, other) in enumerate(parents.tolist()):
            if heir == slot:
                assert (one, other) == (-1, -1)
                continue
            alone = same(tree.take(after.actors, heir), tree.take(before.actors, one))
            assert alone or other >= 0
            children += other >= 0
            assert 0 <= one < config.population
            assert other < config.population
    counted = sum(int(s.metrics.children) for s in history(name, mutation_probability=0.0))
    assert children <= counted
    assert (children > 0) == (config.population > 2)


def test_an_exchange_of_rows_has_two_parents():
    """Every weight of a child is one of its parents', and some are each's."""
    found = 0
    for before, after in generations("perl", mutation_probability=0.0):
        for heir, (one, other) in enumerate(np.asarray(after.metrics.parents).tolist()):
            if other < 0 or one == other:
                continue
            trees = (tree.take(after.actors, heir), *(tree.take(before.actors, p) for p in (one, other)))
            for child, x, y in zip(*map(jax.tree.leaves, trees), strict=True):
                assert ((np.asarray(child) == x) | (np.asarray(child) == y)).all()
            found += 1
    assert found


COLLAB = contrastive.Config(hidden=(4,), features=4, bank_size=6, neighbours=2, horizon=2)


@pytest.mark.slow
def test_the_learner_is_paid_for_novelty_and_individuals_are_not():
    """Where all observations are 1 the novelty of the identity is -1: the learner's rewards are less by the
    weight, and fitness is the task's return."""
    env, config = make("probe/endless"), replace(TINY, batch=4)

    def less(state, action):
        state, timestep = env.step(state, action)
        return state, replace(timestep, reward=timestep.reward - 0.25)

    def ran(env, drive, **weight):
        method = pderl.build(env, replace(config, drive=drive))
        hyper = method.hyper
        hyper = replace(hyper, drive=replace(hyper.drive, **weight)) if weight else hyper
        state, step = jax.jit(method.init)(jax.random.key(0), hyper), jax.jit(method.step)
        for _ in range(3):
            state = step(state)
        return state

    paid = ran(env, replace(COLLAB, encoder="identity"), weight=0.25)
    plain = ran(env._replace(step=less), None)
    assert int(paid.metrics.gradient_steps) > 0
    np.testing.assert_allclose(paid.metrics.bonus, [-0.25], atol=1e-6)
    close(paid.learner, plain.learner, atol=1e-5)
    np.testing.assert_allclose(paid.metrics.fitness, plain.metrics.fitness + 5 * 0.25, atol=1e-5)


@pytest.mark.slow
def test_the_replay_of_a_drive_numbers_whole_episodes():
    """Rows of one number follow one another, and everyone's states reach the bank."""
    method = pderl.build(walk(), replace(TINY, drive=replace(COLLAB, bank_size=400, bank_every=1)))
    state = jax.jit(method.init)(jax.random.key(3), method.hyper)
    for _ in range(2):
        state = jax.jit(method.step)(state)
    rows, valid = latest(state.replay, state.replay.capacity)
    rows = jax.tree.map(lambda x: np.asarray(x)[np.asarray(valid)], rows)
    goes_on = rows.episode[1:] == rows.episode[:-1]
    np.testing.assert_array_equal(rows.next_obs[:-1][goes_on], rows.obs[1:][goes_on])
    assert len(np.unique(rows.episode)) == 2 * (6 * 2 + 1)
    held = np.asarray(state.drive.bank.rows[0])[: int(state.drive.bank.size[0])]
    assert sorted(map(tuple, held)) == sorted(map(tuple, rows.next_obs))


def a_case(method=pderl, slow=False, eager=False, env="probe/delay", **options):
    config = method.Config(
        population=4,
        sync_period=2,
        memory=12,
        mutation_batch=4,
        capacity=200,
        batch=2,
        distillation=Distillation(batch=4, epochs=1),
        agent=ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4),
    )
    build = partial(method.build, make(env), replace(config, **options))
    return Case(build, population=4, slow=slow, eager=eager)


CASES = {
    "pderl": a_case(),
    "pderl_collab": a_case(slow=True, env="probe/context", drive=COLLAB),
    "erl": a_case(erl, slow=True, eager=True),
}
