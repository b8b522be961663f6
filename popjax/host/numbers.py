"""Conversion of numbers between users' text, the types of libraries, Python and JSON."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def whole(value: Any) -> int:
    """Return an integer from an integer or float of any library, or from text such as 1e6.

    Raises:
        ValueError: the value is not a whole number.
    """
    for read in (operator.index, int) if isinstance(value, str) else (operator.index,):
        try:
            return read(value)
        except (TypeError, ValueError):
            continue
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def real(value: Any) -> float:
    """Return a Python float; a float32 becomes the shortest decimal that rounds to it, as the user wrote it.

    ``float(np.float32(0.1))`` would be 0.10000000149011612.
    """
    return float(str(np.asarray(value)[()])) if hasattr(value, "dtype") else float(value)


def equal(one: Any, other: Any) -> bool:
    """Return whether two values of a configuration give the same run; floats are compared in float32."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, other))
    if numeric and (isinstance(one, float) or isinstance(other, float)):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def plain(value: Any) -> Any:
    """Return ``value`` in JSON types: arrays and tuples become lists, numbers become Python numbers.

    JSON has neither infinity nor NaN: infinities become "inf" or "-inf", which ``float`` reads, NaN null.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple) or np.ndim(value):
        return [plain(item) for item in value]
    if hasattr(value, "dtype"):
        value = real(value) if np.issubdtype(value.dtype, np.floating) else np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(float(value))
    return str(value) if isinstance(value, PurePath) else value
