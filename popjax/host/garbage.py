"""A pause of Python's collector of cyclic garbage while programs are traced."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Collect no cyclic garbage within the context, or within a call of the function that it decorates.

    Tracing a physics step creates millions of objects, nearly all of which stay. Without searching them again
    and again, it takes a third less time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
