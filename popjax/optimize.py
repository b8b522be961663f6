"""One step of an optimizer on one network, with hyperparameters as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from popjax.core import Number, Params, PyTree

FEW = 4096
"""Largest size of a gradient's leaf that a GPU joins with other leaves to sum their squares."""


def adam(learning_rate: Array | float, max_grad_norm: Array | float) -> optax.GradientTransformation:
    """Return Adam (0.9, 0.999, 1e-8) on gradients clipped to the global norm ``max_grad_norm``, which may be
    infinite.

    Call it anew wherever it is used: the structure of its state does not depend on the hyperparameters.
    """
    return optax.chain(clip_by_global_norm(max_grad_norm), optax.adam(learning_rate))


def clip_by_global_norm(max_norm: Array | float) -> optax.GradientTransformation:
    """Return Optax's transformation of this name, computed by fewer kernels on a GPU.

    Unlike Optax's it leaves a gradient alone if its norm equals ``max_norm``: both may be 0, or infinite
    because the squares in the norm overflow, and the quotient would be NaN.
    """

    def update(gradient: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        norm = global_norm(gradient)
        within = norm <= max_norm
        return jax.tree.map(lambda x: jnp.where(within, x, x / norm * max_norm), gradient), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def global_norm(gradient: PyTree) -> Array:
    """Return [] the norm of all numbers in ``gradient``.

    A GPU takes a kernel for each leaf, so small leaves are joined there.
    """
    joined = partial(_norm, few=FEW)
    return jax.lax.platform_dependent(jax.tree.leaves(gradient), cuda=joined, rocm=joined, default=_norm)


def _norm(leaves: Sequence[Array], few: int = 0) -> Array:
    """Return [] the norm of ``leaves``, after joining those with at most ``few`` numbers."""
    small = [jnp.ravel(x) for x in leaves if x.size <= few]
    parts = [x for x in leaves if x.size > few] + ([jnp.concatenate(small)] if small else [])
    return jnp.sqrt(jnp.asarray(sum(jnp.square(x).sum() for x in parts)))


def annealed(rate: Number, updates: Array, length: Number) -> Array:
    """Return ``rate`` after ``updates``, decaying linearly to 0 over ``length`` updates; constant if
    ``length`` is 0."""
    left = 1 - updates / jnp.maximum(length, 1)
    return rate * jnp.where(length > 0, jnp.maximum(left, 0), 1.0)


def descend(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Params], tuple[Array, Any]],
    params: Params,
    state: PyTree,
) -> tuple[Params, PyTree, Array, Any]:
    """Take one step down the gradient of ``loss(params) -> (value, aux)``; return params, optimizer state,
    value and aux."""
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return *step(optimizer, gradient, params, state), value, aux


def step(
    optimizer: optax.GradientTransformation, gradient: Params, params: Params, state: PyTree
) -> tuple[Params, PyTree]:
    """Take one step down ``gradient``; return params and optimizer state."""
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state
