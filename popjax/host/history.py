"""What a run leaves behind, as NumPy arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one seed's policy.

    seed:       the seed, not its place in the sweep.
    generation: generations done.
    env_steps:  environment steps that seed had trained for.
    returns:    undiscounted return of each episode.
    lengths:    environment steps of each episode.
    """

    seed: int
    generation: int
    env_steps: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return over the episodes."""
        return float(np.mean(self.returns))


@dataclass(frozen=True)
class History:
    """Recorded generations, oldest first, and the evaluations made meanwhile.

    generation:  int [S, C]       generations done.
    env_steps:   int [S, C]       environment steps done.
    metrics:     [S, C, ...]      the method's Metrics, same structure.
    evaluations: those made at the end of the last of these generations.
    """

    generation: np.ndarray
    env_steps: np.ndarray
    metrics: Any
    evaluations: tuple[Evaluation, ...] = ()

    def every(self, spacing: int) -> History:
        """Only the generations whose number is a multiple of ``spacing``."""
        kept = self.generation[0] % spacing == 0
        return History(
            self.generation[:, kept],
            self.env_steps[:, kept],
            jax.tree.map(lambda x: x[:, kept], self.metrics),
            self.evaluations,
        )


def join(parts: Sequence[History]) -> History:
    """Histories of consecutive generations as one."""
    return History(
        np.concatenate([part.generation for part in parts], axis=1),
        np.concatenate([part.env_steps for part in parts], axis=1),
        jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *(part.metrics for part in parts)),
        tuple(evaluation for part in parts for evaluation in part.evaluations),
    )


def empty(shapes: Any) -> History:
    """A history of no generations; ``shapes`` is a State [S, ...] or its shapes."""

    def none(leaf: Any) -> np.ndarray:
        return np.zeros((leaf.shape[0], 0, *leaf.shape[1:]), leaf.dtype)

    return History(none(shapes.generation), none(shapes.env_steps), jax.tree.map(none, shapes.metrics))


def named(metrics: Any) -> dict[str, np.ndarray]:
    """Metrics by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(metrics)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def first_non_finite(history: History) -> tuple[str, int, int] | None:
    """Name, place in the sweep and generation of the earliest metric that is NaN or infinite."""
    found = []
    for name, values in named(history.metrics).items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        broken = ~np.isfinite(values).reshape(*values.shape[:2], -1).all(-1)  # [S, C]
        for row, place in np.argwhere(broken.T)[:1]:
            found.append((int(history.generation[place, row]), int(place), name))
    if not found:
        return None
    generation, place, name = min(found)
    return name, place, generation
