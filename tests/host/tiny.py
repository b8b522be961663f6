"""A method small enough to compile in a blink: it walks a task at random and nudges one parameter.

It has what a real one has: keys, a population of metrics, a replay that is much larger than the rest, and
seeds that may count steps at different rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Choice, Env, Key, Method, Number, as_arrays
from popjax.recipe import Recipe, recorded

STEPS_BOUND = 12


@dataclass(frozen=True)
class Config:
    """Sizes."""

    capacity: int = 1_000  # rows of the replay
    uneven: bool = (
        False  # whether the environment steps of a generation are random, 6 to 12; else they are 12
    )

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")


@struct.dataclass
class Hyper:
    """Numbers."""

    rate: Number = 0.1
    poison_at: Number = -1.0  # generation in which a metric becomes NaN


@struct.dataclass
class Losses:
    """One number."""

    loss: Array


@struct.dataclass
class Metrics:
    """fitness: [P]; losses: a nested struct; count: int32."""

    fitness: Array
    losses: Losses
    count: Array


@struct.dataclass
class State:
    """The fields that the host expects, a replay, a parameter, and a leaf without elements."""

    key: Key
    hyper: Hyper
    env_steps: Array
    generation: Array
    metrics: Metrics
    replay: Array
    weight: Array
    nothing: Array


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """The walk in ``env``; continuous tasks only."""
    if env.spec.discrete:
        raise ValueError(f"tiny needs continuous actions; {env.spec.name} has discrete ones")
    capacity, uneven = config.capacity, config.uneven

    def init(key: Key, hyper: Hyper) -> State:
        key, key_weight = jax.random.split(key)
        zero = jnp.int32(0)
        return State(
            key=key,
            hyper=as_arrays(hyper),
            env_steps=zero,
            generation=zero,
            metrics=Metrics(jnp.zeros(3), Losses(jnp.float32(0)), zero),
            replay=jnp.zeros((capacity, 2)),
            weight=jax.random.normal(key_weight, env.spec.obs_shape),
            nothing=jnp.zeros((0, 4)),
        )

    def step(s: State) -> State:
        key, key_play, key_count = jax.random.split(s.key, 3)
        _, obs = env.reset(key_play)
        steps = jax.random.randint(key_count, (), 6, STEPS_BOUND + 1) if uneven else STEPS_BOUND
        generation = s.generation + 1
        weight = s.weight + s.hyper.rate * (obs - s.weight) + 0.01 * jax.random.normal(key_play, obs.shape)
        loss = jnp.where(generation == s.hyper.poison_at, jnp.nan, jnp.square(weight).sum())
        return s.replace(
            key=key,
            env_steps=s.env_steps + steps,
            generation=generation,
            metrics=Metrics(weight.mean() + jnp.arange(3.0), Losses(loss), s.metrics.count + steps),
            replay=s.replay.at[generation % capacity].set(weight.mean()),
            weight=weight,
        )

    def act(params: Any, memory: Any, obs: Array, key: Key, scale: Array | float) -> Choice:
        action = jnp.tanh(params[:1])
        return Choice(memory, action, action, jnp.float32(0))

    return Method(
        init=init,
        step=step,
        policy=lambda s: s.weight,
        act=act,
        hyper=Hyper(),
        steps_bound=STEPS_BOUND,
        individuals=lambda s: s.weight + jnp.arange(3.0)[:, None],
    )


METHOD = Recipe(build, Config, lambda config: Hyper())
