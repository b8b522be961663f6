"""Exceptions that end a run, on their way from one process to another."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from popjax.host import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
]
FACTS: dict[type, dict[str, Any]] = {
    errors.TooLarge: {"fitting": 3},
    errors.Interrupted: {"signal_number": 15, "left": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_survives_pickling_with_its_facts(kind: Any) -> None:
    """A pool of processes hangs, or breaks, if one does not."""
    made = kind("reduce the replay capacity", **FACTS.get(kind, {}))
    made.add_note("in the third run")
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is kind
    assert str(again) == "reduce the replay capacity"
    assert vars(again) == FACTS.get(kind, {}) | {"__notes__": ["in the third run"]}
