"""Exact checkpoints: the whole State on disk, written atomically and verified when read.

A checkpoint is a directory named after its generation. It holds the State as Orbax writes it and a manifest
with shape, dtype and checksum of every leaf. It is built under another name and renamed when complete, so
killing the process at any moment leaves earlier checkpoints intact.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from popjax import tree
from popjax.devices import default_device
from popjax.host import garbage
from popjax.host.checkpoints import io_errors
from popjax.host.checkpoints.made_with import made_with
from popjax.host.checkpoints.state_arrays import data, data_shapes, from_arrays, raw
from popjax.host.errors import NotRead, NotSaved, Refused
from popjax.host.paths import without_patterns
from popjax.host.scaling.processes import fetch, largest, together
from popjax.host.terminal import complain

T = TypeVar("T")

KEPT = 2
"""Default number of checkpoints to keep: the newest, and one to fall back on."""
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_PARTIAL = "partial-"
_DAMAGED = "damaged-"


class Damaged(Exception):
    """A checkpoint cannot be read back as it was written."""


def save(
    directory: Path,
    generation: int,
    state: Any,
    extra: dict[str, Any],
    keep: Collection[int] = (),
    kept: int = KEPT,
) -> None:
    """Write ``state`` and ``extra``, facts in JSON types, as the checkpoint of ``generation``.

    An existing checkpoint of the generation is replaced. Once the new one is complete, all but the newest
    ``kept`` and those of the generations ``keep`` are removed. Every process of a run calls this and writes
    the arrays on its own devices.

    Raises:
        NotSaved: the checkpoint could not be written; older ones are intact.
    """
    arrays = {path: data(leaf) for path, leaf in tree.named(state)}
    write_arrays(directory, generation, arrays, extra, keep, kept)


def write_arrays(
    directory: Path,
    generation: int,
    arrays: dict[str, Any],
    extra: dict[str, Any],
    keep: Collection[int] = (),
    kept: int = KEPT,
) -> None:
    """Write a State given as named arrays, with PRNG keys as raw data; see ``save``."""
    partial = directory / f"{_PARTIAL}{generation}"
    try:
        _write_arrays(directory, partial, arrays)
        content = {
            "generation": generation,
            "extra": extra,
            "leaves": {path: _describe(fetch(array)) for path, array in arrays.items()},
        }
        together(lambda: _complete(directory, generation, json.dumps(content), keep, kept))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        older = generations(directory)
        rest = (
            f"that of generation {older[0]} is intact; --resume continues from there"
            if older
            else "there is no earlier one; --resume starts from the beginning"
        )
        raise NotSaved(
            f"the checkpoint of generation {generation} could not be written to {directory}"
            f" ({io_errors.reason(error)}); {rest}"
        ) from error


def _write_arrays(directory: Path, partial: Path, arrays: dict[str, Any]) -> None:
    import orbax.checkpoint as orbax

    def prepare() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        discard_partial(directory)

    together(prepare)
    stored = {path: array for path, array in arrays.items() if array.size}  # orbax refuses empty arrays
    # Compressing takes several times as long as writing, and weights and replay hardly shrink.
    writer = orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_compression=False))
    with io_errors.remarks_held(), without_patterns(directory.absolute()) as here:
        writer.save(here / partial.name / _ARRAYS, stored)
    garbage.give_back()


def _complete(directory: Path, generation: int, content: str, keep: Collection[int], kept: int) -> None:
    partial = directory / f"{_PARTIAL}{generation}"
    envelope = {"crc32": zlib.crc32(content.encode()), "content": content}
    (partial / _MANIFEST).write_text(json.dumps(envelope), encoding="utf-8")
    target = directory / str(generation)
    replaced = target.rename(_without_number(target)) if target.exists() else None
    partial.rename(target)
    if replaced:
        remove(replaced)
    for old in generations(directory)[kept:]:
        if old not in keep:
            remove(directory / str(old))


def generations(directory: Path) -> list[int]:
    """Return the generations that have a checkpoint, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()), reverse=True)


def discard_partial(directory: Path) -> None:
    """Remove leftovers of interrupted saves and of failed removals."""
    for entry in directory.glob(_PARTIAL + "*"):
        remove(entry)


def remove(path: Path) -> None:
    """Remove a checkpoint; if that fails, as when a reader on NFS holds it, a later save tries again.

    It is renamed first, so that readers find an intact checkpoint or none.
    """
    try:
        if not path.name.startswith(_PARTIAL):
            path = path.rename(_without_number(path))
        shutil.rmtree(path)
    except OSError as error:
        complain(f"{path} could not be removed ({io_errors.reason(error)}); a later save tries again")


