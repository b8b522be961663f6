"""A cooperating team: accounts, memories, who hands over what to whom, and any agents as members.

Compiling a team takes seconds: what one member or a part of a step can tell is asked of that, and the rest of
the options is marked slow (``pytest -m slow tests/methods/test_cspc.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from popjax import tree
from popjax.agents import a2c, ddpg, ppo, sac, sac2018, td3
from popjax.core import Env, Spec, Timestep, Transition, as_arrays
from popjax.envs import make
from popjax.evolution import cem
from popjax.methods import cspc
from popjax.methods.cspc import Config, Evolution, exchange, fused
from popjax.methods.cspc import memory as store
from tests.support import Case, same

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


def compiled(config=TINY, ends=False):
    return programs(config, ends)


@lru_cache(maxsize=8)
def programs(config, ends):
    method = cspc.build(walk(ends=ends), config)
    return method, jax.jit(method.init), jax.jit(method.step)


def history(iterations, config=TINY, edit=lambda s: s, ends=False, seed=0, hyper=None):
    method, init, step = compiled(config, ends)
    states = [edit(init(jax.random.key(seed), hyper or method.hyper))]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


# Accounting.


def test_steps_iterations_and_gradient_steps_are_the_papers():
    """A hundredth of: 1.01e6 steps after 32 iterations of 3e4 behind a first phase of 5e4."""
    states = history(33)
    steps = [int(s.env_steps) for s in states]
    assert steps == [0, *(500 + 300 * i for i in range(33))]
    assert steps[-1] == 10_100
    np.testing.assert_array_equal(states[1].metrics.steps, [500, 0, 0])
    np.testing.assert_array_equal(states[2].metrics.steps, [100, 100, 100])
    assert [int(s.metrics.gradient_steps) for s in states[1:]] == steps[1:]
    assert int(states[-1].memory.written) == 10_100


def varied(config):
    """Numbers with which individuals' episodes have different lengths where the task ends."""
    hyper = compiled(config, ends=True)[0].hyper
    return hyper.replace(cem=hyper.cem.replace(init_variance=1.0))


def test_every_phase_is_within_the_bound_and_ends_at_a_boundary():
    method = compiled(TINY, ends=True)[0]
    states = history(6, ends=True, hyper=varied(TINY))
    for before, after in pairwise(states):
        assert int(after.env_steps - before.env_steps) <= method.steps_bound
    for s in states[2:]:
        np.testing.assert_array_equal(s.metrics.steps[:2], [100, 100])
    # What a phase of the search was too long is taken off the next one.
    excess = [int(s.team[2].excess) for s in states]
    assert all(e >= 0 for e in excess)
    assert any(excess)
    for k in range(2, 7):
        assert int(states[k].metrics.steps[2]) == 100 - excess[k - 1] + excess[k]


NOBODY = store.Gate(jnp.array(False), jnp.float32(0))


def trained(config, name, lengths, edit=lambda state: state, hyper=None, ends=False, episode=10, gate=NOBODY):
    """One member's own phases: states, memories and steps after each."""
    hyper = as_arrays(hyper or compiled(config, ends)[0].hyper)
    member = cspc.team_members(walk(episode, ends), config)[name]
    state = edit(jax.jit(member.init)(jax.random.key(0), hyper))
    memory = store.init(tree.take(example_rows(), 0), config.capacity, config.local_capacity)
    train, found = jax.jit(member.train), []
    for i, length in enumerate(lengths):
        state, memory, phase = train(state, memory, jnp.int32(length), gate, hyper, jax.random.key(i))
        found.append((state, memory, int(phase.steps)))
    return found


@pytest.mark.slow
def test_without_carry_every_phase_of_the_search_has_its_full_length():
    config = replace(TINY, evolution=replace(TINY.evolution, carry=False))
    phases = trained(config, "evolution", [100] * 4, hyper=varied(TINY), ends=True)
    assert [steps for _, _, steps in phases] == [100 + int(state.excess) for state, _, _ in phases]
    assert any(state.excess for state, _, _ in phases)


@pytest.mark.slow
def test_the_first_phase_may_come_in_every_iteration():
    states = history(2, replace(DUO, first_phase_always=True))
    assert [int(s.env_steps) for s in states] == [0, 700, 1400]
    np.testing.assert_array_equal(states[1].metrics.steps, [600, 100])


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


