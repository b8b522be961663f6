"""Uniform permutations, without sorting, of a number of items that is only known at run time.

``jax.random.permutation`` and ``choice`` need a static length and sort all of it, which for a replay of 10^6
rows costs far more than the gradient step that needs 128 of them. Here the image of an index is
computed on its own, in a fixed number of integer operations, so the cost of a part of a permutation depends
only on the size of that part: the first B entries are a draw of B items without replacement.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

ROUNDS = 32


def permuted(key: Array, index: Array, size: Array | int) -> Array:
    """Return where each ``index`` goes under a random permutation of ``0 .. size-1`` that ``key`` chooses.

    index: int32 [...], each in [0, size); others are returned as they are.
    size:  int32 [], at most 2^30, may be traced.

    The swap-or-not shuffle (Hoang, Morris & Rogaway, CRYPTO 2012, figure 1): in each round an index ``x``
    and its partner ``shift - x (mod size)`` change places if a random bit drawn for the pair says so. Every
    round is a bijection, so the images are distinct; a pair of indices keeps its relation through all
    rounds with probability 2^-32.
    """
    size = jnp.asarray(size, jnp.int32)
    # Draw everything at once: each further draw is a loop in the program, which compiles to a dozen kernels.
    high, low, salts = jax.random.bits(key, (3, ROUNDS), jnp.uint32)
    shifts = _below(jnp.maximum(size, 1).astype(jnp.uint32), high, low).astype(jnp.int32)
    inside = (index >= 0) & (index < size)
    x = jnp.where(inside, index, 0).astype(jnp.int32)

    def one(x: Array, chance: tuple[Array, Array]) -> tuple[Array, None]:
        shift, salt = chance
        partner = shift - x
        partner = jnp.where(partner < 0, partner + size, partner)
        pair = jnp.maximum(x, partner).astype(jnp.uint32)
        return jnp.where(_mix(pair ^ salt) >> 31, partner, x), None

    # Fuse four rounds into one kernel. All rounds in one would be possible, but a round reads its input
    # several times, and a compiler that recomputes the input for each read (XLA of jax 0.11) would never
    # finish.
    x, _ = jax.lax.scan(one, x, (shifts, salts), unroll=4)
    return jnp.where(inside, x, index)


def _below(size: Array, high: Array, low: Array) -> Array:
    """Return uint32 in [0, size) from 64 random bits, as ``jax.random.randint`` does."""
    turn = jnp.uint32(2**16) % size
    turn = turn * turn % size  # 2^32 mod size
    return (high % size * turn + low % size) % size


def _mix(x: Array) -> Array:
    """Return the 32-bit finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
