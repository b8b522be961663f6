"""Compiled programs on disk, found without compiling and, on the command line, without tracing.

Like JAX's own cache, ``texts/`` holds programs by everything that compiling depends on: StableHLO and
arguments, versions of JAX and XLA, settings and devices. But starting a run spends most of its time on
tracing the physics to obtain that StableHLO, so ``runs/`` also maps the facts of a run to its programs: its
configuration and the source files of all packages that are traced. These facts determine the StableHLO only
for built-in methods and environments, and only in a process that runs no other code, such as the command
line. A script or a notebook may have replaced any function, so it always traces.

The files are pickled, so whoever writes one can run code as its reader. They lie in the directory of JAX's
cache and are trusted as much as it is, but only the user who wrote a file can read it: where users share the
directory, each compiles anew what JAX's own cache does not have.
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
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import psutil
from jax.experimental import serialize_executable
from jax.tree_util import PyTreeDef

from popjax import envs, importing
from popjax.core import Env, Method
from popjax.devices import xla_flags
from popjax.host.recipes import METHODS
from popjax.host.runs import origins
from popjax.host.runs.options import Options, chunk_length
from popjax.host.scaling import shard
from popjax.host.signals import beside
from popjax.host.training.compile_cache import CPU_OPTIONS

LIMIT = 4 * 2**30
"""Maximum size of all programs [bytes]; beyond it, those used least recently are removed."""
LIMIT_DAYS = 90
"""Days that an unused file is kept."""

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
    "jaxopt",
    "ml_collections",
    "mujoco",
    "mujoco_playground",
    "numpy",
    "optax",
    "scipy",
)
"""Packages whose functions and models become part of programs."""

_LOADABLE = re.compile(r"lapack_|cusolver|hipsolver|cu_|hip_|Sharding|SPMD|shape_assertion")
"""Prefixes of the names of custom calls that JAX itself registers, so that every process knows them."""

_IRRELEVANT = re.compile(r"cache|log|traceback|dump|debug|explain|profile|transfer_guard")
"""Parts of the names of JAX settings that do not change programs."""

_FLAGS = re.compile(r"XLA_FLAGS|TF_XLA|LIBTPU|MJX_")
"""Parts of the names of environment variables that change programs."""

_IMPORTED = time.time()

_traces_alone = False
_found_by_jax = threading.local()


def trace_nobody_elses_code() -> None:
    """Declare that this process traces only functions of popjax and its libraries, all unmodified."""
    global _traces_alone
    _traces_alone = True


class Store(NamedTuple):
    """The programs of one run.

    directory: None if nothing is stored.
    runs:      name of a program -> its name in ``runs/``; empty if programs are found only by their text.
    devices:   the devices that programs run on.
    loaded:    the programs that were found for the run, by name.
    seconds:   time that finding them took.
    """

    directory: Path | None = None
    runs: Mapping[str, str] = {}
    devices: tuple[jax.Device, ...] = ()
    loaded: Mapping[str, jax.stages.Compiled] = {}
    seconds: float = 0.0

    def shapes(self) -> Any:
        """Return the shapes of the State [S, ...] that the chunk takes, or None if no chunk was found."""
        if "chunk" not in self.loaded:
            return None
        (state,), _ = self.loaded["chunk"].args_info
        return jax.tree.map(lambda info: jax.ShapeDtypeStruct(info.shape, info.dtype), state)

    def compiled(
        self, name: str, lowered: jax.stages.Lowered, compile_it: Callable[[], jax.stages.Compiled]
    ) -> jax.stages.Compiled:
        """Return the stored program with the text of ``lowered``; if there is none, compile and store it.

        Two kinds of program are not stored: those that call functions of this process, and those found in
        JAX's cache, since XLA cannot write a program that it has read. A program that compiles too fast for
        JAX's cache is stored only if ``runs`` has ``name``.
        """
        if self.directory is None or not _loadable(text := lowered.as_text()):
            return compile_it()
        # The text lacks arguments that the program does not read, and the classes of all arguments.
        signature = _structures(lowered), jax.tree.leaves(lowered.args_info)
        versions = jax.__version__, jaxlib.__version__
        key = _hash(text, signature, versions, CPU_OPTIONS, _settings(), _facts_of(self.devices))
        file = self.directory / "texts" / key
        program = _read(file, self.devices)
        if program is None or _structures(program) != _structures(lowered):
            before, begun = _hits(), time.perf_counter()
            program = compile_it()
            least = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]
            quick = time.perf_counter() - begun < least and name not in self.runs
            if quick or _hits() > before:
                return program
            content = _pickled(program)
            if content is None:
                return program
            with suppress(OSError):  # a disk may be full
                _write(file, content)
        if name in self.runs and file.exists():
            with suppress(OSError):
                _write(self.directory / "runs" / self.runs[name], key.encode())
        return program


def of(
    method: Method, env: Env, start: tuple[Any, Any], options: Options, devices: tuple[jax.Device, ...]
) -> Store:
    """Return the store of a run that begins with the keys [S] and hypers [S, ...] of ``start``, after loading
    those of its programs "chunk", "evaluation" and "init" that are stored."""
    begun, directory = time.perf_counter(), _directory()
    if directory is None or jax.process_count() > 1:
        return Store()
    facts = _facts_of_run(method, env) if _traces_alone and not importing.foreign() else None
    sources = sorted(_sources()) if facts else []
    if facts is None or max(changed for *_, changed in sources) > _begun():
        return Store(directory, devices=devices)  # imported modules may be older than the sources
    leaves, structure = jax.tree.flatten(start)
    shapes = structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
    run = facts, shapes, sources, _packages(), _settings(), _facts_of(devices)
    lengths = {
        "chunk": chunk_length(options, method.steps_bound),
        "evaluation": options.eval_episodes,
        "init": None,
    }
    runs = {name: _hash(name, length, *run) for name, length in lengths.items()}
    programs = beside(*(partial(_named, directory, file, devices) for file in runs.values()))
    loaded = {name: program for name, program in zip(runs, programs, strict=True) if program is not None}
    return Store(directory, runs, devices, loaded, time.perf_counter() - begun)


def _directory() -> Path | None:
    """Return the store's directory, inside that of JAX's cache; None if this cache is not on disk."""
    settings: Any = jax.config  # its attributes are not declared
    cache = settings.jax_compilation_cache_dir if settings.jax_enable_compilation_cache else None
    return None if not cache or "://" in cache else Path(cache) / "popjax"


def _facts_of_run(method: Method, env: Env) -> Mapping[str, Any] | None:
    """Return the facts of a run that determine its programs; None if the programs may also depend on others,
    such as the policies of finished runs or a user's model."""
    facts = origins.describe(method, env)
    tasks = [facts["env"], *(task for several in facts["envs"].values() for task in several)]
    built_in = facts["method"] in METHODS and all(task.partition("/")[0] in envs.suites() for task in tasks)
    others = facts["not_rebuilt"] or any(facts["runs"].values()) or "xml_file" in repr(facts)
    return facts if built_in and not others else None


