"""Ctrl-C and preemption without loss: a signal asks the loop to stop, Ctrl-C after it stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))
"""Ctrl-C, and what clusters send to a job that is to end: SLURM through submitit sends SIGUSR2."""


@dataclass
class Stop:
    """What signals ask of a loop.

    arrived: the first that came, ``None`` before.
    saving:  set by the loop when it saves for the last time: no signal interrupts it any more.
    """

    arrived: int | None = None
    saving: bool = False


@contextmanager
def deferred(say: Callable[[str], None], meanwhile: str = "finishing the chunk and saving") -> Iterator[Stop]:
    """Inside, signals only note that they came; the first is answered with what is done ``meanwhile``.

    Unless the last saving has begun, Ctrl-C after another signal raises ``KeyboardInterrupt`` where it
    strikes; of those that a cluster sends several may come. The handlers that were there before are put back
    at the end. Outside the main thread, where Python handles no signals, nothing changes.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.arrived is None:
            stop.arrived = number
            then = "" if stop.saving else "; Ctrl-C, then, stops at once"
            say(f"{signal.Signals(number).name}: {meanwhile}{then}")
        elif number == signal.SIGINT and not stop.saving:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
