"""Random network distillation: a state is novel where a trained network fails to match a fixed random one.

Source: "Exploration by Random Network Distillation" (Burda, Edwards, Storkey & Klimov, 2018).

What the bonus is divided by is a choice. ``scale="bonus"`` is the standard deviation of the bonus itself,
which shuffled batches can measure. ``scale="return"`` is that of the discounted sum of bonuses, as in the
paper. Such a sum needs the order of time, which a batch from replay has lost. It is therefore measured by
``observer`` on the stream of steps that the caller collects, and ``learn`` leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, normalize, tree
from popjax.checks import check_choices, check_least, check_widths
from popjax.core import Intrinsic, Key, Network, Number, Params, PyTree, Transition, number
from popjax.normalize import ReturnStatistics, RunningStatistics
from popjax.optimize import adam, descend

CLIP = 5.0
"""Bound of the whitened observations, standard deviations."""


@dataclass(frozen=True)
class Config:
    """Shapes of the two networks and what scales the bonus."""

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of target and predictor, units
    features: int = 64  # outputs of target and predictor
    scale: Literal["bonus", "return"] = "bonus"  # whose standard deviation divides the bonus
    lanes: tuple[int, ...] = ()  # shape of the environment lanes that an observer of returns will see

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)
        check_least(self, 1, "features")


@struct.dataclass
class Hyper:
    """Numbers of one module."""

    lr: Number = number(3e-4)  # Adam's rate for the predictor
    discount: Number = number(0.99, high=1.0)  # of the sum of bonuses, per environment step; scale "return"


@struct.dataclass
class State:
    """One module.

    target:       parameters that never change.
    predictor:    parameters that learn to match the target.
    optimizer:    Adam's moments.
    observations: RunningStatistics [D] of successors, which whiten them.
    magnitudes:   RunningStatistics [] of the bonus, or of its discounted sum.
    returns:      float32 [*lanes]  discounted sum of bonuses since each lane's reset; scale "return".
    """

    target: Params
    predictor: Params
    optimizer: PyTree
    observations: RunningStatistics
    magnitudes: RunningStatistics
    returns: Array


@struct.dataclass
class Losses:
    """predictor_loss: weighted mean squared distance to the target, before scaling; bonus_std: what the bonus
    is divided by; [] each."""

    predictor_loss: Array
    bonus_std: Array


Observe = Callable[[State, Array, Array, Hyper, Array | None], State]


def rnd(obs_dim: int, config: Config = Config()) -> Intrinsic:
    """One module for observations [D]. ``reward`` is the squared distance of the networks' outputs at
    ``next_obs``, summed over features and divided by the running standard deviation.

    ``learn`` first takes the batch into the statistics, then steps the predictor on what they whiten.
    """
    network = _network(obs_dim, config)

    def init(key: Key) -> State:
        key_target, key_predictor = jax.random.split(key)
        predictor = network.init(key_predictor)
        return State(
            target=network.init(key_target),
            predictor=predictor,
            optimizer=adam(0.0, jnp.inf).init(predictor),
            observations=normalize.init((obs_dim,)),
            magnitudes=normalize.init(),
            returns=jnp.zeros(config.lanes),
        )

    def reward(state: State, batch: Transition) -> Array:
        bonus = _distance(network, state, state.predictor, batch.next_obs) / _deviation(state.magnitudes)
        return jax.lax.stop_gradient(bonus)

    def learn(state: State, batch: Transition, weight: Array, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        counts = weight > 0
        next_obs = jnp.where(counts[:, None], batch.next_obs, 0.0)
        new = replace(state, observations=normalize.update(state.observations, next_obs, counts))
        share = weight / jnp.where(counts.any(), weight.sum(), 1.0)

        def loss(params: Params) -> tuple[Array, Array]:
            distance = _distance(network, new, params, next_obs)
            return (share * distance).sum(), distance

        predictor, optimizer, value, distance = descend(
            adam(hyper.lr, jnp.inf), loss, state.predictor, state.optimizer
        )
        new = replace(new, predictor=predictor, optimizer=optimizer)
        if config.scale == "bonus":
            new = replace(new, magnitudes=normalize.update(state.magnitudes, distance, counts))
        # Adam moves on its momentum alone, so a batch without any weight has to be left out as a whole.
        new = tree.where(counts.any(), new, state)
        return new, Losses(value, _deviation(new.magnitudes))

    return Intrinsic(init=init, reward=reward, learn=learn)


def observer(obs_dim: int, config: Config) -> Observe:
    """``observe(state, next_obs, done, hyper, valid) -> state``: measures the discounted sum of bonuses of
    ``rnd(obs_dim, config)`` on a stream of steps in order of time.

    next_obs: [T, *lanes, D]     successors of the steps.
    done:     bool [T, *lanes]   where the sum starts anew; the paper's never does.
    valid:    bool [T, *lanes]   which steps happened, or None for all; the others leave no trace.

    Raises:
        ValueError: the config does not scale by the return.
    """
    if config.scale != "return":
        raise ValueError(f"only scale 'return' observes a stream; this module has scale {config.scale!r}")
    network = _network(obs_dim, config)

    def observe(state: State, next_obs: Array, done: Array, hyper: Hyper, valid: Array | None) -> State:
        bonus = _distance(network, state, state.predictor, next_obs)
        seen = ReturnStatistics(state.magnitudes, state.returns)
        seen = normalize.update_returns(seen, bonus, done, hyper.discount, valid)
        return replace(state, magnitudes=seen.statistics, returns=seen.returns)

    return observe


def _network(obs_dim: int, config: Config) -> Network:
    """obs [..., D] -> features [..., F]: both target and predictor."""
    return nets.mlp(obs_dim, config.hidden, config.features, initializer="orthogonal")


def _distance(network: Network, state: State, predictor: Params, obs: Array) -> Array:
    """[...] squared distance of ``predictor`` from the target at ``obs`` [..., D]."""
    white = normalize.normalize(state.observations, obs, clip=CLIP)
    error = network.apply(predictor, white) - network.apply(state.target, white)
    return jnp.square(error).sum(-1)


def _deviation(magnitudes: RunningStatistics) -> Array:
    """[] standard deviation, at least 1e-4; 1 where nothing has varied yet, which tells no scale."""
    varied = magnitudes.variance > 0
    return jnp.where(varied, jnp.sqrt(magnitudes.variance + 1e-8), 1.0)
