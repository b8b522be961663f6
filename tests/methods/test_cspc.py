"""A cooperating team: accounts, memories, who hands over what to whom, and agents of any kinds.

Compiling a team takes seconds: what a small team or a part of a step can tell is asked of that, and the rest
of the options is marked slow (``pytest -m slow tests/methods/test_cspc.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from popjax import counting, tree
from popjax.agents import a2c, ddpg, ppo, sac, sac2018, td3
from popjax.core import Env, Spec, Timestep, Transition
from popjax.envs import make
from popjax.evolution import cem
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import cspc, cspc_team
from popjax.methods.cspc import Config, Evolution
from popjax.population import drives, exchange, players
from popjax.replay import good_episodes as store
from popjax.replay import packed, ring
from tests.support import Case, close, same

PPO = ppo.Config(
    hidden=(8,), activation="relu", initializer="uniform", squash=True, policy_epochs=2, value_epochs=2
)
TINY = Config(
    off_policy=sac2018.Config(hidden=(8,)),
    on_policy=PPO,
    evolution=Evolution(hidden=(8,), cem=cem.Config(population=10, parents=5)),
    first_phase=500,
    phase=100,
    capacity=20_000,
    local_capacity=200,
    local_least=100,
    batch=8,
    warmup=100,
    update_after=10,
    on_policy_batch=10,
    trials=2,
    test="mean",
)
DUO = replace(TINY, on_policy=None)  # compiles in half the time
SOLO = replace(DUO, evolution=None)
FUSED = replace(TINY, fused=True, lanes=10, on_policy_lanes=10, on_policy_batch=100, reset_at_batch=False)
ALONE = {"off_policy": None, "on_policy": None, "evolution": None}


def walk(length=10, ends=False):
    """Episodes of ``length`` steps: obs is the clock and where the episode began; the reward is the action.

    With ``ends`` an action above 0 ends the task."""

    def seen(state):
        clock, begun = state
        return jnp.stack([clock / length, begun])

    def reset(key):
        state = (jnp.float32(0), jax.random.uniform(key))
        return state, seen(state)

    def step(state, action):
        state = (state[0] + 1, state[1])
        terminated = ends & (action[0] > 0)
        truncated = (state[0] >= length) & ~terminated
        obs = seen(state)
        return state, Timestep(obs, obs, action[0], terminated, truncated)

    return Env(reset, step, Spec(name="walk", obs_shape=(2,), action_dim=1, episode_length=length))


def compiled(config=TINY, ends=False, length=10):
    return programs(config, ends, length)


@lru_cache(maxsize=8)
def programs(config, ends, length):
    method = cspc.build(walk(length, ends), config)
    return method, jax.jit(method.init), jax.jit(method.step)


def history(iterations, config=TINY, edit=lambda s: s, ends=False, seed=0, hyper=None, length=10):
    method, init, step = compiled(config, ends, length)
    states = [edit(init(jax.random.key(seed), hyper or method.hyper))]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


def under_way(s, bound=1e9):
    """Past the first phase; episodes of everybody that return more than ``bound`` enter the local memory."""
    everybody = jnp.ones_like(s.labels)
    scores = jnp.full_like(s.scores, bound)
    return replace(s, generation=jnp.int32(1), scores=scores, labels=everybody)


def all_enter(s):
    return under_way(s, -1e9)


# Accounting.


def test_steps_iterations_and_gradient_steps_are_the_papers():
    """A hundredth of: 1.01e6 steps after 32 iterations of 3e4 behind a first phase of 5e4."""
    states = history(33)
    steps = [int(s.env_steps) for s in states]
    assert steps == [0, *(500 + 300 * i for i in range(33))]
    assert steps[-1] == 10_100
    np.testing.assert_array_equal(states[1].metrics.steps, [500, 0, 0])
    np.testing.assert_array_equal(states[2].metrics.steps, [100, 100, 100])
    assert [int(s.team.off_policy.updates) for s in states[1:]] == steps[1:]
    assert [int(s.metrics.gradient_steps) for s in states[1:]] == [500] + 32 * [300]
    assert int(states[-1].memory.written) == 10_100


def varied(config):
    """Numbers with which individuals' episodes have different lengths where the task ends."""
    hyper = compiled(config, ends=True)[0].hyper
    return hyper.replace(cem=hyper.cem.replace(init_variance=1.0))


def test_every_phase_is_within_the_bound_and_ends_at_a_boundary():
    method = compiled(TINY, ends=True)[0]
    states = history(6, ends=True, hyper=varied(TINY))
    for before, after in pairwise(states):
        assert int(after.env_steps) - int(before.env_steps) <= method.steps_bound
    for s in states[2:]:
        np.testing.assert_array_equal(s.metrics.steps[:2], [100, 100])
    # What a phase of the search was too long is taken off the next one.
    excess = [int(s.excess) for s in states]
    assert all(e >= 0 for e in excess)
    assert any(excess)
    for k in range(2, 7):
        assert int(states[k].metrics.steps[2]) == 100 - excess[k - 1] + excess[k]


@pytest.mark.slow
def test_the_codes_schedule_follows_the_search():
    """It plays first and half a phase at first; the others as long as it did; then it grows."""
    config = replace(TINY, schedule="code")
    states = history(3, config, edit=lambda s: replace(s, length=jnp.int32(30)))
    np.testing.assert_array_equal(states[1].metrics.steps, [500, 0, 0])
    np.testing.assert_array_equal(states[2].metrics.steps, [100, 100, 100])  # one generation of 10 episodes
    assert int(states[0].length) == 30
    assert int(states[2].length) == 100
    assert compiled(config)[1](jax.random.key(0), compiled(config)[0].hyper).length == 50


@pytest.mark.slow
def test_copies_play_as_long_as_the_search_in_the_codes_schedule():
    """They play after it, the first time as ever."""
    states = history(3, replace(DUO, copies=1, schedule="code"))
    assert [s.metrics.steps.tolist() for s in states[1:]] == [[500, 0, 0], [100] * 3, [100] * 3]
    assert [int(one.updates) for one in states[-1].team.copies] == [200]


