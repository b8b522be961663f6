"""The layers that networks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from popjax.core import Key

Activation = Callable[[Array], Array]
ACTIVATIONS: dict[str, Activation] = {"relu": nn.relu, "tanh": nn.tanh, "elu": nn.elu, "swish": nn.swish}


class Dense(nn.Module):
    """A linear layer.

    initializer: "uniform_fan_in", U(-1/sqrt(fan in), 1/sqrt(fan in)) for weights and bias, PyTorch's default;
                 "uniform_zero_bias", the same for the weights alone; "orthogonal", gain sqrt(2), zero bias.
    scale:       multiplies the initial weights and bias.
    """

    features: int
    initializer: str = "uniform_fan_in"
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.initializer == "orthogonal":
            kernel_init = nn.initializers.orthogonal(2**0.5 * self.scale)
            bias_init: Any = nn.initializers.zeros
        else:
            kernel_init = bias_init = _uniform(self.scale * x.shape[-1] ** -0.5)
            if self.initializer == "uniform_zero_bias":
                bias_init = nn.initializers.zeros
        return nn.Dense(self.features, kernel_init=kernel_init, bias_init=bias_init, name="linear")(x)


class LayerNorm(nn.Module):
    """``scale * (x - mean) / (std + 1e-6) + bias`` with the unbiased standard deviation, as in ERL's and
    PDERL's code; not the common layer norm, which divides by n and adds epsilon under the root."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return scale * (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6) + bias


class MLP(nn.Module):
    """Linear layers of widths ``hidden`` with activation (and layer norm before it), then ``out`` units.

    ``final_initializer`` is the last layer's, ``initializer`` if None. ``with_features`` returns
    what the last layer is given, too.
    """

    hidden: Sequence[int]
    out: int
    activation: str = "relu"
    norm: bool = False
    initializer: str = "uniform_fan_in"
    final_scale: float = 1.0
    final_initializer: str | None = None

    @nn.compact
    def __call__(self, x: Array, with_features: bool = False) -> Any:
        for width in self.hidden:
            x = Dense(width, self.initializer)(x)
            x = ACTIVATIONS[self.activation](LayerNorm()(x) if self.norm else x)
        out = Dense(self.out, self.final_initializer or self.initializer, self.final_scale)(x)
        return (out, x) if with_features else out


def _uniform(bound: float) -> Callable[..., Array]:
    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
