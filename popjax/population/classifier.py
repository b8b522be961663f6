"""The Q-classifier of Collaborative Exploration: a network that predicts which agent will do best from a
given state on.

It learns to predict the undiscounted return of the next ``horizon`` steps for the agent that played them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets
from popjax.core import Key, Params, PyTree, Spec
from popjax.nets import images
from popjax.optimize import adam, descend
from popjax.population import lanes
from popjax.replay import episodes
from popjax.replay.ring import Ring, uniform

HIDDEN = (256, 256)
"""Units of the hidden layers."""


@struct.dataclass
class State:
    """Parameters and Adam's moments."""

    params: Params
    optimizer: PyTree


class Classifier(NamedTuple):
    """Functions of a classifier that chooses which of ``P`` agents acts.

    init:   key -> state
    learn:  (state, replay of ``Episodic`` rows, ``Sight.look`` for their observations, batch size, rate, key)
            -> state after a gradient step
    choose: (params, memory, obs) -> (int32 [] agent, memory); the choice is made every ``horizon`` steps
            and kept in between
    memory: at the start of an episode: the chosen agent and the steps so far, int32 [] each
    """

    init: Callable[[Key], State]
    learn: Callable[[State, Ring, Callable[[Array], Array], int, Array | float, Key], State]
    choose: Callable[[Params, tuple[Array, Array], Array], tuple[Array, tuple[Array, Array]]]
    memory: tuple[Array, Array]


def build(spec: Spec, shape: tuple[int, int], horizon: int) -> Classifier:
    """Return the classifier of agents in lanes ``shape`` = (P, N)."""
    population, stride = shape[0], shape[0] * shape[1]
    network = images.behind_convolutions(spec.obs_shape, lambda size: nets.mlp(size, HIDDEN, population))

    def init(key: Key) -> State:
        params = network.init(key)
        return State(params, adam(0.0, jnp.inf).init(params))

    def learn(
        state: State, replay: Ring, look: Callable[[Array], Array], batch: int, rate: Array | float, key: Key
    ) -> State:
        slots = uniform(replay, key, batch)
        owner = lanes.owner(slots, shape)
        returns, complete = episodes.following(replay, slots, stride, horizon)

        def loss(params: Params) -> tuple[Array, None]:
            guesses = network.apply(params, look(replay.take(slots).obs))
            guess = jnp.take_along_axis(guesses, owner[:, None], 1)[:, 0]
            errors = jnp.where(complete, (guess - returns) ** 2, 0.0)
            return errors.sum() / jnp.maximum(complete.sum(), 1), None

        params, optimizer, _, _ = descend(adam(rate, jnp.inf), loss, state.params, state.optimizer)
        return State(params, optimizer)

    def choose(params: Params, memory: tuple[Array, Array], obs: Array) -> tuple[Array, tuple[Array, Array]]:
        chosen, clock = memory
        best = jnp.argmax(network.apply(params, obs))
        chosen = jnp.where(clock % horizon == 0, best, chosen)
        return chosen, (chosen, clock + 1)

    return Classifier(init, learn, choose, (jnp.int32(0), jnp.int32(0)))
