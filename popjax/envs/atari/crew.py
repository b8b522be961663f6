"""Worker processes that play lanes side by side, since an emulator holds Python's lock while it plays.

Workers are stateless: results depend neither on their number nor on which of them plays a lane. A worker that
dies is replaced and its lanes are played again; if that fails as well, the game itself is at fault.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from popjax.envs.atari.console import Console
from popjax.envs.atari.worker import layout, padded, views

VARIABLE = "POPJAX_ATARI_WORKERS"
"""Environment variable: number of processes that play; 0: the trainer plays itself. By default one less than
the number of cores."""
_SHARED = "/dev/shm"
_AT_ONCE = 16  # lanes that a worker is given at a time


def workers() -> int:
    """Return the number of worker processes to start; 0 for none.

    Raises:
        ValueError: ``VARIABLE`` is not a valid number.
    """
    text = os.environ.get(VARIABLE, "")
    if text and not text.isdigit():
        raise ValueError(f"{VARIABLE} must be a whole number of processes, 0 or more, got {text!r}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = int(text) if text else cores - 1
    return count if os.name == "posix" else 0


class Crew:
    """A console with its workers, which start when they are first needed.

    game, options: as for ``Console``; frames: most frames in a step.
    """

    def __init__(self, game: str, options: Mapping[str, Any], frames: int) -> None:
        self.console = Console(game, **options)
        self._settings = {"game": game, "options": dict(options), "lanes": _AT_ONCE, "frames": frames}
        self._lock, self._count = threading.Lock(), workers()
        self._workers: list[_Worker] = []

    def play(self, ale: Any, codes: Any, count: Any) -> list[np.ndarray]:
        """Play as ``Console.play`` does; calls from several threads wait for each other.

        Raises:
            RuntimeError: a worker died twice, or cannot play its lanes.
        """
        given = [np.asarray(x) for x in (ale, codes, count)]
        lead, lanes = given[2].shape, given[2].size
        used = min(self._count, lanes)
        if used < 2:  # a single worker is no faster than this process
            return self.console.play(*given)
        given = [x.reshape(lanes, *x.shape[len(lead) :]) for x in given]
        with self._lock:
            while len(self._workers) < used:
                self._workers.append(_Worker(self._settings, self.console))
            try:
                answers = self._share_out(given, self._workers[:used])
            except RuntimeError:
                self.stop()  # other workers may have sent answers that are now unused
                raise
        return [x.reshape(*lead, *x.shape[1:]) for x in answers]

    def stop(self) -> None:
        """Stop the workers; new ones start when they are needed."""
        while self._workers:
            self._workers.pop().stop()

    def _share_out(self, given: list[np.ndarray], crew: list[_Worker]) -> list[np.ndarray]:
        """Return the answers of all workers, each of which plays a contiguous share of the lanes."""
        edges = np.linspace(0, len(given[2]), len(crew) + 1).astype(int)
        shares = [[x[start:end] for x in given] for start, end in pairwise(edges)]
        found: list[list[list[np.ndarray]]] = [[] for _ in crew]
        for start in range(0, max(len(share[2]) for share in shares), _AT_ONCE):
            parts = [[x[start : start + _AT_ONCE] for x in share] for share in shares]
            asked = [place for place, part in enumerate(parts) if len(part[2])]
            for place in asked:
                crew[place].ask(parts[place])
            for place in asked:
                found[place].append(crew[place].answer(parts[place]))
        return [np.concatenate(field) for field in zip(*(part for one in found for part in one), strict=True)]


class _Worker:
    """A worker process and the memory that it shares with this one."""

    def __init__(self, settings: Mapping[str, Any], console: Console) -> None:
        parts = layout(settings["lanes"], settings["frames"], console.state_size, console.shape)
        size = sum(padded(*part) for part in parts)
        self._file = _reserved(size)  # open while the worker lives
        self._arrays = views(mmap.mmap(self._file.fileno(), size), parts)
        self._settings = {**settings, "memory": self._file.fileno()}
        self._died = False
        self._start()
        atexit.register(self.stop)

    def _start(self) -> None:
        program = [sys.executable, str(Path(__file__).with_name("worker.py")), json.dumps(self._settings)]
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=[self._file.fileno()],
            start_new_session=True,  # Ctrl-C reaches the trainer alone
        )

    def ask(self, given: list[np.ndarray]) -> None:
        """Give the worker lanes to play."""
        for place, x in zip(self._arrays[:3], given, strict=True):
            place[: len(x)] = x
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead, which ``answer`` finds
            self._process.stdin.write(bytes([len(given[2])]))

    def answer(self, given: list[np.ndarray]) -> list[np.ndarray]:
        """Return the worker's answer to ``given``; a worker that has died is replaced once."""
        assert self._process.stdout is not None
        said = self._process.stdout.read(1)
        if said == b"\0":
            return [x[: len(given[2])].copy() for x in self._arrays[3:]]
        if said:
            raise RuntimeError(self._process.stdout.readline().decode().strip())
        status = self._process.wait()
        if self._died:
            raise RuntimeError(f"an Atari worker died a second time, with exit status {status}")
        self._died = True
        self._start()
        self.ask(given)
        return self.answer(given)

    def stop(self) -> None:
        """End the worker by closing its input."""
        atexit.unregister(self.stop)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


def _reserved(size: int) -> IO[bytes]:
    """Return a temporary file of ``size`` bytes, in main memory if the system has a place and room for it.

    Its bytes are reserved, since the system kills a process that writes to a mapped page without room.

    Raises:
        RuntimeError: there is no room.
    """
    places = [place for place in (_SHARED, tempfile.gettempdir()) if os.path.isdir(place)]
    for place in places:
        with ExitStack() as opened:
            try:
                file = opened.enter_context(tempfile.TemporaryFile(dir=place))
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:  # macOS
                    file.truncate(size)
            except OSError as error:
                failure = error
                continue
            opened.pop_all()
            return file
    raise RuntimeError(
        f"an Atari worker's {size:,} bytes of shared memory do not fit into {' or '.join(places)}"
        f" ({failure.strerror}): free some, or set {VARIABLE} to fewer workers"
    )
