"""Options of an environment: a wrong name or a value of the wrong kind is refused in one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, get_args, get_origin

import jax
import numpy as np

from popjax import arguments
from popjax.core import LARGEST
from popjax.spelling import nearest

_RANGE = tuple[float, float]
"""Type of an option whose default is a tuple; in JSON, it is a list."""


def check(env: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Check the ``options`` of ``env``, "suite/task", against their types in ``known`` and return them.

    A float such as 1e3 becomes an integer if the option is one.

    Raises:
        ValueError: there is no option of that name, or its value is of another type, NaN or too large.
    """
    taken = dict(options)
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{env} has no option {name!r}{nearest(name, known, quoted=True)}")
        kinds = get_args(known[name]) if isinstance(known[name], UnionType) else (known[name],)
        # Leave other annotations to the library.
        if set(kinds) <= {bool, int, float, str, tuple}:
            hint = reduce(or_, (_RANGE if kind is tuple else kind for kind in kinds))
            taken[name] = _in_range(arguments.checked(f"{env}: option {name}", value, hint), env, name, kinds)
    return taken


def _in_range(value: Any, env: str, name: str, kinds: Collection[Any]) -> Any:
    """Return ``value``, a large whole number as a float where the option is one; refuse NaN, and numbers that
    compiled programs cannot hold."""
    if isinstance(value, str | jax.core.Tracer):
        return value
    if np.ndim(value):  # of an option that is a range
        return tuple(_in_range(each, env, name, (float,)) for each in value)
    number = value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value
    if -arguments.INT32_MAX <= number <= arguments.INT32_MAX:
        return value
    if float not in kinds:
        most = f"{arguments.INT32_MAX:,}"
        raise ValueError(f"{env}: option {name} must be from -{most} to {most}, got {number:,}")
    if abs(number) <= LARGEST or abs(number) == math.inf:
        return float(number)
    got = "nan" if number != number else "a number beyond that"
    most = f"{LARGEST:.3g}"
    raise ValueError(f"{env}: option {name} must be from -{most} to {most}, or infinite, got {got}")


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of ``function`` that have a default."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.default is not p.empty}


def types(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the type of each parameter: its annotation, or else its default's type."""
    return {name: _type(parameter) for name, parameter in parameters.items()}


def _type(parameter: inspect.Parameter) -> Any:
    hint = type(parameter.default) if parameter.annotation is parameter.empty else parameter.annotation
    return hint if isinstance(hint, UnionType) else get_origin(hint) or hint
