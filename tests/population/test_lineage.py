"""Parents of individuals, owners of replays, and the episodes that a lane remembers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.population import exchange, judging, lanes, lineage
from popjax.replay.ring import Ring


def table():
    """Three slots with one number. At the first ready point 2 takes over from 0; at the second 1 is a
    newcomer and 0 takes over from 2."""
    found = lineage.begin(jnp.array([[0.1], [0.2], [0.3]]), 5)
    for generation, source, numbers in ((4, [0, 1, 0], [0.1, 0.2, 0.12]), (8, [2, -1, 2], [0.14, 0.5, 0.12])):
        fitness = jnp.arange(3.0) + generation
        found = lineage.record(
            found, jnp.int32(generation), jnp.array(source), fitness, jnp.array(numbers)[:, None]
        )
    return found


def test_a_line_is_followed_back_to_its_beginning():
    assert lineage.line(table(), 0) == [(0, 0), (1, 2), (2, 0)]
    assert lineage.line(table(), 1) == [(2, 1)], "a newcomer has no ancestors"
    assert lineage.line(table(), 2) == [(0, 0), (1, 2), (2, 2)]


def test_a_schedule_tells_the_winners_numbers_and_all_selections():
    told = lineage.schedule(table(), 0, ["lr"], 10)
    assert told["line"] == [
        {"env_steps": 0, "slot": 0, "parent": None, "numbers": {"lr": pytest.approx(0.1)}},
        {"env_steps": 40, "slot": 2, "parent": 0, "numbers": {"lr": pytest.approx(0.12)}},
        {"env_steps": 80, "slot": 0, "parent": 2, "numbers": {"lr": pytest.approx(0.14)}},
    ]
    assert told["selections"]["env_steps"] == [0, 40, 80]
    assert told["selections"]["source"] == [[0, 1, 2], [0, 1, 0], [2, -1, 2]]
    assert told["selections"]["fitness"][2] == [8, 9, 10]
    newcomer = lineage.schedule(table(), 1, ["lr"], 10)
    assert [(row["env_steps"], row["parent"]) for row in newcomer["line"]] == [(0, -1)]


def test_a_full_table_stays_as_it_is():
    full = table()
    for _ in range(3):
        full = lineage.record(full, jnp.int32(99), jnp.arange(3), jnp.zeros(3), jnp.zeros((3, 1)))
    assert int(full.count) == 5
    assert full.generation.tolist() == [0, 4, 8, 99, 99]


@pytest.mark.parametrize("capacity", [1, 64, 130, 200])
@pytest.mark.parametrize("source", [[1, 0, 2], [2, 2, 1], [0, 1, 2]])
def test_replays_are_copied_whole_whoever_copies_whom(capacity, source):
    """Also where two change places, and where the parts into which a replay is divided leave a rest."""
    rows = {
        "x": jnp.arange(3 * capacity * 2).reshape(3, capacity, 2),
        "y": jnp.arange(3.0 * capacity).reshape(3, -1),
    }
    replays = Ring(rows, jnp.arange(3), jnp.arange(3) + 5)
    after = jax.jit(exchange.copy_replays)(replays, jnp.array(source), 1)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(y, x[np.array(source)]), replays, after)
    left = jax.jit(exchange.copy_replays)(replays, jnp.array(source), 0)
    jax.tree.map(np.testing.assert_array_equal, replays, left)


def test_a_lane_remembers_its_last_episodes():
    """Two of them, the newest first: episodes that return 1, 2 + 3 and 4, and one under way."""
    zero, none = jnp.zeros((1, 1)), jnp.zeros((1, 1), jnp.int32)
    account = lanes.Account(
        zero, none, zero, none, none, lanes.Recent(jnp.zeros((1, 1, 2)), none, jnp.ones((1, 1), bool))
    )
    seen = []
    for reward, done in ((1.0, True), (2.0, False), (3.0, True), (4.0, True), (9.0, False)):
        account = lanes.track(account, jnp.full((1, 1), reward), jnp.full((1, 1), done))
        recent = account.recent
        seen.append((recent.returns[0, 0].tolist(), recent.valid[0, 0].tolist()))
    assert seen[0] == seen[1] == ([1, 0], [True, False])
    assert seen[2] == ([5, 1], [True, True])
    assert seen[3] == seen[4] == ([4, 5], [True, True])


def test_an_episode_that_somebody_else_began_is_not_remembered():
    """The individual enters amid an episode that ends with a return of 7; its own first returns 2."""
    zero, none = jnp.zeros((1, 1)), jnp.zeros((1, 1), jnp.int32)
    recent = lanes.Recent(jnp.zeros((1, 1, 2)), none, jnp.zeros((1, 1), bool))
    account = lanes.Account(zero + 4, none, zero, none, none, recent)
    seen = []
    for reward, done in ((3.0, True), (2.0, True)):
        account = lanes.track(account, jnp.full((1, 1), reward), jnp.full((1, 1), done))
        seen.append((float(account.latest[0, 0]), int(account.recent.count[0, 0])))
    assert seen == [(7, 0), (2, 1)]
    assert account.recent.returns[0, 0, 0] == 2


def test_who_has_no_whole_episode_stands_by_what_it_has_or_as_the_mean():
    """0 has two of 4 and 6; 1 has begun its lane and has 9 so far; 2 is amid an episode of another's."""
    none = jnp.zeros((3, 1), jnp.int32)
    recent = lanes.Recent(
        returns=jnp.array([[[4.0, 6.0]], [[0.0, 0.0]], [[3.0, 3.0]]]),
        count=jnp.array([[2], [0], [0]]),
        whole=jnp.array([[True], [True], [False]]),
    )
    latest = jnp.array([[4.0], [9.0], [100.0]])
    played = lanes.Lanes((), (), (), lanes.Account(latest, none, latest, none, none, recent))
    fitness, _, valid = judging.by_training(played)
    assert fitness.tolist() == [5, 9, 7]
    assert valid.tolist() == [[True, True], [False, False], [False, False]]
    ended = played.replace(account=played.account.replace(episodes=none + 1))
    assert judging.by_training(ended)[0].tolist() == [5, 5, 5], "its lane's last is not its own for sure"
