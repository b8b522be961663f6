"""Searches over hyperparameters of a population in training: which individuals replace which.

A search is a function from the individuals' returns to that decision. Ties are broken at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc

from popjax.checks import check_types
from popjax.core import Key
from popjax.evolution.ranking import ranks


@dataclass(frozen=True)
class Pbt:
    """Population based training. Jaderberg et al., 2017, arXiv 1711.09846."""

    exploit: Literal["truncation", "tournament", "welch"] = "truncation"
    """truncation: each of the worst takes over one of the best; tournament: each takes over a random other
    one if that is better; welch: each takes over a random other one if that is significantly better"""
    fraction: float = 0.2  # fraction of the population, at most half, that truncation replaces and copies

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.fraction <= 0.5:
            raise ValueError(f"fraction must be above 0 and at most 0.5, got {self.fraction}")


@dataclass(frozen=True)
class Random:
    """Random search: all individuals keep the hyperparameters drawn at the start."""


@dataclass(frozen=True)
class Halving:
    """Successive halving on a fixed number of lanes. Jamieson & Talwalkar, AISTATS 2016.

    It decides at the ready points 1, ``factor``, ``factor``^2, ..., as in Hyperband (Li et al., 2018).
    Slots of stopped individuals are reused, so nothing is recompiled. There is no exploration: clones keep
    the hyperparameters of the survivor.
    """

    factor: int = 2  # one line in ``factor`` continues, judged by its best individual
    freed: Literal["clones", "fresh"] = "clones"
    """replacements of the stopped ones: clones of the others, until one line is left, or newcomers, which are
    compared only with individuals of their own age"""

    def __post_init__(self) -> None:
        check_types(self)
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}")


@dataclass(frozen=True)
class MultipleFrequencies:
    """MF-PBT: subpopulations of one size that evolve at different frequencies, with asymmetric migration.
    Doulazmi et al., 2025, arXiv 2506.03225."""

    frequencies: tuple[int, ...] = (1, 10, 25, 50)
    """ready points between two evolutions of each subpopulation, ascending"""

    def __post_init__(self) -> None:
        check_types(self)
        spelt = " ".join(map(str, self.frequencies))
        if len(self.frequencies) < 2 or min(self.frequencies) < 1:
            raise ValueError(f"frequencies must be at least two whole numbers above 0, got {spelt or 'none'}")
        if list(self.frequencies) != sorted(set(self.frequencies)):
            raise ValueError(f"frequencies must ascend, got {spelt}")


AnyConfig: TypeAlias = Pbt | Random | Halving | MultipleFrequencies
KINDS: dict[str, AnyConfig] = {
    "pbt": Pbt(),
    "random": Random(),
    "halving": Halving(),
    "mf": MultipleFrequencies(),
}
"""All searches by their names on the command line."""


class Standing(NamedTuple):
    """Facts on which a search decides at a ready point.

    fitness: float32 [P]; minus infinity for an individual that has diverged.
    returns: float32 [P, M] of single episodes; their mean is ``fitness``.
    valid:   bool [P, M] whether the episode has been played.
    ready:   int32 [] number of the ready point, from 1.
    age:     int32 [P] ready points since each individual's line began, this one included.
    line:    int32 [P] slot in which the line of each individual began.
    """

    fitness: Array
    returns: Array
    valid: Array
    ready: Array
    age: Array
    line: Array


class Decision(NamedTuple):
    """Decision about each slot.

    source:  int32 [P] slot whose agent the slot takes over; its own index to keep its agent.
    numbers: int32 [P] slot whose hyperparameters it takes over.
    explore: bool [P] whether it explores from these hyperparameters.
    fresh:   bool [P] whether it starts over instead, with hyperparameters from the prior.
    """

    source: Array
    numbers: Array
    explore: Array
    fresh: Array


Decide: TypeAlias = Callable[[Key, Standing, "Array | float"], Decision]
"""``(key, standing, significance) -> decision``; the last is the level of a test, for a search with one."""


def build(config: AnyConfig, population: int) -> Decide:
    """Return the decision function of the search of ``config``.

    Raises:
        ValueError: the population is below 2, or does not divide as the search needs it.
    """
    if population < 2:
        raise ValueError(f"a search needs a population of at least 2, got {population}; raise population")
    if isinstance(config, Halving):
        return _halving(config, population)
    if isinstance(config, MultipleFrequencies):
        return _multiple_frequencies(config, population)
    if isinstance(config, Random):
        return lambda key, now, significance: copies(jnp.arange(population))

    def decide(key: Key, now: Standing, significance: Array | float) -> Decision:
        uniform, ties = jax.random.uniform(key, (2, population))
        if config.exploit == "truncation":
            count = min(max(1, round(config.fraction * population)), population // 2)
            return copies(truncation(uniform, now.fitness, count, ties))
        if config.exploit == "tournament":
            return copies(tournament(uniform, now.fitness))
        return copies(welch(uniform, now, significance))

    return decide


def least_length(config: AnyConfig, population: int) -> tuple[int, str]:
    """Return the least number of ready points that the search needs, and what it does at the last of them:
    halving leaves one line of clones, MF-PBT's slowest subpopulation evolves for the first time."""
    if isinstance(config, Halving) and config.freed == "clones":
        return population // config.factor, "halving decides last"
    if isinstance(config, MultipleFrequencies):
        return config.frequencies[-1], "the slowest subpopulation of mf first evolves"
    return 1, "the search first decides"


