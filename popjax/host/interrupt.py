"""Ctrl-C without loss: the first signal asks the loop to stop, the second stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred(say: Callable[[str], None]) -> Iterator[Callable[[], int | None]]:
    """Inside, SIGINT and SIGTERM only note that they came; yields a function that tells which, or ``None``.

    A second signal raises ``KeyboardInterrupt`` where it strikes. The handlers that were there before are
    put back at the end. Outside the main thread, where Python handles no signals, nothing changes.
    """
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if arrived:
            raise KeyboardInterrupt
        arrived.append(number)
        say(f"{signal.Signals(number).name}: finishing the chunk and saving; once more to stop at once")

    def pending() -> int | None:
        return arrived[0] if arrived else None

    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield pending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
