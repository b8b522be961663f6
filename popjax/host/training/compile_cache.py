"""Reuse of compiled programs within a process and on disk."""

from __future__ import annotations

import os
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
from jax._src import cache_key
from jax.experimental.compilation_cache import compilation_cache

from popjax.core import Env, Method
from popjax.devices import default_device
from popjax.host.scaling import shard
from popjax.host.terminal import complain

CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""Options of the compiler for CPUs. By default, XLA hands reductions to a library whose order of summation
depends on the size of the axis, so a member's results would depend on how many others there are. XLA's own
loops do not have this problem, and were faster on small networks."""

_complain_once = lru_cache(complain)


def keep_compiled() -> None:
    """Enable JAX's cache of compiled programs on disk, unless the user has configured it; an empty directory
    counts as none, as it does for JAX.

    On a CPU, XLA divides large arrays over its threads, so programs for different numbers of threads differ
    in the last digits of their results; the number of threads is therefore part of the key.
    """

    def threads() -> str:
        return f"{shard.threads()} threads" if default_device().platform == "cpu" else ""

    cache_key.custom_hook = threads
    settings: Any = jax.config  # its attributes are not declared
    if not settings.jax_compilation_cache_dir and settings.jax_enable_compilation_cache:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popjax" / "jax"
            cache.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as failure:  # RuntimeError: no home directory
            _complain_once(
                f"compiled programs are not kept ({failure}): set JAX_COMPILATION_CACHE_DIR to a directory"
                " for them, or JAX_ENABLE_COMPILATION_CACHE=0"
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(cache))
        compilation_cache.reset_cache()  # an earlier compilation may have initialised it without one


def identity(method: Method, env: Env) -> Hashable:
    """Return a key that is equal for equal programs of a method in an environment.

    Hyperparameters are not part of it. A caller must keep the method alive as long as it stores the key,
    since ids are reused.
    """
    functions = method.init, method.step, method.policy, method.act, method.individuals
    settings = tuple(getattr(jax.config, name, value) for name, value in jax.config.values.items())
    return functions, tuple(map(id, jax.tree.leaves(method.memory))), env, settings
