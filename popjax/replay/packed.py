"""Rows of a replay, laid out for the device: a pytree of arrays [capacity, ...] or, on a TPU, lines.

An array [capacity, 3] is the worst layout on a TPU, which pads every row to 128 numbers, or transposes and
converts all rows whenever some are read, so that a step costs time and memory in proportion to the capacity.
``Lines`` hold the numbers of a dtype row after row without gaps, as wide as the registers of a TPU. Whole
lines are read and written, so the rest of the store stays where it is.

On a CPU, where packing a row takes longer than writing its leaves, and on a GPU the leaves stay apart.

The results of a ``scan``, such as the rows of a rollout, are laid out by ``bundle``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.tree_util import PyTreeDef

from popjax import tree
from popjax.core import PyTree
from popjax.devices import default_device

LINE = 128
"""Numbers in a line, and in a row of a TPU's registers."""
TILE = 8
"""Lines that a TPU lays out together."""


class Form(NamedTuple):
    """The number of rows, and for each leaf of a row its shape and dtype."""

    capacity: int
    structure: PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def widths(self) -> dict[str, int]:
        """Return the count of numbers of each dtype in a row, for the dtypes that occur."""
        found: dict[str, int] = {}
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            found[dtype] = found.get(dtype, 0) + math.prod(shape)
        return {dtype: width for dtype, width in found.items() if width}

    def join(self, rows: PyTree) -> dict[str, Array]:
        """Return ``rows`` [..., *shape] as arrays [..., width] by dtype."""
        parts: dict[str, list[Array]] = {}
        leaves = self.structure.flatten_up_to(rows)
        for leaf, shape, dtype in zip(leaves, self.shapes, self.dtypes, strict=True):
            lead = leaf.shape[: leaf.ndim - len(shape)]
            parts.setdefault(dtype, []).append(leaf.astype(dtype).reshape(*lead, math.prod(shape)))
        return {dtype: jnp.concatenate(parts[dtype], -1) for dtype in self.widths}

    def split(self, joined: dict[str, Array]) -> PyTree:
        """Return rows [..., *shape] from arrays [..., width] by dtype."""
        leaves, begun = [], dict.fromkeys(self.dtypes, 0)
        lead = next(iter(joined.values())).shape[:-1]
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            first, size = begun[dtype], math.prod(shape)
            begun[dtype] += size
            part = joined[dtype][..., first : first + size] if size else jnp.zeros(0, dtype)
            leaves.append(part.reshape(*lead, *shape))
        return self.structure.unflatten(leaves)


@struct.dataclass
class Lines:
    """Rows in lines, [lines, 128] by dtype; those of a population have leading axes before that."""

    lines: dict[str, Array]
    form: Form = struct.field(pytree_node=False)


@struct.dataclass
class Bundle:
    """Results of a ``scan``: ``narrow`` leaves side by side, [..., width] by dtype, ``wide`` ones apart."""

    narrow: dict[str, Array]
    wide: list[Array]
    form: Form = struct.field(pytree_node=False)
    structure: PyTreeDef = struct.field(pytree_node=False)
    is_narrow: tuple[bool, ...] = struct.field(pytree_node=False)


_given: ContextVar[str | None] = ContextVar("_given", default=None)


def platform() -> str:
    """Return the kind of device for which rows are laid out."""
    return _given.get() or default_device().platform


@contextmanager
def laid_out_on(device: str) -> Iterator[None]:
    """Lay rows out as for ``device``, as a run's ``config.json`` names it, to read the run's State on another
    device."""
    before = _given.set("tpu" if device.startswith("TPU") else "cpu")
    try:
        yield
    finally:
        _given.reset(before)


def pack(rows: PyTree) -> PyTree:
    """Return the store that holds ``rows`` [capacity, ...]."""
    return lines_of(rows) if platform() == "tpu" else rows


def lines_of(rows: PyTree) -> Lines:
    """Return ``rows`` [capacity, ...] as lines."""
    leaves, structure = jax.tree.flatten(rows)
    shapes, dtypes = tuple(x.shape[1:] for x in leaves), tuple(x.dtype.name for x in leaves)
    form = Form(len(leaves[0]), structure, shapes, dtypes)
    lines = {}
    for dtype, joined in form.join(rows).items():
        per, length = block(joined.shape[-1])
        tile = per * TILE // math.gcd(length, TILE)  # rows that fill whole tiles
        more = -form.capacity % (tile if form.capacity > tile else per)
        lines[dtype] = jnp.pad(joined, ((0, more), (0, 0))).reshape(-1, LINE)
    return Lines(lines, form)


def capacity(store: PyTree) -> int:
    """Return how many rows a store holds."""
    return store.form.capacity if isinstance(store, Lines) else len(jax.tree.leaves(store)[0])


def unpack(store: PyTree) -> PyTree:
    """Return all rows of a store, [capacity, ...], or of a population's stores, [P, capacity, ...]; of lines,
    a copy."""
    if not isinstance(store, Lines):
        return store
    form, whole = store.form, {}
    for dtype, width in form.widths.items():
        lines = store.lines[dtype]
        whole[dtype] = lines.reshape(*lines.shape[:-2], -1, width)[..., : form.capacity, :]
    return form.split(whole)


