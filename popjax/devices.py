"""The device on which JAX makes arrays and runs programs unless told otherwise."""

from __future__ import annotations

from typing import Any

import jax


def default_device() -> jax.Device:
    """Return the device of ``jax.default_device`` or, if that is not set, this process's first one."""
    settings: Any = jax.config  # its attributes are not declared
    told = settings.jax_default_device  # a device or the name of a platform
    if isinstance(told, str):
        return jax.local_devices(backend=told)[0]
    return told or jax.local_devices()[0]
