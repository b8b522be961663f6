"""Exact checkpoints: the whole State on disk, written atomically, checked on the way back.

A checkpoint is a directory named after its generation. It holds the State as orbax writes it and a manifest
with shape, dtype and checksum of every leaf. It is built under another name and renamed when complete, so a
process that is killed at any moment leaves the earlier ones as they were.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax.host.errors import Refused

KEPT = 2
"""How many checkpoints stay: the newest, and the one to fall back on."""
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_PARTIAL = "partial-"
_DAMAGED = "damaged-"


class Damaged(Exception):
    """A checkpoint cannot be read back as it was written."""


def digest(state: Any) -> str:
    """SHA-256 over path, dtype, shape and bytes of every leaf."""
    total = hashlib.sha256()
    for path, leaf in _leaves(state):
        array = np.asarray(_data(leaf))
        total.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        total.update(_bytes(array))
    return total.hexdigest()


def save(directory: Path, generation: int, state: Any, extra: dict[str, Any]) -> None:
    """Writes ``state`` as the checkpoint of ``generation``; ``extra`` is JSON that comes back with it.

    The older checkpoints beyond ``KEPT`` are removed once the new one is complete.
    """
    import orbax.checkpoint as orbax

    directory.mkdir(parents=True, exist_ok=True)
    discard_partial(directory)
    partial = directory / f"{_PARTIAL}{generation}"
    arrays = {path: _data(leaf) for path, leaf in _leaves(state)}
    stored = {path: array for path, array in arrays.items() if array.size}  # orbax refuses empty arrays
    # Synchronous on purpose: the next chunk is going to overwrite these buffers in place.
    orbax.PyTreeCheckpointer().save(partial.absolute() / _ARRAYS, stored)
    content = {
        "generation": generation,
        "extra": extra,
        "leaves": {path: _describe(np.asarray(array)) for path, array in arrays.items()},
    }
    text = json.dumps(content)
    (partial / _MANIFEST).write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "content": text}))
    partial.rename(directory / str(generation))
    for old in generations(directory)[KEPT:]:
        shutil.rmtree(directory / str(old))


def generations(directory: Path) -> list[int]:
    """The generations that have a checkpoint, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()), reverse=True)


def discard_partial(directory: Path) -> None:
    """Removes what a process that was killed while saving has left."""
    for entry in directory.glob(_PARTIAL + "*"):
        shutil.rmtree(entry)


def set_aside_newer(directory: Path, generation: int) -> None:
    """Renames the checkpoints beyond ``generation``, so that they no longer count as the newest."""
    for newer in generations(directory):
        if newer > generation:
            aside = directory / f"{_DAMAGED}{newer}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(newer)).rename(aside)


def restore_newest(
    directory: Path, shapes: Any, complain: Callable[[str], None]
) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest checkpoint that is whole: ``(generation, state, extra)``; ``None`` if there is none.

    ``shapes`` is the State as ``jax.eval_shape`` gives it. Each damaged checkpoint is named to ``complain``,
    in one line, and passed over.

    Raises:
        Refused: the checkpoint is whole but of a State of another structure.
    """
    available = generations(directory)
    for place, generation in enumerate(available):
        try:
            return generation, *restore(directory / str(generation), shapes)
        except Damaged as damage:
            older = available[place + 1 :]
            instead = f"the one of generation {older[0]}" if older else "the beginning"
            damaged = directory / str(generation)
            complain(f"checkpoint {damaged} is damaged ({damage}); going back to {instead}")
    return None


def restore(path: Path, shapes: Any) -> tuple[Any, dict[str, Any]]:
    """Reads one checkpoint into new arrays on the default device, bitwise as it was saved.

    Raises:
        Damaged: something is missing, unreadable or fails its checksum.
        Refused: it is whole but of a State of another structure than ``shapes``.
    """
    manifest = _read_manifest(path)
    target = {name: jax.eval_shape(_data, leaf) for name, leaf in _leaves(shapes)}
    _require_equal_structure(path, manifest["leaves"], target)
    arrays = _read_arrays(path, target)
    for name, described in manifest["leaves"].items():
        if zlib.crc32(_bytes(np.asarray(arrays[name]))) != described["crc32"]:
            raise Damaged(f"the checksum of {name} differs")
    leaves = [_undata(arrays[name], leaf) for name, leaf in _leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves), manifest["extra"]


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        envelope = json.loads((path / _MANIFEST).read_text())
        if zlib.crc32(envelope["content"].encode()) != envelope["crc32"]:
            raise Damaged("the checksum of its manifest differs")
        return json.loads(envelope["content"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its manifest is unreadable: {_first_line(error)}") from error


def _read_arrays(path: Path, target: dict[str, Any]) -> dict[str, Any]:
    import orbax.checkpoint as orbax

    stored = {name: leaf for name, leaf in target.items() if 0 not in leaf.shape}
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arguments = {
        name: orbax.ArrayRestoreArgs(sharding=sharding, dtype=leaf.dtype, global_shape=leaf.shape)
        for name, leaf in stored.items()
    }
    try:
        arrays = orbax.PyTreeCheckpointer().restore(
            path.absolute() / _ARRAYS, item=stored, restore_args=arguments
        )
    except Exception as error:  # whatever orbax and tensorstore make of broken files
        raise Damaged(_first_line(error)) from error
    return {name: arrays.get(name, np.zeros(leaf.shape, leaf.dtype)) for name, leaf in target.items()}


def _require_equal_structure(path: Path, saved: dict[str, Any], target: dict[str, Any]) -> None:
    def spell(shape: Any, dtype: Any) -> str:
        return f"{dtype}{list(shape)}"

    there = {name: spell(leaf["shape"], leaf["dtype"]) for name, leaf in saved.items()}
    here = {name: spell(leaf.shape, leaf.dtype) for name, leaf in target.items()}
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise Refused(
                f"checkpoint {path} does not fit the method: {name} is {there.get(name, 'absent')} in it"
                f" and {here.get(name, 'absent')} in the State"
            )


def _leaves(state: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _undata(array: Any, shape: Any) -> Any:
    if not _is_key(shape):
        return array
    implementations: list[Any] = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), shape)
    return jax.random.wrap_key_data(array, impl=implementations[0])


def _describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": zlib.crc32(_bytes(array))}


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
