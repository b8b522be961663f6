"""Members of a sweep that have finished and stand still while the others go on.

One program trains all members, so it moves on those that should stand still too. Their States are kept here
meanwhile, on the host, and put back whenever the State of all is looked at.
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


class Standing:
    """The States of members that stand still, by their places [S].

    They are held in half of the memory that is free at the beginning, beyond it in files of no name in
    ``directory``, or where the system has its temporary files, each by the process on whose devices it lies.
    """

    def __init__(self, shapes: Any, directory: Path | None):
        self._directory = str(directory or tempfile.gettempdir())
        self._resumable = directory is not None
        self._shapes = jax.eval_shape(_lane, shapes, 0)
        self._room = memory.host_bytes() // 2
        self._held: dict[int, dict[str, np.ndarray] | IO[bytes]] = {}
        self._places: set[int] = set()  # those that are held by other processes too
        self._take = jax.jit(_lane)
        self._put = jax.jit(_put_lane, donate_argnums=0)

    @property
    def places(self) -> frozenset[int]:
        """Of the members that stand still."""
        return frozenset(self._places)

    def keep(self, state: Any, places: Iterable[int]) -> None:
        """From now on the members at ``places`` are what they are in ``state`` [S, ...].

        Raises:
            NotSaved: there is no room for one of them on the disk.
        """
        places = sorted(places)
        if places:
            self._together(lambda: self._keep(state, places), "kept")

    def put_back(self, state: Any) -> Any:
        """``state`` [S, ...], which is used up, with every member that stands still as it is.

        Raises:
            NotSaved: the disk does not give one of them back.
        """
        shares = _shares(state)
        if self._places:
            self._together(lambda: self._put_into(shares), "read back")
        return _joined(state, [share for _, share in shares])

    def close(self) -> None:
        """Release what is held."""
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
                    shares[number] = places, jax.block_until_ready(share)  # one lane at a time is there

    def _read(self, file: IO[bytes]) -> dict[str, np.ndarray]:
        file.seek(0)
        arrays = {}
        for name, leaf in state_arrays.data_shapes(self._shapes).items():
            content = file.read(leaf.size * leaf.dtype.itemsize)
            arrays[name] = np.frombuffer(content, leaf.dtype).reshape(leaf.shape)
        return arrays

    def _together(self, action: Callable[[], None], what: str) -> None:
        """Do ``action`` on every process; if the disk fails on one, stop all."""
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
                    f"a member that stands still could not be {what} in {self._directory}"
                    f" ({io_errors.reason(error)}): make room there; {remedy}"
                ) from error

        processes.together(told, everyone=True)


def _shares(state: Any) -> list[tuple[range, Any]]:
    """Return the share of ``state`` [S, ...] on this process's devices: its members, and a State of these.

    No device is asked for what another one has, as a program for all of them would; nothing is copied.
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
    """One member of a State as a State [1, ...] of its own."""
    return jax.tree.map(lambda x: x[None], tree.take(state, place))


def _put_lane(state: Any, lane: Any, place: Any) -> Any:
    return tree.put(state, place, tree.take(lane, 0))
