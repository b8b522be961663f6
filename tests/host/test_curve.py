"""Learning curves, memory estimates and the search for broken metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.host.errors import TooLarge
from popjax.host.report import curve, learning_curve
from popjax.host.runs.history import Evaluation, History, Seconds, join, non_finite
from popjax.host.runs.recorded_scalars import scalars
from popjax.host.scaling import memory


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_a_curve_is_drawn_for_any_number_of_seeds(seeds: int, tmp_path: Path) -> None:
    evaluations = [
        Evaluation(seed, step, 100 * step + seed, (float(step), float(seed)), (1, 1))
        for step in range(4)
        for seed in range(seeds)
    ]
    learning_curve(evaluations, tmp_path / "curve.png", title="a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_mean_goes_on_where_a_seed_has_reached_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(**goal: float) -> list[tuple[float, float]]:
        """The end of the line of each seed, then of their mean."""
        figures: list[Any] = []
        monkeypatch.setattr(curve.charts, "legend", lambda axes, columns: figures.append(axes))
        learning_curve(made, tmp_path / "curve.png", title="a title", **goal)
        return [tuple(line.get_xydata()[-1].tolist()) for line in figures[0].lines]

    def at(seed: int, steps: int, value: float) -> Evaluation:
        return Evaluation(seed, steps, steps, (value,), (1,))

    made = [at(0, 0, 0.0), at(1, 0, 0.0), at(0, 100, 0.9), at(1, 100, 0.1), at(1, 200, 0.3)]
    assert ends(stop_at_return=0.9) == [(100, 0.9), (200, 0.3), (200, pytest.approx(0.6))]
    assert ends() == [(100, 0.9), (200, 0.3), (100, 0.5)]  # seed 0 is merely unfinished
    made = [at(0, 1200, 0.0), at(1, 1250, 0.0), at(1, 2500, 0.0)]
    assert len(ends()) == 2  # there is no step with returns of both


def history(loss: list[list[float]]) -> History:
    generation = np.tile(np.arange(1, 1 + len(loss[0])), (len(loss), 1))
    fitness = np.zeros((*generation.shape, 4), np.float32)
    metrics = {"a": {"loss": np.array(loss)}, "fitness": fitness}
    return History(generation, 10 * generation, metrics, Seconds(*2 * (np.arange(len(loss[0])),)))


def test_the_earliest_broken_metric_of_each_member_is_found() -> None:
    assert non_finite(history([[1, 2, 3], [1, 2, 3]])) == {}
    nan, inf = np.nan, np.inf
    both = history([[1, 2, nan], [1, inf, 3]])
    assert non_finite(both) == {0: (3, "a.loss"), 1: (2, "a.loss")}
    assert non_finite(both.freeze(np.array([1, 2]), np.array([10, 20]), [1])) == {0: (3, "a.loss")}
    broken = history([[1, 2, 3]])
    broken.metrics["fitness"][0, 1, 3] = nan
    assert non_finite(broken) == {0: (2, "fitness")}


def test_histories_are_joined_and_thinned() -> None:
    both = join([history([[1, 2, 3]]), history([[4, 5]])])
    assert both.metrics["a"]["loss"].tolist() == [[1, 2, 3, 4, 5]]
    thin = history([[1, 2, 3, 4, 5]]).every(2)
    assert thin.generation.tolist() == [[2, 4]]
    assert thin.metrics["fitness"].shape == (1, 2, 4)


def test_bytes_of_a_tree_count_keys_as_their_data() -> None:
    tree = {"key": jax.random.key(0), "x": jnp.zeros((3, 5)), "flag": jnp.bool_(True)}
    assert memory.tree_bytes(tree) == 8 + 60 + 1
    assert [memory.human(n) for n in (0, 999, 1000, 1_234_567, 36 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.2 MB",
        "36.0 TB",
    ]


def test_a_metric_is_a_scalar_or_a_mean_and_a_maximum_or_nothing() -> None:
    assert scalars(np.float32(2)) == [("", 2.0)]
    assert scalars(np.array([1, 3])) == [("/mean", 2.0), ("/max", 3.0)]
    assert scalars(np.zeros((0,))) == []


def test_a_checkpoint_takes_a_copy_of_the_state_or_two_of_main_memory() -> None:
    """Two while training goes on, one while it waits, with a tenth of the memory left alone."""
    cpu = jax.local_devices()[0]
    gigabyte = 10**9
    assert memory.saves_in_background(3 * gigabyte, 3 * gigabyte, 10 * gigabyte, cpu, members=1)
    assert not memory.saves_in_background(3 * gigabyte, 3 * gigabyte, 99 * gigabyte // 10, cpu, members=1)
    with pytest.raises(
        TooLarge, match=r"needs 12.0 GB of main memory .* 4.0 GB .* copy .* only 9.0 GB is free"
    ) as no:
        memory.saves_in_background(4 * gigabyte, 8 * gigabyte, 10 * gigabyte, cpu, members=4)
    assert no.value.fitting == 3


def test_something_is_available_and_something_was_held() -> None:
    assert 10**7 < memory.peak_bytes(jax.local_devices()[0]) < 10**12
    assert memory.available_bytes(jax.local_devices()[0]) > 10**8
