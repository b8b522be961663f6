"""Ctrl-C and preemption without loss: a signal asks the loop to stop, Ctrl-C after it stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import jax

from popjax.host.checkpoints.state_arrays import data

T = TypeVar("T")

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""Ctrl-C, a closed terminal, and what clusters send to a job that is to end: SLURM sends SIGTERM or what
``--signal`` says, often SIGUSR1, and through submitit SIGUSR2; SIGXCPU comes at a limit of processor time."""


@dataclass
class Stop:
    """Requests of signals to a loop.

    arrived: the first that came, ``None`` before.
    saving:  set by the loop when it saves for the last time: no signal interrupts it any more.
    left:    set by the loop when it left something that is still computed.
    """

    arrived: int | None = None
    saving: bool = False
    left: bool = False


class Left(Exception):
    """A signal came while something was computed, which is left to itself."""


@contextmanager
def deferred(
    say: Callable[[str], None],
    meanwhile: str = "finishing the chunk, but no evaluation, and saving",
) -> Iterator[Stop]:
    """Inside, signals only note that they came; the first is answered with what is done ``meanwhile``.

    Unless the last saving has begun, Ctrl-C after another signal raises ``KeyboardInterrupt`` where it
    strikes; of those that a cluster sends several may come. A hangup that is ignored, as ``nohup`` asks for,
    stays ignored. The handlers that were there before are put back at the end. Outside the main thread, where
    Python handles no signals, nothing changes.
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
    before = {number: signal.signal(number, handle) for number in SIGNALS if not _under_nohup(number)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ready(arrays: T, stop: Stop | None = None) -> T:
    """Return ``arrays`` once they are computed.

    Waiting in Python and not inside the runtime lets a signal be answered meanwhile.

    Raises:
        Left: with ``stop``, a signal came; the arrays are not computed yet.
    """
    pause, waited = 1e-4, [data(leaf) for leaf in jax.tree.leaves(arrays)]
    while not all(array.is_ready() for array in waited):
        if stop is not None and stop.arrived:
            raise Left
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return arrays


def beside(*works: Callable[[], T]) -> list[T]:
    """Return what each of ``works`` gives, all done at the same time in other threads, so that a signal is
    answered meanwhile.

    For work that does not come back to Python for long, such as compiling.
    """
    if threading.current_thread() is not threading.main_thread():
        return [work() for work in works]
    futures: list[Future[T]] = [Future() for _ in works]

    def run(work: Callable[[], T], future: Future[T]) -> None:
        try:
            future.set_result(work())
        except BaseException as failure:
            future.set_exception(failure)

    for pair in zip(works, futures, strict=True):
        threading.Thread(target=run, args=pair, daemon=True).start()
    return [future.result() for future in futures]


def _under_nohup(number: Any) -> bool:
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