def test_gradient_steps_wait_for_experience_and_are_made_up_for():
    fresh = trained(replace(TINY, update_after=150), "global", [0, 100, 100])
    assert [int(state.updates) for state, _, _ in fresh] == [0, 0, 200]
    assert [int(state.owed) for state, _, _ in fresh] == [0, 100, 0]
    assert same(fresh[0][0].agent, fresh[1][0].agent)
    assert not same(fresh[1][0].agent, fresh[2][0].agent)


@pytest.mark.parametrize(("first", "updates"), [(True, [1, 2]), (False, [0, 2])])
def test_experience_is_stored_before_it_is_learned_from_or_after(first, updates):
    """With nothing stored yet, the gradient step of the first environment step has to wait for the second."""
    config = replace(TINY, update_after=1, store_first=first)
    assert [int(state.updates) for state, _, _ in trained(config, "global", [1, 1])] == updates


@pytest.mark.parametrize(("reset", "clocks"), [(True, [0, 1, 2] * 2), (False, [0, 1, 2, 3, 4, 5])])
def test_episodes_of_the_on_policy_agent_end_with_its_batch(reset, clocks):
    """Batches of ten steps of episodes of seven: the rest of three is an episode, or goes on."""
    config = replace(TINY, reset_at_batch=reset)
    everything = store.Gate(jnp.array(True), jnp.float32(-1e9))
    phases = trained(config, "on_policy", [20], episode=7, gate=everything)
    memory = phases[0][1]
    played = np.round(7 * np.asarray(memory.replay.rows.obs[:20, 0])).astype(int)
    assert list(played[:7]) == list(range(7))
    assert list(played[[7, 8, 9, 10, 11, 12]]) == clocks
    # All rows are of finished episodes, or the last six are still under way.
    assert int(store.local_size(memory)) == (20 if reset else 14)
    begun = np.asarray(memory.replay.rows.obs[:20, 1])
    assert (begun[9] == begun[10]) == (not reset)


@pytest.mark.slow
def test_several_lanes_may_end_their_episodes_with_a_batch_that_has_room_for_them():
    """Batches of twelve steps in each of two lanes, of episodes of ten."""
    config = replace(TINY, on_policy_lanes=2, on_policy_batch=24)
    everything = store.Gate(jnp.array(True), jnp.float32(-1e9))
    ((_, memory, steps),) = trained(config, "on_policy", [48], gate=everything)
    played = np.round(10 * np.asarray(memory.replay.rows.obs[:48, 0])).astype(int).reshape(24, 2)
    np.testing.assert_array_equal(played, np.array(2 * [*range(10), 0, 1])[:, None].repeat(2, 1))
    assert steps == int(store.local_size(memory)) == 48


def test_the_on_policy_agent_may_learn_after_every_episode():
    """Episodes of seven steps: twenty are three, and every one is a gradient step of A2C."""
    agent = a2c.Config(hidden=(8,), activation="relu", initializer="uniform", squash=True)
    config = replace(TINY, on_policy=agent, on_policy_update="episode", reset_at_batch=False)
    everything = store.Gate(jnp.array(True), jnp.float32(-1e9))
    phases = trained(config, "on_policy", [20, 1], episode=7, gate=everything)
    assert [steps for _, _, steps in phases] == [21, 7]
    assert [int(state.agent.updates) for state, _, _ in phases] == [3, 4]
    memory = phases[-1][1]
    played = np.round(7 * np.asarray(memory.replay.rows.obs[:28, 0])).astype(int)
    assert list(played) == list(range(7)) * 4
    assert int(memory.written) == int(store.local_size(memory)) == 28


@pytest.mark.slow
def test_a_team_that_learns_after_every_episode_keeps_the_accounts():
    """Where an action above 0 ends the task, episodes and phases have many lengths."""
    config = replace(TINY, on_policy_update="episode", reset_at_batch=False)
    states = history(3, config, ends=True)
    steps = np.diff([int(s.env_steps) for s in states])
    assert steps.max() <= compiled(config, True)[0].steps_bound == max(500, 100 + 109 + 199)
    assert int(states[-1].env_steps) == int(states[-1].memory.written)
    assert int(states[-1].metrics.gradient_steps) == int(states[-1].env_steps)
    assert all(100 <= int(s.metrics.steps[1]) < 110 for s in states[2:])


@pytest.mark.parametrize(("bound", "kept"), [(8.9, 50), pytest.param(9.1, 0, marks=pytest.mark.slow)])
def test_whole_episodes_of_bursts_pass_the_gate(bound, kept):
    """A policy that plays 0.9 ten times returns 9."""
    hyper = compiled()[0].hyper
    still = hyper.replace(off_policy=hyper.off_policy.replace(actor_lr=0.0))
    config = replace(TINY, burst=True, warmup=0)
    gate = store.Gate(jnp.array(True), jnp.float32(bound))
    ((_, memory, _),) = trained(config, "global", [50], sure, still, gate=gate)
    assert int(store.local_size(memory)) == kept


