"""Networks with a memory: an LSTM between any torso and any head, and CDRL's actor-critic with three heads;
also CDRL's alignment network.

The LSTM, and the sizes and initialization of CDRL's networks, are those of "Collaborative Deep Reinforcement
Learning" (Lin, Wang & Zhou, 2017), whose code builds on OpenAI's universe-starter-agent. That code reads
frames; the torsos for MinAtar's grids and for vectors are our own counterparts. Parameters of the
actor-critic are a dictionary "torso", "core", "policy", "distil", "value".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from popjax import tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Key, Network, Params, PyTree, Recurrent
from popjax.nets.images import check_channels_last, flat
from popjax.nets.layers import Conv, Dense, as_floats

TorsoKind = Literal["auto", "frames", "grid", "vector"]
Memory: TypeAlias = PyTree
"""(c, h) [units] each of an LSTM; () without memory."""


class Torso(NamedTuple):
    """Convolutions of 3x3 with ``filters``, then dense layers of ``hidden`` units; ELU after each."""

    filters: tuple[int, ...]
    stride: int
    padding: Literal["valid", "same"]
    hidden: tuple[int, ...]


TORSOS = {
    "frames": Torso(filters=(32, 32, 32, 32), stride=2, padding="same", hidden=()),
    "grid": Torso(filters=(16,), stride=1, padding="valid", hidden=(128,)),
    "vector": Torso(filters=(), stride=1, padding="valid", hidden=(64,)),
}
"""The paper's torso for frames of 42x42x1; the convolution and the dense layer that MinAtar's authors use for
its grids of 10x10xC; one dense layer for vectors."""
SMALLEST_FRAME = 32
"""Least height and width [pixels] of an image that "auto" treats as a frame; smaller ones are grids."""


@dataclass(frozen=True)
class Config:
    """Shapes of an actor-critic with memory."""

    torso: TorsoKind = "auto"  # network before the recurrent layer; auto: chosen by the observation's shape
    filters: tuple[int, ...] = ()  # filters of the convolutions; (): the torso's default
    hidden: tuple[int, ...] = ()  # units of the dense layers after them; (): the torso's default
    recurrent: bool = True  # whether an LSTM follows the torso, else a dense layer
    units: int = 256  # units of the LSTM or dense layer after the torso

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "units")


@struct.dataclass
class Heads:
    """Outputs of the network for an observation.

    policy: [..., A] logits that act.
    distil: [..., A] logits that learn from a teacher and never act.
    value:  [...]    V.
    """

    policy: Array
    distil: Array
    value: Array


def recurrent_actor_critic(obs_shape: Sequence[int], actions: int, config: Config = Config()) -> Recurrent:
    """Return the three-headed network, whose outputs are ``Heads``, for observations ``obs_shape`` and
    ``actions`` discrete actions.

    Raises:
        ValueError: the torso cannot read observations of this shape.
    """
    torso = _TorsoLayers(torso_for(obs_shape, config), len(obs_shape))
    features = jax.eval_shape(lambda: torso.init_with_output(jax.random.key(0), jnp.zeros(obs_shape))[0])
    units, recurrent = config.units, config.recurrent

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 5)
        core = lstm_init if recurrent else _glorot_init
        return {
            "torso": torso.init(keys[0], jnp.zeros(obs_shape)).get("params", {}),
            "core": core(keys[1], features.shape[0], units),
            "policy": _head_init(keys[2], units, actions, 0.01),
            "distil": _head_init(keys[3], units, actions, 0.01),
            "value": _head_init(keys[4], units, 1, 1.0),
        }

    def unroll(params: Params, memory: Memory, obs: Array, done: Array) -> tuple[Memory, Heads]:
        x: Any = torso.apply({"params": params["torso"]}, obs)
        if recurrent:
            _, memory = lstm(params["core"], memory, x, done)
            x = memory[1]
        else:
            x = nn.elu(_linear(params["core"], x))
        value = _linear(params["value"], x)[..., 0]
        return memory, Heads(_linear(params["policy"], x), _linear(params["distil"], x), value)

    def step(params: Params, memory: Memory, obs: Array) -> tuple[Memory, Heads]:
        lanes = obs.shape[: obs.ndim - len(obs_shape)]
        return tree.take(unroll(params, memory, obs[None], jnp.zeros((1, *lanes), jnp.bool_)), 0)

    memory = (jnp.zeros(units, jnp.float32),) * 2 if recurrent else ()
    return Recurrent(init, memory, step, unroll)


def behind(network: Recurrent, memories: Memory, done: Array) -> Memory:
    """Return the memory [...] with which ``network`` continues after the last row: that row's, or a fresh one
    if the row ended its episode.

    memories: [T, ...] as ``unroll`` returns them.
    done:     bool [T, ...] whether a row ended an episode.
    """
    return tree.where(~done[-1], tree.take(memories, -1), network.memory)


def alignment(inputs: int, out: int, hidden: Sequence[int] = (512,) * 4) -> Network:
    """Return the network from a teacher's logits [..., inputs] -> logits over a student's actions [..., out].

    Glorot's uniform initialization, zero biases, a linear last layer. CDRL, section 4.2; ELU as in its code,
    where the text says ReLU.
    """
    sizes = (inputs, *hidden, out)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return {f"layer_{i}": _glorot_init(*pair) for i, pair in enumerate(pairs)}

    def apply(params: Params, logits: Array) -> Array:
        x = logits
        for i in range(len(hidden)):
            x = jax.nn.elu(_linear(params[f"layer_{i}"], x))
        return _linear(params[f"layer_{len(hidden)}"], x)

    return Network(init, apply)


def forgetful(network: Network) -> Recurrent:
    """Return ``network`` as a Recurrent with an empty memory."""
    return Recurrent(
        init=network.init,
        memory=(),
        step=lambda params, memory, obs: (memory, network.apply(params, obs)),
        unroll=lambda params, memory, obs, done: (memory, network.apply(params, obs)),
    )


def with_lstm(
    obs_shape: Sequence[int], torso: Network, units: int, head: Callable[[int], Network]
) -> Recurrent:
    """Return the chain of ``torso``, which maps an observation to a vector, an LSTM of ``units``, and
    ``head(units)``. Parameters are a dictionary "torso", "lstm", "head"."""
    last = head(units)

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        first = torso.init(keys[0])
        features = jax.eval_shape(torso.apply, first, jnp.zeros(obs_shape))
        return {
            "torso": first,
            "lstm": lstm_init(keys[1], features.shape[-1], units),
            "head": last.init(keys[2]),
        }

    def unroll(params: Params, memory: Memory, obs: Array, done: Array) -> tuple[Memory, Any]:
        features = torso.apply(params["torso"], obs)
        memories = lstm(params["lstm"], memory, features, done)[1]
        return memories, last.apply(params["head"], memories[1])

    def step(params: Params, memory: Memory, obs: Array) -> tuple[Memory, Any]:
        going_on = jnp.zeros((1, *memory[0].shape[:-1]), jnp.bool_)
        return tree.take(unroll(params, memory, obs[None], going_on), 0)

    return Recurrent(init, (jnp.zeros(units, jnp.float32),) * 2, step, unroll)


def torso_for(obs_shape: Sequence[int], config: Config) -> Torso:
    """Return the torso that ``config`` asks for; "vector" also reads a number or a matrix.

    Raises:
        ValueError: the torso cannot read observations of this shape.
    """
    shape, kind = tuple(obs_shape), config.torso
    image = len(shape) == 3
    if kind == "auto":
        kind = "vector" if not image else "frames" if min(shape[:2]) >= SMALLEST_FRAME else "grid"
    if image != (kind != "vector"):
        needed = "images [H, W, C]" if kind != "vector" else "vectors"
        raise ValueError(f"the torso {kind!r} reads {needed}; observations here have shape {shape}")
    check_channels_last(shape)
    torso = TORSOS[kind]
    return torso._replace(filters=config.filters or torso.filters, hidden=config.hidden or torso.hidden)


class _TorsoLayers(nn.Module):
    torso: Torso
    rank: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the features [..., F] of observations [..., *obs]; bytes are divided by 255."""
        x = as_floats(x)
        for width in self.torso.filters:
            x = nn.elu(Conv(width, 3, self.torso.stride, self.torso.padding)(x))
        if self.torso.filters:
            x = x.reshape(*x.shape[:-3], -1)
        elif self.rank != 1:
            x = flat(x, self.rank)
        for width in self.torso.hidden:
            x = nn.elu(Dense(width, "glorot")(x))
        return x


