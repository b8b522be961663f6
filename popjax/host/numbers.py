"""Numbers as people and libraries write them, as Python's own and as JSON has them."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def whole(value: Any) -> int:
    """Return a whole number that is written as an integer or a float of any library, or as text such as 1e6.

    Raises:
        ValueError: it is no whole number.
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
        raise ValueError(f"{value!r} is no whole number")
    return int(number)


def real(value: Any) -> float:
    """Return a number as Python has it; one of fewer bits as the shortest decimal that is rounded to it.

    ``float(np.float32(0.1))`` would be 0.10000000149011612, which nobody has written.
    """
    return float(str(np.asarray(value)[()])) if hasattr(value, "dtype") else float(value)


def equal(one: Any, other: Any) -> bool:
    """Return whether two values of a configuration make the same run; fractions are computed as float32."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, other))
    if numeric and (isinstance(one, float) or isinstance(other, float)):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: arrays and tuples as lists, numbers as Python's.

    JSON has no infinities and no NaN: these become "inf" and "-inf", which ``float`` reads, and null.
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
