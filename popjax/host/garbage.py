"""Memory that tracing and compiling leave behind: not searched meanwhile, and returned to the system."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def paused() -> Iterator[None]:
    """Collect no cyclic garbage within the context, or within a call of the function that it decorates.

    Tracing a physics step creates millions of objects, nearly all of which stay; searching them again and
    again takes a large part of its time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def give_back() -> None:
    """Return memory that the compiler has freed to the system.

    glibc keeps it for the process, and compiling physics takes much more than training does.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # other C libraries lack the function
            ctypes.CDLL(None).malloc_trim(0)
