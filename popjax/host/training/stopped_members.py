"""Members of a sweep that have stopped while others are still training.

One program trains all members, so it keeps changing the stopped ones. Their States are kept here, on the
host, and put back whenever the whole State is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from popjax import tree
from popjax.host.checkpoints import io_errors, state_arrays
from popjax.host.errors import NotSaved
from popjax.host.scaling import memory, processes


class StoppedMembers:
    """The States of stopped members, by place [S].

    Each process keeps those on its own devices, in up to half of the memory that is free at the start and
    otherwise in unnamed files in ``directory`` or the system's temporary directory.
    """

    def __init__(self, shapes: Any, directory: Path | None):
        self._directory = str(directory or tempfile.gettempdir())
        self._resumable = directory is not None
        self._shapes = jax.eval_shape(_lane, shapes, 0)
        self._room = memory.host_bytes() // 2
        self._held: dict[int, dict[str, np.ndarray] | IO[bytes]] = {}
        self._places: set[int] = set()  # including those held by other processes
        self._take = jax.jit(_lane)
        self._put = jax.jit(_put_lane, donate_argnums=0)

    @property
    def places(self) -> frozenset[int]:
        """Places of the stopped members."""
        return frozenset(self._places)

    def keep(self, state: Any, places: Iterable[int]) -> None:
        """Stop the members at ``places`` and keep their parts of ``state`` [S, ...].

        Raises:
            NotSaved: the disk is full.
        """
        places = sorted(places)
        if places:
            self._together(lambda: self._keep(state, places), "kept")

    def put_back(self, state: Any) -> Any:
        """Return ``state`` [S, ...], which is consumed, with the stopped members restored.

        Raises:
            NotSaved: a file cannot be read back.
        """
        shares = _shares(state)
        if self._places:
            self._together(lambda: self._put_into(shares), "read back")
        return _joined(state, [share for _, share in shares])

    def close(self) -> None:
        """Release memory and files."""
        for held in self._held.values():
            if not isinstance(held, dict):
                held.close()
        self._held.clear()

    def _keep(self, state: Any, places: Sequence[int]) -> None:
        for there, share in _shares(state):
            for place in places:
                if place in there:
                    self._hold(self._take(share, place - there.start), place)
        self._places.update(places)

    def _hold(self, lane: Any, place: int) -> None:
        arrays, size = state_arrays.to_arrays(lane), memory.tree_bytes(lane)
        if size <= self._room:
            self._room -= size
            self._held[place] = arrays
            return
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
        for array in arrays.values():
            file.write(state_arrays.raw(array))
        file.flush()
        self._held[place] = file

    def _put_into(self, shares: list[tuple[range, Any]]) -> None:
        for place, held in self._held.items():
            for number, (places, share) in enumerate(shares):
                if place in places:
                    arrays = held if isinstance(held, dict) else self._read(held)
                    lane = state_arrays.from_arrays(jax.device_put(arrays, _device(share)), self._shapes)
                    share = self._put(share, lane, place - places.start)
                    shares[number] = places, jax.block_until_ready(share)  # one copy at a time

    def _read(self, file: IO[bytes]) -> dict[str, np.ndarray]:
        file.seek(0)
        arrays = {}
        for name, leaf in state_arrays.data_shapes(self._shapes).items():
            content = file.read(leaf.size * leaf.dtype.itemsize)
            arrays[name] = np.frombuffer(content, leaf.dtype).reshape(leaf.shape)
        return arrays

    def _together(self, action: Callable[[], None], what: str) -> None:
        """Do ``action`` on every process; raise on all of them if the disk fails on one."""
        remedy = (
            "--resume continues from the newest checkpoint"
            if self._resumable
            else "or name another directory in TMPDIR, and train again"
        )

        def told() -> None:
            try:
                action()
            except OSError as error:
                raise NotSaved(
                    f"a stopped member could not be {what} in {self._directory}"
                    f" ({io_errors.reason(error)}): make room there; {remedy}"
                ) from error

        processes.together(told, everyone=True)


def _shares(state: Any) -> list[tuple[range, Any]]:
    """Return the members and their State on each of this process's devices, from ``state`` [S, ...].

    Nothing is copied or moved between devices.
    """
    flat, structure = jax.tree.flatten(state)
    members = range(flat[0].shape[0])
    each = zip(*(leaf.addressable_shards for leaf in flat), strict=True)
    return [
        (members[shards[0].index[0]], jax.tree.unflatten(structure, [shard.data for shard in shards]))
        for shards in each
    ]


def _joined(state: Any, shares: list[Any]) -> Any:
    """Join the shares of this process's devices into a State laid out like ``state``."""

    def join(whole: Any, *parts: Any) -> Any:
        return jax.make_array_from_single_device_arrays(whole.shape, whole.sharding, list(parts))

    return jax.tree.map(join, state, *shares)


def _device(share: Any) -> jax.Device:
    (device,) = jax.tree.leaves(share)[0].devices()
    return device


def _lane(state: Any, place: Any) -> Any:
    """Return the State [1, ...] of one member."""
    return jax.tree.map(lambda x: x[None], tree.take(state, place))


def _put_lane(state: Any, lane: Any, place: Any) -> Any:
    return tree.put(state, place, tree.take(lane, 0))
