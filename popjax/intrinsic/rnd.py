"""Random network distillation: a state is novel if a trained network fails to match a fixed random one.

Source: "Exploration by Random Network Distillation" (Burda, Edwards, Storkey & Klimov, 2018).

The bonus is divided by a running standard deviation: with ``scale="bonus"``, that of the bonus itself, which
``learn`` measures on shuffled batches; with ``scale="return"``, that of the discounted sum of bonuses, as in
the paper. This sum needs the order of time, which a batch from a replay has lost, so ``observe`` measures it
on the stream of steps that the agents play.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, normalize, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Intrinsic, Key, Network, Number, Params, PyTree, Spec, Transition, number
from popjax.nets import images
from popjax.normalize import RunningStatistics
from popjax.optimize import adam, descend

CLIP = 5.0
"""Bound of the whitened observations, standard deviations."""


@dataclass(frozen=True)
class Config:
    """Shapes of the two networks, and the scaling of the bonus."""

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of target and predictor, units
    torso: images.Torso = "auto"  # convolutions for images; "auto": of the same shape as the agents'
    features: int = 64  # outputs of target and predictor
    scale: Literal["bonus", "return"] = "bonus"  # quantity whose standard deviation divides the bonus
    # In a population, own: a module for each agent, which learns from that agent's transitions; each: a
    # module for each agent, which learns from all transitions; one: a single module for all agents.
    modules: Literal["own", "each", "one"] = "own"

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "features")


@struct.dataclass
class Hyper:
    """Hyperparameters of one module."""

    weight: Number = number(0.2)  # weight of the bonus added to the task's reward
    lr: Number = number(3e-4)  # Adam's rate for the predictor
    discount: Number = number(0.99, high=1.0)  # gamma of the sum of bonuses; for scale "return"


@struct.dataclass
class State:
    """One module.

    target:       parameters that never change.
    predictor:    parameters that learn to match the target.
    optimizer:    Adam's moments.
    observations: RunningStatistics [*obs] of successors, which whiten them.
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
    """predictor_loss: weighted mean squared distance to the target, before scaling; bonus_std: divisor of the
    bonus; [] each."""

    predictor_loss: Array
    bonus_std: Array


def build(spec: Spec, config: Config = Config(), lanes: tuple[int, ...] = (1,)) -> Intrinsic:
    """Return a module that rewards observations at which its predictor is far from the target.

    ``reward`` is the squared distance of the networks' outputs at ``next_obs`` (for stacked images, at the
    newest frame), summed over features and divided by the running standard deviation. ``learn`` first adds
    the batch to the statistics, then trains the predictor on whitened observations. With ``scale="return"``,
    ``observe`` measures the discounted sum of bonuses along each of the environment ``lanes``, starting once
    ``learn`` has seen observations by which to whiten. The sum restarts with each episode; the paper's
    never does.
    """
    shape = spec.obs_shape
    if len(shape) == 3:  # of a stack, keep the newest frame
        shape = (*shape[:2], shape[2] // spec.stack)
    network = _network(shape, config)

    def init(key: Key) -> State:
        key_target, key_predictor = jax.random.split(key)
        predictor = network.init(key_predictor)
        return State(
            target=network.init(key_target),
            predictor=predictor,
            optimizer=adam(0.0, jnp.inf).init(predictor),
            observations=normalize.init(shape),
            magnitudes=normalize.init(),
            returns=jnp.zeros(lanes),
        )

    def seen(obs: Array) -> Array:
        return obs[..., -shape[-1] :] if len(shape) == 3 else obs

    def reward(state: State, batch: Transition) -> Array:
        bonus = _distance(network, state, state.predictor, seen(batch.next_obs))
        bonus = bonus / _deviation(state.magnitudes)
        return jax.lax.stop_gradient(bonus)

    def learn(state: State, batch: Transition, weight: Array, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        counts = weight > 0
        next_obs = seen(batch.next_obs)
        next_obs = tree.where(counts, next_obs, jnp.zeros_like(next_obs))
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
        # Skip a batch without any weight as a whole, since Adam would move by its momentum alone.
        new = tree.where(counts.any(), new, state)
        return new, Losses(value, _deviation(new.magnitudes))

    def observe(state: State, rows: Transition, done: Array, valid: Array, hyper: Hyper) -> State:
        if config.scale == "bonus":
            return state
        bonus = _distance(network, state, state.predictor, seen(rows.next_obs))
        # Leave out bonuses from before there are statistics to whiten observations: their scale differs.
        valid &= state.observations.count > 0
        magnitudes, returns = normalize.update_returns(
            state.magnitudes, state.returns, bonus, done, hyper.discount, valid
        )
        return replace(state, magnitudes=magnitudes, returns=returns)

    return Intrinsic(init, reward, learn, observe)


def _network(shape: tuple[int, ...], config: Config) -> Network:
    """Return the network obs [..., *shape] -> features [..., F] of both target and predictor, behind
    convolutions if observations are images."""
    return images.behind_convolutions(
        shape, lambda size: nets.mlp(size, config.hidden, config.features), config.torso
    )


def _distance(network: Network, state: State, predictor: Params, obs: Array) -> Array:
    """Return the squared distance [...] of ``predictor`` from the target at ``obs`` [..., *obs]."""
    white = normalize.normalize(state.observations, obs, clip=CLIP)
    error = network.apply(predictor, white) - network.apply(state.target, white)
    return jnp.square(error).sum(-1)


def _deviation(magnitudes: RunningStatistics) -> Array:
    """Return the standard deviation [], at least 1e-4; 1 while nothing has varied, since there is no scale
    yet."""
    varied = magnitudes.variance > 0
    return jnp.where(varied, jnp.sqrt(magnitudes.variance + 1e-8), 1.0)
