"""Checkpoints written in the background, while training goes on."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax import tree
from popjax.host.checkpoints import checkpoint
from popjax.host.checkpoints.state_arrays import data


class Writer:
    """Writes checkpoints in the background: ``save`` returns once the State is copied, so that training may
    overwrite it, and a thread writes the copy. At most one checkpoint is written at a time.

    Without ``background``, or if several processes train together, ``save`` returns when all is written. An
    exception in the thread is raised by the next call. The newest ``kept`` checkpoints are kept.
    """

    def __init__(self, directory: Path, background: bool, kept: int = checkpoint.KEPT):
        self._kept = kept
        self.directory, self.background = directory, background and jax.process_count() == 1
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._copies: dict[str, np.ndarray] = {}

    def save(self, generation: int, state: Any, extra: dict[str, Any], keep: Collection[int] = ()) -> None:
        """Write a checkpoint as ``checkpoint.save`` does, unless the generation already has one."""
        self.wait()
        if generation in checkpoint.generations(self.directory):
            return
        if not self.background:
            checkpoint.save(self.directory, generation, state, extra, keep, self._kept)
            return
        for path, leaf in tree.named(state):
            array = np.asarray(data(leaf))
            if path not in self._copies:  # reused, since allocating costs more than copying
                self._copies[path] = np.empty_like(array, order="C")
            np.copyto(self._copies[path], array)
        self._writing = self._thread.submit(
            checkpoint.write_arrays, self.directory, generation, self._copies, extra, keep, self._kept
        )

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            NotSaved: the checkpoint could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def settle(self) -> None:
        """Wait until nothing is being written, ignoring failures."""
        if self._writing is not None:
            wait([self._writing])
