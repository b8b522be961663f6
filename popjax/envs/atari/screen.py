"""Screens of the console as an agent sees them, on the device."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

SIDE = 84
"""Height and width of a frame, pixels (Mnih et al., 2015)."""


def grey84(screen: Array) -> Array:
    """Shrink a grey screen uint8 [..., H, W] to uint8 [..., 84, 84] by area means, as OpenCV's INTER_AREA.

    Halves round to even. All sums are integers below 2^24, so that every device gives the same result.
    """
    height, width = screen.shape[-2:]
    down, across = area_weights(height), area_weights(width)  # [o, s] each, of one block
    rows, columns = height // down.shape[1], width // across.shape[1]
    blocks = screen.reshape(*screen.shape[:-2], rows, down.shape[1], columns, across.shape[1])
    sums = jnp.einsum("...ahbw,jw->...ahbj", blocks.astype(jnp.float32), across, precision="highest")
    sums = jnp.einsum("...ahbj,ih->...aibj", sums, down, precision="highest").astype(jnp.int32)
    total = int(down[0].sum() * across[0].sum())
    whole, rest = sums // total, sums % total
    rounded = whole + ((2 * rest > total) | ((2 * rest == total) & (whole % 2 == 1)))
    return rounded.reshape(*screen.shape[:-2], SIDE, SIDE).astype(jnp.uint8)


def area_weights(size: int, out: int = SIDE) -> np.ndarray:
    """Return the weights, whole numbers in float32 [o, s], of a block's s pixels in its o outputs; they are
    the same in every block."""
    blocks = math.gcd(size, out)
    s, o = size // blocks, out // blocks
    j, i = np.arange(o)[:, None], np.arange(s)[None]
    overlap = np.minimum((j + 1) * s, (i + 1) * o) - np.maximum(j * s, i * o)
    return np.maximum(overlap, 0).astype(np.float32)
