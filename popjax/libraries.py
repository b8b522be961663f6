"""Imports of libraries that an environment variable makes load what popjax does not need."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def plotting() -> Iterator[None]:
    """Let the code inside import matplotlib, directly or not, whatever backend MPLBACKEND names.

    popjax draws into files without a backend, but matplotlib refuses to be imported if the backend is not
    installed, as with Colab's MPLBACKEND in another environment than Colab's own. A backend that exists is
    selected as matplotlib would have.
    """
    first, named = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if first and named and (library := sys.modules.get("matplotlib")):
        with suppress(ValueError):  # there is no such backend
            library.rcParams["backend"] = named
