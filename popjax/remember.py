"""Caches of results that would compile the same programs again if they were made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_ALL: list[Remembered[Any]] = []


class Remembered(Generic[T]):
    """Cache of the ``size`` most recently requested results, by key."""

    def __init__(self, size: int):
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        _ALL.append(self)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the result for ``key``, made by ``make`` if it is not in the cache."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Forget all results."""
        self._kept.clear()


def remembered(function: F) -> F:
    """Make ``function`` return the same object when it is called again with equal arguments.

    For ``build`` of a method and ``make`` of an environment: equal arguments then give the same method, and
    nothing is compiled twice.

    Functions defined outside popjax are returned as they are, and calls with a Config of a class defined
    there are not remembered: a user may have edited the code behind them, or what that code reads, since the
    last call. A call with an argument that has no hash, such as an array, is not remembered either.
    """
    if not _is_ours(function.__module__):
        return function
    kept: Remembered[Any] = Remembered(32)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = args, tuple(kwargs.items())
        try:
            hash(key)
        except TypeError:
            return function(*args, **kwargs)
        if not _has_our_configs((args, tuple(kwargs.values()))):
            return function(*args, **kwargs)
        # 1, 1.0 and True are equal, but a function may tell them apart; their representations differ.
        return kept.get((key, repr(key)), lambda: function(*args, **kwargs))

    return cast(F, call)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "popjax"


def _has_our_configs(value: Any) -> bool:
    """Return whether the classes of all dataclasses in ``value`` and its fields are defined in popjax."""
    if isinstance(value, tuple):
        return all(map(_has_our_configs, value))
    if not is_dataclass(value) or isinstance(value, type):
        return True
    inner = (getattr(value, field.name) for field in fields(value))
    return _is_ours(type(value).__module__) and all(map(_has_our_configs, inner))


def forget() -> None:
    """Forget everything that is remembered, to free its memory."""
    for kept in _ALL:
        kept.clear()