@pytest.mark.slow
def test_the_codes_schedule_follows_a_search_of_any_length():
    """Episodes end early, so that a generation is not a multiple of anything: the agents play as long as it,
    the on-policy one in whole batches of ten."""
    config = replace(TINY, schedule="code")
    states = history(
        4, config, edit=lambda s: replace(s, length=jnp.int32(30)), ends=True, hyper=varied(config)
    )
    lengths = [s.metrics.steps for s in states[2:]]
    assert any(int(steps[2]) % 10 for steps in lengths)
    for off_policy, on_policy, search in lengths:
        assert int(off_policy) == int(search)
        assert int(on_policy) == -(-int(search) // 10) * 10


@pytest.mark.slow
def test_gradient_steps_wait_for_experience_and_are_made_up_for():
    states = history(2, replace(SOLO, update_after=150), under_way)
    learners = [s.team.off_policy for s in states]
    assert [int(one.updates) for one in learners] == [0, 0, 200]
    assert [int(one.owed) for one in learners] == [0, 100, 0]
    assert same(learners[0].agent, learners[1].agent)
    assert not same(learners[1].agent, learners[2].agent)


def test_experience_is_stored_before_it_is_learned_from():
    """The gradient step of the first environment step learns from that step."""
    states = history(2, replace(SOLO, phase=1, update_after=1), under_way)
    assert [int(s.team.off_policy.updates) for s in states] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("reset", "clocks"), [(True, [0, 1, 2] * 2), (False, [0, 1, 2, 3, 4, 5])])
def test_episodes_of_the_on_policy_agent_end_with_its_batch(reset, clocks):
    """Batches of ten steps of episodes of seven: the rest of three is an episode, or goes on."""
    config = replace(TINY, evolution=None, reset_at_batch=reset, phase=20)
    memory = history(1, config, all_enter, length=7)[1].memory
    obs = np.asarray(memory.replay.rows.obs[20:40])  # behind the global agent's phase
    played = np.round(7 * obs[:, 0]).astype(int)
    assert list(played[:7]) == list(range(7))
    assert list(played[[7, 8, 9, 10, 11, 12]]) == clocks
    # Of the global agent's rows 14 are of finished episodes; here all, or the last six are still under way.
    assert int(store.local_size(memory)) == 14 + (20 if reset else 14)
    assert (obs[9, 1] == obs[10, 1]) == (not reset)


@pytest.mark.slow
def test_several_lanes_may_end_their_episodes_with_a_batch_that_has_room_for_them():
    """Batches of twelve steps in each of two lanes, of episodes of ten."""
    config = replace(TINY, evolution=None, on_policy_lanes=2, on_policy_batch=24, phase=48)
    s = history(1, config, all_enter)[1]
    played = np.round(10 * np.asarray(s.memory.replay.rows.obs[48:96, 0])).astype(int).reshape(24, 2)
    np.testing.assert_array_equal(played, np.array(2 * [*range(10), 0, 1])[:, None].repeat(2, 1))
    assert int(s.metrics.steps[1]) == 48
    assert int(store.local_size(s.memory)) == 40 + 48


@pytest.mark.slow
def test_the_on_policy_agent_may_learn_after_every_episode():
    """Episodes of seven steps: twenty are three, and every one is a gradient step of A2C."""
    agent = a2c.Config(hidden=(8,), activation="relu", initializer="uniform", squash=True)
    config = replace(TINY, evolution=None, on_policy=agent, phase=20)
    config = replace(config, on_policy_update="episode", reset_at_batch=False)
    states = history(2, config, all_enter, length=7)
    assert [int(s.metrics.steps[1]) for s in states] == [0, 21, 21]
    assert [int(s.team.on_policy.agent.updates) for s in states] == [0, 3, 6]
    memory = states[1].memory
    played = np.round(7 * np.asarray(memory.replay.rows.obs[20:41, 0])).astype(int)
    assert list(played) == list(range(7)) * 3
    assert int(store.local_size(memory)) == 14 + 21


@pytest.mark.slow
def test_a_team_that_learns_after_every_episode_keeps_the_accounts():
    """Where an action above 0 ends the task, episodes and phases have many lengths."""
    config = replace(TINY, on_policy_update="episode", reset_at_batch=False)
    states = history(3, config, ends=True)
    steps = np.diff([int(s.env_steps) for s in states])
    assert steps.max() <= compiled(config, True)[0].steps_bound == max(500, 100 + 109 + 199)
    assert int(states[-1].env_steps) == int(states[-1].memory.written)
    assert int(states[-1].team.off_policy.updates) == int(states[-1].env_steps)
    assert all(100 <= int(s.metrics.steps[1]) < 110 for s in states[2:])


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "kept"), [(8.9, 50), (9.1, 0)])
def test_whole_episodes_of_bursts_pass_the_gate(bound, kept):
    """A policy that plays 0.9 ten times returns 9."""
    config = replace(SOLO, burst=True, warmup=0, phase=50)
    s = history(1, config, lambda s: under_way(sure(s), bound), hyper=still())[1]
    assert int(store.local_size(s.memory)) == kept


@pytest.mark.slow
def test_bursts_play_whole_episodes_and_then_learn():
    states = history(2, replace(SOLO, burst=True, first_phase=495))
    assert [int(s.metrics.steps[0]) for s in states] == [0, 500, 100]
    assert [int(s.team.off_policy.updates) for s in states] == [0, 500, 600]
    assert [int(s.memory.written) for s in states] == [0, 500, 600]


def still():
    """Numbers with which policies do not change."""
    hyper = compiled(SOLO)[0].hyper
    return hyper.replace(off_policy=hyper.off_policy.replace(actor_lr=0.0))


def sure(s):
    """Off-policy agents that play 0.9 and nothing else."""

    def one(learner):
        params = jax.tree.map(jnp.zeros_like, learner.agent.actor)
        params["mlp"]["Dense_1"]["linear"]["bias"] += jnp.arctanh(0.9)
        params["log_std"]["linear"]["bias"] -= 100.0
        return replace(learner, agent=replace(learner.agent, actor=params))

    team = s.team
    copies = tuple(one(copy) for copy in team.copies)
    return replace(s, team=team._replace(off_policy=one(team.off_policy), copies=copies))


def test_warm_up_is_uniform_then_the_policy_plays():
    played = history(1, SOLO, sure, hyper=still())[1].memory.replay.rows.action[:500, 0]
    assert (np.abs(played[:100]) < 0.85).mean() > 0.7
    np.testing.assert_allclose(played[100:], 0.9, atol=1e-4)


def test_the_best_score_is_the_largest_so_far():
    """Also after the agents have lost what they had learned. What is there before the first iteration is no
    score."""
    no_score = jnp.float32(1e9)
    states = history(3, edit=lambda s: replace(s, metrics=replace(s.metrics, best_score=no_score)))
    for team in (states[0].team, None):
        s = states[-1]
        states.append(compiled()[2](s if team is None else replace(s, team=team)))
    elite = np.array([s.metrics.elite_score for s in states[1:]])
    assert elite[3] < elite[2] - 0.1
    np.testing.assert_array_equal(elite, [s.metrics.fitness.max() for s in states[1:]])
    best = [s.metrics.best_score for s in states[1:]]
    np.testing.assert_array_equal(best, np.maximum.accumulate(elite))


# Memories.


def rows(count, start=0):
    number = jnp.arange(start, start + count, dtype=jnp.float32)
    return Transition(number[:, None], number[:, None], number, jnp.ones(count), number[:, None])


def written(memory, count, start=0):
    return store.remember(memory, rows(count, start), jnp.ones(count, bool))


