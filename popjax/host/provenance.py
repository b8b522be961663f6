"""Provenance of results: versions, settings, device, and the commit of this package."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

from popjax.devices import default_device, xla_flags
from popjax.host.scaling import shard

_PACKAGES = (
    "popjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "brax",
    "mujoco",
    "mujoco-mjx",
    "warp-lang",
    "gymnax",
    "gymnasium",
    "dm-control",
    "playground",
    "ale-py",
    "evosax",
)

_SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_enable_x64",
    "jax_default_matmul_precision",
)
_FLAGS = ("deterministic", "precision", "fast_math", "nondeterminism")
"""Parts of the names of XLA flags that affect numerical results."""


def jax_settings() -> dict[str, Any]:
    """Return the settings of JAX and XLA that affect numerical results, by environment variable."""
    flags = xla_flags()
    return {name.upper(): getattr(jax.config, name) for name in _SETTINGS} | {
        "XLA_FLAGS": " ".join(sorted(flag for flag in flags if any(word in flag for word in _FLAGS)))
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name() -> str:
    """Return the device that arrays are made on, such as "cpu (x86_64, 8 threads)" or "NVIDIA H200"."""
    device = default_device()
    if device.platform != "cpu":
        return str(device.device_kind)
    threads = shard.threads()
    return f"cpu ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"


def git_commit() -> str | None:
    """Return the commit of this package, or None if unknown."""
    return _origin()[0]


def git_dirty() -> bool:
    """Return whether the files of this package differ from those of its commit."""
    return _origin()[1]


@lru_cache(maxsize=1)
def _origin() -> tuple[str | None, bool]:
    """Return the commit of this package, and whether its files differ from it.

    For an installed package, this is the commit that pip recorded, if any, not that of a repository around
    it.
    """
    package = Path(__file__).resolve().parents[1]
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return _installed_commit(package), False
    return _git(package, "rev-parse", "HEAD"), bool(_git(package, "status", "--porcelain", "--", "."))


def _git(directory: Path, *command: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(directory), *command], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _installed_commit(package: Path) -> str | None:
    """Return the commit of an installation from a repository (PEP 610)."""
    try:
        distribution = importlib.metadata.distribution("popjax")
        facts = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    ours = Path(str(distribution.locate_file("popjax"))).resolve() == package
    return facts.get("vcs_info", {}).get("commit_id") if ours else None