def _loadable(text: str) -> bool:
    """Return whether the program with this StableHLO calls only functions that JAX itself provides."""
    calls = re.findall(r"custom_call @\"?([^\"(]+)", text)
    # On a TPU, callbacks exchange data by messages.
    return all(map(_LOADABLE.match, calls)) and not re.search(r"stablehlo\.(send|recv)\b", text)


def _settings() -> list[Any]:
    """Return the settings of JAX and XLA that change programs."""
    values = [(name, getattr(jax.config, name, value)) for name, value in jax.config.values.items()]
    flags = {name: value for name, value in os.environ.items() if _FLAGS.match(name)}
    if "XLA_FLAGS" in flags:  # it may name a file, whose flags count
        flags["XLA_FLAGS"] = " ".join(xla_flags())
    return sorted((name, value) for name, value in [*values, *flags.items()] if not _IRRELEVANT.search(name))


def _facts_of(devices: tuple[jax.Device, ...]) -> list[Any]:
    """Return the facts of devices that machine code depends on."""
    processor, threads = "", 0
    if devices[0].platform == "cpu":
        threads = shard.threads()  # over which XLA divides large arrays
        with suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kinds = [(device.id, device.device_kind) for device in devices]
    return [kinds, devices[0].client.platform_version, processor, threads]