def empty(capacity=100, local=5):
    return store.init(tree.take(rows(1), 0), capacity, local)


def entering(memory, numbers, valid):
    return replace(memory, local=ring.add(memory.local, numbers, valid))


def held(memory):
    """Rewards of what the local memory holds, oldest first; each row's reward is its number."""
    size = int(store.local_size(memory))
    slots = (int(memory.local.position) - size + np.arange(size)) % memory.local.capacity
    return [int(n) for n in counting.on_host(tree.take(memory.local.rows, slots))]


def test_the_local_memory_is_first_in_first_out():
    memory, first = written(empty(), 3)
    memory = entering(memory, first, jnp.ones(3, bool))
    memory, second = written(memory, 4, 3)
    memory = entering(memory, second, jnp.ones(4, bool))
    assert held(memory) == [2, 3, 4, 5, 6]


def test_rows_that_were_overwritten_are_gone_with_all_that_entered_before():
    memory, numbers = written(empty(capacity=10, local=8), 4)
    memory = entering(memory, numbers, jnp.ones(4, bool))
    memory, more = written(memory, 8, 4)  # 12 in all: rows 0 and 1 are overwritten
    assert held(memory) == [2, 3]
    memory = entering(memory, tree.take(more, slice(2)), jnp.ones(2, bool))
    assert held(memory) == [2, 3, 4, 5]
    memory, _ = written(memory, 4, 12)
    assert held(memory) == []


def test_the_size_of_a_local_memory_in_lines_is_read_without_gathering_rows(monkeypatch):
    monkeypatch.setattr(packed, "platform", lambda: "tpu")
    memory = jax.eval_shape(lambda: empty(local=200))
    assert isinstance(memory.local.rows, packed.Lines)
    assert "gather" not in str(jax.make_jaxpr(store.local_size)(memory))


@pytest.mark.parametrize("before", [2**31 - 3, 2**32 - 3])
def test_rows_are_numbered_beyond_32_bits(before, key):
    memory = replace(empty(capacity=10, local=8), written=counting.none() + before)
    memory, numbers = written(memory, 4)
    assert int(memory.written) == before + 4
    memory = entering(memory, numbers, jnp.ones(4, bool))
    memory, _ = written(memory, 8, 4)  # 12 in all: rows 0 and 1 are overwritten
    assert held(memory) == [before + 2, before + 3]
    assert set(store.sample(memory, key, 50, 1.0, 1).reward.tolist()) == {2, 3}


def test_invalid_rows_are_neither_written_nor_numbered():
    memory, numbers = store.remember(empty(), rows(4), jnp.array([True, False, True, True]))
    assert int(memory.written) == 3
    np.testing.assert_array_equal(counting.on_host(numbers)[[0, 2, 3]], [0, 1, 2])
    np.testing.assert_array_equal(memory.replay.rows.reward[:3], [0, 2, 3])


@pytest.mark.parametrize(("entries", "expected"), [(10_001, 0.3), (10_000, 0.0)])
def test_three_batches_in_ten_come_from_a_local_memory_that_is_full_enough(entries, expected, key):
    memory, _ = written(empty(capacity=20_000, local=20_000), 20_000)
    memory = entering(memory, counting.none() + jnp.arange(entries), jnp.ones(entries, bool))

    @jax.jit
    @jax.vmap
    def local(key):
        return (store.sample(memory, key, 8, 0.3, 10_000).reward < entries).all()

    # A batch from everything lies within the local memory's rows with probability (1/2)^8.
    share = float(local(jax.random.split(key, 100_000)).mean())
    by_chance = (1 - expected) * (entries / 20_000) ** 8
    assert share - by_chance == pytest.approx(expected, abs=0.005)


def test_a_batch_is_from_one_memory(key):
    memory, _ = written(empty(capacity=1000, local=50), 1000)
    memory = entering(memory, counting.none() + jnp.arange(900, 920), jnp.ones(20, bool))
    drawn = jax.jit(jax.vmap(lambda k: store.sample(memory, k, 16, 0.5, 5).reward))(
        jax.random.split(key, 400)
    )
    inside = ((drawn >= 900) & (drawn < 920)).mean(1)
    assert set(np.unique(np.round(inside[inside > 0.5], 6))) == {1.0}
    assert 150 < (inside == 1).sum() < 250
    assert (inside < 0.5).any()


@pytest.mark.parametrize(
    ("label", "total", "scored", "enters"),
    [(False, 250, True, False), (True, 250, True, True), (True, 200, True, False), (True, 250, False, False)],
)
def test_the_gate(label, total, scored, enters):
    """R_m is 200, the least of 500, 200, 300."""
    gate = store.Gate(jnp.array(label & scored), jnp.array([500.0, 200, 300]).min())
    assert bool(gate.passes(jnp.float32(total))) == enters


def test_episodes_of_lanes_enter_when_they_end_and_pass():
    """Returns of the two lanes' episodes: 3; 1 and 6."""
    episodes = tree.repeat(tree.repeat(counting.none(), 4), 2)
    memory, gate = empty(local=10), store.Gate(jnp.array([True, True]), jnp.float32(2.5))
    lengths, totals = [[0, 0], [1, 1], [2, 0], [0, 1]], [[0, 0], [0, 1], [3, 0], [0, 6]]
    done = [[0, 0], [0, 1], [1, 0], [0, 1]]
    counts = []
    for length, total, ended in zip(lengths, totals, done, strict=True):
        memory, numbers = written(memory, 2, int(memory.written))
        memory, episodes, entered = store.follow(
            memory,
            episodes,
            jnp.array(length),
            numbers,
            jnp.float32(jnp.array(total)),
            jnp.array(ended, bool),
            gate,
        )
        counts.append(int(entered.sum()))
    assert counts == [0, 0, 1, 1]
    assert held(memory) == [0, 2, 4, 5, 7]


def test_an_episode_with_a_row_that_was_not_written_does_not_enter():
    """The first step of the first lane was by an agent that has diverged; all returns pass."""
    episodes = tree.repeat(tree.repeat(counting.none(), 3), 2)
    memory, gate = empty(local=10), store.Gate(jnp.ones(2, bool), jnp.float32(0))
    for clock, valid in enumerate(([False, True], [True, True], [True, True])):
        memory, numbers = store.remember(memory, rows(2), jnp.array(valid))
        length, total = jnp.array([clock % 2, clock]), jnp.ones(2)
        ends = jnp.array([clock == 1, clock == 2])
        memory, episodes, entered = store.follow(memory, episodes, length, numbers, total, ends, gate)
        np.testing.assert_array_equal(entered, [False, clock == 2])
    assert held(memory) == [0, 2, 4]


