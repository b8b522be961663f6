"""Cooperative heterogeneous deep reinforcement learning: the team CSPC. Zheng et al., NeurIPS 2020.

A global off-policy agent (SAC) and local ones, on-policy (PPO) and gradient-free (CEM), play in turn. All
transitions go to the global agent's memory, and good episodes to a small local memory, from which it draws
some of its batches. An agent whose score is far enough behind takes over the better policy, since the mean
networks of all agents are alike.

An iteration: cooperate (off_policy -> on_policy -> evolution -> tests) -> hand_over. In the first iteration
the global agent plays alone. After the phase of a local agent, the global agent takes a gradient step for
each environment step of that phase. With ``fused`` all agents play at once, which uses a device better.

The global agent may be any agent of ``popjax.agents`` with a mean network, the on-policy one any on-policy
agent; either, or the search, may be missing. ``copies`` adds local agents of the global agent's kind. The
paper's ablations and baselines are configurations, listed on the method's page. With a ``drive`` the
off-policy agents are also rewarded for states that are new to the team (``rnd``), or new to themselves and
to the other agents (``collab``); scores stay the task's returns.

Where the paper's listings and its text disagree, popjax follows the text and the authors' code:

- The global agent's first training takes place once (Algorithm 1 prints it inside the loop), and policies may
  be handed over right after it.
- An episode is stored before the update that follows it (Algorithm 2 prints the update first).
- An agent's label admits only that agent's episodes to the local memory.

Differs from the paper:

- As in the authors' code, batches are drawn from the local memory only once it holds more than 10,000
  transitions; the team's PPO has the networks of the others, squashed actions and batches of 1,000; and an
  episode must return more than the worst score to enter that memory, which the text also allows to be equal.
- Gradient steps alternate with environment steps; the paper takes them in bursts after episodes (``burst``,
  with ``update_after=0``). So a batch may hold transitions of an unfinished episode, and a phase of the
  global agent may end in the middle of an episode, which its next phase continues.
- A phase of the on-policy agent consists of whole batches. With ``reset_at_batch=False``, episodes continue
  across the end of a batch; several lanes need this unless a batch holds a whole episode of each.
- Policies that are handed to evolution enter the first generation of every later phase. If one of its phases
  is too long, the next is shorter by as many steps.
- The search has no elitism, which the authors do not use either.
- Faults of the authors' code are not reproduced: there, PPO's rewards are late by a step, its transitions
  treat the time limit as the end of the task, and individuals' actions are clipped to the bound instead of
  scaled to it.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import agents, counting, tree
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Params,
    PyTree,
    as_arrays,
    chain,
    example_transition,
    stacked,
)
from popjax.evolution.ranking import best_first
from popjax.methods import cspc_play, cspc_team
from popjax.methods.cspc_config import DRIVES, Config, Evolution, Hyper, default_hyper, of_team, steps_bound
from popjax.methods.cspc_play import Play, Seats, Terms
from popjax.methods.cspc_team import Driven, States
from popjax.population import drives, exchange, judging, learning, players
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import good_episodes
from popjax.replay.good_episodes import Gate, Memory

__all__ = ["DRIVES", "METHOD", "Config", "Evolution", "Hyper", "Metrics", "State", "build", "default_hyper"]


@struct.dataclass
class Losses:
    """Losses of the last updates; None for a missing agent."""

    off_policy: PyTree | None
    on_policy: PyTree | None


@struct.dataclass
class Metrics:
    """Metrics of an iteration. Rows [P] are all agents: global, on-policy, evolution, copies.

    fitness:        float32 [P] score, mean return of the test episodes.
    elite_score:    the largest of them.
    best_score:     the largest in any iteration so far.
    steps:          int32 [P] environment steps.
    kept:           int32 [P] episodes that entered the local memory.
    labels:         int32 [P] 1 for agents that have taken over the global agent's policy: only their episodes
                    and the global agent's may enter the local memory.
    transfers:      int32 [P, P] 1 where the row's agent took over the column's policy.
    local_size:     int32 transitions in the local memory.
    gradient_steps: int32 of the global agent.
    losses:         see ``Losses``.
    bonus:          mean bonus that the drive added to the rewards of the global agent's last batch; None
                    without a drive.
    drive:          [] each, the drive's losses on that batch; None without a drive.
    """

    fitness: Array
    elite_score: Array
    best_score: Array
    steps: Array
    kept: Array
    labels: Array
    transfers: Array
    local_size: Array
    gradient_steps: Array
    losses: Losses
    bonus: Array | None
    drive: PyTree


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] of all agents, tests not counted
    generation: Array  # int32 [] iterations
    metrics: Metrics
    team: States
    memory: Memory | None  # None in a team without a global agent
    drive: Driven
    seats: Seats  # lanes of the agents
    starts: Lanes  # [trials] where test episodes begin, the same in all iterations
    excess: Array  # int32 [] steps by which evolution's latest phase was too long
    length: Array  # int32 [] environment steps of evolution's next phase, with schedule "code"
    scores: Array = stacked()  # float32 [P] scores of the last iteration
    labels: Array = stacked()  # bool [P] agents that have taken over the global agent's policy


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return the team of ``config`` in ``env``."""
    roster = cspc_team.gather(env.spec, config)
    turns = cspc_team.turns(roster, config)
    drive = drives.build(env.spec, config.drive, roster.size, turns.width)
    run = cspc_play.build(env, config, roster, turns, drive)
    count, rows = roster.size, roster.rows
    is_global = np.arange(count) == (-1 if rows.off_policy is None else rows.off_policy)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_team, key_lanes, key_drive = jax.random.split(key, 4)
        everybody = roster.players.everybody, cspc_team.hypers(roster, hyper).everybody
        made = zip(jax.random.split(key_team, count), *everybody, strict=True)
        team: States = rows.of(player.init(one, own) for one, player, own in made)
        driven = unrewarded(hyper, key_drive)
        memory = good_episodes.init(example_transition(env.spec), config.capacity, config.local_capacity)
        seats, starts = cspc_play.start(env, config, turns, key_lanes)
        none, zeros, zero = jnp.int32(0), jnp.zeros(count, jnp.int32), jnp.float32(0)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=none,
            metrics=Metrics(
                fitness=jnp.zeros(count),
                elite_score=zero,
                best_score=zero,
                steps=zeros,
                kept=zeros,
                labels=zeros,
                transfers=jnp.zeros((count, count), jnp.int32),
                local_size=none,
                gradient_steps=none,
                losses=losses(team),
                bonus=driven.bonus,
                drive=driven.losses,
            ),
            team=team,
            memory=None if rows.off_policy is None else memory,
            drive=driven,
            seats=seats,
            starts=starts,
            excess=none,
            length=jnp.int32(config.phase // 2),
            scores=jnp.zeros(count),
            labels=jnp.zeros(count, jnp.bool_),
        )

    def unrewarded(hyper: Hyper, key: Key) -> Driven:
        """Return the drive before the first step."""
        held, rows = drive.init(key), tree.repeat(example_transition(env.spec), config.batch)
        bonus = jax.eval_shape(drive.pay, held, rows, hyper)[1]
        told = learning.no_losses(lambda: drive.learn(held, rows, None, cspc_team.near(rows), hyper, key))
        return Driven(held, tree.take(learning.zeros(bonus), 0), told)

    def gained(before: States, after: States) -> Array:
        """Return int32 []: the gradient steps that the global agent took from ``before`` to ``after``."""
        started, ended = cspc_team.present(before.off_policy), cspc_team.present(after.off_policy)
        return (ended.updates - started.updates).low.astype(jnp.int32)

    def losses(team: States) -> Losses:
        return Losses(*(None if one is None else one.losses for one in (team.off_policy, team.on_policy)))

    def terms(s: State) -> Terms:
        """Return the terms of an iteration.

        In the first iteration the global agent plays alone. No episode is good before there are scores. The
        global agent needs no label.
        """
        alone, length = (s.generation == 0) & is_global.any(), jnp.full(count, config.phase)
        if rows.evolution is not None:
            own = s.length if config.schedule == "code" else config.phase - s.excess
            length = length.at[rows.evolution].set(own)
        length = jnp.where(alone, config.first_phase * is_global, length)
        opens = (s.generation > 0) & (s.labels | is_global)
        return Terms(Gate(jnp.pad(opens, (0, 1)), judging.shown(s.scores).min()), length, alone, s.hyper)

    def begin(s: State, terms: Terms) -> Play:
        """Return the play before the first step, with the lanes of the tests at the start of their
        episodes."""
        place, team = jnp.arange(turns.width), s.team
        tests = cspc_play.followed(env, tree.take(s.starts, place % config.trials))
        seats = jax.tree.map(lambda own, test: jnp.concatenate([own, test[None]]), s.seats, tests)
        if team.evolution is not None:
            plays = ~terms.alone & (terms.length[rows.evolution] > 0)
            team = team._replace(evolution=players.begin_phase(team.evolution, plays))
        zeros, absent = jnp.zeros(count, jnp.int32), place >= turns.sizes[-1]
        return Play(team, s.memory, s.drive, seats, jnp.zeros(turns.width), absent, zeros, zeros)

    def cooperate(s: State) -> State:
        """Play with all agents, fill the memories, learn and test. Algorithms 2 and 3."""
        key, key_play = jax.random.split(s.key)
        agreed = terms(s)
        play = run(begin(s, agreed), agreed, key_play)
        none, learner = jnp.int32(0), play.team.off_policy
        played, excess = none, s.excess
        if rows.evolution is not None:
            played = play.steps[rows.evolution]
            too_long = jnp.maximum(played - agreed.length[rows.evolution], 0)
            excess = jnp.where(agreed.alone, excess, too_long)
        scores = play.total[: turns.sizes[-1]].reshape(count, config.trials).mean(1)
        scores = judging.sound(scores, cspc_team.means(roster, play.team))
        elite = jnp.nanmax(scores)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + play.steps.sum(),
            generation=s.generation + 1,
            team=play.team,
            memory=play.memory,
            drive=play.drive,
            seats=tree.take(play.seats, slice(-1)),
            excess=excess,
            length=jnp.where(played > config.phase // 2, jnp.minimum(config.phase, played), s.length),
            scores=scores,
            metrics=replace(
                s.metrics,
                fitness=scores,
                elite_score=elite,
                best_score=jnp.where(s.generation == 0, elite, jnp.fmax(s.metrics.best_score, elite)),
                steps=play.steps,
                kept=play.kept,
                local_size=none if play.memory is None else good_episodes.local_size(play.memory),
                gradient_steps=none if learner is None else gained(s.team, play.team),
                losses=losses(play.team),
                bonus=play.drive.bonus,
                drive=play.drive.losses,
            ),
        )

    def hand_over(s: State) -> State:
        """Hand policies to agents that are far behind: the global agent's to any other, the on-policy agent's
        to evolution. Algorithm 1, lines 11 to 19."""
        taken = exchange.ahead(s.scores, s.hyper.gap) & cspc_team.givers(roster) & config.transfer
        labels = s.labels | (taken & is_global).any(1)
        metrics = replace(s.metrics, labels=labels.astype(jnp.int32), transfers=taken.astype(jnp.int32))
        return replace(s, team=cspc_team.hand_over(roster, s.team, taken), labels=labels, metrics=metrics)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        return players.greedy(roster.network, params, obs)

    return Method(
        init=init,
        step=chain(cooperate, hand_over),
        policy=lambda s: tree.take(cspc_team.means(roster, s.team), best_first(s.scores)[0]),
        act=act,
        hyper=default_hyper(config),
        steps_bound=steps_bound(env.spec, config),
        learning_starts=0 if rows.off_policy is None else config.update_after,
        individuals=lambda s: cspc_team.means(roster, s.team),
    )


NONE = {"none": None}
METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={
        "off_policy": {
            name: of_team(kind) for name, kind in agents.AGENTS.items() if name not in ("drq", "dqn")
        }
        | NONE,
        "on_policy": {name: of_team(kind) for name, kind in agents.ON_POLICY_AGENTS.items()} | NONE,
        "evolution": {"cem": Evolution()} | NONE,
        "drive": DRIVES,
    },
)
