"""Cooperative heterogeneous deep reinforcement learning, as the paper's team CSPC. Zheng et al., 2020.

A global off-policy agent (SAC) and local ones, on-policy (PPO) and gradient-free (CEM), play in turn. All
that anybody sees goes to the global agent's memory, and good episodes to a small local memory from which some
of its batches come. Where scores are far enough apart, the better policy is handed over: the mean networks of
all agents are the same.

An iteration: off_policy -> on_policy -> evolution -> score -> hand over. The first one is the global agent's
alone. After the phase of a local agent the global one takes as many gradient steps as that had environment
steps. With ``fused`` all play at once, which wastes less of a device.

Any agent of ``popjax.agents`` may be the global one and any on-policy agent the other; either, or the search,
may be missing. With ``copies`` there are further local agents of the global one's kind. The paper's ablations
and rivals are configurations:

=============  =====================================================
CSPC-CE        ``transfer=False``
CSPC-LM        ``hyper.local_share=0``
CSPC-GM        ``share=False`` and ``hyper.local_share=0``
CSPC-SAC, ...  ``off_policy=None``, ``on_policy=None``, ``evolution=None``
C3SAC          ``copies=2, on_policy=None, evolution=None``
3SAC           the same with ``transfer=False`` and ``hyper.local_share=0``
SAC, PPO, CEM  two of the three None
=============  =====================================================

Differs from the paper: gradient steps are taken in turn with environment steps, not in bursts after
episodes (``burst``, with ``update_after=0``), so a batch may hold transitions of an episode that is not
over. For the same reason a phase of the global agent may end in the middle of an episode, which its next
phase goes on with: its lanes are not reset between phases, as in ``burst`` they are. A phase of an on-policy
agent is whole batches, also of several lanes: of 4,000 steps it is 12,000 long where the others' are 10,000.
With several lanes its batches are usually shorter than an episode in each and then (``reset_at_batch=False``)
neither reset nor end episodes, which run on over the end of a phase. Left out: elitism in the search, which
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

from popjax import agents, rollout, tree
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Params,
    PyTree,
    as_arrays,
    chain,
    continuous_dims,
    example_transition,
    stacked,
)
from popjax.evolution import cem
from popjax.methods.cspc import exchange, fused, memory, off_policy, on_policy, search
from popjax.methods.cspc.config import Config, Evolution, Hyper, of_team
from popjax.methods.cspc.members import Member, Phase
from popjax.recipe import Recipe, recorded

__all__ = ["METHOD", "Config", "Evolution", "Hyper", "Metrics", "State", "build", "default_hyper"]


@struct.dataclass
class Metrics:
    """What an iteration shows. P is everybody: the global agent, its copies, on-policy, evolution.

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
    losses:         of the last updates of the global and the on-policy agent.
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
    losses: PyTree


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] of all agents, tests not counted
    generation: Array  # int32 [] iterations
    metrics: Metrics
    team: tuple[PyTree, ...]  # the members' states
    memory: PyTree  # () in a team without a global agent
    test_key: Key  # decides in which states test episodes begin, the same in all iterations
    length: Array  # int32 [] of evolution's next phase, where the schedule is the code's
    kept: tuple[PyTree, ...]  # what members keep of batches and generations underway, where play is fused
    scores: Array = stacked()  # float32 [P] of the last iteration
    labels: Array = stacked()  # bool [P] who has taken over the global agent's policy


