"""Records written outside the training thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from popjax.host.runs.history import History

_BACKLOG = 256
"""Maximum number of chunks in the queue; training waits while it is full."""


class Background:
    """A sink whose thread writes the records of several chunks at once.

    An exception in the thread is raised by the next call or ``drain``; nothing is written after it.
    """

    def __init__(self, write: Callable[[Sequence[History]], None]):
        self._write = write
        self._waiting: queue.Queue[History | None] = queue.Queue(_BACKLOG)
        self._failure: Exception | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, index: int, history: History) -> None:
        """Queue the history of a chunk."""
        self._raise()
        self._waiting.put(history)

    def drain(self) -> None:
        """Wait until all queued records are written."""
        self._waiting.join()
        self._raise()

    def close(self) -> None:
        """Write the rest of the queue and end the thread."""
        self._waiting.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            ended = None in batch
            try:
                if not self._failed:
                    self._write([history for history in batch if history is not None])
            except Exception as failure:
                self._failure, self._failed = failure, True
            finally:
                for _ in batch:
                    self._waiting.task_done()


@contextmanager
def background(write: Callable[[Sequence[History]], None]) -> Iterator[Background]:
    """Provide a ``Background`` that has written everything when the context ends."""
    sink = Background(write)
    try:
        yield sink
    except BaseException:
        with suppress(Exception):  # report the exception that ended the run instead
            sink.close()
        raise
    sink.close()
