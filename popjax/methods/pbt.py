"""Population Based Training: agents of any kind tune their own hyperparameters while they train. Jaderberg et
al., 2017, arXiv 1711.09846.

An iteration: collect -> learn -> evolve. Agents train side by side, each with its own hyperparameters. At
ready points, every ``interval`` environment steps of an agent, copies of the best agents (parameters,
targets, moments and statistics) replace the worst and explore from the best's hyperparameters. The State
keeps all decisions and the hyperparameters with which each agent continues, so that the winner's schedule can
be read and the whole run repeated.

``config.search`` may also be random search, successive halving or MF-PBT, which differ only in which agents
replace which. A slot that takes over an agent keeps its lanes and, unless ``copy_replay``, its replay. The
agent's recent returns and its drive's module are copied with it; the slot's unfinished episode does not
count. An agent that has diverged is the worst; its slot takes over lanes and replay, too. With
``config.scoring`` agents are compared by greedy episodes, so the environment stands in the program twice.

Differs from the paper: all agents are ready at the same time. A hyperparameter is redrawn with probability
``hyper.search.resample`` and else perturbed, whereas the paper does only one or the other. It stays within
its prior's bounds; for one near the end of its range, such as a discount, the distance to that end is
perturbed. A newcomer of halving learns from its slot's replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import agents, tree
from popjax.core import Env, Key, Method, Params, PyTree, Schedule, as_arrays, chain
from popjax.evolution import priors, search
from popjax.evolution.ranking import comparable
from popjax.evolution.search import Decision, Standing
from popjax.methods.pbt_config import (
    LAYERS,
    Config,
    Metrics,
    OffPolicyConfig,
    SearchHyper,
    State,
    check_budget,
    check_own_hyper,
    configured,
    default_budget,
    default_hyper,
    evolved,
)
from popjax.population import (
    drives,
    exchange,
    judging,
    lineage,
    parts,
    schedules,
    scoring,
)
from popjax.population.lanes import taken_over
from popjax.population.lineage import Lineage
from popjax.population.schedules import Scheduled, Selections
from popjax.recipe import Recipe, recorded

START, TURN = 0x50425401, 0x50425402
"""Folded into keys for the search's draws, so that agents draw the same numbers as without a search."""
CARRIED = ("hyper", "metrics", "agents", "lanes", "lineage", "born", "line", "intervene")
"""Fields that a ready point changes, apart from the agents' own replays and drives."""


