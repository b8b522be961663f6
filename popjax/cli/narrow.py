"""Configs as tyro is to see them: with the agents, drives and searches that were chosen, and no others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar

import tyro

T = TypeVar("T")


def narrowed(config: Any, names: Mapping[str, Collection[str]]) -> Any:
    """Return ``config`` as an instance of a type whose fields ``names`` have exactly their present types.

    Otherwise a field that may hold one of several dataclasses would become a subcommand on the command line.
    A field that holds None becomes a constant, which help shows with the choices in ``names``, if any.
    """
    if not names:
        return config
    kind, values = type(config), {name: getattr(config, name) for name in names}
    types = {name: _nothing(names[name]) if value is None else type(value) for name, value in values.items()}
    body = {"__annotations__": types, "__doc__": kind.__doc__, "__module__": kind.__module__}
    narrow: Any = dataclass(frozen=True)(type(kind.__name__, (kind,), body | values))
    return narrow(**{field.name: getattr(config, field.name) for field in fields(kind)})


def _nothing(choices: Collection[str]) -> Any:
    """Return the type of a field that holds None, one of ``choices`` or the only one."""
    constant: Any = tyro.conf.Fixed[None]  # type: ignore[misc]
    if not choices:
        return Annotated[constant, tyro.conf.Suppress]
    shown = tyro.conf.arg(metavar=one_of(choices), help_behavior_hint="(default: none)")
    return Annotated[constant, shown]


def one_of(names: Iterable[str]) -> str:
    """Return choices as help shows them."""
    return "{" + ",".join(names) + "}"


def widened(config: Any, kind: type[T]) -> T:
    """Return an instance of a ``narrowed`` type as one of the original type."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def open_fields(value: Any) -> dict[str, tuple[()]]:
    """Return the fields of a dataclass that are annotated ``Any``, each without choices."""
    return {field.name: () for field in fields(value) if field.type in (Any, "Any")}
