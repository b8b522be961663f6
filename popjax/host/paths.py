"""Paths as users write them, and names of files that are made of other things: no patterns, none too long."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popjax.host.errors import Refused

LONGEST = 128
"""The most bytes of a name that is made of numbers, tasks or labels; file systems take 255, with endings."""
_ODD = re.compile(r"[^\w\s./=+,@~:-]")


def path(text: str | Path) -> Path:
    """Return the path that a user means; a shell does not expand ``~`` behind an equals sign.

    Raises:
        Refused: it begins with the home of somebody who has none.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Refused(f"{text} begins with a home that cannot be found: write the path in full") from None


def file_name(text: str) -> str:
    """Return ``text``, or of a long one its beginning and a digest, which tells it from what begins alike."""
    whole = text.encode()
    if len(whole) <= LONGEST:
        return text
    return f"{whole[: LONGEST - 17].decode(errors='ignore')}-{hashlib.sha256(whole).hexdigest()[:16]}"


def distinct(names: list[str], origins: list[str]) -> list[str]:
    """Return ``names`` with a digest of its origin at each that several different origins have."""
    of: dict[str, set[str]] = {}
    for name, origin in zip(names, origins, strict=True):
        of.setdefault(name, set()).add(origin)
    return [
        f"{name}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}" if len(of[name]) > 1 else name
        for name, origin in zip(names, origins, strict=True)
    ]


@contextmanager
def without_patterns(directory: Path) -> Iterator[Path]:
    """Yield a path of ``directory`` in which nobody sees a pattern or an escape.

    Orbax takes square brackets for a pattern and TensorStore a backslash for a separator; such a directory is
    reached by a symbolic link.
    """
    if not _ODD.search(directory.as_posix()):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="popjax-") as elsewhere:
        link = Path(elsewhere) / "directory"
        link.symlink_to(directory.absolute(), target_is_directory=True)
        yield link
