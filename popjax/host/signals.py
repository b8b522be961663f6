"""Ctrl-C and preemption without loss: the first signal asks the loop to stop, a later Ctrl-C stops at
once."""

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
"""Ctrl-C, a closed terminal, and the signals with which clusters end a job: SLURM sends SIGTERM or the one
set by ``--signal``, often SIGUSR1; submitit uses SIGUSR2; SIGXCPU reports the limit of processor time."""


@dataclass
class Stop:
    """State shared by the signal handler and the loop.

    arrived: the first signal received, or None.
    saving:  set by the loop during the last save, which no signal interrupts.
    left:    set by the loop when it abandons a computation that is still running.
    """

    arrived: int | None = None
    saving: bool = False
    left: bool = False


class Left(Exception):
    """A signal arrived while the loop waited for a computation, which is abandoned."""


@contextmanager
def deferred(
    say: Callable[[str], None],
    meanwhile: str = "finishing the chunk and saving, without an evaluation",
) -> Iterator[Stop]:
    """Record signals instead of ending the program; report the first one with ``meanwhile``.

    A Ctrl-C after the first signal raises ``KeyboardInterrupt`` at once, unless the last save has begun; a
    cluster may send its signals several times. The previous handlers are restored at the end. A signal that
    is ignored stays so, such as SIGHUP under ``nohup`` or SIGINT in a shell's background, and one that a
    library handles outside Python is left to it. Outside the main thread, where Python handles no signals,
    nothing changes.
    """
    stop = Stop()
    ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.arrived is None:
            stop.arrived = number
            again = signal.SIGINT in ours and not stop.saving
            then = "; press Ctrl-C again to stop at once" if again else ""
            say(f"{signal.Signals(number).name}: {meanwhile}{then}")
        elif number == signal.SIGINT and not stop.saving:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in ours}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for several in _remembering:
            several.arrived = several.arrived or stop.arrived


_remembering: list[Stop] = []


@contextmanager
def remembered() -> Iterator[Stop]:
    """Remember the first signal that a ``deferred`` inside received.

    For several runs in turn: a run that was about to finish anyway ends as if no signal had arrived, but no
    other run should start after it.
    """
    stop = Stop()
    _remembering.append(stop)
    try:
        yield stop
    finally:
        _remembering.remove(stop)


def ready(arrays: T, stop: Stop | None = None) -> T:
    """Return ``arrays`` once they are computed.

    Poll in Python rather than block inside the runtime, so that signals are handled meanwhile. Pauses grow
    with the time waited so far, so that little is lost after a short chunk.

    Raises:
        Left: ``stop`` is given and a signal arrived; the arrays are not computed yet.
    """
    begun, waited = time.perf_counter(), [data(leaf) for leaf in jax.tree.leaves(arrays)]
    while not all(array.is_ready() for array in waited):
        if stop is not None and stop.arrived:
            raise Left
        time.sleep(min(max(1e-4, (time.perf_counter() - begun) / 50), 0.02))
    return arrays


def beside(*works: Callable[[], T]) -> list[T]:
    """Return the results of ``works``, run in parallel in other threads or, if called in one, in turn.

    For work that stays outside Python for long, such as compiling: signals are handled meanwhile.
    """
    if threading.current_thread() is not threading.main_thread():
        return [work() for work in works]
    futures: list[Future[T]] = [Future() for _ in works]
    settings: Any = jax.config  # its attributes are not declared
    device = settings.jax_default_device  # a context of jax.default_device is one of its thread

    def run(work: Callable[[], T], future: Future[T]) -> None:
        try:
            with jax.default_device(device):
                future.set_result(work())
        except BaseException as failure:
            future.set_exception(failure)

    for pair in zip(works, futures, strict=True):
        threading.Thread(target=run, args=pair, daemon=True).start()
    return [future.result() for future in futures]
