"""Compiled programs on disk that are found without tracing them again.

JAX's own cache finds a program by its text, and tracing physics to make that text takes more than half of a
start. This store finds programs by everything that their text depends on: the facts of the run, the sources
of all packages that are traced, JAX's settings and the devices. It serves only runs of built-in methods in
built-in environments, since others may depend on more, and only the command line, since a script or a
notebook may have replaced a function.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

from popjax import envs
from popjax.core import Env, Method
from popjax.host.recipes import METHODS
from popjax.host.runs import origins
from popjax.host.runs.options import Options, chunk_length
from popjax.remember import Remembered

LIMIT = 4 * 2**30
"""Bytes of the store; the programs used least recently are removed beyond it."""

_TRACED = (
    "popjax",
    "brax",
    "chex",
    "dm_control",
    "evosax",
    "flax",
    "gymnasium",
    "gymnax",
    "jax",
    "jaxlib",
    "mujoco",
    "mujoco_playground",
    "optax",
)
"""Packages whose sources and models programs are made of."""

_LOADABLE = re.compile(r"lapack_|cusolver|hipsolver|cu_|hip_|Sharding|SPMD|shape_assertion")
"""Beginnings of the names of custom calls that JAX itself registers, so that every process knows them."""

_LOADED: Remembered[jax.stages.Compiled | None] = Remembered(24)
_enabled = False
_found = threading.local()


def enable() -> None:
    """Store the programs of this process, which promises to have replaced no function."""
    global _enabled
    _enabled = True


def _note(event: str, **_: Any) -> None:
    _found.count = _hits() + (event == "/jax/compilation_cache/cache_hits")


def _hits() -> int:
    """Return the number of programs that this thread has found in JAX's cache."""
    return getattr(_found, "count", 0)


jax.monitoring.register_event_listener(_note)


class Store(NamedTuple):
    """The stored programs of one run.

    path:    of the files, without the name of the program; None if programs are not stored.
    devices: of the programs.
    """

    path: Path | None
    devices: tuple[jax.Device, ...]

    def load(self, name: str) -> jax.stages.Compiled | None:
        """Return a program, or None if it is not stored or cannot be read."""
        if self.path is None:
            return None
        file = self.path.with_name(f"{self.path.name}-{name}")
        if not file.exists():
            return None
        return _LOADED.get((file, self.devices), lambda: _read(file, self.devices))

    def shapes(self) -> Any:
        """Return the shapes of the State [S, ...] with which the stored chunk begins, or None."""
        chunk = self.load("chunk")
        if chunk is None:
            return None
        (state,), _ = chunk.args_info
        return jax.tree.map(lambda info: jax.ShapeDtypeStruct(info.shape, info.dtype), state)

    def compiled(
        self, name: str, lowered: jax.stages.Lowered, compile_it: Callable[[], jax.stages.Compiled]
    ) -> jax.stages.Compiled:
        """Return ``compile_it()``, which compiles ``lowered``, and store it.

        Programs that JAX's cache has are left there, since XLA cannot write a program that it has read. Nor
        are those stored that call functions which only this process knows.
        """
        before = _hits()
        program = compile_it()
        if self.path is not None and _hits() == before and _loadable(lowered.as_text()):
            with suppress(
                Exception
            ):  # JAX cannot write all programs yet, nor can a full disk hold them
                content = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
                _write(self.path.with_name(f"{self.path.name}-{name}"), content)
        return program


NOWHERE = Store(None, ())
"""The store of programs that are not kept."""


def of(
    method: Method, env: Env, start: tuple[Any, Any], options: Options, devices: tuple[jax.Device, ...]
) -> Store:
    """Return the store of a run that begins with the keys [S] and hypers [S, ...] of ``start``."""
    directory = _directory()
    facts = _facts(method, env) if _enabled and directory else None
    if directory is None or facts is None or jax.process_count() > 1:
        return Store(None, devices)
    leaves, structure = jax.tree.flatten(start)
    shapes = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
    lengths = chunk_length(options, method.steps_bound), options.eval_episodes
    known = facts, shapes, lengths, _settings(), _devices(devices), sys.version, sorted(_sources())
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    return Store(directory / name, devices)


def _loadable(text: str) -> bool:
    """Return whether a program of this StableHLO calls nothing but what JAX itself provides."""
    return all(map(_LOADABLE.match, re.findall(r"custom_call @\"?([\w.$]+)", text)))


def _directory() -> Path | None:
    """Return the directory of the store, inside of that of JAX's cache; None if there is none on disk."""
    settings: Any = jax.config  # its attributes are not declared
    cache = settings.jax_compilation_cache_dir if settings.jax_enable_compilation_cache else None
    return None if cache is None or "://" in cache else Path(cache) / "popjax-programs"


def _facts(method: Method, env: Env) -> Mapping[str, Any] | None:
    """Return the facts of a run that decide its programs; None if there may be others."""
    facts = origins.describe(method, env)
    tasks = [facts["env"], *(task for several in facts["envs"].values() for task in several)]
    built_in = facts["method"] in METHODS and all(task.partition("/")[0] in envs.suites() for task in tasks)
    return facts if built_in and not facts["not_rebuilt"] and not any(facts["runs"].values()) else None


def _settings() -> list[Any]:
    """Return the settings of JAX and XLA."""
    values = [(name, getattr(jax.config, name, value)) for name, value in sorted(jax.config.values.items())]
    flags = [
        (name, value) for name, value in sorted(os.environ.items()) if re.match("XLA|TF_XLA|LIBTPU", name)
    ]
    return [values, flags]


def _devices(devices: tuple[jax.Device, ...]) -> list[Any]:
    """Return the facts of devices that machine code depends on."""
    client = devices[0].client
    processor = ""
    if devices[0].platform == "cpu":
        with suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [[(device.id, device.device_kind) for device in devices], client.platform_version, processor]


def _sources() -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change of every source and model of the packages that are traced."""
    for package in _TRACED:
        found = importlib.util.find_spec(package)
        for root in (found and found.submodule_search_locations) or ():
            for directory, _, files in os.walk(root):
                for file in files:
                    if file.endswith((".py", ".xml")):
                        path = os.path.join(directory, file)
                        facts = os.stat(path)
                        yield path, facts.st_size, facts.st_mtime_ns


def _read(file: Path, devices: tuple[jax.Device, ...]) -> jax.stages.Compiled | None:
    with suppress(Exception):  # whatever another version or a full disk has left: it will be compiled again
        payload, arguments, results = pickle.loads(zlib.decompress(file.read_bytes()))
        if devices[0].platform == "cpu":
            # JAX looks up LAPACK's functions when it first lowers a call; before, a call ends the process.
            jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))
        program = serialize_executable.deserialize_and_load(
            payload, arguments, results, execution_devices=devices
        )
        os.utime(file)
        return program
    return None


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
        new.write(content)
    os.replace(new.name, file)
    entries = sorted(((entry.stat(), entry) for entry in file.parent.iterdir()), key=lambda e: -e[0].st_mtime)
    size = 0
    for facts, entry in entries:
        size += facts.st_size
        if size > LIMIT:
            entry.unlink(missing_ok=True)