def _sources() -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change [ns] of every file of the packages that are traced."""
    for package in _TRACED:
        found = importlib.util.find_spec(package)
        for root in (found and found.submodule_search_locations) or ():
            for directory, within, files in os.walk(root):
                within[:] = [name for name in within if name not in ("__pycache__", "tests")]
                for file in files:
                    path = os.path.join(directory, file)
                    with suppress(FileNotFoundError):  # an editor's lock file is a dangling link
                        facts = os.stat(path)
                        yield path, facts.st_size, max(facts.st_mtime_ns, facts.st_ctime_ns)


def _packages() -> list[str]:
    """Return the names of all installed packages, each with its version."""
    places = [place for place in sys.path if os.path.isdir(place)]
    return sorted(name for place in places for name in os.listdir(place) if name.endswith("-info"))


def _begun() -> int:
    """Return the start time [ns] of this process, less one second since file times are coarse."""
    # A container may report its own boot time, by which every process begins in the future.
    return int((min(psutil.Process().create_time(), _IMPORTED) - 1) * 1e9)


def _structures(program: jax.stages.Lowered | jax.stages.Compiled) -> list[Any]:
    """Return the structures of arguments and results with their classes, which may differ between equal
    PyTreeDefs."""
    return [(tree, _classes(tree)) for tree in (program.in_tree, program.out_tree)]


def _classes(structure: PyTreeDef) -> list[type]:
    node = structure.node_data()
    own = [] if node is None else [node[0]]
    return own + [kind for child in structure.children() for kind in _classes(child)]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _named(directory: Path, run: str, devices: tuple[jax.Device, ...]) -> jax.stages.Compiled | None:
    """Return the program that a file in ``runs/`` names, or None."""
    file = directory / "runs" / run
    try:
        key = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    _touch(file)
    return _read(directory / "texts" / key, devices)


def _read(file: Path, devices: tuple[jax.Device, ...]) -> jax.stages.Compiled | None:
    """Return a program, or None if it is not stored or cannot be read."""
    if not file.is_file():
        return None
    try:
        payload, arguments, results = pickle.loads(zlib.decompress(file.read_bytes()))
        if devices[0].platform == "cpu":
            # JAX looks up LAPACK's functions when it first lowers a call; calling one earlier is fatal.
            jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))
        program = serialize_executable.deserialize_and_load(
            payload, arguments, results, execution_devices=devices
        )
    except Exception:  # a file may be broken in any way; the program is then compiled again
        return None
    _touch(file)
    return program


def _touch(file: Path) -> None:
    """Mark a file as used."""
    with suppress(OSError):  # the disk may be read-only
        os.utime(file)


def _pickled(program: jax.stages.Compiled) -> bytes | None:
    """Return the bytes that ``_read`` reads, or None if they cannot be made.

    JAX cannot write every program, for example one with large constants. Pickle can write neither classes
    defined in functions nor static fields such as a lambda, and may then raise any exception.
    """
    with suppress(Exception):
        return zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
    return None


def _write(file: Path, content: bytes) -> None:
    """Write a file in one step, so that no reader sees half of it."""
    _trim(file.parent)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, new = tempfile.mkstemp(prefix=".", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        os.replace(new, file)
    except BaseException:
        os.unlink(new)
        raise


@lru_cache
def _trim(directory: Path) -> None:
    """Remove files beyond the limits, least recently used first, and leftovers of killed processes.

    A process does so once for each directory.
    """
    size, now, found = 0, time.time(), []
    for entry in directory.glob("*"):
        with suppress(FileNotFoundError):  # another process trims, too
            found.append((entry.stat(), entry))
    for facts, entry in sorted(found, key=lambda each: -each[0].st_mtime):
        size += facts.st_size
        days = (now - facts.st_mtime) / 86_400
        if size > LIMIT or days > (1 if entry.name.startswith(".") else LIMIT_DAYS):
            entry.unlink(missing_ok=True)


def _note(event: str, **_: Any) -> None:
    _found_by_jax.count = _hits() + (event == "/jax/compilation_cache/cache_hits")


def _hits() -> int:
    """Return the number of programs that this thread has found in JAX's cache."""
    return getattr(_found_by_jax, "count", 0)


jax.monitoring.register_event_listener(_note)
