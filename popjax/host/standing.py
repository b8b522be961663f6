"""Members of a sweep that stand still, finished or frozen, while the others go on.

One program trains all members, so it moves on those that should stand still too. Their States are kept here
meanwhile, on the host, and put back whenever the State of all is looked at.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from popjax import tree
from popjax.host import checkpoint, memory


class Standing:
    """The States of members that stand still, by their places [S].

    They are held in half of the memory that is free, beyond it in files of no name in ``directory``, or where
    the system has its temporary files, each by the process on whose devices it lies.
    """

    def __init__(self, shapes: Any, directory: Path | None):
        self._directory = directory
        self._shapes = jax.eval_shape(_lane, shapes, 0)
        self._held: dict[int, IO[bytes]] = {}
        self._places: set[int] = set()  # those that are held by other processes too
        self._take = jax.jit(_lane)
        self._put = jax.jit(_put_lane, donate_argnums=0)

    @property
    def places(self) -> frozenset[int]:
        """Of the members that stand still."""
        return frozenset(self._places)

    def keep(self, state: Any, place: int) -> None:
        """From now on the member at ``place`` is what it is in ``state`` [S, ...]."""
        self._places.add(place)
        for places, share in _shares(state):
            if place in places:
                self.keep_lane(self._take(share, place - places.start), place)

    def keep_lane(self, lane: Any, place: int) -> None:
        """From now on the member at ``place`` is ``lane`` [1, ...]."""
        room = max(1, memory.host_bytes() // 2)
        where = None if self._directory is None else str(self._directory)
        file: Any = tempfile.SpooledTemporaryFile(max_size=room, dir=where)  # noqa: SIM115
        for array in checkpoint.to_arrays(lane).values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._held[place] = file
        self._places.add(place)

    def put_back(self, state: Any) -> Any:
        """``state`` [S, ...], which is used up, with every member that stands still as it is."""
        shares = _shares(state)
        for place, file in self._held.items():
            for number, (places, share) in enumerate(shares):
                if place in places:
                    lane = jax.device_put(self._read(file), _device(share))
                    lane = checkpoint.from_arrays(lane, self._shapes)
                    share = self._put(share, lane, place - places.start)
                    shares[number] = places, jax.block_until_ready(share)  # one lane at a time is there
        return _joined(state, [share for _, share in shares])

    def _read(self, file: IO[bytes]) -> dict[str, np.ndarray]:
        file.seek(0)
        arrays = {}
        for name, leaf in checkpoint.data_shapes(self._shapes).items():
            content = file.read(leaf.size * leaf.dtype.itemsize)
            arrays[name] = np.frombuffer(content, leaf.dtype).reshape(leaf.shape)
        return arrays


def _shares(state: Any) -> list[tuple[range, Any]]:
    """What the devices of this process have of ``state`` [S, ...]: which members, and a State of these alone.

    No device is asked for what another one has, as a program for all of them would; nothing is copied.
    """
    leaves, structure = jax.tree.flatten(state)
    members = range(leaves[0].shape[0])
    each = zip(*(leaf.addressable_shards for leaf in leaves), strict=True)
    return [
        (members[shards[0].index[0]], jax.tree.unflatten(structure, [shard.data for shard in shards]))
        for shards in each
    ]


def _joined(state: Any, shares: list[Any]) -> Any:
    """The shares of this process's devices as a State that lies as ``state`` does."""

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
