"""Checks of a Config and a Hyper before anything is built; errors name the field and its value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, get_type_hints

import jax
import numpy as np

from popjax import tree
from popjax.arguments import INT32_MAX, fits, told, wanted


def check_types(config: Any) -> None:
    """Check that every field has a value of its type: a number, one of the words of a ``Literal``, a Config;
    and that integers fit into int32.

    Raises:
        ValueError: a field has another value.
    """
    for name, kind in _types(config.__class__).items():
        if not fits(value := getattr(config, name), kind):
            raise ValueError(f"{name} must be {wanted(kind)}, got {told(value)}")
        if isinstance(value, Integral) and int(value) > INT32_MAX:
            raise ValueError(f"{name} must be at most {INT32_MAX}, got {value}")


@lru_cache(maxsize=256)
def _types(config: type) -> dict[str, Any]:
    """Return the types of the fields of a Config by name."""
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in fields(config)}


def check_least(config: Any, least: int, *names: str) -> None:
    """Check that the named fields are at least ``least``.

    Raises:
        ValueError: a field is below ``least``.
    """
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def check_widths(config: Any) -> None:
    """Check that every layer has at least one unit, in all fields of type ``tuple[int, ...]`` (or None).

    Raises:
        ValueError: a layer has no unit.
    """
    for name, kind in _types(config.__class__).items():
        sizes = getattr(config, name)
        if kind in (tuple[int, ...], tuple[int, ...] | None) and min(sizes or (), default=1) < 1:
            spelt = " ".join(map(str, sizes))
            raise ValueError(f"{name} must have sizes of at least 1, got {spelt}; leave a layer out instead")


def check_hyper(hyper: Any, prefix: str = "hyper") -> None:
    """Check that every value of a ``Hyper``, which may be stacked, is in the range that its field declares.

    Raises:
        ValueError: a value is out of range, or not a number.
    """
    for field in fields(hyper):
        value, name = getattr(hyper, field.name), f"{prefix}.{field.name}"
        if is_dataclass(value):
            check_hyper(value, name)
        elif not field.metadata.get("pytree_node", True):  # not a number but, for example, a function
            continue
        elif not all(map(_is_numeric, [value] if "range" in field.metadata else jax.tree.leaves(value))):
            raise ValueError(f"{name} must be a number, got {told(value)}")
        elif "range" in field.metadata:
            low, high = field.metadata["range"]
            if not np.all((np.asarray(value) >= low) & (np.asarray(value) <= high)):
                raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")


def _is_numeric(leaf: Any) -> bool:
    kind = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
    return bool(jax.numpy.issubdtype(kind, np.bool_) or jax.numpy.issubdtype(kind, np.number))


def check_shapes(hyper: Any, each: Collection[str], population: int) -> None:
    """Check that every number of a ``Hyper`` is a scalar; one that ``each`` names may also be [P].

    Raises:
        ValueError: a number has another shape.
    """
    for name, leaf in tree.named(hyper):
        shape = np.shape(leaf)
        if shape and (name not in each or shape != (population,)):
            allowed = f" for all, or one for each of {population} agents" if name in each else ""
            raise ValueError(f"hyper.{name} must be one number{allowed}, got shape {shape}")


def nearest_divisor(total: int, count: int) -> int:
    """Return the number nearest to ``count`` that divides ``total``, for an error message."""
    return min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: abs(n - count))
