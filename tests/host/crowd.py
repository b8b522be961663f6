"""A population whose individuals speak to each other: the worse half learns from the better half."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Choice, Key, Method, Number, as_arrays, stacked

STEPS = 10


@struct.dataclass
class Hyper:
    noise: Number = 0.1


@struct.dataclass
class Metrics:
    """fitness: [P]; mean: []."""

    fitness: Array
    mean: Array


@struct.dataclass
class State:
    """shared is everybody's; the rest [P, ...]."""

    key: Key
    hyper: Hyper
    env_steps: Array
    generation: Array
    metrics: Metrics
    shared: Array
    weights: Array = stacked()
    keys: Key = stacked()


def build(population: int, size: int = 12) -> Method:
    def init(key: Key, hyper: Hyper) -> State:
        key, key_weights, key_own = jax.random.split(key, 3)
        return State(
            key=key,
            hyper=as_arrays(hyper),
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(population), jnp.float32(0)),
            shared=jnp.zeros(size),
            weights=jax.random.normal(key_weights, (population, size)),
            keys=jax.random.split(key_own, population),
        )

    def step(s: State) -> State:
        key, key_order = jax.random.split(s.key)
        keys, own = jax.vmap(lambda k: tuple(jax.random.split(k)))(s.keys)
        noise = jax.vmap(lambda k: jax.random.normal(k, (size,)))(own)
        weights = s.weights + s.hyper.noise * noise - 0.1 * (s.weights - s.shared)
        fitness = -jnp.square(weights - 1).sum(-1)
        order = jnp.argsort(-fitness)
        better = order[: population // 2]
        weights = weights.at[order[population // 2 :]].set(0.9 * weights[better])
        return s.replace(
            key=key,
            env_steps=s.env_steps + STEPS,
            generation=s.generation + 1,
            metrics=Metrics(fitness, fitness.mean()),
            shared=weights.mean(0) + 0.01 * jax.random.normal(key_order, (size,)),
            weights=weights,
            keys=keys,
        )

    def act(params: Any, memory: Any, obs: Array, key: Key, scale: Array | float) -> Choice:
        action = jnp.tanh(params[:1])
        return Choice(memory, action, action, jnp.float32(0))

    return Method(init, step, lambda s: s.shared, act, Hyper(), STEPS)
