"""Estimates of memory from shapes and compiled programs, before anything is allocated."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popjax.host.errors import TooLarge

_CGROUP, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_VERSION_2 = "memory.max", "memory.current", "file"
_UNLIMITED = 2**63


def tree_bytes(shapes: Any) -> int:
    """Return the bytes of a pytree of arrays or shapes."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(shapes))


def lane_bytes(shapes: Any) -> int:
    """Return the bytes of one stopped member of a State [S, ...] that is put back on a device; 0 if there is
    only one member, which is never put back."""
    members = jax.tree.leaves(shapes)[0].shape[0]
    return tree_bytes(shapes) // members if members > 1 else 0


def compiled_bytes(compiled: Any) -> int:
    """Return the peak bytes of a compiled program: arguments, results and temporaries, donated arguments
    counted once; 0 if the backend does not report them."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def argument_bytes(compiled: Any) -> int:
    """Return the bytes of the arguments that a compiled program reads, on each device."""
    analysis = compiled.memory_analysis()
    return int(analysis.argument_size_in_bytes) if analysis else 0


def largest_field(state: Any) -> tuple[str, int]:
    """Return name and bytes of the largest field of a State."""
    if not is_dataclass(state):
        return type(state).__name__, tree_bytes(state)
    sizes = {field.name: tree_bytes(getattr(state, field.name)) for field in fields(state)}
    name = max(sizes, key=lambda key: sizes[key])
    return name, sizes[name]


def available_bytes(device: jax.Device) -> int:
    """Return the bytes that ``device`` can still allocate: by its own statistics if it has them, otherwise
    the free memory of the machine or of this process's control group, whichever is less."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"]) - int(statistics.get("bytes_in_use", 0))
    return host_bytes()


def host_bytes() -> int:
    """Return the bytes that this process can still allocate in main memory."""
    import psutil

    return min(int(psutil.virtual_memory().available), _control_group_bytes())


def peak_bytes(device: jax.Device) -> int:
    """Return the peak bytes that this process has used on ``device``, or in main memory if the device has no
    statistics."""
    statistics = device.memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check(total: int, available: int, state: Any, device: jax.Device, members: int = 1) -> None:
    """Check that a run of ``members`` that needs ``total`` bytes fits into the ``available`` ones.

    Raises:
        TooLarge: it does not fit; the message names the largest field of ``state`` and the remedy.
    """
    if total <= available:
        return
    name, size = largest_field(state)
    raise TooLarge(
        f"the run needs {human(total)} and {device} has {human(available)} available; the largest part of"
        f" the State is {name!r} with {human(size)}: reduce the replay capacity, the population or the seeds",
        fitting=available * members // total,
    )


def saves_in_background(size: int, total: int, available: int, device: jax.Device, members: int) -> bool:
    """Return whether training, which takes ``total`` of the ``available`` bytes of ``device``, can go on
    while a State of ``size`` bytes is written.

    Writing makes an encoded copy of the State in main memory, and the writing thread needs another copy that
    training does not overwrite. A tenth of the memory is left to the process.

    Raises:
        TooLarge: main memory has no room for the copy that is encoded.
    """
    if device.platform != "cpu":
        total, available = 0, host_bytes()
    room = int(0.9 * available)
    if total + size > room:
        raise TooLarge(
            f"the run needs {human(total + size)} of main memory while it writes a checkpoint,"
            f" {human(size)} of it for a copy of the State, but only {human(room)} is free: reduce the replay"
            " capacity, the population or the seeds",
            fitting=room * members // (total + size),
        )
    return total + 2 * size <= room


def human(count: int) -> str:
    """Return bytes as text in a decimal unit."""
    exponent = 0 if count < 1000 else min(int(math.log10(count)) // 3, 4)
    unit = ("B", "kB", "MB", "GB", "TB")[exponent]
    return f"{count / 1000**exponent:.{0 if exponent == 0 else 1}f} {unit}"


def _leaf_bytes(leaf: Any) -> int:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _control_group_bytes() -> int:
    """Return the least free bytes among this process's control groups and the groups around them, counting
    file cache as free."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return _UNLIMITED
    return min(map(_free_bytes_around, lines), default=_UNLIMITED)


def _free_bytes_around(line: str) -> int:
    """Return the least free bytes among a group, given as "number:controllers:path", and those around it."""
    _, controllers, own = line.split(":", 2)
    if not controllers:
        root, files = _CGROUP, _VERSION_2
    elif "memory" in controllers.split(","):
        root, files = _CGROUP / "memory", _VERSION_1
    else:
        return _UNLIMITED
    group = root / own.strip("/")
    groups = group, *group.parents[: len(group.parts) - len(root.parts)]
    return min(_free_bytes(each, *files) for each in groups)


def _free_bytes(group: Path, most: str, now: str, cached: str) -> int:
    """Return the free bytes of a group, by the names of its files and of the line about file cache."""
    try:
        limit = int((group / most).read_text(encoding="utf-8"))  # "max" if there is no limit
        used = int((group / now).read_text(encoding="utf-8"))
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        cache = next(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
    except (OSError, ValueError, StopIteration):
        return _UNLIMITED
    return max(limit - used + cache, 0)
