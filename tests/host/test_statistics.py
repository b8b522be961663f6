"""Interquartile means, probabilities of improvement, profiles and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from popjax.host.report import statistics

# Scores [seeds, tasks] of two methods, and what rliable 1.2.0 says of them.
X = np.array(
    [[0.13, -0.13, 0.64], [0.1, -0.54, 0.36], [1.3, 0.95, -0.7], [-1.27, -0.62, 0.04], [-2.33, -0.22, -1.25]]
)
Y = np.array(
    [[0.13, -0.14, 0.08], [0.81, 1.44, 0.27], [1.77, -0.27, 0.75], [1.3, 0.49, -0.34], [-0.52, -0.06, 0.62]]
)


def test_rliables_answers() -> None:
    assert statistics.interquartile_mean(X.T) == pytest.approx(-0.17555555555555552)
    assert statistics.interquartile_mean(Y.T) == pytest.approx(0.3277777777777777)
    assert statistics.improvement(X.T, Y.T) == pytest.approx(0.28)
    np.testing.assert_allclose(statistics.profile(X.T, np.array([0.3])), [0.26666666666666666])


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_rliable_itself(seeds: int) -> None:
    rliable = pytest.importorskip("rliable.metrics", reason="pip install 'popjax[peers]'")
    rng = np.random.default_rng(seeds)
    x, y = rng.normal(size=(seeds, 4)), rng.normal(size=(seeds, 4)).round()
    assert statistics.interquartile_mean(x.T) == pytest.approx(rliable.aggregate_iqm(x))
    assert statistics.improvement(x.T, y.T) == pytest.approx(rliable.probability_of_improvement(x, y))
    ties = y[::-1].copy()
    assert statistics.improvement(y.T, ties.T) == pytest.approx(rliable.probability_of_improvement(y, ties))


def test_the_interval_of_one_task_is_the_percentile_bootstraps() -> None:
    runs = np.random.default_rng(1).normal(size=9)
    found = statistics.estimate(statistics.interquartile_mean, [runs])
    answer = stats.bootstrap(
        (runs,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis),
        method="percentile",
        n_resamples=20_000,
        rng=0,
    ).confidence_interval
    assert found.value == pytest.approx(stats.trim_mean(runs, 0.25))
    np.testing.assert_allclose([found.low, found.high], answer, atol=0.05)


def test_seeds_are_drawn_within_their_task() -> None:
    """Between tasks that differ by much and seeds that do not differ, chance has no say."""
    found = statistics.estimate(statistics.interquartile_mean, [np.full(4, 0.0), np.full(4, 100.0)])
    assert found == (50.0, 50.0, 50.0)
    pairs = statistics.estimate(statistics.improvement, [np.array([1.0, 3.0])], [np.array([2.0, 2.0])])
    assert (pairs.value, pairs.low, pairs.high) == (0.5, 0.0, 1.0)


def test_one_seed_has_no_interval() -> None:
    assert statistics.estimate(statistics.interquartile_mean, [np.array([3.0])]) == (3.0, None, None)


def test_one_task_or_method_with_one_seed_makes_no_interval_that_is_too_narrow() -> None:
    """Drawn again and again, a single seed does not vary: it would count as if it were certain."""
    many, one = np.random.default_rng(0).normal(size=10), np.array([0.3])
    for scores in ([many, one], [one, many]):
        assert statistics.estimate(statistics.interquartile_mean, scores)[1:] == (None, None)
    for pair in (([many], [one]), ([one], [many])):
        assert statistics.estimate(statistics.improvement, *pair)[1:] == (None, None)
    two = statistics.estimate(statistics.interquartile_mean, [many, np.array([0.3, -1.0])])
    assert two.low is not None
    assert two.low < two.value < two.high


def test_tasks_may_have_different_numbers_of_seeds() -> None:
    scores = [np.array([0.0, 1.0]), np.array([1.0, 1.0, 1.0])]
    np.testing.assert_allclose(statistics.profile(scores, np.array([-1.0, 0.5, 1.0])), [1, 0.75, 0])
    assert statistics.improvement(scores, [np.zeros(2), np.ones(1)]) == pytest.approx((0.75 + 0.5) / 2)


def test_scores_share_a_scale() -> None:
    scores = {"a": [np.array([0.0, 5.0]), np.array([3.0])], "b": [np.array([10.0]), np.array([3.0])]}
    scaled, ends = statistics.normalised(scores)
    assert ends == [(0, 10), (3, 3)]
    np.testing.assert_allclose(scaled["a"][0], [0, 0.5])
    np.testing.assert_allclose([scaled["b"][0], scaled["a"][1], scaled["b"][1]], [[1], [0], [0]])