def lstm(params: Params, memory: Memory, inputs: Array, done: Array) -> tuple[Memory, tuple[Array, Array]]:
    """Run an LSTM over ``inputs`` [T, ..., F]; after rows that are ``done`` [T, ...], it restarts from zeros.

    Returns the memory for the next row, (c, h) [..., units], reset if the last row ended an episode; and the
    (c, h) [T, ..., units] after each row before any reset, of which h are the outputs.

    Gates are in the order input, candidate, forget, output; the forget gate has 1 added to its bias.
    """
    units = params["kernel"].shape[1] // 4
    features = params["kernel"].shape[0] - units
    # The inputs' share of the gates needs no recurrence: one product computes it for all rows.
    given = inputs @ params["kernel"][:features] + params["bias"]

    def one(memory: Memory, row: tuple[Array, Array]) -> tuple[Memory, tuple[Array, Array]]:
        (c, h), (given, done) = memory, row
        i, g, f, o = jnp.split(given + h @ params["kernel"][features:], 4, -1)
        c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        over = done[..., None]
        return (jnp.where(over, 0.0, c), jnp.where(over, 0.0, h)), (c, h)

    return jax.lax.scan(one, memory, (given, done))


def _linear(params: Params, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"]


def lstm_init(key: Key, features: int, units: int) -> Params:
    """Draw from U(+-sqrt(3 / rows)), the default of TensorFlow 0.11; zero biases."""
    bound = (3 / (features + units)) ** 0.5
    kernel = jax.random.uniform(key, (features + units, 4 * units), minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": jnp.zeros(4 * units)}


def _glorot_init(key: Key, inputs: int, out: int) -> Params:
    return {"kernel": nn.initializers.glorot_uniform()(key, (inputs, out)), "bias": jnp.zeros(out)}


def _head_init(key: Key, inputs: int, out: int, norm: float) -> Params:
    """Draw normal columns, each rescaled to the length ``norm``; zero biases."""
    kernel = jax.random.normal(key, (inputs, out))
    kernel *= norm / jnp.linalg.norm(kernel, axis=0, keepdims=True)
    return {"kernel": kernel, "bias": jnp.zeros(out)}
