"""Checks of the arguments of public functions against their annotations, before anything is computed.

A value of the wrong type raises an error of one line that names the argument, the types that it accepts and
the value that it got. Fields of Configs, options of environments and the command line use the same wording.
Libraries that check annotations (pydantic, beartype, typeguard) decide many cases differently: they refuse
1e6 for an integer, or an array for a number or a list of numbers, or they accept text and True as numbers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from numbers import Integral, Number, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import jax
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
INT32_MAX = 2**31 - 1
"""Largest integer of compiled programs."""
UNIONS = (Union, UnionType)
_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("True or False", "True or False"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    NoneType: ("None", "None"),
    Any: ("anything", "anything"),
    Callable: ("a function", "functions"),
    Mapping: ("a dictionary", "dictionaries"),
    jax.Array: ("an array", "arrays"),
}
"""Names of types in messages, singular and plural."""
_SOURCES = {
    "popjax.core.Env": ", which popjax.make returns",
    "popjax.core.Method": ", which the build of a method's module returns",
    "popjax.core.Pretrained": ", which popjax.pretrained returns",
}
_PATH = "__fspath__"  # marks a path, whatever its class
_LONGEST = 60  # characters of a value in a message


def typed(refusal: type[ValueError] = ValueError) -> Callable[[F], F]:
    """Decorate a function so that it raises ``refusal`` for an argument that does not match its annotation.

    If the annotation is int, a whole float such as 1e6 or an integer of another library becomes a Python
    integer. Annotations that cannot be resolved or checked accept every value.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @wraps(function)
        def checking(*args: Any, **kwargs: Any) -> Any:
            try:
                call = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # Python's own error names the function
            for name, hint in _hints(function).items():
                if name in call.arguments:
                    call.arguments[name] = checked(name, call.arguments[name], hint, refusal)
            return function(*call.args, **call.kwargs)

        return cast(F, checking)

    return decorate


