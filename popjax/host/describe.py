"""What was run and on what: the facts that go into ``config.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import jax

from popjax.core import Env, Method
from popjax.host.numbers import plain
from popjax.host.options import Options

_PACKAGES = (
    "popjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "brax",
    "mujoco",
    "mujoco-mjx",
    "gymnax",
    "gymnasium",
    "dm-control",
    "playground",
)

_SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_default_matmul_precision",
)
_FLAGS = ("deterministic", "precision", "fast_math", "nondeterminism")
"""Parts of the names of XLA's flags that decide about numbers."""


def configuration(
    method: Method,
    env: Env,
    hyper: Any,
    options: Options,
    description: Mapping[str, Any],
    sweep: Mapping[str, Sequence[float]],
    members: tuple[int, int] | None,
) -> dict[str, Any]:
    """Everything needed to build and repeat a run, and where it ran.

    ``description`` gives what the ``Method`` record does not know: ``method`` (its name), ``agents``,
    ``env_options``, ``config``, the finished ``runs`` and further ``envs`` that it builds on and the
    ``command`` that started it.
    Without a name the method is called after the module that made it.
    ``sweep`` are the swept numbers, ``members`` the part of the sweep.
    """
    return {
        "method": description.get("method") or method.init.__module__.rpartition(".")[2],
        "agents": dict(description.get("agents") or {}),
        "env": env.spec.name,
        "env_options": dict(description.get("env_options") or {}),
        "config": dict(description.get("config") or {}),
        "runs": dict(description.get("runs") or {}),
        "envs": dict(description.get("envs") or {}),
        "hyper": numbers(hyper),
        "options": asdict(options),
        "sweep": {name: list(values) for name, values in sweep.items()},
        "members": None if members is None else list(members),
        "command": description.get("command"),
        "versions": versions(),
        "jax": jax_settings(),
        "device": device_name(),
        "git_commit": git_commit(),
    }


def numbers(hyper: Any) -> Any:
    """A pytree of numbers as nested dictionaries of Python numbers."""
    if is_dataclass(hyper):
        return {field.name: numbers(getattr(hyper, field.name)) for field in fields(hyper)}
    if isinstance(hyper, Mapping):
        return {str(key): numbers(value) for key, value in hyper.items()}
    return hyper if type(hyper) in (bool, int, float) else plain(hyper)


def jax_settings() -> dict[str, Any]:
    """Return the settings of JAX and XLA that decide about numbers, by the variables that set them."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {name.upper(): getattr(jax.config, name) for name in _SETTINGS} | {
        "XLA_FLAGS": " ".join(sorted(flag for flag in flags if any(word in flag for word in _FLAGS)))
    }


def versions() -> dict[str, str]:
    """Python and the packages that decide about results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """The device that arrays are made on, such as "cpu (x86_64, 8 cores)" or "NVIDIA H200"."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    import psutil

    return f"cpu ({platform.machine()}, {psutil.cpu_count()} cores)"


def git_commit() -> str | None:
    """The commit of the working tree that this package lies in, ``None`` if it is installed elsewhere."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
