"""The layers that networks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from popjax.core import Key, Network, Params

Precision = Literal["float32", "bfloat16"]
"""Precision of products and activations in hidden layers; parameters and outputs are always float32."""
Activation = Callable[[Array], Array]
ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "leaky_relu": nn.leaky_relu,  # slope 0.01 below 0
    "tanh": nn.tanh,
    "elu": nn.elu,
    "swish": nn.swish,
}


class Dense(nn.Module):
    """A linear layer.

    initializer: "uniform_fan_in", U(-1/sqrt(fan in), 1/sqrt(fan in)) for weights and bias, PyTorch's default;
                 "uniform_zero_bias", the same for the weights alone; "orthogonal", gain sqrt(2), zero bias;
                 "glorot", U(-sqrt(6/(fan in + fan out)), ...), zero bias; "small", U(-3e-3, 3e-3), zero bias.
    scale:       multiplies the initial weights and bias.
    positions:   output places that an input contributes to, which "glorot" counts: > 1 in a convolution.
    precision:   of the product and the result.
    """

    features: int
    initializer: str = "uniform_fan_in"
    scale: float = 1.0
    positions: int = 1
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.initializer == "orthogonal":
            kernel_init = nn.initializers.orthogonal(2**0.5 * self.scale)
            bias_init: Any = nn.initializers.zeros
        elif self.initializer in ("glorot", "small"):
            fans = x.shape[-1] + self.positions * self.features
            bound = (6 / fans) ** 0.5 if self.initializer == "glorot" else 3e-3
            kernel_init, bias_init = _uniform(self.scale * bound), nn.initializers.zeros
        else:
            kernel_init = bias_init = _uniform(self.scale * x.shape[-1] ** -0.5)
            if self.initializer == "uniform_zero_bias":
                bias_init = nn.initializers.zeros
        dtype = None if self.precision == "float32" else jnp.dtype(self.precision)
        # A single input may be an example that a loss maps over. JAX then sums the kernel's gradients over
        # the examples within its product, whereas those of ``product`` would be summed afterwards.
        layer = nn.Dense(
            self.features,
            dtype=dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dot_general=_of_rows if x.ndim == 2 else None,
            name="linear",
        )
        return layer(x)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """Return x [B, in] times kernel [in, out], which has no forward-mode derivative.

    On a CPU the gradient of the kernel is computed as [in, out]. JAX computes it as [out, in] and transposes
    it, so that Adam would read it against its order in memory, once for each moment. Accelerators use JAX's
    form, for which their compilers choose a layout.
    """
    return x @ kernel


def _backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    """Return the gradients of x and of the kernel for the ``cotangent`` [B, out]."""
    x, kernel = saved
    rows = ((0,), (0,))
    return jnp.tensordot(cotangent, kernel, ((1,), (1,))), jax.lax.platform_dependent(
        x,
        cotangent,
        cpu=lambda x, cotangent: jnp.tensordot(x, cotangent, rows),
        default=lambda x, cotangent: jnp.tensordot(cotangent, x, rows).T,
    )


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)


def _of_rows(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """Return ``product(x, kernel)``, as the ``dot_general`` of ``nn.Dense``, whose other arguments are the
    same in every layer."""
    return product(x, kernel)


class LayerNorm(nn.Module):
    """``scale * (x - mean) / (std + 1e-6) + bias`` with the unbiased standard deviation, as in ERL's and
    PDERL's code; not the common layer norm, which divides by n and adds epsilon under the root."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return scale * (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6) + bias


NORMS: dict[str, type[nn.Module] | None] = {"none": None, "erl": LayerNorm, "layer": nn.LayerNorm}
"""Norms that may stand between a linear layer and its activation; "layer" is the common layer norm."""
Norm = Literal["none", "erl", "layer"]


class Conv(nn.Module):
    """A convolution of square kernels: x [..., H, W, C] -> [..., H', W', features].

    It is a linear layer over patches. Its kernel [side * side * C, features] is a matrix like any other;
    stacked over a population it makes one batched matrix product, where XLA would make a grouped convolution.
    On a CPU core the two are equally fast for MinAtar; for Atari, XLA's is 1.3 times as fast with one
    network, this one 1.1 times as fast with four. Inside a loop, where agents learn, XLA's takes 2 to 16
    times as long as outside (``map`` in ``benchmarks/convolutions.py``). Accelerators were not measured.
    """

    features: int
    side: int
    stride: int = 1
    padding: Literal["valid", "same"] = "valid"
    initializer: str = "glorot"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        positions = self.side**2
        layer = Dense(self.features, self.initializer, positions=positions)
        return layer(patches(x, self.side, self.stride, self.padding))


