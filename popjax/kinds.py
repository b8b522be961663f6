"""Modules of interchangeable parts, such as agents and drives, found by their Configs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

NAMES = {"Config", "Hyper", "build"}
"""The names that such a module defines."""


def home(config: Any, part: str, known: Iterable[str]) -> ModuleType:
    """Return the module that defines the class of ``config`` under the name Config, next to Hyper and build.

    For a subclass that only changes defaults, it is the module of the nearest base class that has one.

    part, known: for the message: the kind of part, such as ``"an agent"``, and the names of popjax's own.

    Raises:
        ValueError: there is no such module, or it has only one of Hyper and build.
    """
    for kind in type(config).__mro__:
        module = sys.modules[kind.__module__]
        names = vars(module)
        if kind is not names.get("Config") or not {"Hyper", "build"} & names.keys():
            continue
        if missing := NAMES - names.keys():
            raise ValueError(
                f"{module.__name__} has no {missing.pop()} next to its Config, as {part} needs; add it"
            )
        return module
    raise stranger(config, part, known)


def stranger(config: Any, part: str, known: Iterable[str]) -> ValueError:
    """Return the error for a ``config`` that is not of this kind of part; see ``home``."""
    return ValueError(
        f"{type(config).__name__} is not the Config of {part}; use that of {', '.join(known)}, or of a"
        " module of yours with Config, Hyper and build"
    )