def test_bursts_play_whole_episodes_and_then_learn():
    phases = trained(replace(TINY, burst=True), "global", [495, 100])
    assert [steps for _, _, steps in phases] == [500, 100]
    assert [int(state.updates) for state, _, _ in phases] == [500, 600]
    assert [int(memory.written) for _, memory, _ in phases] == [500, 600]


def sure(state):
    """A policy that plays 0.9 and nothing else."""
    params = jax.tree.map(jnp.zeros_like, state.agent.actor)
    params["mlp"]["Dense_1"]["linear"]["bias"] += jnp.arctanh(0.9)
    params["log_std"]["linear"]["bias"] -= 100.0
    return replace(state, agent=replace(state.agent, actor=params))


def test_warm_up_is_uniform_then_the_policy_plays():
    hyper = compiled()[0].hyper
    still = hyper.replace(off_policy=hyper.off_policy.replace(actor_lr=0.0))
    played = trained(TINY, "global", [500], sure, still)[0][1].replay.rows.action[:500, 0]
    assert (np.abs(played[:100]) < 0.85).mean() > 0.7
    np.testing.assert_allclose(played[100:], 0.9, atol=1e-4)


# Memories.


def rows(count, start=0):
    number = jnp.arange(start, start + count, dtype=jnp.float32)
    return Transition(number[:, None], number[:, None], number, jnp.ones(count), number[:, None])


def written(memory, count, start=0):
    return store.remember(memory, rows(count, start), jnp.ones(count, bool))


def empty(capacity=100, local=5):
    return store.init(tree.take(rows(1), 0), capacity, local)


def held(memory):
    """Rewards of what the local memory holds, oldest first; each row's reward is its number."""
    size = int(store.local_size(memory))
    slots = (int(memory.local.position) - size + np.arange(size)) % memory.local.capacity
    return [int(n) for n in memory.local.rows[slots]]


def test_the_local_memory_is_first_in_first_out():
    memory, first = written(empty(), 3)
    memory = store.remember_locally(memory, first, jnp.ones(3, bool))
    memory, second = written(memory, 4, 3)
    memory = store.remember_locally(memory, second, jnp.ones(4, bool))
    assert held(memory) == [2, 3, 4, 5, 6]


def test_rows_that_were_overwritten_are_gone_with_all_that_entered_before():
    memory, numbers = written(empty(capacity=10, local=8), 4)
    memory = store.remember_locally(memory, numbers, jnp.ones(4, bool))
    memory, more = written(memory, 8, 4)  # 12 in all: rows 0 and 1 are overwritten
    assert held(memory) == [2, 3]
    memory = store.remember_locally(memory, more[:2], jnp.ones(2, bool))
    assert held(memory) == [2, 3, 4, 5]
    memory, _ = written(memory, 4, 12)
    assert held(memory) == []


def test_invalid_rows_are_neither_written_nor_numbered():
    memory, numbers = store.remember(empty(), rows(4), jnp.array([True, False, True, True]))
    assert int(memory.written) == 3
    np.testing.assert_array_equal(numbers[jnp.array([0, 2, 3])], [0, 1, 2])
    np.testing.assert_array_equal(memory.replay.rows.reward[:3], [0, 2, 3])


@pytest.mark.parametrize(("entries", "expected"), [(10_001, 0.3), (10_000, 0.0)])
def test_three_batches_in_ten_come_from_a_local_memory_that_is_full_enough(entries, expected, key):
    memory, _ = written(empty(capacity=20_000, local=20_000), 20_000)
    memory = store.remember_locally(memory, jnp.arange(entries), jnp.ones(entries, bool))

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
    memory = store.remember_locally(memory, jnp.arange(900, 920), jnp.ones(20, bool))
    drawn = jax.jit(jax.vmap(lambda k: store.sample(memory, k, 16, 0.5, 5).reward))(
        jax.random.split(key, 400)
    )
    inside = ((drawn >= 900) & (drawn < 920)).mean(1)
    assert set(np.unique(np.round(inside[inside > 0.5], 6))) == {1.0}
    assert 150 < (inside == 1).sum() < 250
    assert (inside < 0.5).any()