def checked(name: str, value: Any, hint: Any, refusal: type[ValueError] = ValueError) -> Any:
    """Return the argument ``value``, with Python integers, after checking that it is of type ``hint``.

    Raises:
        ValueError: it is not; the error is of type ``refusal``.
    """
    value = _with_integers(value, hint)
    mappings = [kind for kind in _kinds(hint) if get_origin(kind) is Mapping]
    if mappings and isinstance(value, Mapping):  # name the entry that does not fit
        key, item = get_args(mappings[0])
        return {
            checked(f"a name in {name}", k, key, refusal): checked(f"{name}[{k!r}]", v, item, refusal)
            for k, v in value.items()
        }
    if not fits(value, hint):
        raise refusal(f"{name} must be {wanted(hint)}, got {told(value)}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Return whether ``value`` is of type ``hint``. An array counts as a number or as a list of numbers, and
    a user's own Config fits wherever there is a choice among Configs."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in UNIONS:
        chosen = any(map(is_dataclass, inner)) and is_dataclass(value) and not isinstance(value, type)
        return chosen or any(fits(value, kind) for kind in inner)
    if origin is Literal:
        alike = (word for word in inner if isinstance(value, bool) == isinstance(word, bool))  # True is not 1
        return any(isinstance(value, type(word)) and value == word for word in alike)
    if origin is tuple and inner[-1:] != (...,):
        return _is_list(value) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (tuple, Sequence):
        return _is_list(value) and all(fits(each, inner[0]) for each in value)
    if hint in (bool, int, float):
        return _is_number(value, hint)
    kind = origin or hint
    if kind is Callable:
        return callable(value)
    if kind is jax.Array:
        return isinstance(value, jax.Array | np.ndarray)
    if hasattr(kind, _PATH):
        return hasattr(value, _PATH)
    try:
        return isinstance(value, kind)
    except TypeError:  # Any, a type variable or a protocol
        return True


def wanted(hint: Any, several: bool = False) -> str:
    """Return in words what ``hint`` accepts, such as "a number or None"; in the plural if ``several``."""
    origin, inner = get_origin(hint), get_args(hint)
    if words := words_of(hint):
        return f"one of {', '.join(map(repr, words))}"
    if origin in UNIONS:
        configs = [kind for kind in inner if isinstance(kind, type) and is_dataclass(kind)]
        listed = []
        if len(configs) > 1:
            names = [".".join(_name(kind).split(".")[-2:]) for kind in configs]
            listed = [f"one of {', '.join(names)}", "a Config of your own"]
            inner = tuple(kind for kind in inner if kind not in configs)
        return " or ".join(dict.fromkeys([*listed, *(wanted(kind, several) for kind in inner)]))
    if origin in (tuple, Sequence) and inner[-1:] in ((...,), inner):
        return f"{'lists' if several else 'a list'} of {wanted(inner[0], several=True)}"
    if origin is tuple:
        pair = len(inner) == 2 and inner[0] == inner[1]
        return f"two {wanted(inner[0], several=True)}" if pair else f"({', '.join(map(wanted, inner))})"
    kind = origin or hint
    if kind in _WORDS:
        return _WORDS[kind][several]
    if not isinstance(kind, type):
        return "anything"
    if hasattr(kind, _PATH):
        return "paths" if several else "a path"
    name = _name(kind)
    return f"{'values of type' if several else 'a'} {name}{_SOURCES.get(name, '')}"


def words_of(hint: Any) -> tuple[str | None, ...]:
    """Return the words that a ``Literal`` type allows, and None if that is allowed; () for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    optional = [kind for kind in _kinds(hint) if kind is not NoneType]
    return (*get_args(optional[0]), None) if len(optional) == 1 and get_origin(optional[0]) is Literal else ()


def told(value: Any) -> str:
    """Return ``value`` for a message, in one line: its text, cut short, or the type of an object."""
    if isinstance(value, type):
        return f"the class {_name(value)}"
    plain = isinstance(value, NoneType | Number | str | bytes) or type(value) in (list, tuple, dict)
    if plain or hasattr(value, _PATH):
        text = " ".join(repr(value).split())
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"a value of type {_name(type(value))}"


@lru_cache(maxsize=128)
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters of ``function`` by name, without those of ``*args`` and ``**kwargs``
    and those that cannot be resolved, such as names imported for a type checker alone."""
    found: dict[str, Any] = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, parameter in inspect.signature(function).parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if several or parameter.annotation is parameter.empty:
            continue
        try:
            alone = SimpleNamespace(__annotations__={name: parameter.annotation})
            found[name] = get_type_hints(alone, names)[name]
        except Exception:  # an annotation may be any expression
            continue
    return found


def _with_integers(value: Any, hint: Any) -> Any:
    """Return ``value`` with whole numbers as Python integers where ``hint`` has integers, also in lists."""
    for kind in _kinds(hint):
        if kind is int and isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
            return int(value)  # even if it is too large for a float
        if kind is int and _is_number(value, float) and not isinstance(value, jax.core.Tracer):
            return int(value) if float(value).is_integer() else value
        if get_origin(kind) in (tuple, Sequence) and int in get_args(kind) and _is_list(value):
            return tuple(_with_integers(each, int) for each in value)
    return value


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or ``hint`` alone."""
    return get_args(hint) if get_origin(hint) in UNIONS else (hint,)


def _is_list(value: Any) -> bool:
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return bool(getattr(value, "shape", ()))


def _is_number(value: Any, kind: type) -> bool:
    """Return whether ``value`` is a number of type ``kind``, or an array of one number, also while traced."""
    if isinstance(value, bool | np.bool_):  # Python counts it as an integer
        return kind is bool
    if isinstance(value, Number):
        return isinstance(value, {bool: bool, int: Integral, float: Real}[kind])
    known = {bool: np.bool_, int: np.integer, float: np.number}
    return getattr(value, "shape", None) == () and bool(jax.numpy.issubdtype(value.dtype, known[kind]))


def _name(kind: type) -> str:
    """Return the path from which a type is imported."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{re.sub(r'^popjax[.]core[.].*', 'popjax.core', kind.__module__)}.{kind.__qualname__}"
