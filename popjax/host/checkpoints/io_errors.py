"""Causes of exceptions raised by the libraries that read and write checkpoints."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL})
"""errno values that mean a missing or truncated file, not an I/O failure."""


@contextmanager
def remarks_held() -> Iterator[None]:
    """Suppress messages of Orbax and TensorStore about a failure that they also raise.

    Writes in progress when it occurs end later, each with a traceback about a closed event loop or a report
    from asyncio; after a failure, these are suppressed for the rest of the process.
    """
    logger, before = logging.getLogger("absl"), (sys.unraisablehook, sys.excepthook)
    tasks = logging.getLogger("asyncio")
    filtered = _not_of_orbax in tasks.filters  # since an earlier failure
    level = logger.level

    def unraisable(event: Any) -> None:
        if "Event loop is closed" not in str(event.exc_value):
            before[0](event)

    def exception(kind: Any, value: Any, trace: Any) -> None:
        if "Event loop is closed" not in str(value):
            before[1](kind, value, trace)

    logger.setLevel(logging.CRITICAL)
    held = getattr(before[1], "__qualname__", "") == exception.__qualname__  # since an earlier failure
    if not held:
        sys.unraisablehook, sys.excepthook = unraisable, exception
    tasks.addFilter(_not_of_orbax)
    failed = False
    try:
        yield
    except Exception:
        failed = True
        raise
    finally:
        logger.setLevel(level)
        if not failed and not held:
            sys.unraisablehook, sys.excepthook = before
        if not failed and not filtered:
            tasks.removeFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Return whether a message from asyncio is about a task of a library other than Orbax."""
    return "orbax/checkpoint" not in record.getMessage().replace("\\", "/")


def reason(error: BaseException) -> str:
    """Return the operating system's message if it caused the error, else the error's first line."""
    code = _system_code(error)
    return first_line(error) if code is None else os.strerror(code)


def trouble(error: BaseException) -> str | None:
    """Return why the machine cannot read files that may be intact, or None if the files are at fault."""
    if any(isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause) for cause in _causes(error)):
        return "not enough memory"
    code = _system_code(error)
    return None if code is None or code in _GONE else os.strerror(code)


def unreadable(root: Path) -> str | None:
    """Return why something below ``root`` exists but cannot be read, which libraries report as missing."""
    failures: list[OSError] = []
    for folder, _, names in os.walk(root, onerror=failures.append):
        if not all(os.access(os.path.join(folder, name), os.R_OK) for name in names):
            return os.strerror(errno.EACCES)
    codes = [failure.errno for failure in failures if failure.errno and failure.errno not in _GONE]
    return os.strerror(codes[0]) if codes else None


def _system_code(error: BaseException) -> int | None:
    """Return the errno of the operating system's error that caused ``error``, if any."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if code := re.search(r"os_error_code='(\d+)'", str(cause)):  # as in TensorStore's messages
            return int(code[1])
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """Return type and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
