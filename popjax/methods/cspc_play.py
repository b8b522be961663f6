"""Vector steps of a cooperating team, one agent after the other or all at once; see ``cspc``.

A turn is a set of lanes that play together: those of one agent or, with ``fused``, of all; the last turn is
the tests. The number of the current turn is a traced integer, so one loop plays all turns, each in as many
lanes as the largest has. The environment's step is compiled once, and once more for turns of less than half
as many lanes, such as SAC's own; its reset is compiled once. Lanes that do not play, such as those of
individuals whose episode is over, keep their state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import counting, rollout, tree
from popjax.core import Choice, Env, Key, PyTree, Timestep, Transition
from popjax.counting import Count
from popjax.methods import cspc_team
from popjax.methods.cspc_config import Config, Hyper
from popjax.methods.cspc_team import Driven, Part, Roster, States, Turns, present
from popjax.population import lanes, players
from popjax.population.drives import Drive
from popjax.population.lanes import Lanes
from popjax.population.players import Player, Step
from popjax.replay import good_episodes
from popjax.replay.good_episodes import Gate, Memory


@struct.dataclass
class Seats:
    """Lanes [..., W], and the numbers [..., W, L] of the rows in which the memory keeps their episodes."""

    lanes: Lanes
    episodes: Count


class Play(NamedTuple):
    """The part of the State that playing changes.

    seats:  [K, W] of all turns.
    total, done: [W] returns of the test episodes, and whether they are over.
    steps:  int32 [P] environment steps of this iteration.
    kept:   int32 [P] episodes that entered the local memory.
    """

    team: States
    memory: Memory | None
    drive: Driven
    seats: Seats
    total: Array
    done: Array
    steps: Array
    kept: Array


class Terms(NamedTuple):
    """The terms of an iteration.

    gate:   conditions [P + 1] for episodes to enter the local memory.
    length: int32 [P] environment steps of each agent's phase.
    alone:  bool [] whether only the global agent plays.
    hyper:  the team's hyperparameters.
    """

    gate: Gate
    length: Array
    alone: Array
    hyper: Hyper


def start(env: Env, config: Config, turns: Turns, key: Key) -> tuple[Seats, Lanes]:
    """Return the seats [K - 1, W] of the agents, and the lanes [trials] of the tests, each at the beginning
    of an episode."""
    width, count = turns.width, turns.tests * turns.width
    fresh = tree.take(lanes.start(rollout.limited(env), key, (1, count + config.trials)), 0)
    own = jax.tree.map(lambda x: x[:count].reshape(turns.tests, width, *x.shape[1:]), fresh)
    return followed(env, own), tree.take(fresh, slice(count, None))


def followed(env: Env, fresh: Lanes) -> Seats:
    """Return the seats of lanes [..., W], all at the beginning of an episode."""
    shape = (*fresh.account.length.shape, env.spec.episode_length)
    return Seats(fresh, jax.tree.map(lambda x: jnp.broadcast_to(x, shape), counting.none()))


def build(env: Env, config: Config, roster: Roster, turns: Turns, drive: Drive) -> Callable[..., Play]:
    """Return ``run(play, terms, key) -> Play``, which plays all turns, one after the other.

    An agent with a turn of its own plays until its phase is complete and the agent's schedule allows a
    stop. Fused agents play as many vector steps as their length takes with all lanes playing. The tests play
    until all episodes are over.
    """
    limited, owners, width = rollout.limited(env), jnp.array(turns.owners), turns.width
    parts = turns.parts
    shares = [config.share or row == roster.rows.off_policy for row in range(roster.size)]
    stores = jnp.array([*shares, False])

    def cast(play: Play, hyper: Hyper) -> Iterator[tuple[Player, Part, Any, Any]]:
        """Iterate over the agents in the order of rows: functions, part, state and Hyper of each."""
        hypers = cspc_team.hypers(roster, hyper)
        everybody = (team.everybody for team in (roster.players, parts, play.team, hypers))
        return zip(*everybody, strict=True)

    def standing(play: Play, terms: Terms, clock: Array) -> Array:
        """Return bool [K, W]: lanes that would play after ``clock`` vector steps if it were their turn."""
        length, search = terms.length, roster.rows.evolution
        if config.schedule == "code" and search is not None:  # the others play as long as evolution has
            follows = ~terms.alone & (np.arange(roster.size) != search)
            length = jnp.where(follows, play.steps[search], length)
        found = jnp.zeros(turns.owners.shape, jnp.bool_).at[-1].set(~play.done)
        for row, (player, part, state, _) in enumerate(cast(play, terms.hyper)):
            if config.fused:
                goes = clock * player.lanes < length[row]
            else:
                midway = player.midway(state, play.seats.lanes.account.length[part.turn, part.lanes])
                goes = (play.steps[row] < length[row]) | midway
            found = found.at[part.turn, part.lanes].set(player.plays(state) & goes)
        return found

    def choose(play: Play, turn: Array, obs: Array, hyper: Hyper, key: Key) -> Choice:
        """Return the choices [W] of the agents whose turn it is."""

        def acting(turn: int, key: Key) -> Choice:
            chosen = []
            for row, (player, part, state, own_hyper) in enumerate(cast(play, hyper)):
                own, act = part.lanes, player.act
                if turn == turns.tests:
                    own, act = slice(row * config.trials, (row + 1) * config.trials), player.test
                if turn in (part.turn, turns.tests):
                    chosen.append(act(state, own_hyper, obs[own], jax.random.fold_in(key, row)))
            return players.padded(tree.concat(chosen), width)

        return jax.lax.switch(turn, [partial(acting, i) for i in range(turns.tests + 1)], key)

    def answer(turn: Array, states: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        """Return the environment's states [W] after ``action``, and the Timesteps."""

        def at(size: int) -> Callable[[], tuple[PyTree, Timestep]]:
            def play() -> tuple[PyTree, Timestep]:
                after, told = jax.vmap(limited.step)(*tree.take((states, action), slice(size)))
                return tree.put(states, slice(size), after), players.padded(told, width)

            return play

        small = max((size for size in turns.sizes if 2 * size < width), default=0)
        if small:
            large = jnp.array(turns.sizes > small)[turn]
            played = jax.lax.cond(large, at(width), at(small))
        else:
            played = at(width)()
        return jax.vmap(partial(rollout.renewed, limited))(*played)

    def advance(play: Play, turn: Array, alive: Array, hyper: Hyper, key: Key) -> tuple[Step, Lanes]:
        """Play one vector step of ``turn``; return the step and the lanes [W] after it."""
        before = tree.take(play.seats.lanes, turn)
        choice, states = choose(play, turn, before.obs, hyper, key), before.env
        if parts.on_policy is not None and config.reset_at_batch:  # the episode ends with the batch
            local = present(play.team.on_policy)
            last = (turn == parts.on_policy.turn) & (local.filled == len(local.rows.reward) - 1)
            cut = jnp.zeros(width, jnp.bool_).at[parts.on_policy.lanes].set(last)
            states = rollout.truncated_next(limited, states, cut)
        states, timestep = answer(turn, states, choice.action)
        account = lanes.track(before.account, timestep.reward, timestep.done)
        return Step(before, choice, timestep, alive), Lanes(states, timestep.obs, (), account)

    def remember(play: Play, turn: Array, step: Step, after: Lanes, terms: Terms) -> tuple[Play, Count]:
        """Return the play with the step's transitions in the global memory and good episodes in the local
        one, and the row numbers of the episodes under way."""
        episodes, owner = tree.take(play.seats.episodes, turn), owners[turn]
        if play.memory is None:
            return play, episodes
        rows = lanes.keep_transitions(terms.hyper.off_policy.discount)(
            step.before, step.choice, step.timestep
        )
        sound = tree.finite(step.choice.action)  # a policy that has diverged must not corrupt the memory
        stored, done = step.alive & stores[owner] & sound, step.timestep.done
        memory, number = good_episodes.remember(play.memory, rows, stored)
        # Lanes that wait have no row to number: beyond the end of an episode nothing is written.
        length = jnp.where(step.alive, step.before.account.length, env.spec.episode_length)
        total = after.account.latest
        gate = replace(terms.gate, open=terms.gate.open[owner])
        memory, episodes, entered = good_episodes.follow(
            memory, episodes, length, number, total, done & stored, gate
        )
        kept = play.kept.at[owner].add(entered, mode="drop")
        visited = step.alive & sound & (owner == jnp.arange(roster.size)[:, None])
        each = jax.tree.map(lambda x: x[None], tree.repeat((rows, done), roster.size))  # [1, P, W]
        held = drive.observe(play.drive.state, *each, visited[None], terms.hyper)
        return play._replace(memory=memory, drive=replace(play.drive, state=held), kept=kept), episodes

    def take_in(play: Play, turn: Array, step: Step, hyper: Hyper, key: Key) -> Play:
        """Give each agent the steps of its lanes; local agents then learn if they are due."""
        count = jnp.zeros(roster.size, jnp.int32).at[owners[turn]].add(step.alive, mode="drop")
        taken = []
        for row, (player, part, state, own_hyper) in enumerate(cast(play, hyper)):
            mine = tree.take(step, part.lanes)
            mine = mine._replace(alive=mine.alive & (turn == part.turn))
            taken.append(player.take_in(state, mine, own_hyper, jax.random.fold_in(key, row)))
        team: States = roster.rows.of(taken)
        learner = team.off_policy
        if learner is not None:  # a gradient step for every environment step of any agent
            others = count.sum() - count[roster.rows.off_policy]
            team = team._replace(off_policy=replace(learner, owed=learner.owed + others))
        tested = step.alive & (turn == turns.tests)
        return play._replace(
            team=team,
            steps=play.steps + count,
            total=play.total + jnp.where(tested, step.timestep.reward, 0.0),
            done=play.done | (tested & step.timestep.done),
        )

    def learn(play: Play, turn: Array, ends: Array, over: Array, hyper: Hyper, key: Key) -> Play:
        """Take the gradient steps that the off-policy agents owe.

        They are taken for an agent's own environment steps when a vector step or episode ``ends`` []; by the
        global agent, also for another agent's phase when that is ``over`` [].
        """
        if play.memory is None:
            return play
        memory, team, rows = play.memory, play.team, roster.rows
        enough = memory.replay.size >= max(config.update_after, 1)

        def good_ones(key: Key) -> Transition:
            return good_episodes.sample(memory, key, config.batch, hyper.local_share, config.local_least)

        def everything(key: Key) -> Transition:
            return good_episodes.sample_all(memory, key, config.batch)

        teach = partial(cspc_team.lesson, present(roster.off_policy), drive, hyper=hyper)
        own = [(turn == part.turn) & ends for part in parts.learners]
        key_global, *keys = jax.random.split(key, len(own))
        # Only the global agent draws from the good episodes, and only if there are other agents.
        draw = good_ones if roster.size > 1 else everything
        update = teach(present(rows.off_policy), draw, teaches=True)
        learner, held = players.pay(
            update, present(team.off_policy), play.drive, (own[0] | over) & enough, key_global
        )
        copies = []
        for copy, row, ready, one in zip(team.copies, rows.copies, own[1:], keys, strict=True):
            update = teach(row, everything, teaches=False)
            copies.append(players.pay(update, copy, held, ready & enough, one)[0])
        team = team._replace(off_policy=learner, copies=tuple(copies))
        return play._replace(team=team, drive=held)

    def run(play: Play, terms: Terms, key: Key) -> Play:
        order = np.arange(turns.tests + 1)
        if config.schedule == "code":  # the local agents come first in the order of rows
            local = roster.size - config.copies
            order[:local] = order[:local][::-1]

        def vector_step(
            carry: tuple[Play, Array, Array, Array, Array],
        ) -> tuple[Play, Array, Array, Array, Array]:
            play, alive, place, clock, waits = carry
            turn, hyper = jnp.array(order)[place], terms.hyper
            key_act, key_take, key_learn = jax.random.split(jax.random.fold_in(key, clock), 3)
            step, after = advance(play, turn, alive, hyper, key_act)
            play, episodes = remember(play, turn, step, after, terms)
            left = Seats(tree.where(alive, after, step.before), episodes)
            play = play._replace(seats=tree.put(play.seats, turn, left))
            play, clock = take_in(play, turn, step, hyper, key_take), clock + ~waits
            standings = standing(play, terms, clock)
            over = ~standings[turn].any()
            ends = step.timestep.done[0] if config.burst else jnp.bool_(True)
            play = learn(play, turn, ends, over, hyper, key_learn)
            # All members of a sweep wait for the slowest, so that they share one turn. The clock of a waiting
            # member stands still, so that it draws the same random numbers as outside a sweep.
            moves = ~tree.any_lane(~over)
            place += moves
            alive = standings[jnp.array(order)[jnp.minimum(place, turns.tests)]]
            return play, alive, place, clock, over & ~moves

        none = jnp.int32(0)
        begun = play, standing(play, terms, none)[order[0]], none, none, jnp.bool_(False)
        return jax.lax.while_loop(lambda carry: carry[2] <= turns.tests, vector_step, begun)[0]

    return run
