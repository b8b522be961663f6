"""Settings of JAX under which popjax traces and runs its programs, whatever the user has configured.

States are float32 and int32 by contract, environments' libraries rely on NumPy's promotion, and a run checks
its metrics for NaN itself, while hyperparameters may be infinite. A user's own settings, such as 64 bits or
strict promotion, stay in force for other work, also in sinks: only popjax's computations are exempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

_SETTINGS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_debug_nans": False,
    "jax_debug_infs": False,
}


_CONTEXTS: Mapping[str, Any] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_transfer_guard_host_to_device": jax.transfer_guard_host_to_device,
    "jax_transfer_guard_device_to_device": jax.transfer_guard_device_to_device,
    "jax_transfer_guard_device_to_host": jax.transfer_guard_device_to_host,
    "jax_debug_nans": jax.debug_nans,
    "jax_debug_infs": jax.debug_infs,
}
_users: ContextVar[Mapping[str, Any] | None] = ContextVar("users", default=None)
"""The settings outside of the outermost ``standard``; None outside."""


@contextmanager
def standard() -> Iterator[None]:
    """Compute as ``tracing`` traces, without a check of every result for NaN or infinities."""
    found = _users.get() or {name: getattr(jax.config, name) for name in _CONTEXTS}
    with tracing(), jax.debug_nans(False), jax.debug_infs(False), _known(found):
        yield


@contextmanager
def users() -> Iterator[None]:
    """Restore, within ``standard``, the user's settings, for a call of the user's code."""
    with ExitStack() as stack:
        for name, value in (_users.get() or {}).items():
            stack.enter_context(_CONTEXTS[name](value))
        stack.enter_context(_known(None))
        yield


@contextmanager
def _known(settings: Mapping[str, Any] | None) -> Iterator[None]:
    token = _users.set(settings)
    try:
        yield
    finally:
        _users.reset(token)


@contextmanager
def tracing() -> Iterator[None]:
    """Trace with 32 bits, standard promotion and free transfers.

    For functions that users call step by step as well, with the checks for NaN that they have set.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


def _under(settings: Callable[[], AbstractContextManager[None]], function: Callable[P, R]) -> Callable[P, R]:
    # ``settings()`` as a decorator keeps a generator, so that no launcher of jobs could pickle a Method.
    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        with settings():
            return function(*args, **kwargs)

    return within


def standardized(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that every call runs under ``standard``."""
    return _under(standard, function)


def traced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that every call runs under ``tracing``."""
    return _under(tracing, function)


def standardize() -> list[str]:
    """Change the settings of the whole process, as only a program may, not a library; return those that were
    overruled."""
    overruled = []
    for name, value in _SETTINGS.items():
        found = getattr(jax.config, name)
        if found not in (value, None):
            overruled.append(f"{name.upper()}={found}")
            jax.config.update(name, value)
    return overruled