@pytest.mark.parametrize(
    ("label", "total", "scored", "strict", "enters"),
    [
        (False, 250, True, True, False),
        (True, 250, True, True, True),
        (True, 200, True, True, False),
        (True, 200, True, False, True),
        (True, 250, False, True, False),
    ],
)
def test_the_gate(label, total, scored, strict, enters):
    """R_m is 200, the least of 500, 200, 300."""
    gate = store.Gate(jnp.array(label & scored), jnp.array([500.0, 200, 300]).min(), strict)
    assert bool(gate.passes(jnp.float32(total))) == enters


def test_episodes_of_lanes_enter_when_they_end_and_pass():
    lanes = tree.repeat(store.underway(4), 2)
    memory, gate = empty(local=10), store.Gate(jnp.array(True), jnp.float32(2.5))
    rewards = [[1, 1], [1, 0], [1, 1], [0, 5]]
    done = [[0, 0], [0, 1], [1, 0], [0, 1]]
    counts = []
    for reward, ended in zip(rewards, done, strict=True):
        memory, numbers = written(memory, 2, int(memory.written))
        memory, lanes, count = store.track_episodes(
            memory, lanes, numbers, jnp.float32(jnp.array(reward)), jnp.array(ended, bool), gate
        )
        counts.append(int(count))
    assert counts == [0, 0, 1, 1]  # lane 0 with a return of 3, lane 1's second episode with 6
    assert held(memory) == [0, 2, 4, 5, 7]
    np.testing.assert_array_equal(lanes.length, [1, 0])


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
    assert held(everybody.memory) == list(range(100, 300))


@pytest.mark.slow
def test_anybodys_label_may_open_the_gate_for_all():
    config = replace(DUO, labels="any")

    def other(s):
        return replace(
            s, generation=jnp.int32(1), labels=jnp.array([True, False]), scores=jnp.full(2, -100.0)
        )

    np.testing.assert_array_equal(history(1, config, edit=other)[1].metrics.kept, [10, 10])


def test_a_search_keeps_only_its_good_individuals():
    """Returns of the ten individuals straddle the bound."""
    probe = history(1, edit=lambda s: replace(s, generation=jnp.int32(1)))[1]
    bound = jnp.sort(probe.team[2].fitness)[6]

    def edit(s):
        return replace(
            s, generation=jnp.int32(1), scores=jnp.full(3, bound), labels=jnp.array([False, False, True])
        )

    after = history(1, edit=edit)[1]
    np.testing.assert_allclose(after.team[2].fitness, probe.team[2].fitness, rtol=1e-6)
    assert int(after.metrics.kept[2]) == 3


# Handing over.


def handed(scores, config=TINY, labels=(False, False, False), may=True, edit=lambda team: team):
    """Team before and after, labels and count."""
    method, init, _ = compiled(config)
    team = edit(init(jax.random.key(3), method.hyper).team)
    members = cspc.team_members(walk(), config)
    after, labels, count = exchange.hand_over(
        config, members, team, jnp.float32(jnp.array(scores)), jnp.array(labels), may, as_arrays(method.hyper)
    )
    return team, after, [bool(x) for x in labels], int(count.sum())


def flat(mean):
    return ravel_pytree(mean)[0]


def test_who_is_far_behind_takes_over():
    before, after, labels, count = handed((500, 390, 399))
    assert same(after[1].agent.actor["mlp"], before[0].agent.actor["mlp"])
    assert same(after[1].agent.value, before[0].agent.value)
    assert same(after[1].agent.actor["log_std"], before[1].agent.actor["log_std"])
    assert same(after[1].agent.actor_optimizer, before[1].agent.actor_optimizer)
    np.testing.assert_array_equal(after[2].filled, [True, False])
    np.testing.assert_array_equal(after[2].slots[0], flat(before[0].agent.actor["mlp"]))
    assert same(after[2].search, before[2].search)
    assert same(after[0], before[0])
    assert labels == [False, True, True]
    assert count == 2


def test_the_search_gets_the_on_policy_agents_policy_as_it_was():
    before, after, _, count = handed((500, 390, 250))
    np.testing.assert_array_equal(after[2].filled, [True, True])
    np.testing.assert_array_equal(after[2].slots[1], flat(before[1].agent.actor["mlp"]))
    assert count == 3
    _, literal, _, _ = handed((500, 390, 250), replace(TINY, source="after"))
    np.testing.assert_array_equal(literal[2].slots[1], flat(before[0].agent.actor["mlp"]))


def test_a_gap_must_be_exceeded_and_labels_stay():
    before, after, labels, count = handed((500, 400, 400), labels=(False, True, False))
    assert same(before, after)
    assert labels == [False, True, False]
    assert count == 0


