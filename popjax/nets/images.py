"""Networks for images: convolutions before dense layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from popjax.core import Key, Network, Params
from popjax.nets.layers import Conv, Dense, Norm, as_floats, network, rectified

Convolutions = Sequence[tuple[int, int, int]]
"""Features, side of the kernel and stride of each; without padding."""
Torso = Literal["auto", "dense", "minatar", "atari", "drq"]
"""A name in ``TORSOS``, or "auto": the one that fits the observations."""
TORSOS: dict[str, tuple[Convolutions, tuple[int, ...]]] = {
    "dense": ((), (64, 64)),
    "minatar": (((16, 3, 1),), (128,)),
    "atari": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), (512,)),
    "drq": (((32, 3, 2), (64, 3, 2), (128, 3, 2), (256, 3, 2)), (256, 256)),
}
"""Convolutions and dense layers: "dense" has no convolutions; "minatar" is MinAtar's network (Young & Tian,
2019), "atari" that of Mnih et al., 2015, and "drq" that of jaxrl2's DrQ."""
_LEAST_SIDE = 3  # pixels that MinAtar's convolution covers
_LEAST_ATARI_SIDE = 36  # pixels from which the last of Atari's convolutions makes a single output


def torso_for(obs_shape: Sequence[int]) -> str:
    """Return the name in ``TORSOS`` of the torso for these observations: "dense" unless they are images [H,
    W, C] of sufficient size.

    Raises:
        ValueError: the observations look like images with channels first.
    """
    check_channels_last(obs_shape)
    if len(obs_shape) != 3 or min(obs_shape[:2]) < _LEAST_SIDE:
        return "dense"
    return "atari" if min(obs_shape[:2]) >= _LEAST_ATARI_SIDE else "minatar"