def test_only_labelled_agents_leave_episodes_and_nobody_before_scores():
    def low(s):
        scores = jnp.array([1e9, -100, 1e9])  # the least of them is the bound
        return replace(s, scores=scores, generation=jnp.int32(1), labels=jnp.zeros(3, bool))

    first = history(1)[1]
    np.testing.assert_array_equal(first.metrics.kept, [0, 0, 0])
    nobody = history(1, edit=low)[1]
    assert nobody.metrics.kept[0] == 10
    np.testing.assert_array_equal(nobody.metrics.kept[1:], [0, 0])
    labels = jnp.array([False, True, True])
    everybody = history(1, edit=lambda s: replace(low(s), labels=labels))[1]
    np.testing.assert_array_equal(everybody.metrics.kept, [10, 10, 10])
    assert int(everybody.metrics.local_size) == 200  # 300 entered, of which the last are kept
    # All 30 episodes are in the replay in any case; the numbers in the local memory are the last 200.
    assert sorted(held(everybody.memory)) == list(range(100, 300))


def test_a_search_keeps_only_its_good_individuals():
    """Returns of the ten individuals straddle the bound."""
    probe = history(1, edit=lambda s: replace(s, generation=jnp.int32(1)))[1]
    bound = jnp.sort(probe.team.evolution.fitness)[6]

    def edit(s):
        return replace(
            s, generation=jnp.int32(1), scores=jnp.full(3, bound), labels=jnp.array([False, False, True])
        )

    after = history(1, edit=edit)[1]
    np.testing.assert_allclose(after.team.evolution.fitness, probe.team.evolution.fitness, rtol=1e-6)
    assert int(after.metrics.kept[2]) == 3


# Handing over.


def handed(scores, config=TINY, edit=lambda team: team):
    """Team before and after, and who took over whose policy."""
    method, init, _ = compiled(config)
    team = edit(init(jax.random.key(3), method.hyper).team)
    roster = cspc_team.gather(walk().spec, config)
    taken = exchange.ahead(jnp.float32(jnp.array(scores)), 100.0) & cspc_team.givers(roster)
    return team, cspc_team.hand_over(roster, team, taken), taken.astype(int).tolist()


def flat(mean):
    return ravel_pytree(mean)[0]


def test_who_is_far_behind_takes_over():
    before, after, taken = handed((500, 390, 399))
    given, own = before.off_policy.agent, after.on_policy.agent
    assert same(own.actor["mlp"], given.actor["mlp"])
    assert same(own.value, given.value)
    assert same(own.actor["log_std"], before.on_policy.agent.actor["log_std"])
    np.testing.assert_array_equal(after.evolution.offered, [True, False])
    np.testing.assert_array_equal(after.evolution.offers[0], flat(given.actor["mlp"]))
    assert same(after.evolution.search, before.evolution.search)
    assert same(after.evolution.population, before.evolution.population)
    assert same(after.off_policy, before.off_policy)
    assert taken == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_an_agent_without_a_score_is_behind_all_others_and_never_deployed():
    """NaN is what an agent scores whose weights have diverged."""
    assert handed((500, np.nan, 450))[2] == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert handed((np.nan, np.nan, 450))[2] == [[0, 0, 0]] * 3
    method = compiled()[0]
    state = replace(history(0)[0], scores=jnp.array([np.nan, 1, 2]))
    assert same(method.policy(state), tree.take(method.individuals(state), 2))


DRIVEN = replace(TINY, drive=replace(cspc.DRIVES["collab"], bank_size=100, bank_every=1))


@pytest.mark.parametrize(
    "config", [TINY, pytest.param(DRIVEN, marks=pytest.mark.slow)], ids=["plain", "collab"]
)
def test_who_has_diverged_leaves_nothing_in_the_memory(config):
    def lost(s):
        learner = s.team.on_policy.agent
        actor = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), learner.actor)
        local = replace(s.team.on_policy, agent=replace(learner, actor=actor))
        return replace(under_way(s), team=s.team._replace(on_policy=local))

    after = history(1, config, edit=lost)[1]
    assert after.metrics.steps.tolist() == [100, 100, 100]
    assert after.scores[1] == -np.inf
    assert int(after.memory.written) == 200
    kept = jax.tree.leaves((after.memory, after.team.off_policy.agent, after.drive))
    assert all(np.isfinite(x).all() for x in kept if x.dtype == jnp.float32)


def test_the_search_gets_the_on_policy_agents_policy_as_it_was():
    before, after, taken = handed((500, 390, 250))
    np.testing.assert_array_equal(after.evolution.offered, [True, True])
    np.testing.assert_array_equal(after.evolution.offers[1], flat(before.on_policy.agent.actor["mlp"]))
    assert taken == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_a_gap_must_be_exceeded():
    before, after, taken = handed((500, 400, 400))
    assert same(before, after)
    assert not np.any(taken)


def test_only_the_global_agents_gift_labels():
    """Scores are those of a tested team; the gap is chosen such that only the search is behind, or nobody."""
    hyper = compiled()[0].hyper
    for gap, labels in ((-1e9, [False, True, True]), (1e9, [False, False, False])):
        s = history(1, hyper=hyper.replace(gap=gap))[1]
        np.testing.assert_array_equal(s.labels, labels)
    _, after, taken = handed((300, 390, 250))
    np.testing.assert_array_equal(after.evolution.offered, [False, True])
    assert taken == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]  # the column of the global agent labels


def test_a_label_stays_for_good():
    """Both local agents take over in the first iteration, and nobody does after it. The bound is below all
    returns, so that the ten episodes of every labelled agent enter the local memory."""
    method, _, step = compiled()
    s = history(1, hyper=method.hyper.replace(gap=-1e9))[1]
    for _ in range(3):
        numbers = replace(s.hyper, gap=jnp.full_like(s.hyper.gap, 1e9))
        s = step(replace(s, hyper=numbers, scores=jnp.full_like(s.scores, -1e9)))
        assert not s.metrics.transfers.any()
        np.testing.assert_array_equal(s.labels, [False, True, True])
        np.testing.assert_array_equal(s.metrics.labels, [0, 1, 1])
        np.testing.assert_array_equal(s.metrics.kept, [10, 10, 10])


def test_moments_stay_with_who_takes_over():
    def trained(team):
        agent = team.on_policy.agent
        moments = jax.tree.map(lambda x: x + 1, agent.actor_optimizer)
        return team._replace(on_policy=replace(team.on_policy, agent=replace(agent, actor_optimizer=moments)))

    before, after, _ = handed((500, 0, 0), edit=trained)
    assert same(after.on_policy.agent.actor_optimizer, before.on_policy.agent.actor_optimizer)
    assert same(after.on_policy.agent.value_optimizer, before.on_policy.agent.value_optimizer)


def offered(s, policy):
    """The state in which a policy [n] waits for evolution's next phase."""
    search = players.offer(s.team.evolution, 0, policy, jnp.array(True))
    return replace(s, team=s.team._replace(evolution=search))


