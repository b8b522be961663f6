"""Counts beyond 32 bits, on devices with 32-bit integers."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

LIMIT = 2**63 - 1
"""The largest number to which the host converts a ``Count``."""
_BASE = 2**32


@struct.dataclass(eq=False)
class Count:
    """A non-negative integer, such as the environment steps of a large population: ``high * 2^32 + low``.

    It can be added to and compared with counts and with non-negative ints and arrays of integers; like
    arrays, counts are compared element by element. ``/`` gives a float32; ``//`` and ``%`` by an int from
    1 to 2^31 are exact. Other numbers raise a ValueError.

    high, low: uint32 [...].
    """

    high: Array
    low: Array

    def __add__(self, more: Array | int | Count) -> Count:
        high, low = _halves(more)
        total = self.low + low
        return Count(self.high + high + (total < low).astype(jnp.uint32), total)

    def __sub__(self, less: Array | int | Count) -> Count:
        """Return the difference, which must be at least 0."""
        high, low = _halves(less)
        return Count(self.high - high - (self.low < low).astype(jnp.uint32), self.low - low)

    def __divmod__(self, divisor: int) -> tuple[Count, Array]:
        """Return the quotient and the remainder uint32 [...]."""
        width = min(16, 32 - (divisor - 1).bit_length())
        if divisor < 1 or width < 1:
            raise ValueError(
                f"a count can be divided only by whole numbers from 1 to {2**31:,}, got {divisor:,}"
            )
        by, remainder, halves = jnp.uint32(divisor), jnp.zeros_like(self.low), []
        # Long division, with digits so short that a remainder and the next digit fit into 32 bits.
        for half in (self.high, self.low):
            quotient = jnp.zeros_like(half)
            for end in range(32, 0, -width):
                taken = min(width, end)
                digit = (half >> (end - taken)) & (2**taken - 1)
                rest = (remainder << taken) | digit
                quotient, remainder = (quotient << taken) | (rest // by), rest % by
            halves.append(quotient)
        return Count(*halves), remainder

    def __floordiv__(self, divisor: int) -> Count:
        return divmod(self, divisor)[0]

    def __mod__(self, divisor: int) -> Array:
        return divmod(self, divisor)[1]

    def __ge__(self, least: Array | int | Count) -> Array:
        high, low = _halves(least)
        return (self.high > high) | ((self.high == high) & (self.low >= low))

    def __lt__(self, bound: Array | int | Count) -> Array:
        return ~(self >= bound)

    def __eq__(self, other: Array | int | Count) -> Array:  # type: ignore[override]
        high, low = _halves(other)
        return (self.high == high) & (self.low == low)

    def __ne__(self, other: Array | int | Count) -> Array:  # type: ignore[override]
        return ~(self == other)

    def __gt__(self, bound: Array | int | Count) -> Array:
        return (self >= bound) & (self != bound)

    def __le__(self, most: Array | int | Count) -> Array:
        return ~(self > most)

    def __truediv__(self, divisor: Array | float) -> Array:
        return (self.high.astype(jnp.float32) * float(_BASE) + self.low.astype(jnp.float32)) / divisor

    def __int__(self) -> int:
        return int(self.high) * _BASE + int(self.low)


def _halves(number: Any) -> tuple[Array, Array]:
    if isinstance(number, Count):
        return number.high, number.low
    if isinstance(number, Integral):
        whole = int(number)
        if not 0 <= whole < _BASE**2:
            raise ValueError(f"a count combines only with integers from 0 to 2^64 - 1, got {whole}")
        high, low = divmod(whole, _BASE)
        return jnp.uint32(high), jnp.uint32(low)
    kind = getattr(number, "dtype", type(number).__name__)
    if not hasattr(number, "dtype") or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"a count combines only with integers, got {kind}; convert it, or divide by 1")
    wide = jnp.iinfo(kind).bits > 32
    return jnp.asarray(number >> 32 if wide else 0, jnp.uint32), jnp.asarray(number, jnp.uint32)


def none() -> Count:
    """Return a count of 0."""
    return Count(jnp.uint32(0), jnp.uint32(0))


def on_host(count: Any) -> np.ndarray:
    """Return a ``Count`` of NumPy arrays as int64 [...], and any other array unchanged."""
    if isinstance(count, Count):
        return np.asarray(count.high, np.int64) * _BASE + np.asarray(count.low, np.int64)
    return count


def largest(count: Any) -> int:
    """Return the largest number that ``count``, a ``Count`` or an array of integers, can hold; only its type
    is read."""
    return LIMIT if isinstance(count, Count) else int(jnp.iinfo(count.dtype).max)
