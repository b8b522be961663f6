"""Population based training of neural networks. Jaderberg et al., 2017, arXiv 1711.09846.

Agents of any kind train side by side, each with its own numbers. At ready points, every ``interval``
environment steps of an agent, the worst take over the agents of the best, parameters, targets, moments and
statistics, and explore from their numbers. What is decided and with which numbers everyone goes on is kept in
the State, so that the winner's schedule can be read off and the whole run repeated.

An iteration: collect -> learn -> evolve.

``config.search`` may also be random search, successive halving or MF-PBT, which differ in the decision alone.
An agent keeps its lanes, and its replay unless ``copy_replay``; the returns by which it is judged go with it.

Differs from the paper: all agents are ready at once. A number near the end of its range, such as a discount,
is explored by its distance to that end. A newcomer of halving learns from its slot's replay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.agents import AGENTS, ON_POLICY_AGENTS
from popjax.core import Env, Key, Method, PyTree, as_arrays, chain, stacked
from popjax.evolution import priors, search
from popjax.evolution.search import Decision, Standing
from popjax.methods.pbt_config import (
    Config,
    Metrics,
    OffPolicyConfig,
    OnPolicyConfig,
    configured,
    default_hyper,
    evolved,
)
from popjax.population import drives, exchange, lineage, offpolicy, onpolicy, parts, scoring
from popjax.population.lineage import Lineage
from popjax.recipe import Recipe, recorded

START, TURN = 0x50425401, 0x50425402
"""Folded into keys for draws of the search, so that agents draw as they do without one."""
CARRIED = ("hyper", "metrics", "agents", "lanes", "lineage", "born")
"""What a ready point changes; a replay is not among it."""


@struct.dataclass
class Searching:
    """What a State carries beside its agents: ``born`` int32 [P] is the ready point at which the line of each
    slot began."""

    lineage: Lineage
    born: Array = stacked()


@struct.dataclass
class OffPolicyState(Searching, offpolicy.State):  # type: ignore[misc] # stacked() gives no default
    """Of agents with a replay; more in ``offpolicy.State``."""


@struct.dataclass
class OnPolicyState(Searching, onpolicy.State):  # type: ignore[misc]
    """Of agents that learn from what they have just played; more in ``onpolicy.State``."""


State: TypeAlias = Any
"""One of these two, as the agents are."""
LAYERS: dict[type, tuple[Any, Any]] = {
    OffPolicyConfig: (offpolicy.build, OffPolicyState),
    OnPolicyConfig: (onpolicy.build, OnPolicyState),
}


@recorded
def build(env: Env, config: Config = OffPolicyConfig()) -> Method:
    """Return a search over the numbers of ``config.population`` agents of the kind ``config.agent`` in
    ``env``.

    Raises:
        ValueError: what shall evolve is no number, or the population does not divide as the search needs it.
    """
    layer, kind = LAYERS[type(config)]
    base: parts.Parts = layer(env, config, recent=-(-config.episodes // config.lanes))
    agent, population, own = base.agent, config.population, jnp.arange(config.population)
    evolving, decide = evolved(config), search.build(config.search, population)
    every = -(-config.interval * population // base.steps)  # iterations between ready points

    def init(key: Key, hyper: PyTree) -> State:
        hyper = priors.begin(evolving, jax.random.fold_in(key, START), as_arrays(hyper), population)
        fields = base.fields(key, hyper)
        chosen, none = copies(own), jnp.int32(0)
        told = Metrics(**vars(fields.pop("metrics")), numbers=named(hyper), ready=none, **chosen)
        table = lineage.begin(values(hyper), config.rounds + 1)
        born = jnp.zeros(population, jnp.int32)
        state: State = kind(**fields, metrics=told, lineage=table, born=born)
        return state

    def named(hyper: PyTree) -> dict[str, Array]:
        return {prior.name: getattr(hyper, prior.name) for prior in evolving}

    def values(hyper: PyTree) -> Array:
        return jnp.stack(list(named(hyper).values()), 1)  # [P, F]

    def copies(source: Array) -> dict[str, Array]:
        return {"parents": exchange.parents(source), "transfers": exchange.transfers(source)}

    def collect(s: State) -> State:
        """Play everyone in its lanes, and judge it by its last episodes there."""
        after = base.collect(s)
        fitness = s.metrics.fitness if config.scoring else judged(after).fitness
        return replace(after, metrics=replace(after.metrics, fitness=fitness, **copies(own)))

    def judged(s: State) -> Standing:
        """Return how everyone stands by its episodes in training; by what it has so far before the first."""
        recent = s.lanes.account.recent
        returns, valid = (x.reshape(population, -1) for x in (recent.returns, recent.valid))
        count = valid.sum(1)
        mean = jnp.where(valid, returns, 0.0).sum(1) / jnp.maximum(count, 1)
        fitness = jnp.where(count > 0, mean, s.lanes.fitness)
        return Standing(fitness, returns, valid, s.lineage.count, s.lineage.count - s.born)

    def scored(s: State, key: Key) -> Standing:
        """Return how everyone stands by greedy episodes, which do not count as training."""
        policies = base.individuals(s)
        returns = scoring.returns(env, base.act, policies, agent.memory, key, config.scoring)
        known = judged(s)
        return known._replace(fitness=returns.mean(1), returns=returns, valid=jnp.ones_like(returns, bool))

    def evolve(s: State) -> State:
        """Let everyone that is to take over an agent do so and explore, at a ready point."""
        now = (s.generation % every == 0) & (s.env_steps >= base.learning_starts)
        due = jnp.where(tree.any_lane(now), 1, 0)

        def turn(_: Array, carried: dict[str, Any]) -> dict[str, Any]:
            after = turned(replace(s, **carried))
            return {name: getattr(after, name) for name in CARRIED}

        after = jax.lax.fori_loop(0, due, turn, {name: getattr(s, name) for name in CARRIED})
        s = replace(s, **after)
        if not (isinstance(config, OffPolicyConfig) and config.copy_replay):
            return s
        source = jnp.where(s.metrics.parents[:, 0] < 0, own, s.metrics.parents[:, 0])
        return replace(s, replay=exchange.copy_replays(s.replay, source, due))

    def turned(s: State) -> State:
        """Return the State behind a ready point, its replay as it was."""
        key = jax.random.fold_in(s.key, TURN)
        key_score, key_decide, key_explore, key_prior, key_fresh = jax.random.split(key, 5)
        standing = scored(s, key_score) if config.scoring else judged(s)
        decision = decide(key_decide, standing, s.hyper.search.significance)
        hyper = numbers_after(s.hyper, decision, key_explore, key_prior)
        agents, recent = tree.take((s.agents, s.lanes.account.recent), decision.source)
        born, fitness = tree.take((s.born, standing.fitness), decision.source)
        if newcomers:
            anew = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key_fresh, population), hyper)
            agents = tree.where(decision.fresh, anew, agents)
            recent = replace(recent, count=jnp.where(decision.fresh[:, None], 0, recent.count))
            born = jnp.where(decision.fresh, s.lineage.count, born)
        source = jnp.where(decision.fresh, -1, decision.source)
        table = lineage.record(s.lineage, s.generation, source, standing.fitness, values(hyper))
        told = {"fitness": fitness, "numbers": named(hyper), "ready": table.count - 1, **copies(source)}
        account = replace(s.lanes.account, recent=recent)
        return replace(
            s,
            hyper=hyper,
            metrics=replace(s.metrics, **told),
            agents=agents,
            lanes=replace(s.lanes, account=account),
            lineage=table,
            born=born,
        )

    def numbers_after(hyper: PyTree, decision: Decision, key_explore: Key, key_prior: Key) -> PyTree:
        """Return the numbers with which everyone goes on."""
        taken = {name: x[decision.numbers] for name, x in named(hyper).items()}
        hyper = replace(hyper, **taken)
        if config.explore:
            how = (hyper.search.resample, hyper.search.shrink, hyper.search.grow)
            hyper = priors.explore(evolving, key_explore, hyper, decision.explore, *how)
        if newcomers:
            blank = replace(hyper, **dict.fromkeys(taken, jnp.float32(0)))
            drawn = named(priors.begin(evolving, key_prior, blank, population))
            mixed = tree.where(decision.fresh, drawn, named(hyper))
            hyper = replace(hyper, **mixed)
        return hyper

    newcomers = isinstance(config.search, search.Halving) and config.search.freed == "fresh"
    return parts.whole(base, default_hyper(config), init, chain(collect, base.learn, evolve))


METHOD = Recipe(
    build,
    configured,
    default_hyper,
    agents={
        "agent": {name: module.Config() for name, module in (AGENTS | ON_POLICY_AGENTS).items()},
        "drive": drives.KINDS,
        "search": search.KINDS,
    },
)
