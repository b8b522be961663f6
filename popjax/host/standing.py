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
from popjax.host.shard import Placement, spread


class Standing:
    """The States of members that stand still, by their places [S].

    They are held in half of the memory that is free, beyond it in files of no name in ``directory``, or where
    the system has its temporary files.
    """

    def __init__(self, shapes: Any, placement: Placement, directory: Path | None):
        self._everywhere, self._directory = placement.everywhere(), directory
        self._shapes = jax.eval_shape(_lane, shapes, 0)
        self._held: dict[int, IO[bytes]] = {}
        self._take = jax.jit(_lane, out_shardings=self._everywhere)
        self._put = jax.jit(_put_lane, donate_argnums=0, out_shardings=placement.state(shapes))

    @property
    def places(self) -> frozenset[int]:
        """Of the members that stand still."""
        return frozenset(self._held)

    def keep(self, state: Any, place: int) -> None:
        """From now on the member at ``place`` is what it is in ``state`` [S, ...]."""
        self.keep_lane(self._take(state, place), place)

    def keep_lane(self, lane: Any, place: int) -> None:
        """From now on the member at ``place`` is ``lane`` [1, ...]."""
        room = max(1, memory.host_bytes() // 2)
        where = None if self._directory is None else str(self._directory)
        file: Any = tempfile.SpooledTemporaryFile(max_size=room, dir=where)  # noqa: SIM115
        for array in checkpoint.to_arrays(lane).values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._held[place] = file

    def put_back(self, state: Any) -> Any:
        """``state`` [S, ...], which is used up, with every member that stands still as it is."""
        for place, file in self._held.items():
            lane = checkpoint.from_arrays(self._read(file), self._shapes)
            state = self._put(state, spread(lane, self._everywhere), place)
        return state

    def _read(self, file: IO[bytes]) -> dict[str, np.ndarray]:
        file.seek(0)
        arrays = {}
        for name, leaf in checkpoint.data_shapes(self._shapes).items():
            content = file.read(leaf.size * leaf.dtype.itemsize)
            arrays[name] = np.frombuffer(content, leaf.dtype).reshape(leaf.shape)
        return arrays


def _lane(state: Any, place: Any) -> Any:
    """One member of a State as a State [1, ...] of its own."""
    return jax.tree.map(lambda x: x[None], tree.take(state, place))


def _put_lane(state: Any, lane: Any, place: Any) -> Any:
    return tree.put(state, place, tree.take(lane, 0))
