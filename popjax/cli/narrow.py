"""Configs as shown to tyro: only with the agents, drives and searches that were chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

_UNSHOWN: Any = tyro.conf.arg(help_behavior_hint="")
_WIDE = "_wide"  # attribute of a narrowed type that has the original one


def narrowed(config: Any, names: Mapping[str, Collection[str]]) -> Any:
    """Return ``config`` as an instance of a type whose fields ``names`` have exactly their present types.

    Otherwise a field that may hold one of several dataclasses would become a subcommand on the command line.
    A field of ``names`` that holds None becomes a constant, which help shows with the choices, if any. For
    any other field that holds None, also a nested one, help shows no default: its text says what None means.
    """
    kind = type(config)
    types: dict[str, Any] = {}
    values: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for name in (field.name for field in fields(kind)):
        held = getattr(config, name)
        value = narrowed(held, {}) if is_dataclass(held) else held
        if value is None:
            types[name] = _nothing(names[name]) if name in names else Annotated[hints[name], _UNSHOWN]
        elif name in names or value is not held:
            types[name] = type(value)
        values[name] = value
    if not types:
        return config
    defaults = {name: values[name] for name in types}
    body = {"__annotations__": types, "__doc__": kind.__doc__, "__module__": kind.__module__}
    narrow: Any = dataclass(frozen=True)(type(kind.__name__, (kind,), body | defaults | {_WIDE: kind}))
    return narrow(**values)


def _nothing(choices: Collection[str]) -> Any:
    """Return the type of a field fixed to None, which help shows with ``choices`` or, without any, hides."""
    constant: Any = tyro.conf.Fixed[None]  # type: ignore[misc]
    if not choices:
        return Annotated[constant, tyro.conf.Suppress]
    shown = tyro.conf.arg(metavar=one_of(choices), help_behavior_hint="(default: none)")
    return Annotated[constant, shown]


def one_of(names: Iterable[str]) -> str:
    """Return choices as help shows them."""
    return "{" + ",".join(names) + "}"


def widened(config: Any) -> Any:
    """Return an instance of a ``narrowed`` type, and those nested in it, as instances of the original types;
    return any other value unchanged."""
    kind: Any = getattr(config, _WIDE, None)
    if kind is None:
        return config
    return kind(**{field.name: widened(getattr(config, field.name)) for field in fields(kind)})


def open_fields(value: Any) -> dict[str, tuple[()]]:
    """Return the fields of a dataclass that are annotated ``Any``, each without choices."""
    return {field.name: () for field in fields(value) if field.type in (Any, "Any")}
