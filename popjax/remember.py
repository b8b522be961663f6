"""Caches of results that would compile the same programs again if they were made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
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
    nothing is compiled twice. A call with an argument that has no hash, such as an array, is not remembered.
    """
    kept: Remembered[Any] = Remembered(32)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = args, tuple(kwargs.items())
        try:
            hash(key)
        except TypeError:
            return function(*args, **kwargs)
        # 1, 1.0 and True are equal, but a function may tell them apart; their representations differ.
        return kept.get((key, repr(key)), lambda: function(*args, **kwargs))

    return cast(F, call)


def forget() -> None:
    """Forget everything that is remembered, to free its memory."""
    for kept in _ALL:
        kept.clear()
