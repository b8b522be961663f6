"""Lines that libraries print beside an exception that they raise."""

from __future__ import annotations

import asyncio
import gc
import logging.handlers
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from popjax.host.checkpoints import checkpoint, io_errors
from popjax.host.errors import NotSaved

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


def test_the_filter_for_asyncio_stays_after_a_failure_only():
    def filtered():
        return io_errors._not_of_orbax in logging.getLogger("asyncio").filters

    logging.getLogger("asyncio").removeFilter(io_errors._not_of_orbax)  # of an earlier test
    with io_errors.remarks_held():
        assert filtered()
    assert not filtered()
    with pytest.raises(OSError, match="full"):
        fail()
    with io_errors.remarks_held():
        pass
    assert filtered()


def test_ctrl_c_is_no_failure(hooks):
    before = sys.excepthook, sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), io_errors.remarks_held():
        raise KeyboardInterrupt
    assert (sys.excepthook, sys.unraisablehook) == before


def test_asyncio_says_nothing_about_the_other_arrays_of_a_failed_checkpoint(hooks, tmp_path, monkeypatch):
    """Each array is a task of its own, which fails in the loop's turn of that number."""
    import tensorstore

    turns, said = iter(range(40)), logging.handlers.BufferingHandler(1000)

    async def full(*arguments, **options):
        for _ in range(next(turns)):
            await asyncio.sleep(0)
        raise ValueError("Failed to write 344 bytes: No space left on device [os_error_code='28']")

    monkeypatch.setattr(tensorstore, "open", full)
    logging.getLogger("asyncio").addHandler(said)
    try:
        with pytest.raises(NotSaved, match="No space left on device"):
            checkpoint.save(tmp_path, 1, {str(i): np.arange(3) for i in range(40)}, {})
        gc.collect()
        assert said.buffer == []
        logging.getLogger("asyncio").error("Task exception was never retrieved: of another library")
        assert len(said.buffer) == 1
    finally:
        logging.getLogger("asyncio").removeHandler(said)
