"""Options of an environment: a wrong name or a value of the wrong kind is refused in one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np

_WANTED = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "two numbers, (low, high)",
}


def check(env: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Check the ``options`` of ``env``, "suite/task", against their types in ``known`` and return them.

    A float such as 1e3 becomes an integer where the option is one.

    Raises:
        ValueError: there is no option of that name, or its value is of another type.
    """
    taken = dict(options)
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{env} has no option {name!r}{nearest(name, list(known))}")
        if known[name] is int and isinstance(value, float) and value.is_integer():
            value = taken[name] = int(value)
        kinds = get_args(known[name]) if isinstance(known[name], UnionType) else (known[name],)
        # Leave other annotations to the library.
        if set(kinds) <= set(_WANTED) and not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(_WANTED[kind] for kind in kinds)
            raise ValueError(f"{env}: option {name} must be {wanted}, got {value!r}")
    return taken


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of ``function`` that have a default."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.default is not p.empty}


def types(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the type of each parameter: its annotation, or else its default's type."""
    return {name: _type(parameter) for name, parameter in parameters.items()}


def nearest(word: str, known: Sequence[str]) -> str:
    """Return '; did you mean ...?' or, if no name is near, '; choose from ...'."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(known)}"


def _type(parameter: inspect.Parameter) -> Any:
    hint = type(parameter.default) if parameter.annotation is parameter.empty else parameter.annotation
    return hint if isinstance(hint, UnionType) else get_origin(hint) or hint


def _is(value: Any, kind: Any) -> bool:
    if kind is tuple:  # in JSON, a tuple is a list
        return isinstance(value, tuple | list) and len(value) == 2 and all(_is(x, float) for x in value)
    if isinstance(value, bool | np.bool_):  # for Python also an integer
        return kind is bool
    if getattr(value, "shape", None) == () and kind in (int, float):  # an array, also one that is traced
        return np.issubdtype(value.dtype, np.integer if kind is int else np.number)
    return isinstance(value, {bool: bool, int: Integral, float: Real, str: str}[kind])
