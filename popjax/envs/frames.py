"""Observations of an Atari screen, as in OpenAI's universe-starter-agent, on the device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

ROWS, COLUMNS = slice(34, 194), slice(0, 160)
"""The playing field of a screen of 210 x 160 pixels; score and border are outside."""
SIZES = (80, 42)
"""Height and width after the first and the second reduction, pixels."""


def playing_field(screen: Array) -> Array:
    """Reduce a screen uint8 [210, 160, 3] to its playing field float32 [42, 42, 1] in [0, 1].

    Resizes twice by bilinear interpolation between pixel centres, without antialiasing, rounding to integers
    each time, then averages the colours. The original resizes with OpenCV.
    """
    image = screen[ROWS, COLUMNS].astype(jnp.float32)
    for size in SIZES:
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
