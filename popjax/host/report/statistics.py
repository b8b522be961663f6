"""Statistics of methods from a few seeds. Agarwal et al., Deep Reinforcement Learning at the Edge of the
Statistical Precipice, NeurIPS 2021.

A method's ``scores`` are a list over tasks of float [seeds]; the numbers of seeds may differ. Intervals are
percentile-bootstrap intervals, stratified: seeds are resampled within each task and never across tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[np.ndarray]
RESAMPLES = 2_000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A number or curve and the ends of its interval.

    The ends are None if a method has a single seed on a task: resampling it would make the interval too
    narrow.
    """

    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Return the mean [...] of the middle half of all runs of all tasks, each [..., seeds]; a quarter of the
    runs, rounded down, is left out at either end."""
    runs = np.sort(np.concatenate(list(scores), axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    return runs[..., cut : runs.shape[-1] - cut].mean(-1)


def improvement(better: Scores, worse: Scores) -> np.ndarray:
    """Return the probability [...] that a run of the first method beats one of the second on a random task;
    a tie is half a win."""
    wins = []
    for x, y in zip(better, worse, strict=True):
        difference = x[..., :, None] - y[..., None, :]
        wins.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
    return np.mean(wins, axis=0)


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the share [..., thresholds] of runs that score above each threshold, averaged over tasks."""
    shares = [(x[..., :, None] > thresholds).mean(-2) for x in scores]
    return np.mean(shares, axis=0)


def estimate(statistic: Callable[..., np.ndarray], *methods: Scores, seed: int = 0) -> Estimate:
    """Return ``statistic`` of the scores of one or more methods, with its bootstrap interval."""
    value = statistic(*methods)
    if min(len(x) for scores in methods for x in scores) < 2:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = statistic(*([_resampled(rng, x) for x in scores] for scores in methods))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return Estimate(value, low, high)


def normalised(scores: dict[str, Scores]) -> tuple[dict[str, list[np.ndarray]], list[tuple[float, float]]]:
    """Return the scores scaled to [0, 1] within each task, and the scores that became 0 and 1.

    0 is the lowest and 1 the highest score of any run on the task; equal scores all become 0.
    """
    ends = []
    for runs in zip(*scores.values(), strict=True):
        together = np.concatenate(runs)
        ends.append((float(together.min()), float(together.max())))
    scaled = {
        label: [(x - low) / ((high - low) or 1.0) for x, (low, high) in zip(found, ends, strict=True)]
        for label, found in scores.items()
    }
    return scaled, ends


def _resampled(rng: np.random.Generator, runs: np.ndarray) -> np.ndarray:
    """Return draws [RESAMPLES, seeds] with replacement."""
    return runs[rng.integers(0, len(runs), (RESAMPLES, len(runs)))]
