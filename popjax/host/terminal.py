"""Output that never ends a run, even if the terminal is closed or a pipe loses its reader."""

from __future__ import annotations

import codecs
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Lasting:
    """A text stream, such as ``sys.stderr``, that drops text which cannot be written.

    Other attributes are those of the stream. None stands for a stream that was closed from the start.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` if possible; characters outside the stream's encoding become "?"."""
        stream = self._stream
        if stream is not None and not stream.closed:
            with suppress(OSError):
                try:
                    stream.write(text)
                except UnicodeEncodeError:
                    encoding = stream.encoding or "ascii"
                    stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        if self._stream is not None and not self._stream.closed:
            with suppress(OSError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Return whether this is a terminal that is still open."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def complain(line: str) -> None:
    """Print one line on standard error."""
    print(line, file=Lasting(sys.stderr), flush=True)


def write_any_text() -> None:
    """Let standard output and error replace characters that the terminal's encoding lacks."""
    codecs.register_error("popjax.spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="popjax.spell")


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell a character in ASCII: an error handler for ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelt = {"±": "+-", "…": "..."}
    text = error.object[error.start : error.end]
    return "".join(spelt.get(character, "?") for character in text), error.end


def open_missing() -> None:
    """Open standard streams that were closed when the program started, as by ``2>&-``.

    Otherwise the next file opened takes the descriptor of standard error and receives the output of
    libraries.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="locale", closefd=False))  # noqa: SIM115


def give_up_broken() -> None:
    """Discard output that could not be written; flushing it would fail again at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
