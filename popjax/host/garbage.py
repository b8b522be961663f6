"""Garbage collection paused while tracing, and freed memory returned to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
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