def test_only_the_global_agents_gift_labels():
    _, after, labels, _ = handed((300, 390, 250))
    np.testing.assert_array_equal(after[2].filled, [False, True])
    assert labels == [False, False, False]


def test_options_of_taking_over():
    before, after, _, _ = handed((500, 0, 0), replace(TINY, values=False))
    assert same(after[1].agent.value, before[1].agent.value)

    def trained(team):
        agent = team[1].agent
        moments = jax.tree.map(lambda x: x + 1, agent.actor_optimizer)
        return (team[0], replace(team[1], agent=replace(agent, actor_optimizer=moments)), team[2])

    before, kept, _, _ = handed((500, 0, 0), edit=trained)
    assert same(kept[1].agent.actor_optimizer, before[1].agent.actor_optimizer)
    before, fresh, _, _ = handed((500, 0, 0), replace(TINY, reset_optimizers=True), edit=trained)
    assert not any(x.any() for x in jax.tree.leaves(fresh[1].agent.actor_optimizer))
    config = replace(TINY, evolution=replace(TINY.evolution, reset_mean=True))
    before, moved, _, _ = handed((500, 500, 0), config)
    # The policy of the agent that gives last is the mean.
    np.testing.assert_array_equal(moved[2].search.mean, flat(before[1].agent.actor["mlp"]))
    spread = before[2].population - before[2].search.mean
    np.testing.assert_allclose(moved[2].population - moved[2].search.mean, spread, atol=1e-6)


@pytest.mark.parametrize("inject", ["sticky", pytest.param("once", marks=pytest.mark.slow)])
def test_a_policy_enters_the_first_generation_of_phases(inject):
    """Generations within a phase, and rows of others, are as drawn."""
    config = replace(TINY, phase=200, evolution=replace(TINY.evolution, inject=inject), transfer=False)
    policy = jnp.linspace(-1.0, 1.0, flat_size())

    def give(s):
        state = s.team[2]
        slots, filled = state.slots.at[0].set(policy), state.filled.at[0].set(True)
        return replace(s, team=(*s.team[:2], replace(state, slots=slots, filled=filled)))

    member = cspc.team_members(walk(), config)["evolution"]
    hyper = as_arrays(compiled(config)[0].hyper)
    state = give(history(0, config)[0]).team[2]
    drawn = state.population
    gate = store.Gate(jnp.array(False), jnp.float32(0))
    one = jax.jit(member.train)
    found = []
    for phase in range(2):
        memory = store.init(tree.take(example_rows(), 0), 1000, 10)
        # A phase of one generation tells of whom the search was told.
        after, _, _ = one(state, memory, jnp.int32(1), gate, hyper, jax.random.key(phase))
        expected = drawn.at[0].set(policy) if phase == 0 or inject == "sticky" else drawn
        told = cem.tell(state.search, expected, after.fitness, hyper.cem, config.evolution.cem)
        np.testing.assert_allclose(after.search.mean, told.mean, atol=1e-6)
        found.append(bool(after.filled[0]))
        assert not same(after.population[0], policy)  # drawn anew and untouched
        state, drawn = replace(after, excess=jnp.int32(0)), after.population
    assert found == [inject == "sticky"] * 2


def test_later_generations_of_a_phase_are_as_drawn():
    """Rows of the memory are those of the individuals, one after the other, ten steps each."""
    member = cspc.team_members(walk(), TINY)["evolution"]
    policy = jnp.linspace(-1.0, 1.0, flat_size())
    unflatten = ravel_pytree(member.blank)[1]

    def give(state):
        slots, filled = state.slots.at[0].set(policy), state.filled.at[0].set(True)
        return replace(state, slots=slots, filled=filled)

    rows = trained(TINY, "evolution", [200], give)[0][1].replay.rows
    would = jax.vmap(member.greedy, (None, 0))(unflatten(policy), rows.obs[:200])
    np.testing.assert_allclose(rows.action[:10], would[:10], atol=1e-5)
    assert (np.abs(rows.action[10:200] - would[10:200]).max(1) > 1e-3).all()