def test_a_policy_enters_the_first_generation_of_every_later_phase():
    config = replace(TINY, off_policy=None, on_policy=None, phase=1)
    policy = jnp.linspace(-1.0, 1.0, flat_size())
    method, init, step = compiled(config)
    s = offered(init(jax.random.key(0), method.hyper), policy)
    for _ in range(2):
        before, s = s.team.evolution, step(replace(s, excess=jnp.int32(0)))
        # A phase of one generation tells of whom the search was told.
        after, told = s.team.evolution, drawn(before).at[0].set(policy)
        expected = cem.tell(before.search, told, after.fitness, s.hyper.cem, config.evolution.cem)
        np.testing.assert_allclose(after.search.mean, expected.mean, atol=1e-6)
        assert not same(drawn(after)[0], policy)  # drawn anew and untouched


def drawn(search):
    """The generation as vectors [individuals, n]."""
    return jax.vmap(flat)(search.population)


def by_mean(policy, obs):
    """Actions [B] of a flat policy."""
    network = cspc_team.gather(walk().spec, DUO).network
    return jax.vmap(network.greedy, (None, 0))(ravel_pytree(network.blank)[1](policy), obs)


@pytest.mark.slow
def test_later_generations_of_a_phase_are_as_drawn():
    """A vector step writes one row of each of ten individuals, and a generation is ten steps."""
    policy = jnp.linspace(-1.0, 1.0, flat_size())
    config = replace(DUO, phase=200)
    s = history(1, config, lambda s: offered(under_way(s), policy))[1]
    rows = jax.tree.map(lambda x: x[200:400], s.memory.replay.rows)  # behind the global agent's phase
    off = np.abs(rows.action - by_mean(policy, rows.obs)).reshape(20, 10)
    np.testing.assert_array_equal((off < 1e-5)[:10].all(0), [True] + [False] * 9)
    assert not (off < 1e-5)[10:].all(0).any()


def test_policies_of_others_wait_for_a_generation_under_way():
    """They enter the next one then, and only that."""
    config, hyper, policy = cem.Config(population=2, parents=1), cem.Hyper(), jnp.full(3, 7.0)
    fresh = players.fresh_search(jnp.zeros(3), hyper, config, jax.random.key(0), slots=1)

    def played(search, done):
        timestep = Timestep(None, None, jnp.ones(2), jnp.array(done), jnp.zeros(2, bool))
        step = players.Step(None, None, timestep, ~search.done)
        return players.evaluate(search, step, hyper, config, jax.random.key(1))

    begun = played(fresh, [False, True])
    waits = players.begin_phase(players.offer(begun, 0, policy, jnp.array(True)), jnp.array(True))
    assert same(waits.population, fresh.population)
    ended = played(waits, [True, True])
    np.testing.assert_array_equal(ended.fitness, [2.0, 1.0])
    np.testing.assert_array_equal(ended.population[0], policy)
    later = played(ended, [True, True])
    assert not same(later.population[0], policy)
    now = players.begin_phase(later, jnp.array(True))
    np.testing.assert_array_equal(now.population[0], policy)
    assert same(players.begin_phase(later, jnp.array(False)), later)


def test_training_draws_from_the_local_memory():
    """A share of 0 and of 1 learn from different rows; without enough of them both learn from the same."""
    blank = store.init(tree.take(example_rows(), 0), DUO.capacity, DUO.local_capacity)
    many = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), (500, *x.shape[1:])), example_rows())
    memory, numbers = store.remember(blank, many, jnp.ones(500, bool))
    for entries, alike in ((DUO.local_least, True), (DUO.local_least + 1, False)):
        held = entering(memory, tree.take(numbers, slice(entries)), jnp.ones(entries, bool))
        found = []
        for share in (0.0, 1.0):
            hyper = compiled(DUO)[0].hyper.replace(local_share=share)
            s = history(1, DUO, lambda s, held=held: replace(under_way(s), memory=held), hyper=hyper)[1]
            found.append(s.team.off_policy.agent)
        assert same(*found) == alike


def example_rows():
    one = jnp.zeros((1, 2))
    return Transition(one, jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(1), one)


def flat_size():
    method, init, _ = compiled()
    return int(jax.eval_shape(init, jax.random.key(0), method.hyper).team.evolution.search.mean.size)


@pytest.mark.slow
def test_no_transfers_leave_labels_and_policies_alone():
    hyper = compiled()[0].hyper.replace(gap=-1e9)
    eager = history(1, hyper=hyper)[-1]
    np.testing.assert_array_equal(eager.metrics.transfers, [[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    hyper = hyper.replace(on_policy=None)
    states = history(3, replace(DUO, transfer=False), hyper=hyper)
    assert not any(s.labels.any() for s in states)
    assert not any(s.metrics.transfers.any() for s in states)
    assert int(states[-1].metrics.kept[1]) == 0


# Drives.


def test_off_policy_agents_learn_from_the_tasks_reward_and_the_drives():
    """Of two agents one has seen [1, 0], the other [0, 1]. To go to [1, 0], which returns 3, has novelty -1
    to the first and 0 to the second; a quarter of a bonus is the agent's own, and half of it is paid."""
    config = contrastive.Config(encoder="identity", bank_size=1, bank_every=1, neighbours=1, horizon=1)
    drive = drives.build(walk().spec, config, population=2, lanes=1)
    hyper = cspc.default_hyper(replace(TINY, drive=config))
    hyper = hyper.replace(drive=hyper.drive.replace(weight=0.5, ego_weight=0.25))
    seen = jnp.eye(2)[None, :, None]  # [T, P, N, 2]
    blank = Transition(seen, jnp.zeros((1, 2, 1, 1)), *jnp.zeros((2, 1, 2, 1)), seen)
    yes = jnp.ones((1, 2, 1), bool)
    state = drive.observe(drive.init(jax.random.key(0)), blank, ~yes, yes, hyper)
    batch = Transition(jnp.eye(2)[1:], jnp.zeros((1, 1)), jnp.full(1, 3.0), jnp.ones(1), jnp.eye(2)[:1])
    agent = SimpleNamespace(learn=lambda state, rows, numbers, key: (state, rows.reward))
    paid = []
    for row in range(2):
        update = cspc_team.lesson(agent, drive, row, lambda key: batch, hyper, teaches=False)
        paid.append(update(((), cspc_team.Driven(state, (), ())), jax.random.key(0))[1][0])
    np.testing.assert_allclose(paid, [3 - 0.5 * 0.25, 3 - 0.5 * 0.75], atol=1e-6)


@pytest.mark.slow
def test_a_drive_without_weight_changes_nothing():
    config = replace(SOLO, drive=cspc.DRIVES["rnd"])
    plain, hyper = history(2, SOLO)[-1], compiled(config)[0].hyper
    free, driven = (
        history(2, config, hyper=hyper.replace(drive=hyper.drive.replace(weight=weight)))[-1]
        for weight in (0.0, 1.0)
    )
    close(plain.team, free.team)
    assert float(free.metrics.bonus) == 0
    assert float(driven.metrics.bonus) > 0
    assert float(driven.metrics.drive.predictor_loss) > 0
    assert not same(plain.team.off_policy.agent, driven.team.off_policy.agent)
    np.testing.assert_array_equal(driven.metrics.steps, plain.metrics.steps)


@pytest.mark.slow
def test_each_agent_remembers_the_states_it_visited():
    """Every step is remembered: of the last phases of 100 steps each agent's own."""
    config = DRIVEN
    s = history(2, config)[-1]
    visited = np.asarray(s.memory.replay.rows.next_obs[500:800]).reshape(3, 100, 2)
    held = s.drive.state.bank
    for row in range(3):
        own = np.roll(np.asarray(held.rows[row]), -int(held.position[row]), axis=0)
        np.testing.assert_array_equal(own, visited[row])
    assert float(s.metrics.drive.encoder_loss) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"off_policy": None, "drive": cspc.DRIVES["rnd"]}, "off_policy is none; set drive none"),
        ({"drive": rnd.Config()}, "set drive collab, or rnd with drive.modules one"),
        ({"drive": contrastive.Config()}, "got drive.horizon 5; set drive.horizon 1"),
        ({"drive": diayn.Config()}, "set drive collab, rnd or none"),
    ],
)
def test_drives_that_a_team_cannot_carry_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **options)


