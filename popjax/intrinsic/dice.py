"""Diversity-driven exploration: agents are rewarded for acting unlike each other, on a compromise gradient.

The parts of DiCE as in its authors' code: the reward of agent i, the norm clip of every tensor, and the
bisector of the gradients of task and diversity. They are pure functions, which a method combines.

Both lengths in ``bisector`` are norms of elementwise products with the direction, not dot products as in a
projection. The authors' experiments ran with this form, which shortens the step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax.core import PyTree


def bisector(task_gradient: PyTree, diversity_gradient: PyTree) -> PyTree:
    """Return the step between two gradients of the same structure, each flattened to one vector, g and d.

    ``u = normalise(g/|g| + d/|d|)``; the result is ``u (|g*u| + min(|d*u|, |g*u|)) / 2`` with elementwise
    products, so that diversity never adds more than the task does.

    A gradient of zero has no direction and adds nothing. Zero g gives zero: diversity alone moves nothing.
    Zero d gives ``u |g*u| / 2`` with ``u = g/|g|``, the task's direction at less than half its length. Two
    opposite gradients give zero.
    """
    task, unflatten = ravel_pytree(task_gradient)
    diversity, _ = ravel_pytree(diversity_gradient)
    direction = _unit(_unit(task) + _unit(diversity))
    task_length = jnp.linalg.norm(task * direction)
    diversity_length = jnp.minimum(jnp.linalg.norm(diversity * direction), task_length)
    return unflatten(direction * (task_length + diversity_length) / 2)


def clip_each(tree: PyTree, limit: Array | float) -> PyTree:
    """Scale every leaf on its own to a Euclidean norm of at most ``limit``; leave shorter ones unchanged."""

    def clip(leaf: Array) -> Array:
        norm = jnp.linalg.norm(leaf.ravel())
        return leaf * jnp.where(norm > limit, limit / jnp.where(norm > 0, norm, 1.0), 1.0)

    return jax.tree.map(clip, tree)


def diversity_reward(means: Array, target_means: Array, index: Array | int) -> Array:
    """Return the distance of agent ``index`` from the others: the mean over them of the mean squared distance
    per component of the action.

    means:        [B, A]     deterministic actions of the agent, in [-1, 1].
    target_means: [N, B, A]  actions of all agents' targets; row ``index``, the agent's own, is left out.
    index:        int []     which agent it is.

    Returns [B], through which no gradient flows; 0 for a single agent.
    """
    agents = target_means.shape[0]
    others = jnp.arange(agents) != index
    distance = jnp.square(means - target_means).mean(-1)  # [N, B]
    total = jnp.where(others[:, None], distance, 0.0).sum(0)
    return jax.lax.stop_gradient(total / max(agents - 1, 1))


def _unit(vector: Array) -> Array:
    """Return a vector of length 1, or zeros for zeros."""
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, 1.0)
