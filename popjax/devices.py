"""The device on which JAX makes arrays and runs programs unless told otherwise, and XLA's flags."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax


def default_device() -> jax.Device:
    """Return the device of ``jax.default_device`` or, if that is not set, this process's first one."""
    settings: Any = jax.config  # its attributes are not declared
    told = settings.jax_default_device  # a device or the name of a platform
    if isinstance(told, str):
        return jax.local_devices(backend=told)[0]
    return told or jax.local_devices()[0]


def xla_flags() -> list[str]:
    """Return the flags in XLA_FLAGS or, if its value does not begin with a hyphen, in the file that it names.

    Raises:
        OSError: the file cannot be read; XLA ends the process then.
    """
    told = os.environ.get("XLA_FLAGS", "")
    if told and not told.lstrip().startswith("-"):
        told = Path(told).read_text(encoding="utf-8", errors="replace")
    return told.split()
