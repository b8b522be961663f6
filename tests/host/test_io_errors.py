"""Lines that libraries print beside an exception that they raise."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from popjax.host.checkpoints import io_errors

LATE, OTHER = RuntimeError("Event loop is closed"), RuntimeError("something else")


@pytest.fixture
def hooks(monkeypatch):
    """Return the messages that the hooks of this process have had."""
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, value, trace: told.append(value))
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(event.exc_value))
    return told


def remark(error):
    sys.excepthook(type(error), error, None)
    sys.unraisablehook(SimpleNamespace(exc_value=error))


@io_errors.remarks_held()
def fail():
    remark(LATE)
    raise OSError("full")


def test_after_a_failure_late_writes_say_nothing_and_others_do(hooks):
    with pytest.raises(OSError, match="full"):
        fail()
    remark(LATE)
    remark(OTHER)
    assert hooks == [OTHER, OTHER]


def test_without_a_failure_everything_is_as_before(hooks):
    before = sys.excepthook, sys.unraisablehook
    with io_errors.remarks_held():
        remark(LATE)
        remark(OTHER)
    assert hooks == [OTHER, OTHER]
    assert (sys.excepthook, sys.unraisablehook) == before


def test_a_second_failure_adds_no_hook(hooks):
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            fail()
        found = sys.excepthook, sys.unraisablehook
    with pytest.raises(OSError, match="full"):
        fail()
    assert (sys.excepthook, sys.unraisablehook) == found


def test_ctrl_c_is_no_failure(hooks):
    before = sys.excepthook, sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), io_errors.remarks_held():
        raise KeyboardInterrupt
    assert (sys.excepthook, sys.unraisablehook) == before
