"""Cooperative heterogeneous deep reinforcement learning: the team CSPC. Zheng et al., NeurIPS 2020.

A global off-policy agent (SAC) and local ones, on-policy (PPO) and gradient-free (CEM), play in turn. All
transitions go to the global agent's memory, and good episodes to a small local memory from which some of its
batches come. Where scores are far enough apart, the better policy is handed over: the mean networks of all
agents are alike.

An iteration: cooperate (off_policy -> on_policy -> evolution -> tests) -> hand_over. The first one is the
global agent's alone. After the phase of a local agent the global one takes as many gradient steps as that had
environment steps. With ``fused`` all play at once, which wastes less of a device.

Any agent of ``popjax.agents`` with a mean network may be the global one and any on-policy agent the other;
either, or the search, may be missing. With ``copies`` there are further local agents of the global one's
kind. The paper's ablations and rivals are configurations:

=============  ===================================================== CSPC-CE        ``transfer=False`` CSPC-LM
``hyper.local_share=0`` CSPC-GM        ``share=False`` and ``hyper.local_share=0`` CSPC-SAC, ...
``off_policy=None``, ``on_policy=None``, ``evolution=None`` C3SAC          ``copies=2, on_policy=None,
evolution=None`` 3SAC           the same with ``transfer=False`` and ``hyper.local_share=0`` SAC, PPO, CEM
two of the three None =============  =====================================================

Differs from the paper: gradient steps are taken in turn with environment steps, not in bursts after episodes
(``burst``, with ``update_after=0``), so a batch may hold transitions of an episode that is not over, and a
phase of the global agent may end in the middle of an episode, with which its next phase goes on. A phase of
an on-policy agent is whole batches, also of several lanes, whose episodes run on over the end of a batch
(``reset_at_batch=False``). Evolution's policies from others enter the first generation of every later phase,
and its steps beyond the length of a phase are taken off the next one. Left out: elitism in the search, which
the authors do without; and, being slips of their code, PPO's rewards that are late by a step, the time limit
taken for the end in its transitions, and individuals' actions that are clipped to the action's bound instead
of scaled.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, tree
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
from popjax.methods import cspc_play, cspc_team
from popjax.methods.cspc_config import Config, Evolution, Hyper, default_hyper, of_team, steps_bound
from popjax.methods.cspc_play import Play, Seats, Terms
from popjax.methods.cspc_team import GLOBAL, Team, present
from popjax.population import exchange, players
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import good_episodes
from popjax.replay.good_episodes import Gate, Memory

__all__ = ["METHOD", "Config", "Evolution", "Hyper", "Metrics", "State", "Team", "build", "default_hyper"]


@struct.dataclass
class Losses:
    """Of the last updates; None of an agent that is missing."""

    off_policy: PyTree | None
    on_policy: PyTree | None


@struct.dataclass
class Metrics:
    """Metrics of an iteration. P are all agents: the global one, its copies, on-policy, evolution.

    fitness:        float32 [P] score, mean return of the test episodes.
    elite_score:    the largest of them.
    best_score:     the largest in any iteration so far.
    steps:          int32 [P] environment steps.
    kept:           int32 [P] episodes that entered the local memory.
    labels:         int32 [P] who has taken over the global agent's policy: besides the global agent's own,
                    their episodes may enter.
    transfers:      int32 [P, P] policies that each (row) took over from each (column).
    local_size:     int32 transitions in the local memory.
    gradient_steps: int32 of the global agent, since the start.
    losses:         see ``Losses``.
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


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] of all agents, tests not counted
    generation: Array  # int32 [] iterations
    metrics: Metrics
    team: Team
    memory: Memory | None  # None in a team without a global agent
    seats: Seats  # lanes of the agents
    individuals: Seats | None  # lanes of evolution; None where it is fused or missing
    starts: Lanes  # [1, trials] where test episodes begin, the same in all iterations
    excess: Array  # int32 [] steps by which evolution's latest phase was too long
    length: Array  # int32 [] of evolution's next phase, where the schedule is the code's
    scores: Array = stacked()  # float32 [P] of the last iteration
    labels: Array = stacked()  # bool [P] who has taken over the global agent's policy


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return the team ``config`` in ``env``."""
    members = cspc_team.gather(env.spec, config)
    count, search, has_global = members.size, members.search, bool(members.learners)
    run = cspc_play.build(env, config, members)
    together, wholes = cspc_team.groups(members, config)
    order = list(range(count)) if config.schedule == "paper" else list(reversed(range(count)))

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_team, key_lanes = jax.random.split(key, 3)
        team = cspc_team.init(members, env.spec, config, key_team, hyper)
        memory = good_episodes.init(example_transition(env.spec), config.capacity, config.local_capacity)
        shapes = [(together.size, together.width), (wholes.size - 1, wholes.width), (1, config.trials)]
        agents_, individuals, tests = cspc_play.start(env, key_lanes, shapes)
        none, zeros, zero = jnp.int32(0), jnp.zeros(count, jnp.int32), jnp.float32(0)
        transfers = jnp.zeros((count, count), jnp.int32)
        return State(
            key=key,
            hyper=hyper,
            env_steps=none,
            generation=none,
            metrics=Metrics(
                jnp.zeros(count), zero, zero, zeros, zeros, zeros, transfers, none, none, losses(team)
            ),
            team=team,
            memory=memory if has_global else None,
            seats=agents_,
            individuals=individuals if wholes.size > 1 else None,
            starts=tests.lanes,
            excess=none,
            length=jnp.int32(config.phase // 2),
            scores=jnp.zeros(count),
            labels=jnp.zeros(count, jnp.bool_),
        )

    def losses(team: Team) -> Losses:
        return Losses(*(None if one is None else one.losses for one in (team.off_policy, team.on_policy)))

    def alone(s: State) -> Array:
        """Return bool []: whether the iteration is the global agent's alone."""
        return (s.generation == 0) & has_global

    def terms(s: State) -> Terms:
        """Return the terms of an iteration: no episode is good before there are scores, and the global agent
        needs no label."""
        labelled = s.labels | (jnp.arange(count) == (GLOBAL if has_global else -1))
        return Terms(Gate(jnp.pad((s.generation > 0) & labelled, (0, 1)), s.scores.min()), s.hyper)

    def begin(s: State) -> Play:
        """Return the play before the first step; the lanes of the tests are where their episodes begin."""
        place = jnp.arange(wholes.width) % config.trials
        tests = cspc_play.followed(env, jax.tree.map(lambda x: x[:, place], s.starts))
        whole = tests if s.individuals is None else tree.concat([s.individuals, tests])
        done, zeros = jnp.zeros(count * config.trials, jnp.bool_), jnp.zeros(count, jnp.int32)
        return Play(s.team, s.memory, s.seats, whole, jnp.float32(done), done, s.excess, zeros, zeros)

    def phase(s: State, play: Play, turn: Array, key: Key) -> Play:
        """Play the phase of the agent in row ``turn``; row P are the tests."""
        length = jnp.int32(config.phase)
        if config.schedule == "code" and search is not None:
            length = jnp.where(turn == search, s.length, play.steps[search])
        length = jnp.where(alone(s), jnp.where(turn == GLOBAL, config.first_phase, 0), length)
        runs = (turn == search) & (length > 0) if search is not None else jnp.bool_(False)
        if config.schedule == "paper":
            length -= jnp.where(runs, play.excess, 0)
        if search is not None:
            begun = players.begin_phase(present(play.team.evolution), runs & (length > 0))
            play = play._replace(team=play.team._replace(evolution=begun))
        for group in (wholes, together):
            play = run(group, play, turn, length, terms(s), key)
        if search is None:
            return play
        return play._replace(excess=jnp.where(runs, play.steps[search] - length, play.excess))

    def in_turn(s: State, key: Key) -> Play:
        """Play everybody's phase, one after the other, and the tests."""
        turns = jnp.array([*order, count])

        def one(i: Array, play: Play) -> Play:
            return phase(s, play, turns[i], jax.random.fold_in(key, i))

        return jax.lax.fori_loop(0, len(turns), one, begin(s))

    def at_once(s: State, key: Key) -> Play:
        """Play everybody's phase together, the first one the global agent's alone, and the tests."""
        play = begin(s)
        rows, key_play, key_test = jnp.arange(count), *jax.random.split(key)
        length = jnp.where(alone(s), jnp.where(rows == GLOBAL, config.first_phase, 0), config.phase)
        if search is not None:
            begun = players.begin_phase(present(play.team.evolution), ~alone(s))
            play = play._replace(team=play.team._replace(evolution=begun))
        play = run(together, play, jnp.int32(0), length, terms(s), key_play)
        return run(wholes, play, jnp.int32(count), length, terms(s), key_test)

    def cooperate(s: State) -> State:
        """Play with all agents, fill the memories, learn and test. Algorithms 2 and 3."""
        key, key_play = jax.random.split(s.key)
        play = (at_once if config.fused else in_turn)(s, key_play)
        none, learner = jnp.int32(0), play.team.off_policy
        played = none if search is None else play.steps[search]
        scores = play.total.reshape(count, config.trials).mean(1)
        elite = scores.max()
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + play.steps.sum(),
            generation=s.generation + 1,
            team=play.team,
            memory=play.memory,
            seats=play.seats,
            individuals=None if s.individuals is None else jax.tree.map(lambda x: x[:1], play.wholes),
            excess=play.excess,
            length=jnp.where(played > config.phase // 2, jnp.minimum(config.phase, played), s.length),
            scores=scores,
            metrics=replace(
                s.metrics,
                fitness=scores,
                elite_score=elite,
                best_score=jnp.where(s.generation == 0, elite, jnp.maximum(s.metrics.best_score, elite)),
                steps=play.steps,
                kept=play.kept,
                local_size=none if play.memory is None else good_episodes.local_size(play.memory),
                gradient_steps=none if learner is None else learner.updates,
                losses=losses(play.team),
            ),
        )

    def hand_over(s: State) -> State:
        """Hand policies to agents that are far behind: to each from the global agent, to evolution from the
        on-policy one, too. Algorithm 1, lines 8 to 19."""
        taken = exchange.ahead(s.scores, s.hyper.gap) & cspc_team.givers(members) & config.transfer
        labels = s.labels | (taken[:, GLOBAL] & has_global)
        metrics = replace(s.metrics, labels=labels.astype(jnp.int32), transfers=taken.astype(jnp.int32))
        team = cspc_team.hand_over(members, config, s.team, taken)
        return replace(s, team=team, labels=labels, metrics=metrics)

    def individuals(s: State) -> Params:
        """Return the mean network of each agent."""
        return cspc_team.means(members, s.team, config)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        return cspc_team.by_mean(members, params, obs)

    return Method(
        init=init,
        step=chain(cooperate, hand_over),
        policy=lambda s: tree.take(individuals(s), jnp.argmax(s.scores)),
        act=act,
        hyper=default_hyper(config),
        steps_bound=steps_bound(env.spec, config),
        learning_starts=config.update_after if has_global else 0,
        individuals=individuals,
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={
        "off_policy": {
            **{name: of_team(kind) for name, kind in agents.AGENTS.items() if name != "dqn"},
            "none": None,
        },
        "on_policy": {
            **{name: of_team(kind) for name, kind in agents.ON_POLICY_AGENTS.items()},
            "none": None,
        },
        "evolution": {"cem": Evolution(), "none": None},
    },
)