def test_training_draws_from_the_local_memory():
    """A share of 0 and of 1 learn from different rows; without enough of them both learn from the same."""
    member = cspc.team_members(walk(), TINY)["global"]
    hyper = as_arrays(compiled()[0].hyper)
    state, update = member.init(jax.random.key(0), hyper), jax.jit(member.update)
    blank = store.init(tree.take(example_rows(), 0), 1000, TINY.local_capacity)
    many = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), (500, *x.shape[1:])), example_rows())
    memory, numbers = store.remember(blank, many, jnp.ones(500, bool))
    for entries, alike in ((TINY.local_least, True), (TINY.local_least + 1, False)):
        held = store.remember_locally(memory, numbers[:entries], jnp.ones(entries, bool))
        found = [
            update(
                state, held, jnp.int32(20), hyper.replace(local_share=jnp.float32(share)), jax.random.key(2)
            )
            for share in (0, 1)
        ]
        assert same(found[0].agent, found[1].agent) == alike


def example_rows():
    one = jnp.zeros((1, 2))
    return Transition(one, jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(1), one)


def flat_size():
    method, init, _ = compiled()
    return int(jax.eval_shape(init, jax.random.key(0), method.hyper).team[2].search.mean.size)


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
    later = history(2, replace(DUO, transfer_first=False), hyper=hyper)
    assert [int(s.metrics.transfers.sum()) for s in later] == [0, 0, 1]


@pytest.mark.slow
def test_labels_may_last_one_iteration():
    for reset in (False, True):
        config = replace(DUO, reset_labels=reset)
        never = compiled(config)[0].hyper.replace(gap=1e9)
        states = history(1, config, lambda s: replace(s, labels=jnp.array([False, True])), hyper=never)
        np.testing.assert_array_equal(states[1].labels, [False, not reset])


# Scores.


@pytest.mark.slow
def test_tests_begin_in_the_same_states_and_are_not_counted():
    """With rates of 0 and mean actions scores repeat to the bit; they are no steps and no data."""

    def played(test):
        config = replace(DUO, evolution=None, test=test)
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
    env, members = walk(), list(cspc.team_members(walk(), config).values())
    for index, member in enumerate(members):
        mean, totals = member.mean(s.team[index]), []
        for key in jax.random.split(s.test_key, config.trials):
            state, obs = env.reset(key)
            total = 0.0
            for _ in range(10):
                action = member.greedy(mean, obs)
                state, timestep = env.step(state, action)
                total, obs = total + timestep.reward, timestep.obs
            totals.append(total)
        np.testing.assert_allclose(s.scores[index], np.mean(totals), atol=1e-4)
    best = int(jnp.argmax(s.scores))
    assert same(compiled(config)[0].policy(s), members[best].mean(s.team[best]))
    assert float(s.metrics.elite_score) == float(s.scores.max())
    assert float(s.metrics.best_score) >= float(s.metrics.elite_score)


@pytest.mark.slow
def test_the_search_is_represented_by_its_best_or_its_mean():
    s = history(2)[-1]
    state = s.team[2]
    for score, expected in (("best", state.best), ("mean", state.search.mean)):
        config = replace(TINY, evolution=replace(TINY.evolution, score=score))
        np.testing.assert_array_equal(cspc.team_members(walk(), config)["evolution"].tested(state), expected)
    assert not same(state.best, state.search.mean)
    first = history(1)[-1].team[2]
    np.testing.assert_array_equal(first.best, first.search.mean)


# Members.

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
    "learn first": {"store_first": False},
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


@pytest.mark.parametrize(
    "team", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in TEAMS]
)
def test_any_team_keeps_the_accounts_and_learns(team):
    config = replace(TINY, **TEAMS[team])
    states = history(3, config)
    size, alone = config.members, config.off_policy is None
    first = 100 * size if alone else 500
    assert [int(s.env_steps) for s in states] == [0, first, first + 100 * size, first + 200 * size]
    assert states[-1].metrics.fitness.shape == (size,)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[-1].metrics))
    for before, after in zip(states[1].team, states[-1].team, strict=True):
        means = [getattr(s, "search", None) or s.agent.actor for s in (before, after)]
        assert not same(*means)
    if alone:
        assert states[-1].memory == ()
    else:
        expected = int(states[-1].env_steps) if config.share else 700
        assert int(states[-1].memory.written) == expected
        assert int(states[-1].metrics.gradient_steps) == int(states[-1].env_steps) or config.copies
    assert compiled(config)[2]._cache_size() == 1


def test_copies_learn_from_their_own_steps_and_the_global_one_from_everybodys():
    states = history(3, replace(TINY, **TEAMS["three sacs"]))
    updates = [int(member.updates) for member in states[-1].team]
    assert updates == [1100, 200, 200]


