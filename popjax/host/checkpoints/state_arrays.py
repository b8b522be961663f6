"""Conversion between a State and named NumPy arrays, in which PRNG keys are raw data."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax import tree
from popjax.host.scaling.processes import fetch


def data(leaf: Any) -> Any:
    """Return a leaf, or the raw data of a PRNG key."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def digest(state: Any) -> str:
    """Return the SHA-256 over path, dtype, shape and bytes of every leaf."""
    total = hashlib.sha256()
    for path, leaf in tree.named(state):
        array = fetch(data(leaf))
        total.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        total.update(raw(array))
    return total.hexdigest()


def to_arrays(state: Any) -> dict[str, np.ndarray]:
    """Return the whole leaves of a State by name as NumPy arrays; PRNG keys as raw data."""
    return {name: fetch(data(leaf)) for name, leaf in tree.named(state)}


def data_shapes(shapes: Any) -> dict[str, Any]:
    """Return the shapes of the arrays that ``to_arrays`` makes from a State of these ``shapes``."""
    return {name: jax.eval_shape(data, leaf) for name, leaf in tree.named(shapes)}


def from_arrays(arrays: dict[str, Any], shapes: Any) -> Any:
    """Return the State in the structure of ``shapes`` from the ``arrays`` that ``to_arrays`` made."""
    leaves = [_undata(arrays[name], leaf) for name, leaf in tree.named(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def raw(array: np.ndarray) -> memoryview:
    """Return the bytes of ``array`` in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _undata(array: Any, shape: Any) -> Any:
    if not _is_key(shape):
        return array if isinstance(array, jax.Array) else jnp.array(array)
    implementations: list[Any] = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), shape)
    return jax.random.wrap_key_data(array, impl=implementations[0])