@recorded
def build(env: Env, config: Config = OffPolicyConfig(), replay: Sequence[Scheduled] = ()) -> Method:
    """Return a search over the hyperparameters of ``config.population`` agents of the kind ``config.agent``
    in ``env``.

    Raises:
        ValueError: a name in ``evolve`` is not a hyperparameter; the search cannot divide the population; or
            ``copy_replay`` is set but rows refer to frames of their own lanes.
    """
    if isinstance(config, OffPolicyConfig) and config.copy_replay and env.spec.stack > 1:
        raise ValueError(
            f"copy_replay copies rows, but those of {env.spec.name} refer to frames of their own lanes;"
            " unset copy_replay"
        )
    layer, kind = LAYERS[type(config)]
    base: parts.Parts = layer(env, config, recent=-(-config.episodes // config.lanes))
    agent, population, own = base.agent, config.population, jnp.arange(config.population)
    evolving, decide = evolved(config), search.build(config.search, population)
    every = -(-config.interval * population // base.steps)  # iterations between ready points
    names, own_steps = [prior.name for prior in evolving], base.steps // population
    apart = isinstance(config, OffPolicyConfig) and not config.shared_replay
    replays = ("replay",) if apart else ()  # one for each agent
    changed = (*CARRIED, *(("drive",) if base.hand_over else ()))
    copying = isinstance(config, OffPolicyConfig) and config.copy_replay
    spans = population, every * own_steps
    kinds = agents.kind(config.agent), config.search, config.explore
    again = schedules.selections(replay, env.spec.name, *kinds, names, *spans)

    def init(key: Key, hyper: PyTree) -> State:
        check_own_hyper(config, names, hyper)
        if again is not None:
            schedules.check_unset(hyper, names)
        hyper = priors.begin(evolving, jax.random.fold_in(key, START), as_arrays(hyper), population)
        hyper = hyper if again is None else valued(hyper, again.numbers[0])
        fields = base.fields(key, hyper)
        chosen, none = copies(own), jnp.int32(0)
        told = {"numbers": named(hyper), "ready": none, "diverged": none, **chosen}
        metrics = Metrics(**vars(fields.pop("metrics")), **told)
        table = lineage.begin(values(hyper), config.rounds + 1)
        born = jnp.zeros(population, jnp.int32)
        nothing = jnp.full(2, -1, jnp.int32)
        mine: dict[str, Array] = {"intervene": nothing, "born": born, "line": own}
        state: State = kind(**fields, metrics=metrics, lineage=table, **mine)
        return state

    def named(hyper: PyTree) -> dict[str, Array]:
        return {prior.name: getattr(hyper, prior.name) for prior in evolving}

    def values(hyper: PyTree) -> Array:
        return jnp.stack(list(named(hyper).values()), 1)  # [P, F]

    def valued(hyper: PyTree, rows: Array) -> PyTree:
        return replace(hyper, **dict(zip(names, rows.T, strict=True)))

    def copies(source: Array) -> dict[str, Array]:
        return {"parents": exchange.parents(source), "transfers": exchange.transfers(source)}

    def collect(s: State) -> State:
        """Play every agent in its lanes and, without ``scoring``, update its fitness from its last
        episodes."""
        after = base.collect(s)
        fitness = s.metrics.fitness if config.scoring else judging.shown(judged(after).fitness)
        return replace(after, metrics=replace(after.metrics, fitness=fitness, **copies(own)))

    def judged(s: State) -> Standing:
        """Return the standing of all agents by their episodes in training."""
        now = s.lineage.count
        return Standing(*judging.by_training(s.lanes), now, now - s.born, s.line)

    def scored(s: State, key: Key) -> Standing:
        """Return the standing of all agents by greedy episodes, which do not count as training."""
        policies = base.individuals(s)
        returns = scoring.returns(env, base.act, policies, agent.memory, key, config.scoring)
        known = judged(s)
        return known._replace(fitness=returns.mean(1), returns=returns, valid=jnp.ones_like(returns, bool))

    def evolve(s: State) -> State:
        """At a ready point, let agents take over others and explore."""
        losses = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), s.metrics.losses)
        sick = ~tree.finite(s.metrics.losses)
        told = {"losses": losses, "diverged": sick.sum(dtype=jnp.int32)}
        fitness = judging.shown(jnp.where(sick, -jnp.inf, s.metrics.fitness))
        s = replace(s, metrics=replace(s.metrics, fitness=fitness, **told))
        now = at_ready_point(s)
        own_time, due = tree.in_company(now), jnp.where(tree.any_lane(now), 1, 0)

        def turn(_: Array, carried: dict[str, Any]) -> dict[str, Any]:
            after = turned(replace(s, **carried))
            small = {name: tree.where(own_time, getattr(after, name), carried[name]) for name in changed}
            return small | {name: getattr(after, name) for name in replays}  # ``handed_over`` masks these

        carried = {name: getattr(s, name) for name in (*changed, *replays)}
        return replace(s, **jax.lax.fori_loop(0, due, turn, carried))

    def at_ready_point(s: State) -> Array:
        return (s.generation % every == 0) & (s.env_steps >= base.learning_starts)

    def turned(s: State) -> State:
        """Return the State after a ready point."""
        key = jax.random.fold_in(s.key, TURN)
        key_score, key_decide, key_explore, key_prior, key_fresh, key_drive = jax.random.split(key, 6)
        standing = scored(s, key_score) if config.scoring else judged(s)
        lost = ~tree.finite(s.agents)
        if base.hand_over:
            lost |= tree.nan(s.drive)
        standing = standing._replace(fitness=comparable(jnp.where(lost, -jnp.inf, standing.fitness)))
        if again is None:
            decision = decide(key_decide, standing, s.hyper.search.significance)
            explores = search.explores(config.search)
            decision = search.intervened(decision, *s.intervene, explores=explores)
            hyper = hyper_after(s.hyper, decision, key_explore, key_prior)
        else:
            decision, hyper = repeated(again, s)
        s = handed_over(s, decision, standing.fitness, lost, key_drive)
        if newcomers:
            s = begun_anew(s, decision.fresh, hyper, key_fresh)
        source = jnp.where(decision.fresh, -1, decision.source)
        table = lineage.record(s.lineage, s.generation, source, standing.fitness, values(hyper))
        fitness = judging.shown(standing.fitness[decision.source])
        told = {"fitness": fitness, "numbers": named(hyper), "ready": table.count - 1, **copies(source)}
        metrics, nothing = replace(s.metrics, **told), jnp.full(2, -1, jnp.int32)
        return replace(s, hyper=hyper, metrics=metrics, lineage=table, intervene=nothing)

    def handed_over(s: State, decision: Decision, fitness: Array, lost: Array, key: Key) -> State:
        """Give each slot the agent that it takes over, with what belongs to the agent, such as returns and
        drive; the agents in slots that are ``lost`` bool [P] have diverged."""
        lender = jnp.where(lost & decision.fresh, jnp.argmax(fitness), decision.source)
        belongings = s.agents, s.lanes.account.recent, s.born, s.line
        taken, recent, born, line = tree.take(belongings, decision.source)
        if env.spec.stack > 1:  # rows refer to the lanes' frames, which stay valid when an agent diverges
            lost = jnp.zeros_like(lost)
        amid = decision.fresh | ((decision.source != own) & ~lost)  # another agent began the episode
        count = jnp.where(decision.fresh[:, None], 0, recent.count)
        lanes = tree.where(lost, tree.take(s.lanes, lender), s.lanes)
        lanes = replace(lanes, account=replace(lanes.account, recent=replace(recent, count=count)))
        lanes = taken_over(lanes, amid, agent.memory)
        if base.hand_over:
            s = replace(s, drive=base.hand_over(s.drive, decision.source, decision.fresh, amid, key))
        if replays:
            handed = jnp.where((lost | copying) & at_ready_point(s), lender, own)
            moved = jnp.where(tree.any_lane((handed != own).any()), 1, 0)
            s = replace(s, replay=exchange.copy_replays(s.replay, handed, moved))
        return replace(s, agents=taken, lanes=lanes, born=born, line=line)

    def begun_anew(s: State, fresh: Array, hyper: PyTree, key: Key) -> State:
        """Put newcomers into the slots that are ``fresh`` [P]."""
        anew = jax.vmap(agent.init, (0, tree.axes(hyper)))(jax.random.split(key, population), hyper)
        born = jnp.where(fresh, s.lineage.count, s.born)
        agents_now, line = tree.where(fresh, anew, s.agents), jnp.where(fresh, own, s.line)
        return replace(s, agents=agents_now, born=born, line=line)

    def hyper_after(hyper: PyTree, decision: Decision, key_explore: Key, key_prior: Key) -> PyTree:
        """Return the hyperparameters with which the agents continue."""
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

    def repeated(again: Selections, s: State) -> tuple[Decision, PyTree]:
        """Return the recorded decision at this ready point and its hyperparameters; no change after the last
        recorded one."""
        row, known = s.lineage.count, s.lineage.count < len(again.source)
        source = jnp.where(known, again.source[row], own)
        decision = search.copies(jnp.where(source < 0, own, source))._replace(fresh=source < 0)
        return decision, tree.where(known, valued(s.hyper, again.numbers[row]), s.hyper)

    def accepts(env_steps: int) -> None:
        recorded = None if again is None else (replay[0].policy.name, len(again.source) - 1)
        check_budget(config, every * base.steps, base.learning_starts, recorded, env_steps)

    def tell(read: tuple[Lineage, Any, dict[str, Any]]) -> dict[str, Any]:
        """Return the winner's schedule, its hyperparameters that do not evolve, and all selections, see
        ``lineage.schedule``."""
        table, winner, constant = read
        told = lineage.schedule(table, int(winner), names, own_steps)
        facts = {"agent": agents.kind(config.agent), "population": population, "interval": every * own_steps}
        facts["fixed"] = {name: float(x[winner] if x.ndim else x) for name, x in constant.items()}
        return facts | told | {"priors": [prior._asdict() for prior in evolving]}

    def read(s: State) -> tuple[Lineage, Array, dict[str, Array]]:
        own = [field.name for field in fields(agents.default_hyper(config.agent))]
        return s.lineage, best(s), {name: getattr(s.hyper, name) for name in own if name not in names}

    def best(s: State) -> Array:
        """Return the slot [] of the best agent; one not judged yet ranks below the others."""
        known = s.born < s.lineage.count - 1 if config.scoring else judging.judged(s.lanes)
        return judging.best(s.metrics.fitness, known, base.individuals(s))

    def policy(s: State) -> Params:
        return tree.take(base.individuals(s), best(s))

    fresh = isinstance(config.search, search.Halving) and config.search.freed == "fresh"
    newcomers = fresh if again is None else bool((again.source < 0).any())
    method = parts.whole(base, default_hyper(config), init, chain(collect, base.learn, evolve))
    schedule = Schedule(read, tell)
    unused = () if again is None else tuple(f"search.{field.name}" for field in fields(SearchHyper))
    driven = (*names, *unused)
    return method._replace(policy=policy, accepts=accepts, driven=driven, schedule=schedule)


def remarks(
    env: Env, config: Config, hyper: PyTree, env_steps: int, replay: Sequence[Scheduled] = ()
) -> list[str]:
    """Return remarks on hyperparameters that do not evolve, for the start of a run, one line each."""
    evolving = [prior.name for prior in evolved(config)]
    return schedules.remarks(env, config, hyper, env_steps, replay=replay, driven=evolving)


METHOD = Recipe(
    build,
    configured,
    default_hyper,
    agents={
        "agent": {
            name: module.Config() for name, module in (agents.AGENTS | agents.ON_POLICY_AGENTS).items()
        },
        "drive": drives.KINDS,
        "search": search.KINDS,
    },
    runs={"replay": schedules.REPEATED},
    remarks=remarks,
    budget=default_budget,
)
