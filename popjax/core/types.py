"""Names of the types that every other module uses."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

from jax import Array

PyTree: TypeAlias = Any
Key: TypeAlias = Array
"""A typed key of ``jax.random.key``."""
Params: TypeAlias = PyTree
Number: TypeAlias = float
"""A hyperparameter: a Python float where you write it, a float32 array ``[]`` inside a State."""
S = TypeVar("S")