def usual_length(config: AnyConfig, population: int) -> int:
    """Return the usual number of ready points: 50; for halving, one for each individual, so that with a
    factor of 2 the last line trains as long after the last decision as before it; for MF-PBT, enough for its
    slowest subpopulation to evolve twice."""
    if isinstance(config, Halving):
        return population
    if isinstance(config, MultipleFrequencies):
        return 2 * config.frequencies[-1]
    return 50


def copies(source: Array) -> Decision:
    """Return the decision that every slot continues as ``source`` int32 [P], and explores if that is another
    slot."""
    return Decision(source, source, source != jnp.arange(source.shape[0]), jnp.zeros(source.shape, jnp.bool_))


def explores(config: AnyConfig) -> bool:
    """Return whether individuals explore from the hyperparameters that they take over."""
    return isinstance(config, Pbt | MultipleFrequencies)


def intervened(decision: Decision, slot: Array, parent: Array, *, explores: bool) -> Decision:
    """Return ``decision`` changed for ``slot`` int32 []: it takes over from ``parent`` and, if ``explores``,
    explores from the parent's hyperparameters, or keeps its own agent if ``parent`` is ``slot``. A negative
    slot changes nothing."""
    own = jnp.arange(decision.source.shape[0])
    here = own == slot
    return Decision(
        source=jnp.where(here, parent, decision.source),
        numbers=jnp.where(here, parent, decision.numbers),
        explore=jnp.where(here, (parent != own) & explores, decision.explore),
        fresh=decision.fresh & ~here,
    )


def truncation(uniform: Array, fitness: Array, count: int, ties: Array | None = None) -> Array:
    """Return int32 [P]: each of the ``count`` worst takes over from a random one of the ``count`` best.

    ``uniform`` [P] are draws from [0, 1); ``ties`` as in ``ranking.ranks``.
    """
    rank = ranks(fitness, ties)
    best = jnp.argsort(rank)[: max(count, 1)]
    chosen = best[(uniform * count).astype(jnp.int32)]
    return jnp.where(rank >= fitness.shape[0] - count, chosen, jnp.arange(fitness.shape[0]))


def tournament(uniform: Array, fitness: Array) -> Array:
    """Return int32 [P]: each takes over from a random other one if that is better. ``uniform`` as in
    ``truncation``."""
    rival = _rival(uniform)
    return jnp.where(fitness[rival] > fitness, rival, jnp.arange(fitness.shape[0]))


def welch(uniform: Array, now: Standing, significance: Array | float) -> Array:
    """Return int32 [P]: each takes over from a random other one if that has a higher mean return by Welch's
    t-test.

    The test is two-sided; with fewer than two episodes of either, there is no takeover. An individual that
    has diverged takes over without a test, if the other one has not diverged.
    """
    rival, own = _rival(uniform), jnp.arange(uniform.shape[0])
    count = now.valid.sum(1)
    mean = jnp.where(now.valid, now.returns, 0.0).sum(1) / jnp.maximum(count, 1)
    spread = jnp.where(now.valid, jnp.square(now.returns - mean[:, None]), 0.0).sum(1)
    error = spread / jnp.maximum(count - 1, 1) / jnp.maximum(count, 1)  # [P] squared error of the mean
    both = error + error[rival]
    parts = jnp.square(error) / jnp.maximum(count - 1, 1)
    freedom = jnp.square(both) / jnp.maximum(parts + parts[rival], 1e-30)
    gap = mean[rival] - mean
    squared = jnp.square(gap) / jnp.where(both > 0, both, 1.0)
    chance = betainc(0.5 * jnp.maximum(freedom, 1e-6), 0.5, freedom / (freedom + squared))
    chance = jnp.where(both > 0, chance, 0.0)
    enough = (count >= 2) & (count[rival] >= 2)
    lost = jnp.isneginf(now.fitness)  # has diverged: its returns mean nothing
    better = enough & (gap > 0) & (chance < significance)
    return jnp.where((better | lost) & ~lost[rival], rival, own)


def _rival(uniform: Array) -> Array:
    """Return int32 [P]: a random other individual for each."""
    count = uniform.shape[0]
    return (jnp.arange(count) + 1 + (uniform * (count - 1)).astype(jnp.int32)) % count