def take(store: PyTree, slots: Array) -> PyTree:
    """Return the rows in ``slots`` int [...], each of which must lie in the store.

    Rows of a population are read under ``vmap``.
    """
    if not isinstance(store, Lines):
        return tree.take(store, slots)
    chex.assert_rank(list(store.lines.values()), 2)
    found = {
        dtype: _take(store.lines[dtype], jnp.ravel(slots), width).reshape(*jnp.shape(slots), width)
        for dtype, width in store.form.widths.items()
    }
    return store.form.split(found)


def put(store: PyTree, position: Array, rows: PyTree, valid: Array) -> PyTree:
    """Write the valid rows of ``rows`` [B, ...] in order into the slots from ``position`` on, wrapping around
    at the end; if there are more than the capacity, the last are kept. Rows of a population are written under
    ``vmap``."""
    if not isinstance(store, Lines):
        slots = places(capacity(store), position, valid)
        return jax.tree.map(lambda x, row: x.at[slots].set(row.astype(x.dtype), mode="drop"), store, rows)
    chex.assert_rank(list(store.lines.values()), 2)
    lines = {
        dtype: _put(store.lines[dtype], position, joined, valid, store.form.capacity)
        for dtype, joined in store.form.join(rows).items()
    }
    return Lines(lines, store.form)


def places(capacity: int, position: Array, valid: Array) -> Array:
    """Return the slots in which ``put`` writes, int32 [B]; ``capacity`` for a row that is not kept."""
    rank = jnp.cumsum(valid) - 1  # [B] how many valid rows come before
    kept = valid & (rank >= valid.sum(dtype=jnp.int32) - capacity)
    return jnp.where(kept, (position + rank) % capacity, capacity)


def bundle(rows: PyTree, lead: tuple[int, ...]) -> PyTree:
    """Return ``rows`` [*lead, ...] as the result of one iteration of a ``scan``.

    An accelerator takes one kernel for each leaf of a result, so leaves narrower than a line are stored side
    by side. Random keys and leaves without the axes ``lead`` stay apart; on a CPU, all leaves do.
    """
    if platform() == "cpu":
        return rows
    leaves, structure = jax.tree.flatten(rows)
    is_narrow = tuple(_fits_beside_others(x, lead) for x in leaves)
    narrow = [x for x, chosen in zip(leaves, is_narrow, strict=True) if chosen]
    wide = [x for x, chosen in zip(leaves, is_narrow, strict=True) if not chosen]
    shapes, dtypes = tuple(x.shape[len(lead) :] for x in narrow), tuple(x.dtype.name for x in narrow)
    form = Form(1, jax.tree.structure(narrow), shapes, dtypes)
    return Bundle(form.join(narrow), wide, form, structure, is_narrow)


def _fits_beside_others(leaf: Array, lead: tuple[int, ...]) -> bool:
    shape = jnp.shape(leaf)
    if shape[: len(lead)] != lead or jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended):
        return False
    return 0 < math.prod(shape[len(lead) :]) < LINE


def unbundle(rows: PyTree) -> PyTree:
    """Return the rows of all iterations of a ``scan``, [T, ...]."""
    if not isinstance(rows, Bundle):
        return rows
    parts = iter(rows.wide), iter(rows.form.split(rows.narrow) if rows.narrow else ())
    return rows.structure.unflatten(next(parts[narrow]) for narrow in rows.is_narrow)


def block(width: int) -> tuple[int, int]:
    """Return the fewest rows of ``width`` numbers that fill whole lines, and how many lines these are."""
    common = math.gcd(width, LINE)
    return LINE // common, width // common


def _take(lines: Array, slots: Array, width: int) -> Array:
    """Return rows [B, width]: read all lines in which each of them lies, and shift it to the front."""
    per, length = block(width)
    step = LINE // per  # a row begins at a multiple of this
    place = slots % per * width  # counted from the beginning of its block
    first, offset = slots // per * length + place // LINE, place % LINE
    span = jnp.arange(-(-(LINE - step + width) // LINE))
    numbers = lines.at[first[:, None] + span].get(mode="clip").reshape(len(slots), -1)
    shift = LINE // 2
    while shift >= step:
        keep = width + shift - step  # numbers that later shifts may still move to the front
        moved = numbers[:, shift : shift + keep]
        numbers = jnp.where((offset & shift > 0)[:, None], moved, numbers[:, :keep])
        shift //= 2
    return numbers[:, :width]


def _put(lines: Array, position: Array, rows: Array, valid: Array, capacity: int) -> Array:
    """Return ``lines`` with the valid ``rows`` [B, width], as ``put`` does: read the blocks in which the
    rows belong, and write them back with the rows."""
    batch, width = rows.shape
    per, length = block(width)
    count = valid.sum(dtype=jnp.int32)
    skipped = jnp.maximum(count - capacity, 0)
    start = (position + skipped) % capacity
    total = -(-capacity // per)
    most = 1 if batch == 1 else (batch + per - 2) // per + 2  # the last block of all may be short
    blocks = (start // per + jnp.arange(min(most, total))) % total
    slot = (blocks[:, None] * per + jnp.arange(per)).ravel()
    rank = (slot - start) % capacity
    written = (slot < capacity) & (rank < count - skipped)
    order = jnp.argsort(~valid, stable=True)  # valid rows first
    new = rows[order[jnp.minimum(rank + skipped, batch - 1)]]
    at = (blocks[:, None] * length + jnp.arange(length)).ravel()
    merged = jnp.where(written[:, None], new, lines[at].reshape(-1, width))
    return lines.at[at].set(merged.reshape(-1, LINE), unique_indices=True, mode="promise_in_bounds")