def _without_number(path: Path) -> Path:
    return path.with_name(f"{_PARTIAL}{path.name}-old")


def set_aside_newer(directory: Path, generation: int) -> None:
    """Rename the checkpoints beyond ``generation``, so that they no longer count as the newest."""
    for newer in generations(directory):
        if newer > generation:
            aside = directory / f"{_DAMAGED}{newer}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(newer)).rename(aside)


def facts(path: Path) -> dict[str, Any]:
    """Return the extra facts of a checkpoint, without its State.

    Raises:
        Damaged, NotRead: as ``restore``.
    """
    extra: dict[str, Any] = _read_manifest(path)["extra"]
    return extra


def restore_newest(
    directory: Path,
    shapes: Any,
    tell: Callable[[str], None],
    shardings: Any = None,
    until: int | None = None,
) -> tuple[int, Any, dict[str, Any]] | None:
    """Return ``(generation, state, extra)`` of the newest intact checkpoint, or None if there is none.

    Args:
        shapes: the State as ``jax.eval_shape`` returns it.
        tell: called with one line for each damaged checkpoint, which is skipped.
        shardings: placement of the leaves, in the structure of ``shapes``.
        until: newest generation to consider.

    Raises:
        Refused: the checkpoint is intact but its State has another structure.
        NotRead: the checkpoint may be intact, but the machine cannot read it now.
    """
    return _newest(directory, tell, lambda path: restore(path, shapes, shardings), until)


def member_of_newest(
    directory: Path, shapes: Any, tell: Callable[[str], None], place: int, until: int | None = None
) -> tuple[int, Any, dict[str, Any]] | None:
    """Restore only the State [1, ...] of the member at ``place``, so that others take no device memory; see
    ``restore_newest``."""

    def read(path: Path) -> tuple[Any, dict[str, Any]]:
        arrays, extra = _read(path, shapes, None)
        return from_arrays({name: array[place : place + 1] for name, array in arrays.items()}, shapes), extra

    return _newest(directory, tell, read, until)


