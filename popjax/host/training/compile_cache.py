"""Nothing is compiled twice: what makes two programs the same, in this process and on disk."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from popjax.core import Env, Method


def keep_compiled() -> None:
    """Let JAX keep compiled programs on disk between processes, unless the user has said where or whether."""
    settings: Any = jax.config  # its attributes are not declared
    if settings.jax_compilation_cache_dir is None and settings.jax_enable_compilation_cache:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popjax" / "jax"
        except RuntimeError:  # nobody's home
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        compilation_cache.reset_cache()  # what was compiled before has settled that there is none


def identity(method: Method, env: Env) -> Hashable:
    """Return a key that is equal where programs of a method in an environment are: of the same functions.

    Numbers are no part of it. What has the key must keep the method alive.
    """
    functions = method.init, method.step, method.policy, method.act, method.individuals
    settings = tuple(getattr(jax.config, name, value) for name, value in jax.config.values.items())
    return functions, tuple(map(id, jax.tree.leaves(method.memory))), env, settings
