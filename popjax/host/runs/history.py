"""Records of a run, as NumPy arrays on the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from popjax import counting, tree


class Seconds(NamedTuple):
    """Seconds since a run began, including those before a resume.

    train: time in training chunks, without compiling, evaluating, writing and waiting.
    wall:  wall-clock time of the processes that trained.
    """

    train: Any
    wall: Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one member's policy.

    seed:       the member's seed.
    generation: generations done.
    env_steps:  environment steps that the member had trained for.
    returns:    undiscounted return of each episode.
    lengths:    environment steps of each episode.
    member:     the member's number in the sweep.
    seconds:    start of the evaluation, ignored by ``==``; None in old records.
    """

    seed: int
    generation: int
    env_steps: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    member: int = 0
    seconds: Seconds | None = field(default=None, compare=False)

    @property
    def mean(self) -> float:
        """Mean return over the episodes."""
        return float(np.mean(self.returns))


class Scalars(NamedTuple):
    """Scalars of a member at one time: its number, its environment steps, and values by name."""

    member: int
    env_steps: int
    values: dict[str, float]


@dataclass(frozen=True)
class History:
    """Recorded generations, oldest first, and the evaluations after the last of them.

    generation:  int [S, C]   generations done.
    env_steps:   int [S, C]   environment steps done.
    metrics:     [S, C, ...]  the method's Metrics.
    evaluations: evaluations after the last of these generations.
    stopped:     places [S] of stopped members: their steps do not grow, their metrics are NaN or 0.
    seconds:     float [C] each, interpolated within a chunk, which is one program.
    """

    generation: np.ndarray
    env_steps: np.ndarray
    metrics: Any
    seconds: Seconds
    evaluations: tuple[Evaluation, ...] = ()
    stopped: frozenset[int] = frozenset()

    @property
    def active(self) -> list[int]:
        """Places of the active members."""
        return [place for place in range(len(self.generation)) if place not in self.stopped]

    def freeze(self, generation: np.ndarray, env_steps: np.ndarray, places: Iterable[int]) -> History:
        """Return this history with the members at ``places`` stopped at ``generation`` and ``env_steps``
        [S]."""
        places = self.stopped | frozenset(places)
        if not places:
            return self
        still = np.isin(np.arange(len(self.generation)), list(places))

        def void(values: np.ndarray) -> np.ndarray:
            nothing = np.nan if np.issubdtype(values.dtype, np.floating) else 0
            return np.where(still.reshape(-1, *[1] * (values.ndim - 1)), nothing, values).astype(values.dtype)

        return replace(
            self,
            generation=np.where(still[:, None], generation[:, None], self.generation),
            env_steps=np.where(still[:, None], env_steps[:, None], self.env_steps),
            metrics=jax.tree.map(void, self.metrics),
            stopped=places,
        )

    def every(self, spacing: int) -> History:
        """Return the generations whose number, for the first active member, is a multiple of ``spacing``."""
        kept = (self.generation[self.active[:1]] % spacing == 0).any(0)
        fields = self.generation, self.env_steps, self.metrics
        generation, env_steps, metrics = jax.tree.map(lambda x: x[:, kept], fields)
        seconds = Seconds(*(x[kept] for x in self.seconds))
        return replace(self, generation=generation, env_steps=env_steps, metrics=metrics, seconds=seconds)


def join(parts: Sequence[History]) -> History:
    """Return histories of consecutive generations as one."""
    return History(
        np.concatenate([part.generation for part in parts], axis=1),
        np.concatenate([part.env_steps for part in parts], axis=1),
        jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *(part.metrics for part in parts)),
        Seconds(*(np.concatenate(xs) for xs in zip(*(part.seconds for part in parts), strict=True))),
        tuple(evaluation for part in parts for evaluation in part.evaluations),
        frozenset().union(*(part.stopped for part in parts)),
    )


def empty(shapes: Any) -> History:
    """Return a history of no generations; ``shapes`` is a State [S, ...] or its shapes."""

    def none(leaf: Any) -> np.ndarray:
        return np.zeros((leaf.shape[0], 0, *leaf.shape[1:]), leaf.dtype)

    steps = counting.on_host(jax.tree.map(none, shapes.env_steps))
    seconds = Seconds(np.zeros(0), np.zeros(0))
    return History(none(shapes.generation), steps, jax.tree.map(none, shapes.metrics), seconds)


def non_finite(history: History) -> dict[int, tuple[int, str]]:
    """Return the first generation with a NaN or infinite metric, and its name, by place of active members."""
    found: dict[int, tuple[int, str]] = {}
    for name, values in tree.named(history.metrics):
        if not np.issubdtype(values.dtype, np.floating):
            continue
        broken = ~np.isfinite(values).reshape(*values.shape[:2], -1).all(-1)  # [S, C]
        for place in history.active:
            rows = np.flatnonzero(broken[place])
            if len(rows):
                first = int(history.generation[place, rows[0]]), name
                found[place] = min(found.get(place, first), first)
    return found
