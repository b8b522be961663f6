"""The cross-entropy method with a diagonal covariance, on flat parameter vectors.

"CEM-RL", Pourchot & Sigaud, ICLR 2019, and its code (sepCEM): ``ask`` draws a population around the mean,
and ``tell`` moves mean and variance to its best half. ``mix`` reuses individuals of the previous generation
if the search has hardly moved. Flatten networks with ``jax.flatten_util.ravel_pytree``.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.checks import check_types
from popjax.core import Key, Number, number
from popjax.evolution.ranking import best_first


@dataclass(frozen=True)
class Config:
    """Sizes and forms."""

    population: int = 10  # individuals of a generation
    parents: int = 5  # best individuals, which update mean and variance
    antithetic: bool = True  # the second half of a population mirrors the first
    # divide the variance by ``parents``, too, as in the authors' code but not in the paper
    divide_by_parents: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.parents <= self.population:
            raise ValueError(f"parents must be in 1 to the population {self.population}, got {self.parents}")
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"antithetic needs an even population, got {self.population}; use {self.population + 1} or"
                " unset antithetic"
            )


@struct.dataclass
class Hyper:
    """Hyperparameters of the search."""

    init_variance: Number = number(1e-3)  # initial variance of every parameter
    init_damp: Number = number(1e-3)  # added to the variance at the start of the search
    final_damp: Number = number(1e-5)  # added to the variance in the long run
    damp_rate: Number = number(0.95, high=1.0)  # share of the damp that stays from generation to generation


@struct.dataclass
class State:
    """The search distribution over n parameters.

    mean:     [n]
    variance: [n]
    damp:     []   added to the variance by the next ``tell``, which shrinks it first
    """

    mean: Array
    variance: Array
    damp: Array


def init(mean: Array, hyper: Hyper) -> State:
    """Return the search around ``mean`` [n], such as the parameters of one fresh network."""
    return State(
        mean=jnp.asarray(mean, jnp.float32),
        variance=jnp.full(jnp.shape(mean), hyper.init_variance, jnp.float32),
        damp=jnp.asarray(hyper.init_damp, jnp.float32),
    )


def ask(state: State, key: Key, config: Config = Config()) -> Array:
    """Draw a population [population, n]; if antithetic, row ``i + population / 2`` mirrors row ``i``."""
    draws = config.population // 2 if config.antithetic else config.population
    noise = jax.random.normal(key, (draws, *state.mean.shape))
    if config.antithetic:
        noise = jnp.concatenate([noise, -noise])
    return state.mean + noise * jnp.sqrt(state.variance)


def weights(parents: int) -> Array:
    """Return the weights [parents] of the best, second best and so on: proportional to ``log((parents + 1) /
    rank)``."""
    raw = jnp.log((parents + 1) / jnp.arange(1, parents + 1))
    return raw / raw.sum()


def tell(state: State, population: Array, fitness: Array, hyper: Hyper, config: Config = Config()) -> State:
    """Return the search after ``population`` [P, n] was found to have ``fitness`` [P]; higher is better.

    Deviations are taken from the old mean. Of individuals with equal fitness the earlier ranks first; those
    whose fitness is not finite rank last.
    """
    chex.assert_shape(population, (config.population, *state.mean.shape))
    chex.assert_shape(fitness, (config.population,))
    best = best_first(fitness)[: config.parents]
    share, parents = weights(config.parents), population[best]
    damp = hyper.damp_rate * state.damp + (1 - hyper.damp_rate) * hyper.final_damp
    variance = share @ jnp.square(parents - state.mean)
    if config.divide_by_parents:
        variance = variance / config.parents
    return State(mean=share @ parents, variance=variance + damp, damp=damp)


def log_density(state: State, individuals: Array) -> Array:
    """Return the log density [...] of ``individuals`` [..., n] under the search, nats."""
    squares = jnp.square(individuals - state.mean) / state.variance
    return -0.5 * (squares + jnp.log(2 * jnp.pi * state.variance)).sum(-1)


def mix(before: State, state: State, old: Array, usable: Array, key: Key) -> tuple[Array, Array]:
    """Return N individuals [N, n] of the search ``state``, some reused from the N ``old`` ones [N, n], which
    were drawn from the search ``before``; and the index int32 [N] of each among the old ones, -1 if new.

    usable: bool [] whether old individuals may be kept.

    Importance mixing (CEM-RL, algorithm 2): an old individual stays with probability min(1, new density /
    old density), and a new one joins with probability max(0, 1 - old density / new density), in turn until
    there are N; fresh draws supply the rest. Together they are distributed as ``state`` says, except for
    the few left out once N is reached, a share of about 1 / sqrt(N).
    """
    chex.assert_rank([old, usable], [2, 0])
    key_drawn, key_fresh, key_keep, key_join = jax.random.split(key, 4)
    count = len(old)

    def draw(key: Key) -> Array:
        return state.mean + jax.random.normal(key, old.shape) * jnp.sqrt(state.variance)

    drawn, fresh = draw(key_drawn), draw(key_fresh)
    stay, join = acceptance(before, state, old, drawn)
    stays = usable & (jax.random.uniform(key_keep, (count,)) < stay)
    joins = jax.random.uniform(key_join, (count,)) < join
    accepted = jnp.concatenate([jnp.stack([stays, joins], 1).ravel(), jnp.ones(count, jnp.bool_)])
    chosen = jnp.argsort(~accepted, stable=True)[:count]
    candidates = jnp.concatenate([jnp.stack([old, drawn], 1).reshape(2 * count, -1), fresh])
    source = jnp.where((chosen < 2 * count) & (chosen % 2 == 0), chosen // 2, -1)
    return candidates[chosen], source.astype(jnp.int32)


def acceptance(before: State, state: State, old: Array, drawn: Array) -> tuple[Array, Array]:
    """Return the probabilities [N] with which ``old`` individuals [N, n] stay and newly ``drawn`` ones [N, n]
    join when the search moves from ``before`` to ``state``. CEM-RL, algorithm 2, lines 5 and 9."""
    stay = jnp.minimum(0.0, log_density(state, old) - log_density(before, old))
    join = jnp.minimum(0.0, log_density(before, drawn) - log_density(state, drawn))
    return jnp.exp(stay), -jnp.expm1(join)