@pytest.mark.slow
def test_copies_that_take_over_policies_do_not_warm_up():
    hyper = compiled()[0].hyper
    still = hyper.replace(off_policy=hyper.off_policy.replace(actor_lr=0.0))
    played = trained(replace(TINY, copies=1), "copy1", [50], sure, still)[0][1].replay.rows.action[:50]
    np.testing.assert_allclose(played, 0.9, atol=1e-4)


@pytest.mark.slow
def test_copies_take_over_everything_or_policy_and_value():
    config = replace(TINY, **TEAMS["three sacs"])
    for copy in ("all", "policy"):
        made = replace(config, copy=copy)
        method, init, _ = compiled(made)
        team = init(jax.random.key(0), method.hyper).team
        members = cspc.team_members(walk(), made)
        hyper = as_arrays(method.hyper)
        after, labels, _ = exchange.hand_over(
            made, members, team, jnp.array([500.0, 0, 450]), jnp.zeros(3, bool), True, hyper
        )
        given, own, untouched = team[0].agent, after[1].agent, after[2].agent
        assert same(own.actor["mlp"], given.actor["mlp"])
        assert same(own.value, given.value)
        assert same(own.critics, given.critics) == (copy == "all")
        assert same(own.target_value, given.target_value) == (copy == "all")
        assert same(own.actor["log_std"], given.actor["log_std"]) == (copy == "all")
        assert same(untouched, team[2].agent)
        np.testing.assert_array_equal(labels, [False, True, False])


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
        assert int(states.env_steps[i]) == int(single.env_steps)
        assert int(states.metrics.gradient_steps[i]) == int(single.metrics.gradient_steps)
        np.testing.assert_allclose(
            states.memory.replay.rows.reward[i], single.memory.replay.rows.reward, atol=5e-2
        )


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        pytest.param(FUSED, marks=pytest.mark.slow),
        pytest.param(replace(DUO, evolution=None, store_first=False), marks=pytest.mark.slow),
        pytest.param(replace(DUO, evolution=None, store_first=False, burst=True), marks=pytest.mark.slow),
    ],
    ids=["in turn", "fused", "learn first", "learn first in bursts"],
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


def test_fused_play_keeps_the_accounts():
    """All episodes have ten steps, so that batches and generations end with iterations of 100 steps each."""
    states = history(4, FUSED)
    assert [int(s.env_steps) for s in states] == [0, 500, 800, 1100, 1400]
    assert [int(s.metrics.gradient_steps) for s in states[1:]] == [500, 800, 1100, 1400]
    assert int(states[-1].memory.written) == 1400
    for before, after in pairwise(states[1:]):
        np.testing.assert_array_equal(after.metrics.steps, [100, 100, 100])
        for x, y in zip(before.team, after.team, strict=True):
            means = [getattr(s, "search", None) or s.agent.actor for s in (x, y)]
            assert not same(*means)
        assert int(after.team[1].losses.policy_steps) >= 1


@pytest.mark.slow
def test_a_fused_generation_is_told_what_its_individuals_earned():
    """The rewards of the memory's rows, of which each step wrote one of every environment, in order."""
    never = compiled(FUSED)[0].hyper.replace(gap=1e9)
    before, after = history(2, FUSED, hyper=never)[1:]
    written = after.memory.replay.rows.reward[500:800].reshape(10, 3, 10)  # [T, member, environment]
    fitness = written[:, 2].sum(0)
    np.testing.assert_allclose(after.team[2].fitness, fitness, atol=1e-5)
    told = cem.tell(before.team[2].search, before.team[2].population, fitness, never.cem, FUSED.evolution.cem)
    np.testing.assert_allclose(after.team[2].search.mean, told.mean, atol=1e-5)
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
        assert int(s.kept[1].filled) == filled


