"""Garbage collection paused while tracing, and memory returned that nothing needs any more."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collection of cyclic garbage within the context, or while the decorated function runs.

    Tracing a physics step creates millions of objects, nearly all of which stay alive; scanning them again
    and again would take much of the tracing time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps it for the process: after compiling physics that is much more than training needs, and in a
    long run it grows with the checkpoints written.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # other C libraries lack the function
            ctypes.CDLL(None).malloc_trim(0)


_EMPTIED = ("popjax.host", "jax", "orbax")
"""Packages whose functions hold arrays of a run."""


def empty_frames(error: BaseException) -> None:
    """Delete the local variables of the functions of the host, and of its libraries, that ``error`` has left.

    A notebook keeps the last exception, and with it the State that they hold: the next run would have to fit
    beside it. A debugger still finds the variables of other functions, such as a user's sink.
    """
    seen: set[int] = set()
    linked: list[BaseException | None] = [error]
    while linked:
        each = linked.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        linked += each.__cause__, each.__context__
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if f"{frame.f_globals.get('__name__')}.".startswith(tuple(f"{name}." for name in _EMPTIED)):
                with suppress(RuntimeError):  # still running
                    frame.clear()
