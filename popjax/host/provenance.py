"""Provenance of results: versions, settings, device, and the commit of this package."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax

from popjax.devices import default_device, xla_flags
from popjax.host.scaling import shard

PACKAGE = Path(__file__).resolve().parents[1]
"""The directory of this package."""
PATIENCE = 5
"""Seconds after which git is given up."""

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
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
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


def git_dirty() -> bool | None:
    """Return whether the files of this package differ from those of its commit, or None if unknown."""
    return _origin()[1]


@lru_cache(maxsize=1)
def _origin() -> tuple[str | None, bool | None]:
    """Return the commit of this package, and whether its files differ from it; None stands for unknown.

    For an installed package, this is the commit that pip recorded, if any, not that of a repository around
    it.
    """
    tracked = _git("ls-files", "__init__.py")
    if tracked:
        changes = _git("status", "--porcelain", "--", ".")
        return _git("rev-parse", "HEAD"), None if changes is None else bool(changes)
    if (installation := _installation()) is not None:
        return installation.get("vcs_info", {}).get("commit_id"), False
    # Inside a repository, git fails only if it is missing, refuses the repository or takes too long.
    failed = tracked is None and any(os.path.exists(directory / ".git") for directory in PACKAGE.parents)
    return None, None if failed else False


def _git(*command: str) -> str | None:
    """Return what git says of this package, or None if it fails or takes too long."""
    # Git refuses repositories of other users, as a checkout that is mounted in a container often is. The
    # owner of the directory around the package can change its code in any case.
    trusted = f"safe.directory={PACKAGE.parent.as_posix()}"
    # ``status`` would update the index, and its lock may get in the way of the user's own commands.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE), "-c", trusted, *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _installation() -> Mapping[str, Any] | None:
    """Return what pip recorded of where it installed this package from (PEP 610); None if it did not."""
    try:
        distribution = importlib.metadata.distribution("popjax")
        facts = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    return facts if Path(str(distribution.locate_file("popjax"))).resolve() == PACKAGE else None
