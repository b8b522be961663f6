"""Exceptions that end a run early.

A pool of processes pickles them. Pickle makes an exception from its message alone and sets the other facts
afterwards, so each of those has a default.
"""

from __future__ import annotations

import signal


class Refused(ValueError):
    """The request cannot be met: an unknown option, a number out of range, too little memory, a directory in
    use. The message is one line."""


class NoRun(Refused):
    """The directory does not hold a run, or the run has recorded nothing yet."""


class TooLarge(Refused):
    """The run does not fit into memory; ``fitting`` members of the sweep would."""

    def __init__(self, message: str, fitting: int = 0):
        super().__init__(message)
        self.fitting = fitting


class NotSaved(RuntimeError):
    """A checkpoint or a stopped member could not be written; earlier checkpoints are intact."""


class NotRead(RuntimeError):
    """A checkpoint that may be intact could not be read: no memory, no permission or a failing disk."""


class NotTracked(RuntimeError):
    """A tracking service failed; the State is saved."""


class NonFiniteMetric(RuntimeError):
    """A metric became NaN or infinite; that State was not saved."""


class CallbackFailed(RuntimeError):
    """An environment that runs on the host, such as an emulator, failed; earlier checkpoints are intact."""


FAILURES = (CallbackFailed, NonFiniteMetric, NotRead, NotSaved, NotTracked)
"""Failures of a run that are not bugs of popjax; the command line reports them in one line."""


class Interrupted(KeyboardInterrupt):
    """A signal arrived, such as Ctrl-C; the chunk was finished and the State saved.

    ``signal_number`` is the signal; by convention a program then exits with 128 plus that number. With
    ``left``, an evaluation is still being computed, and the interpreter would wait for it at exit.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT, left: bool = False):
        super().__init__(message)
        self.signal_number = signal_number
        self.left = left
