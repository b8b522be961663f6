"""Screens of the console as an agent sees them, on the device."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

SIDE = 84
"""Height and width of a frame, pixels (Mnih et al., 2015)."""
ROWS, COLUMNS = slice(34, 194), slice(0, 160)
"""The playing field of a screen of 210 x 160 pixels; score and border are outside."""
FIELD_SIZES = (80, 42)
"""Height and width of the playing field after the first and the second reduction, pixels."""


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


def playing_field(screen: Array) -> Array:
    """Reduce a screen uint8 [210, 160, 3] to its playing field float32 [42, 42, 1] in [0, 1], as in OpenAI's
    universe-starter-agent.

    Resizes twice by bilinear interpolation between pixel centres, without antialiasing, rounding to integers
    each time, then averages the colours. The original resizes with OpenCV.
    """
    image = screen[ROWS, COLUMNS].astype(jnp.float32)
    for size in FIELD_SIZES:
        rows, columns = (jnp.asarray(_bilinear(n, size)) for n in image.shape[:2])
        image = jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision="highest")
        image = jnp.floor(image + 0.5)
    return image.mean(-1, keepdims=True) / 255


def _bilinear(size: int, out: int) -> np.ndarray:
    """Return the weights [out, size] of the ``size`` input pixels in each output pixel."""
    centre = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    left = np.minimum(np.floor(centre).astype(int), size - 2)
    weights = np.zeros((out, size), np.float32)
    place = np.arange(out)
    weights[place, left] = 1 - (centre - left)
    weights[place, left + 1] = centre - left
    return weights