# Scores.


@pytest.mark.slow
def test_tests_begin_in_the_same_states_and_are_not_counted():
    """With rates of 0 and mean actions scores repeat to the bit; they are no steps and no data."""

    def played(test):
        config = replace(SOLO, test=test)
        hyper = compiled(config)[0].hyper
        still = hyper.replace(off_policy=hyper.off_policy.replace(actor_lr=0.0, critic_lr=0.0))
        return history(3, config, hyper=still)

    states = played("mean")
    scores = [float(s.scores[0]) for s in states[1:]]
    assert scores[0] == scores[1] == scores[2]
    assert int(states[-1].memory.written) == int(states[-1].env_steps) == 700
    states = played("sample")
    assert len({float(s.scores[0]) for s in states[1:]}) == 3


def test_a_score_is_the_mean_return_of_the_tested_policy():
    config = TINY
    s = history(2, hyper=compiled()[0].hyper.replace(gap=1e9))[-1]
    env, roster = walk(), cspc_team.gather(walk().spec, config)
    means = cspc_team.means(roster, s.team)
    _, begun, _ = s.starts.env
    for row in range(roster.size):
        mean, totals = tree.take(means, row), []
        for trial in range(config.trials):
            state, obs, total = tree.take(begun, trial), s.starts.obs[trial], 0.0
            for _ in range(10):
                state, timestep = env.step(state, roster.network.greedy(mean, obs))
                total, obs = total + timestep.reward, timestep.obs
            totals.append(total)
        np.testing.assert_allclose(s.scores[row], np.mean(totals), atol=1e-4)
    best = int(jnp.argmax(s.scores))
    assert same(compiled(config)[0].policy(s), tree.take(means, best))
    assert float(s.metrics.elite_score) == float(s.scores.max())
    assert float(s.metrics.best_score) >= float(s.metrics.elite_score)


def test_the_search_is_represented_by_its_best_or_its_mean():
    team = history(2)[-1].team
    for score, expected in (("best", team.evolution.best), ("mean", team.evolution.search.mean)):
        config = replace(TINY, evolution=replace(TINY.evolution, score=score))
        player = cspc_team.gather(walk().spec, config).players.evolution
        np.testing.assert_array_equal(flat(player.mean(team.evolution)), expected)
    assert not same(team.evolution.best, team.evolution.search.mean)
    first = history(1)[-1].team.evolution
    np.testing.assert_array_equal(first.best, first.search.mean)


# Roster.

TEAMS = {
    "sac": {"on_policy": None, "evolution": None},
    "ppo": {"off_policy": None, "evolution": None},
    "cem": {"off_policy": None, "on_policy": None},
    "without sac": {"off_policy": None},
    "without ppo": {"on_policy": None},
    "without cem": {"evolution": None},
    "three sacs": {"copies": 2, "on_policy": None, "evolution": None},
    "td3 and a2c": {
        "off_policy": td3.Config(hidden=(8,)),
        "on_policy": a2c.Config(hidden=(8,), activation="relu", squash=True),
    },
    "newer sac": {"off_policy": sac.Config(hidden=(8,))},
    "ddpg": {"off_policy": ddpg.Config(hidden=(8,), activation="relu", norm="none")},
    "own experience": {"share": False},
    "fused without sac": {
        "off_policy": None,
        "fused": True,
        "lanes": 10,
        "on_policy_lanes": 10,
        "on_policy_batch": 100,
        "reset_at_batch": False,
    },
    "fused sacs": {"copies": 1, "on_policy": None, "evolution": None, "fused": True},
    "lanes": {"lanes": 2, "on_policy_lanes": 2, "reset_at_batch": False},
}


USUAL = ("td3 and a2c",)


def moved(before, after, config):
    """bool [P] whose mean network, or whose search's mean, differs."""
    config = replace(config, evolution=config.evolution and replace(config.evolution, score="mean"))
    roster = cspc_team.gather(walk().spec, config)
    means = [jax.vmap(flat)(cspc_team.means(roster, s.team)) for s in (before, after)]
    return np.asarray((means[0] != means[1]).any(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "team", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in TEAMS]
)
def test_any_team_keeps_the_accounts_and_learns(team):
    config = replace(TINY, **TEAMS[team])
    states = history(3, config)
    size, alone = config.agents, config.off_policy is None
    first = 100 * size if alone else 500
    assert [int(s.env_steps) for s in states] == [0, first, first + 100 * size, first + 200 * size]
    assert states[-1].metrics.fitness.shape == (size,)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[-1].metrics))
    assert moved(states[1], states[-1], config).all()
    if alone:
        assert states[-1].memory is None
    else:
        expected = int(states[-1].env_steps) if config.share else 700
        assert int(states[-1].memory.written) == expected
        assert int(states[-1].team.off_policy.updates) == int(states[-1].env_steps) or config.copies
    assert compiled(config)[2]._cache_size() == 1


@pytest.mark.slow
def test_copies_learn_from_their_own_steps_and_the_global_one_from_everybodys():
    states = history(3, replace(TINY, **TEAMS["three sacs"]))
    updates = [int(one.updates) for one in states[-1].team.learners]
    assert updates == [1100, 200, 200]


