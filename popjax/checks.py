"""Checks of a Config and a Hyper before anything is built: refusals that name field and value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np

UNIONS = (Union, UnionType)


def check_least(config: Any, least: int, *names: str) -> None:
    """Check that the named fields are at least ``least``.

    Raises:
        ValueError: a field is below ``least``.
    """
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def check_widths(config: Any) -> None:
    """Check that every layer in a field with a tuple of sizes, ``tuple[int, ...]`` or None, has at least one
    unit.

    Raises:
        ValueError: a layer has no unit.
    """
    for name, kind in get_type_hints(type(config)).items():
        sizes = getattr(config, name)
        if kind in (tuple[int, ...], tuple[int, ...] | None) and min(sizes or (), default=1) < 1:
            spelt = " ".join(map(str, sizes))
            raise ValueError(f"{name} must have sizes of at least 1, got {spelt}; leave a layer out instead")


def check_choices(config: Any) -> None:
    """Check that every field with a choice of words, ``Literal`` or ``Literal | None``, has one of them.

    Raises:
        ValueError: a field has another value.
    """
    for name, kind in get_type_hints(type(config)).items():
        known = choices(kind)
        if known and getattr(config, name) not in known:
            listed, value = ", ".join(map(repr, known)), getattr(config, name)
            raise ValueError(f"{name} must be one of {listed}, got {value!r}")


def choices(kind: Any) -> tuple[str | None, ...]:
    """Return the words that a field of type ``kind`` may hold, and None if it is allowed; () for other
    types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    optional = [k for k in get_args(kind) if k is not type(None)] if get_origin(kind) in UNIONS else []
    return (*get_args(optional[0]), None) if len(optional) == 1 and get_origin(optional[0]) is Literal else ()


def check_numbers(hyper: Any, prefix: str = "hyper") -> None:
    """Check that every number of a ``Hyper``, which may be stacked, is in the range of its field.

    Raises:
        ValueError: a number is out of range, or not a number.
    """
    for field in fields(hyper):
        value, name = getattr(hyper, field.name), f"{prefix}.{field.name}"
        if is_dataclass(value):
            check_numbers(value, name)
        elif "range" in field.metadata:
            low, high = field.metadata["range"]
            if not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


def check_shapes(hyper: Any, each: Collection[str], population: int) -> None:
    """Check that every number of a ``Hyper`` is a scalar, or [P] if ``each`` names it.

    Raises:
        ValueError: a number has another shape.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(hyper):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="."), np.shape(leaf)
        if shape and (name not in each or shape != (population,)):
            allowed = f" for all, or one for each of {population} agents" if name in each else ""
            raise ValueError(f"hyper.{name} must be one number{allowed}, got shape {shape}")


def nearest_divisor(total: int, count: int) -> int:
    """Return the number nearest to ``count`` that divides ``total``, to name it in a refusal."""
    return min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - count))
