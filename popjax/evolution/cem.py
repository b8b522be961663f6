"""The cross-entropy method with a diagonal covariance, on flat parameter vectors.

"CEM-RL", Pourchot & Sigaud, ICLR 2019, and its code (sepCEM): ask for a population around the mean,
tell its fitness, and mean and variance move to the best half. Flatten networks with
``jax.flatten_util.ravel_pytree``.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Key, Number, number


@dataclass(frozen=True)
class Config:
    """Sizes and forms."""

    population: int = 10  # individuals of a generation
    parents: int = 5  # the best of them, which move mean and variance
    antithetic: bool = True  # the second half of a population mirrors the first
    divide_by_parents: bool = (
        True  # the variance is divided by ``parents`` too: in the code, not in the paper
    )

    def __post_init__(self) -> None:
        if not 1 <= self.parents <= self.population:
            raise ValueError(f"parents must be in 1 to the population {self.population}, got {self.parents}")
        if self.antithetic and self.population % 2:
            raise ValueError(f"antithetic individuals come in pairs, the population is {self.population}")


@struct.dataclass
class Hyper:
    """Numbers of the search."""

    init_variance: Number = number(1e-3)  # of every parameter at the start
    init_damp: Number = number(1e-3)  # added to the variance at the start of the search
    final_damp: Number = number(1e-5)  # and in the long run
    damp_rate: Number = number(0.95, high=1.0)  # share of the damp that stays from generation to generation


@struct.dataclass
class State:
    """The search distribution over n parameters.

    mean:     [n]
    variance: [n]
    damp:     []   what the next ``tell`` makes smaller and adds to the variance
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
    """Return the weights [parents] of the best, second and so on: proportional to ``log((parents + 1) /
    rank)``."""
    raw = jnp.log((parents + 1) / jnp.arange(1, parents + 1))
    return raw / raw.sum()


def tell(state: State, population: Array, fitness: Array, hyper: Hyper, config: Config = Config()) -> State:
    """Return the search after ``population`` [P, n] was found to have ``fitness`` [P], more being better.

    Deviations are taken from the old mean. Of individuals with equal fitness the earlier ranks first.
    """
    chex.assert_shape(population, (config.population, *state.mean.shape))
    chex.assert_shape(fitness, (config.population,))
    best = jnp.argsort(-fitness, stable=True)[: config.parents]
    share, parents = weights(config.parents), population[best]
    damp = hyper.damp_rate * state.damp + (1 - hyper.damp_rate) * hyper.final_damp
    variance = share @ jnp.square(parents - state.mean)
    if config.divide_by_parents:
        variance = variance / config.parents
    return State(mean=share @ parents, variance=variance + damp, damp=damp)