@pytest.mark.slow
def test_copies_that_take_over_policies_do_not_warm_up():
    s = history(1, replace(SOLO, copies=1), lambda s: under_way(sure(s)), hyper=still())[1]
    played = s.memory.replay.rows.action[:200, 0]
    assert (np.abs(played[:100]) < 0.85).mean() > 0.7
    np.testing.assert_allclose(played[100:], 0.9, atol=1e-4)


def test_copies_take_over_all_networks_but_not_the_moments():
    config = replace(TINY, **TEAMS["three sacs"])
    team = jax.jit(lambda: made_of(config))()
    roster = cspc_team.gather(walk().spec, config)
    behind = jnp.array([[False] * 3, [True, False, False], [False] * 3])
    after = cspc_team.hand_over(roster, team, behind)
    given, own = team.off_policy.agent, after.copies[0].agent
    for network in ("actor", "critics", "value", "target_value"):
        assert same(getattr(own, network), getattr(given, network))
    assert same(own.actor_optimizer, team.copies[0].agent.actor_optimizer)
    assert same(own.critic_optimizer, team.copies[0].agent.critic_optimizer)
    assert same(after.copies[1], team.copies[1])
    assert same(after.off_policy, team.off_policy)


def made_of(config):
    """A fresh team whose agents have moments other than those of the global one."""
    method = cspc.build(walk(), config)
    team = method.init(jax.random.key(0), method.hyper).team
    agent = team.off_policy.agent
    moments = jax.tree.map(lambda x: x + 1, (agent.actor_optimizer, agent.critic_optimizer))
    agent = replace(agent, actor_optimizer=moments[0], critic_optimizer=moments[1])
    return team._replace(off_policy=replace(team.off_policy, agent=agent))


def test_the_memory_has_what_the_environment_had():
    """Executed actions in [-1, 1], true successors, and no bootstrap where the task ended."""
    s = history(3, ends=True)[-1]
    kept = tree.take(s.memory.replay.rows, jnp.arange(int(s.memory.written)))
    assert (jnp.abs(kept.action) <= 1).all()
    np.testing.assert_array_equal(kept.reward, kept.action[:, 0])
    np.testing.assert_allclose(kept.discount, jnp.where(kept.action[:, 0] > 0, 0, 0.99))
    np.testing.assert_allclose(kept.next_obs[:, 0], kept.obs[:, 0] + 0.1, atol=1e-6)
    np.testing.assert_array_equal(kept.next_obs[:, 1], kept.obs[:, 1])


@pytest.mark.slow
def test_seeds_side_by_side_equal_single_runs():
    """Also where the lengths of their phases differ."""
    _, init, step = compiled(TINY, ends=True)
    keys = jax.random.split(jax.random.key(1), 2)
    both = jax.jit(jax.vmap(step))
    states = jax.jit(jax.vmap(init, (0, None)))(keys, varied(TINY))
    singles = [init(key, varied(TINY)) for key in keys]
    for _ in range(3):
        states, singles = both(states), [step(s) for s in singles]
    assert int(singles[0].env_steps) != int(singles[1].env_steps)
    for i, single in enumerate(singles):
        assert int(tree.take(states.env_steps, i)) == int(single.env_steps)
        assert int(states.metrics.gradient_steps[i]) == int(single.metrics.gradient_steps)
        np.testing.assert_allclose(
            states.memory.replay.rows.reward[i], single.memory.replay.rows.reward, atol=5e-2
        )


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        pytest.param(FUSED, marks=pytest.mark.slow),
        pytest.param(replace(SOLO, burst=True), marks=pytest.mark.slow),
    ],
    ids=["in turn", "fused", "in bursts"],
)
def test_the_replay_is_never_copied(config):
    method = cspc.build(walk(), replace(config, capacity=1_000_000))

    def two(state):
        return jax.lax.scan(lambda s, _: (method.step(s), None), state, length=2)[0]

    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    several = jax.eval_shape(lambda s: tree.repeat(s, 2), state)
    memory = jax.jit(jax.vmap(two), donate_argnums=0).lower(several).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.5 * memory.argument_size_in_bytes
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


# All at once.


@pytest.mark.slow
def test_fused_play_keeps_the_accounts():
    """All episodes have ten steps, so that batches and generations end with iterations of 100 steps each."""
    states = history(4, FUSED)
    assert [int(s.env_steps) for s in states] == [0, 500, 800, 1100, 1400]
    assert [int(s.team.off_policy.updates) for s in states[1:]] == [500, 800, 1100, 1400]
    assert int(states[-1].memory.written) == 1400
    for before, after in pairwise(states[1:]):
        np.testing.assert_array_equal(after.metrics.steps, [100, 100, 100])
        assert moved(before, after, FUSED).all()
        assert int(after.team.on_policy.losses.policy_steps) >= 1


@pytest.mark.slow
def test_fused_agents_may_have_different_numbers_of_lanes():
    """Of five lanes and of ten each plays as many vector steps as make up its phase."""
    states = history(3, replace(FUSED, lanes=5, on_policy_lanes=4))
    assert [int(s.env_steps) for s in states] == [0, 500, 800, 1100]
    assert int(states[-1].memory.written) == int(states[-1].team.off_policy.updates) == 1100
    np.testing.assert_array_equal(states[-1].metrics.steps, [100, 100, 100])


@pytest.mark.slow
def test_a_fused_generation_is_told_what_its_individuals_earned():
    """The rewards of the memory's rows, of which each step wrote one of every environment, in order."""
    never = compiled(FUSED)[0].hyper.replace(gap=1e9)
    before, after = history(2, FUSED, hyper=never)[1:]
    written = after.memory.replay.rows.reward[500:800].reshape(10, 3, 10)  # [T, agent, environment]
    fitness = written[:, 2].sum(0)
    asked, tested = before.team.evolution, after.team.evolution
    np.testing.assert_allclose(tested.fitness, fitness, atol=1e-5)
    told = cem.tell(asked.search, drawn(asked), fitness, never.cem, FUSED.evolution.cem)
    np.testing.assert_allclose(tested.search.mean, told.mean, atol=1e-5)
    rows = after.memory.replay.rows
    np.testing.assert_array_equal(rows.reward[500:800], rows.action[500:800, 0])
    np.testing.assert_allclose(rows.next_obs[:800, 0], rows.obs[:800, 0] + 0.1, atol=1e-6)


@pytest.mark.slow
def test_fused_individuals_stand_by_and_are_not_counted():
    """Where an action above 0 ends the task, some episodes are one step long and others ten."""
    states = history(4, FUSED, ends=True, hyper=varied(FUSED))
    counted = [int(s.metrics.steps[2]) for s in states[2:]]
    assert all(0 < steps <= 100 for steps in counted)
    assert any(steps < 100 for steps in counted)
    assert int(states[-1].env_steps) == 500 + sum(int(s.metrics.steps.sum()) for s in states[2:])
    assert int(states[-1].memory.written) == int(states[-1].env_steps)
    kept = tree.take(states[-1].memory.replay.rows, jnp.arange(int(states[-1].memory.written)))
    np.testing.assert_allclose(kept.next_obs[:, 0], kept.obs[:, 0] + 0.1, atol=1e-6)