def default_hyper(config: Config) -> Hyper:
    """The numbers of the agents that are in the team."""
    return Hyper(
        off_policy=None if config.off_policy is None else agents.default_hyper(config.off_policy),
        on_policy=None if config.on_policy is None else agents.default_hyper(config.on_policy),
        cem=None if config.evolution is None else cem.Hyper(),
    )


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """The team ``config`` in ``env``."""
    continuous_dims(env.spec, "cspc")
    named = team_members(env, config)
    names, members = list(named), list(named.values())
    exchange.check(env.spec, named)
    population, has_global = len(members), config.off_policy is not None
    order = list(range(population)) if config.schedule == "paper" else list(reversed(range(population)))

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_test, key_begin, *keys = jax.random.split(key, population + 3)
        team = tuple(member.init(k, hyper) for member, k in zip(members, keys, strict=True))
        zero, none = jnp.float32(0), jnp.int32(0)
        blank = memory.init(example_transition(env.spec), config.capacity, config.local_capacity)
        return State(
            key=key,
            hyper=hyper,
            env_steps=none,
            generation=none,
            metrics=Metrics(
                fitness=jnp.zeros(population),
                elite_score=zero,
                best_score=zero,
                steps=jnp.zeros(population, jnp.int32),
                kept=jnp.zeros(population, jnp.int32),
                labels=jnp.zeros(population, jnp.int32),
                transfers=jnp.zeros((population, population), jnp.int32),
                local_size=none,
                gradient_steps=none,
                losses=losses(team),
            ),
            team=team,
            memory=blank if has_global else (),
            test_key=key_test,
            length=jnp.int32(config.phase // 2),
            kept=begun(team, key_begin) if config.fused else (),
            scores=jnp.zeros(population),
            labels=jnp.zeros(population, jnp.bool_),
        )

    def begun(team: tuple[PyTree, ...], key: Key) -> tuple[PyTree, ...]:
        keys = jax.random.split(key, population)
        return tuple(m.player.begin(*known) for m, *known in zip(members, team, keys, strict=True))

    def losses(team: tuple[PyTree, ...]) -> dict[str, PyTree]:
        return {name: team[names.index(name)].losses for name in ("global", "on_policy") if name in names}

    def alone(s: State) -> Array:
        """[] bool: this is the iteration that belongs to the global agent alone."""
        return (s.generation == 0) & (has_global and not config.first_phase_always)

    def phase_length(s: State, index: int, earlier: dict[str, Array]) -> Array:
        name, length = names[index], jnp.int32(config.phase)
        if config.schedule == "code" and "evolution" in names:
            length = s.length if name == "evolution" else earlier["evolution"]
        if name != "global":
            return jnp.where(alone(s), 0, length)
        if config.first_phase_always:
            return length + config.first_phase
        return jnp.where(alone(s), config.first_phase, length)

    def gate(s: State, index: int) -> memory.Gate:
        """Nobody is good before there are scores; the global agent needs no label."""
        labelled = s.labels.any() if config.labels == "any" else s.labels[index]
        open_ = (s.generation > 0) & (labelled | (names[index] == "global"))
        return memory.Gate(open_, s.scores.min(), config.strict)

    def phase(s: State, index: int, length: Array) -> tuple[State, Phase]:
        """One agent plays; the global one then learns as much as another has played."""
        key, key_train, key_update = jax.random.split(s.key, 3)
        state, seen, done = members[index].train(
            s.team[index], s.memory, length, gate(s, index), s.hyper, key_train
        )
        team = (*s.team[:index], state, *s.team[index + 1 :])
        update = members[0].update
        if index and update is not None:
            learned = update(team[0], seen, done.steps, s.hyper, key_update)
            seen, team = memory.after(seen, learned.updates), (learned, *team[1:])
        return replace(s, key=key, team=team, memory=seen, env_steps=s.env_steps + done.steps), done

    def together(s: State) -> tuple[State, Array, Array]:
        """The global agent's first phase or, after it, everybody at once; steps and kept episodes [P]."""
        steps = kept = jnp.zeros(population, jnp.int32)
        if has_global:
            length = jnp.where(alone(s) | config.first_phase_always, config.first_phase, 0)
            s, done = phase(s, 0, length)
            steps, kept = steps.at[0].set(done.steps), kept.at[0].set(done.kept)
        key, key_play = jax.random.split(s.key)
        length = jnp.where(alone(s), 0, config.phase // config.lanes)
        gates = [gate(s, index) for index in range(population)]
        team, keeps, seen, done = fused.play(
            env, members, s.team, s.kept, s.memory, length, gates, s.hyper, key_play
        )
        s = replace(s, key=key, team=team, kept=keeps, memory=seen, env_steps=s.env_steps + done.steps.sum())
        return s, steps + done.steps, kept + done.kept

    def in_turn(s: State) -> tuple[State, Array, Array]:
        """Everybody's phase, one after the other; steps and kept episodes [P]."""
        earlier: dict[str, Array] = {}
        steps, kept = [jnp.int32(0)] * population, [jnp.int32(0)] * population
        for index in order:
            with jax.named_scope(names[index]):
                s, done = phase(s, index, phase_length(s, index, earlier))
            earlier[names[index]] = steps[index] = done.steps
            kept[index] = done.kept
        if "evolution" in names:
            played = earlier["evolution"]
            longer = jnp.where(played > config.phase // 2, jnp.minimum(config.phase, played), s.length)
            s = replace(s, length=longer)
        return s, jnp.stack(steps), jnp.stack(kept)

    def train(s: State) -> State:
        """Everybody plays, and learns in its own way."""
        s, steps, kept = (together if config.fused else in_turn)(s)
        return replace(
            s,
            generation=s.generation + 1,
            metrics=replace(
                s.metrics,
                steps=steps,
                kept=kept,
                local_size=memory.local_size(s.memory) if has_global else jnp.int32(0),
                gradient_steps=s.team[0].updates if has_global else jnp.int32(0),
                losses=losses(s.team),
            ),
        )

    def test(which: Array, start: Key, key: Key, tested: tuple[PyTree, ...], hyper: Hyper) -> Array:
        """The return of one episode of member ``which``, from the state that ``start`` gives."""
        scale = 1.0 if config.test == "sample" else 0.0

        def policy(carry: tuple[()], obs: Array, key: Key) -> tuple[tuple[()], Array]:
            # All policies act, which is cheap beside the environment: one loop plays for everybody.
            actions = [m.act(p, obs, hyper, key, scale) for m, p in zip(members, tested, strict=True)]
            return carry, jnp.stack(actions)[which]

        fixed = env._replace(reset=lambda _: env.reset(start))
        return rollout.episode(fixed, policy, (), key, record=lambda *_: ()).total

    def score(s: State) -> State:
        """Everybody plays the same test episodes, which nobody learns from."""
        key, key_test = jax.random.split(s.key)
        tested = tuple(m.tested(state) for m, state in zip(members, s.team, strict=True))
        starts = jax.random.split(s.test_key, config.trials)
        keys = jax.random.split(key_test, (population, config.trials))
        over_trials = jax.vmap(test, (None, 0, 0, None, None))
        over_members = jax.vmap(over_trials, (0, None, 0, None, None))
        scores = over_members(jnp.arange(population), starts, keys, tested, s.hyper).mean(1)
        elite = scores.max()
        best = jnp.where(s.generation == 1, elite, jnp.maximum(s.metrics.best_score, elite))
        return replace(
            s,
            key=key,
            scores=scores,
            metrics=replace(s.metrics, fitness=scores, elite_score=elite, best_score=best),
        )

    def hand_over(s: State) -> State:
        """Who is far behind takes over a policy."""
        labels = jnp.zeros_like(s.labels) if config.reset_labels else s.labels
        first = (s.generation == 1) & has_global & (not config.first_phase_always)
        may = config.transfer & (config.transfer_first | ~first)
        team, labels, taken = exchange.hand_over(config, named, s.team, s.scores, labels, may, s.hyper)
        if config.fused:
            s = replace(s, kept=dropped(s.kept, taken.sum(1)))
        return replace(
            s,
            team=team,
            labels=labels,
            metrics=replace(s.metrics, labels=labels.astype(jnp.int32), transfers=taken),
        )

    def dropped(kept: tuple[PyTree, ...], taken: Array) -> tuple[PyTree, ...]:
        """A batch begun with another policy than the agent has now is begun anew."""
        if "on_policy" not in names:
            return kept
        index = names.index("on_policy")
        batch = replace(kept[index], filled=jnp.where(taken[index] > 0, 0, kept[index].filled))
        return (*kept[:index], batch, *kept[index + 1 :])

    def individuals(s: State) -> Params:
        """The mean network of each agent."""
        return tree.stack([m.mean(state) for m, state in zip(members, s.team, strict=True)])

    def policy(s: State) -> Params:
        """That of the agent with the largest score."""
        return tree.take(individuals(s), jnp.argmax(s.scores))

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        action = members[0].greedy(params, obs)
        return Choice(memory, action, action, jnp.float32(0))

    return Method(
        init=init,
        step=chain(train, score, hand_over),
        policy=policy,
        act=act,
        hyper=default_hyper(config),
        steps_bound=_steps_bound(env, config, names),
        individuals=individuals,
    )


def team_members(env: Env, config: Config) -> dict[str, Member]:
    """Everybody in the team, by name, in the order in which states, scores and labels have them."""
    shares = config.off_policy is not None and config.share
    found: dict[str, Member] = {}
    if config.off_policy is not None:
        for copy in range(1 + config.copies):
            name = f"copy{copy}" if copy else "global"
            found[name] = off_policy.build(env, config, config.off_policy, is_global=not copy)
    if config.on_policy is not None:
        found["on_policy"] = on_policy.build(env, config, config.on_policy, shares=shares)
    if config.evolution is not None:
        found["evolution"] = search.build(env, config, config.evolution, shares=shares)
    return found


def _steps_bound(env: Env, config: Config, names: list[str]) -> int:
    """The most environment steps of an iteration."""
    limit, longest = env.spec.episode_length, config.phase
    generation = config.evolution.cem.population * limit if config.evolution else 0
    if config.schedule == "code":
        longest += generation  # others play as long as evolution did

    def most(name: str, length: int) -> int:
        if config.fused and length == longest:
            return length
        if name == "evolution":
            return length - 1 + generation
        if name == "on_policy" and config.on_policy_update == "episode":
            return length - 1 + limit
        if name == "on_policy":
            return -(-length // config.on_policy_batch) * config.on_policy_batch
        return length - 1 + limit if config.burst else -(-length // config.lanes) * config.lanes

    everybody = sum(most(name, longest) for name in names)
    if "global" not in names:
        return everybody
    if config.first_phase_always:
        return everybody - most("global", longest) + most("global", longest + config.first_phase)
    return max(everybody, most("global", config.first_phase))


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
