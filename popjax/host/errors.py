"""Exceptions that end a run early."""

from __future__ import annotations


class Refused(ValueError):
    """The run asked for cannot be made: a number out of range, no room in memory, a directory in use."""


class NoRun(Refused):
    """There is something, but it is no run, or one of which nothing is recorded yet."""


class TooLarge(Refused):
    """There is no room in memory; ``fitting`` members of the sweep would fit."""

    def __init__(self, message: str, fitting: int):
        super().__init__(message)
        self.fitting = fitting


class NotSaved(RuntimeError):
    """A checkpoint, or a member that stands still, could not be written; the checkpoints before are whole."""


class NotRead(RuntimeError):
    """A checkpoint that may be whole could not be read: no memory, no permission or a failing disk."""


class NotTracked(RuntimeError):
    """A service that a run is sent to failed; the State is saved."""


class NonFiniteMetric(RuntimeError):
    """A metric became NaN or infinite; the State it came from was not saved."""


class CallbackFailed(RuntimeError):
    """An environment failed on the host, such as an emulator; the checkpoints before are
    whole."""


FAILURES = (CallbackFailed, NonFiniteMetric, NotRead, NotSaved, NotTracked)
"""Failures of a run that are no bug of popjax, told in one line."""


class Interrupted(KeyboardInterrupt):
    """A signal arrived, such as Ctrl-C; the chunk was finished and the State saved.

    ``signal_number`` is the signal; by convention a program then exits with 128 plus that number. ``left``
    tells that an evaluation is still computed, for which the interpreter would wait at its end.
    """

    def __init__(self, message: str, signal_number: int, left: bool = False):
        super().__init__(message)
        self.signal_number = signal_number
        self.left = left
