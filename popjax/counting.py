"""Counts that outgrow 32 bits, on a device whose integers have no more."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

LIMIT = 2**63 - 1
"""The largest number that the host makes of a ``Count``."""
_BASE = 2**32


@struct.dataclass
class Count:
    """A whole number from 0, such as the environment steps of a large population: ``high * 2^32 + low``.

    It adds and compares like a number, with another one from 0: an int or an array of integers. Divided, it
    becomes a float32.

    high, low: uint32 [...].
    """

    high: Array
    low: Array

    def __add__(self, more: Array | int) -> Count:
        high, low = _halves(more)
        total = self.low + low
        return Count(self.high + high + (total < low).astype(jnp.uint32), total)

    def __ge__(self, least: Array | int) -> Array:
        high, low = _halves(least)
        return (self.high > high) | ((self.high == high) & (self.low >= low))

    def __lt__(self, bound: Array | int) -> Array:
        return ~(self >= bound)

    def __truediv__(self, divisor: Array | float) -> Array:
        return (self.high.astype(jnp.float32) * float(_BASE) + self.low.astype(jnp.float32)) / divisor

    def __int__(self) -> int:
        return int(self.high) * _BASE + int(self.low)


def _halves(number: Array | int) -> tuple[Array, Array]:
    high, low = divmod(number, _BASE) if isinstance(number, int) else (0, number)
    return jnp.asarray(high, jnp.uint32), jnp.asarray(low, jnp.uint32)


def none() -> Count:
    """Return a count of 0."""
    return Count(jnp.uint32(0), jnp.uint32(0))


def on_host(count: Any) -> np.ndarray:
    """Return a ``Count``, or any array of whole numbers, whose arrays are NumPy's, as int64 [...]."""
    if isinstance(count, Count):
        return np.asarray(count.high, np.int64) * _BASE + np.asarray(count.low, np.int64)
    return count


def largest(count: Any) -> int:
    """Return the largest number that ``count``, a ``Count`` or an array of integers, can hold; also of the
    shape of one."""
    return LIMIT if isinstance(count, Count) else int(jnp.iinfo(count.dtype).max)