def slice_of_newest(
    directory: Path, places: Sequence[int], tell: Callable[[str], None], until: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return rows ``places`` of every leaf of the newest intact checkpoint, by name, and its extra facts.

    PRNG keys are returned as raw data. Works without the State class.
    """

    def read(path: Path) -> tuple[Any, dict[str, Any]]:
        arrays, extra = rows(path)
        return {name: array[list(places)] for name, array in arrays.items()}, extra

    found = _newest(directory, tell, read, until)
    return found[1:] if found else None


def rows(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return every leaf of a checkpoint by name, PRNG keys as raw data, and its extra facts.

    Raises as ``restore`` does.
    """
    leaves = _read_manifest(path)["leaves"]
    shapes = {
        name: jax.ShapeDtypeStruct(leaf["shape"], jnp.dtype(leaf["dtype"])) for name, leaf in leaves.items()
    }
    return _read(path, shapes, None)


def _newest(
    directory: Path,
    tell: Callable[[str], None],
    read: Callable[[Path], tuple[Any, dict[str, Any]]],
    until: int | None = None,
) -> tuple[int, Any, dict[str, Any]] | None:
    damaged: set[int] = set()

    def available() -> list[int]:
        there = generations(directory)
        return [n for n in there if n not in damaged and (until is None or n <= until)]

    while there := available():
        path = directory / str(there[0])
        try:
            return there[0], *read(path)
        except (Damaged, NotRead) as failure:
            if not path.exists():  # the training process has removed it and made newer ones
                continue
            if isinstance(failure, NotRead):
                raise
            damaged.add(there[0])
            older = available()
            instead = (
                f"going back to the one of generation {older[0]}" if older else "there is no earlier one"
            )
            tell(f"checkpoint {path} is damaged ({failure}); {instead}")
    return None


def restore(path: Path, shapes: Any, shardings: Any = None) -> tuple[Any, dict[str, Any]]:
    """Read a checkpoint bit for bit into new arrays, placed by ``shardings`` or on the default device.

    Raises:
        Damaged: something is missing, cut or fails its checksum.
        NotRead: memory or permission is missing, or the disk fails.
        Refused: the checkpoint is intact, but its State has another structure than ``shapes``.
    """
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(default_device())
        shardings = jax.tree.map(lambda _: here, shapes)
    arrays, extra = _read(path, shapes, shardings)
    return from_arrays(arrays, shapes), extra


def _read(path: Path, shapes: Any, shardings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return leaves by name, PRNG keys as raw data, and extra facts; without ``shardings``, NumPy arrays."""
    target = data_shapes(shapes)
    where = dict(zip(target, jax.tree.leaves(shardings), strict=True)) if shardings is not None else {}

    def described() -> dict[str, Any]:
        manifest = _read_manifest(path)
        _require_equal_structure(path, manifest["leaves"], target)
        return manifest

    # Each step needs all processes, so they agree on its success before the next.
    manifest = _agreed(path, described)
    arrays = _agreed(path, lambda: _read_arrays(path, target, where))
    _agreed(path, lambda: _require_checksums(arrays, manifest["leaves"]))
    return arrays, manifest["extra"]


def _agreed(path: Path, read: Callable[[], T]) -> T:
    """Return the result of ``read``; if it fails on one process, fail on all.

    Raises:
        Damaged, Refused, NotRead: the last of these that occurred on any process.
    """
    result, failure = None, None
    try:
        result = read()
    except (Damaged, Refused, NotRead) as error:
        failure = error
    except Exception as error:  # Orbax and TensorStore raise many kinds for broken files
        trouble = io_errors.trouble(error) or io_errors.unreadable(path)
        failure = _not_read(path, trouble) if trouble else Damaged(io_errors.first_line(error))
        failure.__cause__ = error
    kinds: list[type[Exception]] = [Damaged, Refused, NotRead]
    worst = largest(1 + kinds.index(type(failure)) if failure else 0)
    if not worst:
        return cast(T, result)
    if failure is not None and type(failure) is kinds[worst - 1]:
        raise failure
    why = "the message of another process gives the reason"
    raise [Damaged(why), Refused(f"checkpoint {path} is refused: {why}"), _not_read(path, why)][worst - 1]


def _require_checksums(arrays: dict[str, Any], leaves: dict[str, Any]) -> None:
    for name, described in leaves.items():
        if zlib.crc32(raw(fetch(arrays[name]))) != described["crc32"]:
            raise Damaged(f"the checksum of {name} differs")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        envelope = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if zlib.crc32(envelope["content"].encode()) != envelope["crc32"]:
            raise Damaged("the checksum of its manifest differs")
        return json.loads(envelope["content"])
    except (OSError, MemoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        if trouble := io_errors.trouble(error):
            raise _not_read(path, trouble) from error
        raise Damaged(f"its manifest is unreadable: {io_errors.first_line(error)}") from error


def _read_arrays(path: Path, target: dict[str, Any], shardings: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as orbax

    def arguments(name: str, leaf: Any) -> Any:
        if not shardings:
            return orbax.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
        return orbax.ArrayRestoreArgs(sharding=shardings[name], dtype=leaf.dtype, global_shape=leaf.shape)

    stored = {name: leaf for name, leaf in target.items() if 0 not in leaf.shape}
    # Each process reads on its own: at a barrier of Orbax, it would wait for a process that has failed.
    alone = jax.process_index()
    own = orbax.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
    reader = orbax.Checkpointer(orbax.PyTreeCheckpointHandler(), multiprocessing_options=own)
    with without_patterns(path.absolute()) as here:
        arrays = reader.restore(
            here / _ARRAYS,
            item=stored,
            restore_args={name: arguments(name, leaf) for name, leaf in stored.items()},
        )
    empty = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in target.items() if name not in stored}
    if shardings:
        empty = {name: jax.device_put(array, shardings[name]) for name, array in empty.items()}
    return arrays | empty


def _require_equal_structure(path: Path, saved: dict[str, Any], target: dict[str, Any]) -> None:
    def spell(shape: Any, dtype: Any) -> str:
        return f"{dtype}{list(shape)}"

    there = {name: spell(leaf["shape"], leaf["dtype"]) for name, leaf in saved.items()}
    here = {name: spell(leaf.shape, leaf.dtype) for name, leaf in target.items()}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise Refused(
                f"checkpoint {path} does not fit the method: {name} is {there.get(name, 'absent')} in it"
                f" and {here.get(name, 'absent')} in the State{made_with(path)}"
            )


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": zlib.crc32(raw(array))}


def _not_read(path: Path, trouble: str) -> NotRead:
    return NotRead(
        f"checkpoint {path} cannot be read ({trouble}); nothing was changed: fix this and try again, or"
        " remove the directory to go back to the checkpoint before it"
    )