@pytest.mark.slow
def test_a_fused_batch_is_dropped_with_the_policy_that_played_it():
    config = replace(FUSED, on_policy_batch=300)
    for gap, filled in ((1e9, 10), (-1e9, 0)):
        s = history(2, config, hyper=compiled(config)[0].hyper.replace(gap=gap))[-1]
        assert int(s.team.on_policy.filled) == filled


@pytest.mark.slow
def test_a_policy_enters_the_generation_that_a_fused_phase_begins_with_or_the_next():
    """Generations of ten steps, of ten environments each; phases of fifteen: the second phase begins in the
    middle of a generation."""
    config = replace(FUSED, on_policy=None, phase=150)
    first, second = jnp.linspace(-1.0, 1.0, flat_size()), jnp.linspace(1.0, -2.0, flat_size())
    method, init, step = compiled(config)
    s = init(jax.random.key(0), method.hyper.replace(gap=1e9))
    first_drawn, s = s.team.evolution.population, step(s)
    assert same(s.team.evolution.population, first_drawn)  # the first phase is the global agent's alone

    def who_plays(policy, s, steps):
        rows = jax.tree.map(lambda x: x[int(s.memory.written) - 300 :][:300], s.memory.replay.rows)
        mine = jax.tree.map(lambda x: x.reshape(15, 2, 10, *x.shape[1:])[steps, 1], rows)
        off = jnp.abs(mine.action - jax.vmap(by_mean, (None, 0))(policy, mine.obs))
        return list(np.flatnonzero((off < 1e-5).all((0, 2))))

    s = step(offered(s, first))
    assert who_plays(first, s, slice(0, 10)) == [0]
    assert who_plays(first, s, slice(10, 15)) == []
    s = step(offered(s, second))
    assert who_plays(second, s, slice(0, 5)) == []
    assert who_plays(second, s, slice(5, 15)) == [0]
    s = step(s)
    assert who_plays(second, s, slice(0, 10)) == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phase": 105}, "phase 105 is not divisible by lanes 10; use 5 lanes"),
        ({"burst": True}, r"set burst to False \(--config.no-burst\)"),
        ({"schedule": "code"}, "set schedule paper"),
        ({"reset_at_batch": True}, r"set reset_at_batch to False \(--config.no-reset-at-batch\)"),
    ],
)
def test_what_cannot_be_fused_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(FUSED, **options)


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ALONE, "give the team an agent"),
        ({"phase": 0}, "phase must be at least 1"),
        ({"first_phase": -1}, "first_phase must be at least 0, got -1"),
        ({"on_policy_batch": 1000, "on_policy_lanes": 3}, "not divisible by on_policy_lanes 3; use 2 lanes"),
        ({"lanes": 3}, "first_phase 500 is not divisible by lanes 3; use 2 lanes"),
        (
            {"lanes": 30, "first_phase": 600},
            "phase 100 is not divisible by lanes 30; use 25 lanes",
        ),
        ({"lanes": 2, "burst": True}, "got lanes 2; set lanes 1"),
        ({"off_policy": None, "copies": 1}, "copies 1"),
        ({"share": False, "copies": 2}, "copies 2 learn from the memory that all agents fill"),
        ({"local_least": 200}, "never holds more than 200"),
        ({"update_after": 50_000}, "update_after 50000 exceeds"),
        (
            {"on_policy_update": "episode", "on_policy_lanes": 2, "reset_at_batch": False},
            "got on_policy_lanes 2",
        ),
        ({"on_policy_update": "episode"}, "has no batches"),
        ({"schedule": "Paper"}, "schedule must be one of 'paper', 'code', got 'Paper'"),
        (
            {"evolution": Evolution(cem=cem.Config(population=1, parents=1, antithetic=False))},
            "has 1 individual; raise",
        ),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_policy": replace(PPO, hidden=(9,))}, r"these differ: Dense_0/linear/bias \(8,\).*\(9,\)"),
        ({"on_policy": replace(PPO, activation="tanh")}, "do not act alike"),
        ({"on_policy": replace(PPO, squash=False)}, "do not act alike"),
        (
            {"off_policy": None, "on_policy": replace(PPO, squash=False, initializer="orthogonal")},
            "do not act alike",
        ),
        (
            {"evolution": Evolution(hidden=(8, 8))},
            "evolution cannot take over the mean network of off_policy",
        ),
        ({"off_policy": ddpg.Config(hidden=(8,))}, "on_policy cannot take over"),
        ({"on_policy": replace(PPO, normalize_obs=True)}, "turn off normalization and lstm"),
        ({"on_policy": a2c.Config(lstm=4)}, "turn off normalization and lstm"),
        ({"off_policy": ddpg.Config(hidden=(8,), normalize=True)}, "turn off normalization and lstm"),
        (
            {
                "on_policy": replace(PPO, minibatches=4),
                "on_policy_update": "episode",
                "reset_at_batch": False,
            },
            "than 4 minibatches; set on_policy.minibatches 1",
        ),
        ({"on_policy": replace(PPO, minibatches=3)}, "10 steps is not divisible by minibatches 3; use 2"),
        (
            {"on_policy_batch": 9},
            "hides the steps after step 9 of an episode's 10; .* or on_policy_batch to at least 10",
        ),
        ({"on_policy_lanes": 2}, "after step 5 of an episode's 10; .* or on_policy_batch to at least 20"),
    ],
)
def test_teams_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cspc.build(walk(), replace(TINY, **options))


def test_discrete_tasks_are_refused():
    with pytest.raises(ValueError, match="cspc needs continuous actions"):
        cspc.build(make("probe/action-discrete"), TINY)


def a_case(slow=False, slow_members=False, **options):
    config = cspc.Config(
        off_policy=sac2018.Config(hidden=(4,)),
        on_policy=ppo.Config(hidden=(4,), activation="relu", squash=True, policy_epochs=2, value_epochs=2),
        evolution=cspc.Evolution(hidden=(4,), cem=cem.Config(population=4, parents=2)),
        first_phase=20,
        phase=10,
        capacity=200,
        local_capacity=40,
        local_least=10,
        batch=4,
        warmup=5,
        update_after=5,
        on_policy_batch=5,
        trials=2,
    )
    build = partial(cspc.build, make("probe/delay"), replace(config, **options))
    return Case(build, population=3, slow=slow, slow_members=slow_members)


CASES = {
    "cspc": a_case(slow_members=True),
    "cspc_fused": a_case(
        slow=True, fused=True, phase=12, lanes=4, on_policy_lanes=4, on_policy_batch=8, reset_at_batch=False
    ),
}
