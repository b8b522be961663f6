"""Settings of JAX under which popjax traces and runs its programs, whatever the user has configured.

States are float32 and int32 by contract, environments' libraries rely on NumPy's promotion, and a run watches
its metrics for NaN itself, while hyperparameters may be infinite. A user's own settings, such as 64 bits or
strict promotion, stay in force for other work: only popjax's computations are exempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

_SETTINGS = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
    "jax_debug_nans": False,
    "jax_debug_infs": False,
}


@contextmanager
def standard() -> Iterator[None]:
    """Compute as ``tracing`` traces, without a check of every result for NaN or infinities; also a
    decorator."""
    with tracing(), jax.debug_nans(False), jax.debug_infs(False):
        yield


@contextmanager
def tracing() -> Iterator[None]:
    """Trace with 32 bits, standard promotion and free transfers; also a decorator.

    For functions that users call step by step as well, with the checks for NaN that they have set.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


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
