"""Imports of libraries that an environment variable makes load what popjax does not need."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


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


@contextmanager
def physics() -> Iterator[None]:
    """Let the code inside import MuJoCo, directly or not, without its message that Warp is absent.

    Raises:
        ValueError: MUJOCO_GL names an OpenGL that is not here. MuJoCo and dm_control load it when they are
            imported, whether or not anything is drawn.
    """
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except ModuleNotFoundError:  # a library is not installed
        raise
    except Exception as failure:
        if named := os.environ.get("MUJOCO_GL"):
            reason = " ".join(str(failure).split())
            raise ValueError(f"MUJOCO_GL={named} has no OpenGL here: unset it ({reason})") from failure
        raise