def _halving(config: Halving, population: int) -> Decide:
    rungs = round(math.log(population, config.factor))
    if config.factor**rungs != population:
        powers = [config.factor**n for n in range(1, 12) if config.factor**n <= 4 * population]
        near = min(powers, key=lambda power: (abs(power - population), -power), default=config.factor)
        raise ValueError(
            f"halving by {config.factor} needs a population that is a power of {config.factor}, got"
            f" {population}; use {near}"
        )
    # Ages beyond int32 are never reached.
    milestones = jnp.array([config.factor**n for n in range(31) if config.factor**n < 2**31], jnp.int32)
    own = jnp.arange(population)

    def clones(key: Key, now: Standing, significance: Array | float) -> Decision:
        """Fill all lanes with clones of the best individual of each line that continues, equally many."""
        rung = (milestones < now.ready).sum() + 1
        rank = ranks(now.fitness, jax.random.uniform(key, (population,)))
        best = jnp.full(population, population).at[now.line].min(rank)  # [P] of each line; P: it has ended
        ahead = jnp.argsort(rank)[jnp.sort(best)]  # [P] the best of each line, the best line first
        left = jnp.maximum(population // config.factor ** jnp.minimum(rung, rungs), 1)
        left = jnp.minimum(left, (best < population).sum())
        stays = (best[now.line] == rank) & ((best < rank[:, None]).sum(1) < left)
        survivor = ahead[(~stays & (rank < rank[:, None])).sum(1) % left]  # in turn, by rank
        due = (milestones == now.ready).any() & (rung <= rungs)
        decision = copies(jnp.where(due & ~stays, survivor, own))
        return decision._replace(explore=jnp.zeros_like(due, shape=population))

    def fresh(key: Key, now: Standing, significance: Array | float) -> Decision:
        """Within each age group keep the best 1/factor; restart the others."""
        peers = now.age[:, None] == now.age
        rank = ranks(now.fitness, jax.random.uniform(key, (population,)))
        better = peers & (rank[None, :] < rank[:, None])
        stays = better.sum(1) * config.factor < peers.sum(1)
        due = (milestones == now.age[:, None]).any(1)
        return copies(own)._replace(fresh=due & ~stays)

    return clones if config.freed == "clones" else fresh


def _multiple_frequencies(config: MultipleFrequencies, population: int) -> Decide:
    """Return the decision function of MF-PBT.

    A subpopulation that evolves is ranked in quarters. The first and the second go on. The last takes over
    from the first, rank by rank, and explores. The third receives the best individuals of all other
    subpopulations, each only if better than the one it replaces. A migrant from a subpopulation that evolves
    less often keeps its hyperparameters; any other gets those of the receiving subpopulation's best.
    """
    groups = len(config.frequencies)
    if population % (4 * groups):
        least = -(-population // (4 * groups)) * 4 * groups
        raise ValueError(
            f"{groups} frequencies need a population divisible by {4 * groups}, for quarters of {groups}"
            f" subpopulations, got {population}; use {least}"
        )
    size = population // groups
    share = size // 4
    every = jnp.array(config.frequencies, jnp.int32)
    group = jnp.arange(population) // size

    def decide(key: Key, now: Standing, significance: Array | float) -> Decision:
        ties = jax.random.uniform(key, (population,))
        rank = ranks(now.fitness, ties)  # among all
        inside = jax.vmap(ranks)(now.fitness.reshape(groups, size), ties.reshape(groups, size))
        order = jnp.argsort(inside, 1) + jnp.arange(groups)[:, None] * size  # [groups, size], best first
        source = numbers = jnp.arange(population)
        explore = jnp.zeros(population, jnp.bool_)
        source = source.at[order[:, -share:]].set(order[:, :share])
        numbers = numbers.at[order[:, -share:]].set(order[:, :share])
        explore = explore.at[order[:, -share:]].set(True)
        for home, places in enumerate(order):
            others = jnp.argsort(jnp.where(group == home, population, rank))  # of other groups, best first
            taken = jnp.int32(0)
            for slot in places[2 * share : 3 * share]:
                migrant = others[taken]
                comes = rank[migrant] < rank[slot]
                steadier = every[group[migrant]] > every[home]
                source = source.at[slot].set(jnp.where(comes, migrant, slot))
                numbers = numbers.at[slot].set(
                    jnp.where(comes, jnp.where(steadier, migrant, places[0]), slot)
                )
                taken = taken + comes
        due = (now.ready % every == 0)[group]
        own = jnp.arange(population)
        nobody = jnp.zeros(population, jnp.bool_)
        return Decision(jnp.where(due, source, own), jnp.where(due, numbers, own), explore & due, nobody)

    return decide