def rectified(x: Array, norm: Norm) -> Array:
    """Apply ReLU after a norm; to be called in a module's ``__call__``, to which the norm's parameters
    belong."""
    layer = NORMS[norm]
    return nn.relu(layer()(x) if layer else x)


def patches(x: Array, side: int, stride: int, padding: str = "valid") -> Array:
    """Return x [..., H, W, C] -> [..., H', W', side * side * C]: the inputs of a convolution at each of its
    places.

    Inputs are ordered by row, column, channel. "same" pads with zeros so that H' is H / stride, rounded up;
    if the number of added rows is odd, one more is below than above.
    """
    height, width = x.shape[-3:-1]
    if padding == "same":
        missing = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in (height, width)]
        edges = [(0, 0)] * (x.ndim - 3) + [(m // 2, m - m // 2) for m in missing] + [(0, 0)]
        x = jnp.pad(x, edges)
        height, width = x.shape[-3:-1]
    high, wide = ((n - side) // stride + 1 for n in (height, width))
    places = [(i, j) for i in range(side) for j in range(side)]
    if stride == 1 or side % stride:
        ends = (high - 1) * stride + 1, (wide - 1) * stride + 1
        return jnp.concatenate(
            [x[..., i : i + ends[0] : stride, j : j + ends[1] : stride, :] for i, j in places], -1
        )
    # Cut out blocks of stride x stride pixels first: single pixels of a patch would take longer to compile.
    across = side // stride
    rows, columns = high - 1 + across, wide - 1 + across  # blocks that some patch covers
    x = x[..., : rows * stride, : columns * stride, :]
    x = x.reshape(*x.shape[:-3], rows, stride, columns, stride, x.shape[-1])
    shifted = [x[..., i : i + high, :, j : j + wide, :, :] for i in range(across) for j in range(across)]
    lead = x.shape[:-5]
    seen = jnp.stack(shifted, -6).reshape(*lead, across, across, high, stride, wide, stride, x.shape[-1])
    axes = (*range(len(lead)), *(len(lead) + axis for axis in (2, 4, 0, 3, 1, 5, 6)))
    return seen.transpose(axes).reshape(*lead, high, wide, -1)


class MLP(nn.Module):
    """Linear layers of widths ``hidden`` with activation (and a norm before it), then ``out`` units.

    ``final_initializer`` is that of the last layer; None: ``initializer``. The last layer is float32 whatever
    ``precision`` the others have. ``with_features`` also returns the input of the last layer.
    """

    hidden: Sequence[int]
    out: int
    activation: str = "relu"
    norm: Norm = "none"
    initializer: str = "uniform_fan_in"
    final_scale: float = 1.0
    final_initializer: str | None = None
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Array, with_features: bool = False) -> Any:
        for width in self.hidden:
            x = Dense(width, self.initializer, precision=self.precision)(x)
            norm = NORMS[self.norm]
            x = ACTIVATIONS[self.activation](norm()(x) if norm else x)
        x = x.astype(jnp.float32)  # bfloat16's eight bits are too few for values and actions
        out = Dense(self.out, self.final_initializer or self.initializer, self.final_scale)(x)
        return (out, x) if with_features else out


class Hidden(nn.Module):
    """Linear layers of widths ``hidden``, each with its activation."""

    hidden: Sequence[int]
    initializer: str
    activation: str = "relu"
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        x = jnp.concatenate(inputs, -1)
        for width in self.hidden:
            x = ACTIVATIONS[self.activation](Dense(width, self.initializer, precision=self.precision)(x))
        return x.astype(jnp.float32)


def as_floats(obs: Array) -> Array:
    """Convert to float32; bytes are divided by 255."""
    return obs.astype(jnp.float32) / (255.0 if obs.dtype == jnp.uint8 else 1.0)


def scaled(obs: Array) -> Array:
    """Return bytes as floats in [0, 1], as every network reads them; anything else as it is."""
    return as_floats(obs) if obs.dtype == jnp.uint8 else obs


def _uniform(bound: float) -> Callable[..., Array]:
    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def network(module: nn.Module, *input_dims: int | tuple[int, ...]) -> Network:
    """Return a Network of a module whose inputs have these sizes or shapes; bytes are ``scaled``."""

    def init(key: Key) -> Params:
        return module.init(key, *(jnp.zeros(dim) for dim in input_dims)).get("params", {})

    def apply(params: Params, *inputs: Array) -> Any:
        return module.apply({"params": params}, *map(scaled, inputs))

    return Network(init, apply)