@pytest.mark.slow
def test_a_policy_enters_the_generation_that_a_fused_phase_begins_with_or_the_next():
    """Generations of ten steps, of ten environments each: the second phase begins in the middle of one."""
    hyper = as_arrays(compiled()[0].hyper)
    member = cspc.team_members(walk(), FUSED)["evolution"]
    unflatten = ravel_pytree(member.blank)[1]
    first, second = jnp.linspace(-1.0, 1.0, flat_size()), jnp.linspace(1.0, -2.0, flat_size())

    @jax.jit
    def play(state, kept, memory, length, key):
        return fused.play(walk(), [member], (state,), (kept,), memory, length, [NOBODY], hyper, key)

    def given(state, policy):
        slots, filled = state.slots.at[0].set(policy), state.filled.at[0].set(True)
        return replace(state, slots=slots, filled=filled)

    def phase(length):
        """The rows [length, 10] of its steps."""
        nonlocal state, kept, memory
        before = int(memory.written)
        (state,), (kept,), memory, done = play(state, kept, memory, jnp.int32(length), jax.random.key(before))
        assert int(done.steps[0]) == 10 * length
        return jax.tree.map(
            lambda x: x[before : before + 10 * length].reshape(length, 10, *x.shape[1:]), memory.replay.rows
        )

    def who_plays(policy, rows):
        would = jax.vmap(jax.vmap(member.greedy, (None, 0)), (None, 0))(unflatten(policy), rows.obs)
        return list(np.flatnonzero((np.abs(rows.action - would) < 1e-5).all((0, 2))))

    state = given(jax.jit(member.init)(jax.random.key(0), hyper), first)
    kept = member.player.begin(state, jax.random.key(1))
    memory = store.init(tree.take(example_rows(), 0), 1000, 10)
    drawn = state.population
    phase(0)  # no phase, as in the iteration that is the global agent's alone
    assert same(state.population, drawn)
    assert who_plays(first, phase(4)) == [0]
    state = given(state, second)
    rows = phase(16)
    assert who_plays(first, tree.take(rows, jnp.arange(6))) == [0]
    assert who_plays(second, tree.take(rows, jnp.arange(6, 16))) == [0]
    rows = phase(20)
    assert who_plays(second, tree.take(rows, jnp.arange(10))) == [0]
    assert who_plays(second, tree.take(rows, jnp.arange(10, 20))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 5}, "lanes 5, on_policy_lanes 10, evolution.cem.population 10"),
        ({"phase": 105}, "phase 105 is not divided by lanes 10; 110 would do"),
        ({"schedule": "code"}, "play on and on"),
        ({"store_first": False}, "say store-first"),
        (
            {"evolution": replace(FUSED.evolution, reset_mean=True)},
            "evolution.reset_mean moves the generation",
        ),
    ],
)
def test_what_cannot_be_fused_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(FUSED, **options)


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ALONE, "needs an agent"),
        ({"phase": 0}, "phase must be at least 1"),
        ({"first_phase": -1}, "first_phase must be at least 0, got -1"),
        ({"on_policy_batch": 1000, "on_policy_lanes": 3}, "not divided by on_policy_lanes 3; 2 lanes"),
        ({"lanes": 3}, "first_phase 500 is not divided by lanes 3; 2 lanes would do"),
        (
            {"lanes": 30, "first_phase": 600},
            "phase 100 is not divided by lanes 30; 25 lanes would do",
        ),
        ({"lanes": 2, "burst": True}, "lanes is 2"),
        ({"off_policy": None, "copies": 1}, "copies 1"),
        ({"share": False, "copies": 2}, "copies 2 have no memory but the one that all fill"),
        ({"local_least": 200}, "never holds more than 200"),
        ({"update_after": 50_000}, "update_after 50000"),
        (
            {"on_policy_update": "episode", "on_policy_lanes": 2, "reset_at_batch": False},
            "on_policy_lanes is 2",
        ),
        ({"on_policy_update": "episode"}, "has no batches"),
        ({"schedule": "Paper"}, "schedule is one of 'paper', 'code', got 'Paper'"),
        ({"source": "pre"}, "source is one of 'before', 'after', got 'pre'"),
        ({"evolution": Evolution(cem=cem.Config(population=1, parents=1, antithetic=False))}, "2 at least"),
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
        ({"evolution": Evolution(hidden=(8, 8))}, "evolution cannot take over the mean network of global"),
        ({"off_policy": ddpg.Config(hidden=(8,))}, "on_policy cannot take over"),
        ({"on_policy": replace(PPO, normalize_obs=True)}, "whitens observations"),
        ({"on_policy": a2c.Config(lstm=4)}, "cannot exchange policies: lstm must be 0, got 4"),
        ({"off_policy": ddpg.Config(hidden=(8,), normalize=True)}, "normalizes observations"),
        (
            {
                "on_policy": replace(PPO, minibatches=4),
                "on_policy_update": "episode",
                "reset_at_batch": False,
            },
            "than 4 minibatches",
        ),
        ({"on_policy": replace(PPO, minibatches=3)}, "10 steps is not divided by minibatches 3; 2 would do"),
        (
            {"on_policy_batch": 9},
            "hides what comes after step 9 of an episode's 10; .* or a batch of at least 10",
        ),
        ({"on_policy_lanes": 2}, "after step 5 of an episode's 10; .* or a batch of at least 20"),
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
