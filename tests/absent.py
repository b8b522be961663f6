"""Devices that are not here: programs are compiled for them and not run.

Used by the tests and by ``benchmarks/accelerator_programs.py``, both with ``JAX_PLATFORMS=cpu``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from popjax.core import Method
from popjax.envs import dynamics
from popjax.host.scaling import sweep
from popjax.host.scaling.shard import SWEEP, Placement
from popjax.host.training import compiled_programs
from popjax.replay import packed

# The versions in the text matter: without them XLA leaves conditionals out of CUDA graphs.
H100 = Path(__file__).with_name("h100.txtpb")
NEEDS = {"h100": ("jax_plugins.xla_cuda12", "popjax[aot-gpu]"), "v5e": ("libtpu", "popjax[aot-tpu]")}
"""The plugin that compiles for each device, and the extra that brings it."""


def missing(kind: str) -> str:
    """Return in one line what it lacks to compile for devices of a ``kind``, "" if nothing."""
    plugin, extra = NEEDS[kind]
    try:
        there = importlib.util.find_spec(plugin)
    except ModuleNotFoundError:
        there = None
    return "" if there else f"needs {plugin} to compile for {kind}: pip install '{extra}'"


@lru_cache
def devices(kind: str) -> tuple[Any, ...]:
    """Return four devices of a ``kind``, "h100" or "v5e"."""
    if kind == "h100":
        target = H100.read_text()
        described = topologies.get_topology_desc("", "cuda", target_config=target, topology="1x1x4")
    else:
        # So that libtpu does not ask the network which machine this is.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # beside other processes, as nothing runs
        described = topologies.get_topology_desc("v5e:2x2", "tpu")
    return tuple(described.devices)


@contextmanager
def described(kind: str, platform: str = "") -> Iterator[None]:
    """Trace programs as on a machine with devices of a ``kind``, which decide how rows lie in a replay and
    how physics is computed; ``platform`` has rows lie as on another one."""
    jax.clear_caches()  # of what was traced for another kind
    here = devices(kind)[0].platform
    with (
        mock.patch.object(packed, "platform", return_value=platform or here),
        mock.patch.object(dynamics, "platform", return_value=here),
    ):
        yield
    jax.clear_caches()


def start(method: Method, members: int) -> tuple[Any, Any]:
    """Return the shapes of the keys [S] and hypers [S, ...] with which a run of ``members`` starts."""
    numbers = sweep.grid(0, members, {})
    real = sweep.keys(numbers), sweep.hypers(method.hyper, numbers)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), real)


def lower(
    method: Method, kind: str, *, members: int = 1, count: int = 1, length: int = 16, platform: str = ""
) -> Any:
    """Return the lowered program of a chunk of ``length`` generations, on ``count`` devices of a ``kind``;
    see ``described`` for ``platform``."""
    placement = Placement(devices(kind)[:count], SWEEP if count > 1 else None)
    with described(kind, platform):
        state = jax.eval_shape(sweep.lift(method.init, members), *start(method, members))
        return compiled_programs.lower_chunk(method, state, length, placement)