def dense_for(obs_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the units of an on-policy agent's dense layers: those of Mnih et al. for images as large as
    Atari's, else two layers of 64."""
    return TORSOS["atari"][1] if torso_for(obs_shape) == "atari" else (64, 64)


def activation_for(obs_shape: Sequence[int]) -> str:
    """Return the activation of an on-policy agent's dense layers: relu after the convolutions of Mnih et al.,
    as in their network, else tanh."""
    return "relu" if torso_for(obs_shape) == "atari" else "tanh"


def check_channels_last(obs_shape: Sequence[int]) -> None:
    """Check that observations are not images [C, H, W], which convolutions would read as C pixels high.

    Raises:
        ValueError: their shape looks like that: the first axis is the shortest, and the others are equal or
            at least three times as long.
    """
    if len(obs_shape) != 3:
        return
    first, *sides = obs_shape
    if first < min(sides) and (sides[0] == sides[1] or 3 * first <= min(sides)):
        raise ValueError(
            f"observations of shape {tuple(obs_shape)} look like images [C, H, W], but [H, W, C] is needed: "
            "return jnp.moveaxis(obs, 0, -1)"
        )


def flat(obs: Array, rank: int) -> Array:
    """Return observations [..., *obs] of ``rank`` axes as vectors [..., D]."""
    return obs.reshape(*obs.shape[: obs.ndim - rank], -1)


def places(obs_shape: Sequence[int], convolutions: Convolutions) -> int:
    """Return the number of outputs of the convolutions.

    Raises:
        ValueError: an observation is not an image, has its channels first, or is too small.
    """
    check_channels_last(obs_shape)
    if len(obs_shape) != 3:
        raise ValueError(f"convolutions need images [H, W, C], got observations of shape {tuple(obs_shape)}")
    least = 1
    for _, side, stride in reversed(convolutions):
        least = (least - 1) * stride + side
    height, width = obs_shape[:2]
    if min(height, width) < least:
        raise ValueError(
            f"images of {tuple(obs_shape)} are too small for the convolutions, which need at least"
            f" {least} x {least}"
        )
    for _, side, stride in convolutions:
        height, width = ((n - side) // stride + 1 for n in (height, width))
    return height * width * (convolutions[-1][0] if convolutions else obs_shape[2])


class _Convolutions(nn.Module):
    convolutions: Convolutions
    initializer: str = "glorot"

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        x = as_floats(obs)
        for features, side, stride in self.convolutions:
            x = nn.relu(Conv(features, side, stride, initializer=self.initializer)(x))
        return x.reshape(*x.shape[:-3], -1)


class _Latent(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return jnp.tanh(nn.LayerNorm()(Dense(self.size, "orthogonal")(x)))


def latent(inputs: int, size: int) -> Network:
    """Return the network x [..., inputs] -> [..., size] in [-1, 1]: a linear layer, a layer norm and tanh."""
    return network(_Latent(size), inputs)


def eyes(obs_shape: Sequence[int], convolutions: Convolutions, *, initializer: str = "glorot") -> Network:
    """Return the convolutions alone: images [..., *obs_shape] -> their outputs after ReLU, flattened, as many
    as ``places`` counts.

    Raises:
        ValueError: an observation is not an image, has its channels first, or is too small.
    """
    places(obs_shape, convolutions)
    return network(_Convolutions(tuple(convolutions), initializer), tuple(obs_shape))


def behind_convolutions(
    obs_shape: Sequence[int],
    make: Callable[[int], Network],
    torso: Torso = "auto",
    *,
    initializer: str = "orthogonal",
) -> Network:
    """Return ``make(features)`` after the convolutions of a ``torso`` for images of ``obs_shape``. Each
    call makes its own convolutions, initialized as ``layers.Dense`` with ``initializer``. Observations
    that are not of rank 3 are read as vectors.

    Raises:
        ValueError: images have their channels first, or are too small for these convolutions.
    """
    rank = len(obs_shape)
    if rank != 3:
        plain = make(math.prod(obs_shape))
        return plain if rank == 1 else plain._replace(apply=lambda p, obs: plain.apply(p, flat(obs, rank)))
    convolutions = TORSOS[torso_for(obs_shape) if torso == "auto" else torso][0]
    rest, seen = make(places(obs_shape, convolutions)), eyes(obs_shape, convolutions, initializer=initializer)

    def init(key: Key) -> Params:
        key_eyes, key_rest = jax.random.split(key)
        return {"convolutions": seen.init(key_eyes), **rest.init(key_rest)}

    def apply(params: Params, obs: Array) -> Array:
        features = seen.apply(params["convolutions"], obs)
        return rest.apply({name: params[name] for name in params if name != "convolutions"}, features)

    return Network(init, apply)


class _QNetwork(nn.Module):
    obs_shape: Sequence[int]
    actions: int
    convolutions: Sequence[tuple[int, int, int]]
    hidden: Sequence[int]
    norm: Norm
    dueling: bool

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        x = as_floats(obs)
        for features, side, stride in self.convolutions:
            x = nn.relu(Conv(features, side, stride)(x))
        x = flat(x, len(self.obs_shape))

        def stream(out: int) -> Array:
            y = x
            for width in self.hidden:
                y = rectified(Dense(width, "glorot")(y), self.norm)
            return Dense(out, "glorot")(y)

        values = stream(self.actions)
        if not self.dueling:
            return values
        return stream(1) + values - values.mean(-1, keepdims=True)


def q_network(
    obs_shape: Sequence[int],
    actions: int,
    *,
    convolutions: Convolutions = (),
    hidden: Sequence[int] = (64, 64),
    norm: Norm = "layer",
    dueling: bool = False,
) -> Network:
    """Return the network obs [..., *obs_shape] -> the value of each action [..., actions].

    ``convolutions`` come before the dense ``hidden`` layers, and only the latter have a ``norm``. ``dueling``
    (Wang et al., ICML 2016) gives value and advantage dense layers of their own. Glorot-uniform.
    """
    module = _QNetwork(tuple(obs_shape), actions, tuple(convolutions), tuple(hidden), norm, dueling)
    return network(module, tuple(obs_shape))
