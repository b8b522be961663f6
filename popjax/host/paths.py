"""Paths that users give, and file names made from numbers, tasks and labels."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popjax.host.errors import Refused

LONGEST = 128
"""Maximum length [bytes] of a file name without its suffix; file systems allow 255 in all."""
_ODD = re.compile(r"[^\w\s./=+,@~:-]")
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path has one slash; C:/ is a drive of Windows


def path(text: str | Path) -> Path:
    """Return ``text`` as a path with ``~`` expanded, which a shell does not do after an equals sign.

    Raises:
        Refused: ``text`` is empty or a URL, or the home directory is unknown.
    """
    if not str(text):
        raise Refused("a path is empty: name a file or directory, or write . for the working directory")
    if _URL.match(str(text)):
        raise Refused(f"{text} is a URL, and paths are local: mount the bucket, or copy the files afterwards")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Refused(f"the home directory in {text} cannot be found: write the path in full") from None


def file_name(text: str) -> str:
    """Return ``text``, shortened to its beginning and a digest if it is too long for a file name."""
    whole = text.encode()
    if len(whole) <= LONGEST:
        return text
    return f"{whole[: LONGEST - 17].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:16]}"


def distinct(names: list[str], origins: list[str]) -> list[str]:
    """Return ``names``, with a digest of the origin appended to names that different origins share."""
    of: dict[str, set[str]] = {}
    for name, origin in zip(names, origins, strict=True):
        of.setdefault(name, set()).add(origin)
    return [
        f"{name}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}" if len(of[name]) > 1 else name
        for name, origin in zip(names, origins, strict=True)
    ]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file then replaces ``path`` in one step; readers never see half of it."""
    partial = path.with_suffix(".part")
    yield partial
    os.replace(partial, path)


@contextmanager
def without_patterns(directory: Path) -> Iterator[Path]:
    """Yield a path to ``directory`` without special characters, through a symbolic link if necessary.

    Orbax reads square brackets as a pattern, and TensorStore a backslash as a separator.
    """
    if not _ODD.search(directory.as_posix()):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="popjax-") as elsewhere:
        link = Path(elsewhere) / "directory"
        link.symlink_to(directory.absolute(), target_is_directory=True)
        yield link
