"""Vector steps of a cooperating team, of one agent after the other or of all at once; see ``cspc``.

Two loops hold the environment's step: one over the agents' own lanes, which go on from phase to phase, and
one over lanes of whole episodes, those of evolution and of the tests. Which agent moves is data. With
``fused`` all agents move in the former, evolution among them, and the latter is for tests. Lanes that do not
move, such as those of individuals whose episode is over, are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import rollout, tree
from popjax.core import Choice, Env, Key, Transition
from popjax.methods import cspc_team
from popjax.methods.cspc_config import Config, Hyper
from popjax.methods.cspc_team import GLOBAL, Group, Members, Team, present
from popjax.population import lanes, players
from popjax.population.lanes import Lanes
from popjax.population.players import OffPolicy, Step
from popjax.replay import good_episodes
from popjax.replay.good_episodes import Gate, Memory


@struct.dataclass
class Seats:
    """Lanes [R, N], of each row's agent the first ones; and the numbers in the memory of the rows of the
    episodes under way, int32 [R, N, L]."""

    lanes: Lanes
    episodes: Array


class Play(NamedTuple):
    """The part of the State that playing changes.

    seats:  of the agents; wholes: of evolution, unless it is among them, and of the tests.
    total, done: [P * trials] returns and ends of the test episodes.
    excess: int32 []  steps by which evolution's latest phase was too long.
    steps:  int32 [P] environment steps of this iteration.
    kept:   int32 [P] episodes that entered the local memory.
    """

    team: Team
    memory: Memory | None
    seats: Seats
    wholes: Seats
    total: Array
    done: Array
    excess: Array
    steps: Array
    kept: Array


class Terms(NamedTuple):
    """The terms of an iteration: the gate to the local memory [P + 1], and the numbers."""

    gate: Gate
    hyper: Hyper


def start(env: Env, key: Key, shapes: Sequence[tuple[int, int]]) -> list[Seats]:
    """Return seats of these ``shapes`` = (R, N), each lane at the beginning of an episode."""
    sizes = [rows * width for rows, width in shapes]
    everybody = tree.take(lanes.start(rollout.autoreset(env), key, (1, sum(sizes))), 0)
    parts = zip(shapes, sizes, np.cumsum([0, *sizes]), strict=False)

    def part(shape: tuple[int, int], size: int, first: int) -> Lanes:
        return jax.tree.map(lambda x: x[first : first + size].reshape(*shape, *x.shape[1:]), everybody)

    return [followed(env, part(*given)) for given in parts]


def followed(env: Env, fresh: Lanes) -> Seats:
    """Return seats of lanes [R, N] whose episodes begin."""
    return Seats(fresh, jnp.zeros((*fresh.obs.shape[:2], env.spec.episode_length), jnp.int32))


def build(env: Env, config: Config, members: Members) -> Callable[..., Play]:
    """Return ``run(group, play, turn, length, terms, key) -> Play``.

    The agent in row ``turn`` plays vector steps until its phase has ``length`` environment steps and is at a
    boundary of the agent's schedule; in a group that moves together all play until each has its ``length``
    [P].
    """
    lanes_env, tested = rollout.autoreset(env), members.size
    counts = [config.lanes for _ in members.learners]
    counts += [config.on_policy_lanes] * (members.local is not None)
    counts += [config.individuals] * (members.search is not None) + [members.size * config.trials]
    shares = [members.off_policy is not None and (config.share or row == GLOBAL) for row in range(tested)]
    shares.append(False)
    cuts = members.local is not None and config.reset_at_batch
    by_episode = config.on_policy_update == "episode"

    def standing(row: int, play: Play, width: int) -> Array:
        """Return bool [width]: the lanes that there are, and whose episode is not over where only one is
        played."""
        going = jnp.ones(counts[row], jnp.bool_)
        if row == members.search:
            going = ~present(play.team.evolution).done
        if row == tested:
            going = ~play.done
        return jnp.pad(going, (0, width - counts[row]))

    def unfinished(row: int, play: Play, length: Array) -> Array:
        """Return bool []: whether the phase of ``row`` goes on."""
        if row == tested:
            return ~play.done.all()
        short = play.steps[row] < length
        if row == members.local:
            return short | (present(play.team.on_policy).filled > 0)
        if row == members.search:
            return short | present(play.team.evolution).begun
        return short | (config.burst & (play.seats.lanes.account.length[row, 0] > 0))

    def acting(row: int, play: Play, width: int, hyper: Hyper) -> Callable[[Array, Key], Choice]:
        if row == tested:
            act = cspc_team.act_in_tests(members, config, play.team, hyper)
        else:
            act = cspc_team.act(members, env.spec, config, play.team, row, hyper)
        return lambda obs, key: players.padded(act(obs[: counts[row]], key), width)

    def choose(group: Group, play: Play, which: Array, obs: Array, hyper: Hyper, key: Key) -> Choice:
        """Return the choices [R, N] of those that move, ``obs`` [R, N, *obs]."""
        acts = [acting(group.first + i, play, group.width, hyper) for i in range(group.size)]
        if group.together:
            keys = jax.random.split(key, group.size)
            return tree.stack([act(*given) for act, *given in zip(acts, obs, keys, strict=True)])
        return tree.repeat(jax.lax.switch(which[0], acts, obs[0], key), 1)

    def remember(
        play: Play, before: Seats, after: Lanes, step: Step, now: Array, terms: Terms
    ) -> tuple[Play, Array]:
        """Return the play with its transitions in the global memory and good episodes in the local one, and
        the numbers of the episodes under way."""
        flat = (now.shape[0] * step.alive.shape[1],)
        rows = lanes.keep_transitions(terms.hyper.off_policy.discount)(*step[:3])
        valid = (step.alive & jnp.array(shares)[now][:, None]).reshape(flat)
        memory, number = good_episodes.remember(present(play.memory), tree.flatten(rows), valid)
        opens = jnp.repeat(terms.gate.open[now], step.alive.shape[1], total_repeat_length=flat[0])
        known = (step.before.account.length, after.account.latest, step.timestep.done)
        length, total, done = tree.flatten(known)
        memory, episodes, entered = good_episodes.follow(
            memory,
            tree.flatten(before.episodes),
            length,
            number,
            total,
            done & valid,
            Gate(opens, terms.gate.bound),
        )
        kept = play.kept.at[now].add(entered.reshape(step.alive.shape).sum(1), mode="drop")
        return play._replace(memory=memory, kept=kept), episodes.reshape(before.episodes.shape)

    def take_in(group: Group, play: Play, now: Array, step: Step, hyper: Hyper, key: Key) -> Play:
        """Give each agent the answers of its lanes; local agents learn when they are due to."""
        key_local, key_search = jax.random.split(key)

        def of(row: int) -> Step:
            """Return the step as one member sees it: nobody played if it is another's."""
            place = row - group.first if group.together else 0
            mine: Step = jax.tree.map(lambda x: x[place, : counts[row]], step)
            return mine._replace(alive=mine.alive & (now[place] == row))

        played = step.alive.sum(1, dtype=jnp.int32)  # [R]
        team = play.team
        play = play._replace(steps=play.steps.at[now].add(played, mode="drop"))
        found = []
        for row, one in enumerate(cspc_team.learners(team)):
            own = of(row).alive.sum(dtype=jnp.int32) if row in group else jnp.int32(0)
            more = jnp.where(now == tested, 0, played).sum() if row == GLOBAL else own
            found.append(replace(one, steps=one.steps + own, owed=one.owed + more))
        team = cspc_team.with_learners(team, found)
        if members.local in group:
            agent, local, mine = present(members.on_policy), present(team.on_policy), of(members.local)
            local = players.fill(agent, local, mine, hyper.on_policy, key_local, by_episode=by_episode)
            team = team._replace(on_policy=local)
        if members.search in group:
            evolution, mine, how = present(team.evolution), of(members.search), present(config.evolution).cem
            team = team._replace(evolution=players.evaluate(evolution, mine, hyper.cem, how, key_search))
        if tested in group:
            mine = of(tested)
            play = play._replace(
                total=play.total + jnp.where(mine.alive, mine.timestep.reward, 0.0),
                done=play.done | (mine.alive & mine.timestep.done),
            )
        return play._replace(team=team)

    def learn(play: Play, ready: list[Array], hyper: Hyper, key: Key) -> Play:
        """Take the gradient steps that the off-policy agents owe, where ``ready`` [] each."""
        memory, agent = present(play.memory), present(members.off_policy)
        enough = memory.replay.size >= max(config.update_after, 1)

        def draw(row: int) -> Callable[[Key], Transition]:
            """Draw a batch; only the global agent prefers good episodes, and one that is alone has only its
            own."""
            if row == GLOBAL and members.size > 1:
                share, least = hyper.local_share, config.local_least
                return lambda key: good_episodes.sample(memory, key, config.batch, share, least)
            return lambda key: good_episodes.sample_all(memory, key, config.batch)

        def one(row: int, learner: OffPolicy, key: Key) -> OffPolicy:
            known = ready[row] & enough, draw(row), hyper.off_policy, key
            return players.pay(agent, learner, *known)

        keys = jax.random.split(key, len(ready))
        learners = enumerate(cspc_team.learners(play.team))
        found = [one(row, learner, keys[row]) for row, learner in learners]
        return play._replace(team=cspc_team.with_learners(play.team, found))

    def vector_step(
        group: Group, play: Play, now: Array, moving: Array, length: Array, terms: Terms, key: Key
    ) -> Play:
        """Play one step of those in rows ``now`` int32 [R], where ``moving`` bool [R]."""
        key_act, key_take, key_learn = jax.random.split(key, 3)
        own = tested not in group
        seats = play.seats if own else play.wholes
        which = jnp.clip(now - group.first, 0, group.size - 1)  # of another group's row: one that stays put
        before: Seats = seats if group.together else tree.take(seats, which)
        standings = jnp.stack([standing(group.first + i, play, group.width) for i in range(group.size)])
        alive = moving[:, None] & standings[which]
        choice = choose(group, play, which, before.lanes.obs, terms.hyper, key_act)
        start = before.lanes
        if own and cuts:  # the episode ends with the batch
            local = present(play.team.on_policy)
            last = (now == members.local) & (local.filled == len(local.rows.reward) - 1)
            last = jnp.broadcast_to(last[:, None], alive.shape)
            start = replace(start, env=rollout.truncated_next(lanes_env, start.env, last))
        after, timestep = lanes.step(lanes_env, start, choice)
        step = Step(before.lanes, choice, timestep, alive)
        episodes = before.episodes
        if any(shares[group.first + i] for i in range(group.size)):
            play, episodes = remember(play, before, after, step, now, terms)
        left = Seats(tree.where(alive, after, before.lanes), episodes)
        seats = left if group.together else tree.put(seats, which, left)
        play = play._replace(seats=seats) if own else play._replace(wholes=seats)
        play = take_in(group, play, now, step, terms.hyper, key_take)
        if not (own and members.learners):
            return play
        if group.together:
            return learn(play, [jnp.bool_(True) for _ in members.learners], terms.hyper, key_learn)
        over = ~_any_of(now[0], [unfinished(row, play, length) for row in range(group.size)])
        ends = timestep.done[0, 0] if config.burst else jnp.bool_(True)
        ready = [(now[0] == row) & ends for row in members.learners]
        ready[GLOBAL] |= over
        return learn(play, ready, terms.hyper, key_learn)

    def run(group: Group, play: Play, turn: Array, length: Array, terms: Terms, key: Key) -> Play:
        if not group.size:
            return play
        pays = bool(members.learners) and tested not in group

        def moving(play: Play, count: Array) -> Array:
            if group.together:
                return count * group.width < length
            going = [unfinished(group.first + i, play, length) for i in range(group.size)]
            return _any_of(turn - group.first, going)[None]

        def going(carry: tuple[Play, Array]) -> Array:
            play, count = carry
            # Steps that the global agent owes for evolution's phase are taken in a vector step without moves.
            settles = pays & (count == 0) & (turn < tested)
            return tree.any_lane(moving(play, count).any() | settles)

        def body(carry: tuple[Play, Array]) -> tuple[Play, Array]:
            play, count = carry
            now = jnp.arange(group.size) if group.together else turn[None]
            key_step = jax.random.fold_in(key, count)
            return vector_step(group, play, now, moving(play, count), length, terms, key_step), count + 1

        return jax.lax.while_loop(going, body, (play, jnp.int32(0)))[0]

    return run


def _any_of(row: Array, conditions: list[Array]) -> Array:
    """Return bool []: the condition of ``row``; False of a row that has none."""
    return (jnp.stack(conditions) & (jnp.arange(len(conditions)) == row)).any()
