"""Which known name was meant by an unknown one. Imports only the standard library: messages need no JAX."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that is spelt most like ``word``, whatever the case; None if none is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return names[near[0]] if near else None


def nearest(word: str, known: Iterable[str], quoted: bool = False) -> str:
    """Return the end of a message about an unknown ``word``: '; did you mean X?' or, if no name is near,
    '; choose from X, Y'; nothing if no name is known."""
    names = list(known)
    if near := closest(word, names):
        return f"; did you mean {near!r}?" if quoted else f"; did you mean {near}?"
    return f"; choose from {', '.join(names)}" if names else ""
