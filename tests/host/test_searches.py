"""Figures of searches over hyperparameters: what is drawn is what the State's table holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.evolution.priors import Prior
from popjax.host.report import charts, records, searches
from popjax.host.runs import rundir
from popjax.population import lineage
from tests.host.runs import make_run

NAMES = ["lr", "discount"]
PRIORS = [Prior("lr", 1e-5, 1e-2, log=True), Prior("discount", 0.9, 0.999, log=True, top=1.0)]
START = [[1e-3, 0.99], [2e-3, 0.9], [3e-3, 0.95]]
FIRST = [[1e-3, 0.99], [2e-3, 0.9], [8e-4, 0.988]]  # 2 takes over from 0
SECOND = [[6e-4, 0.99], [5e-3, 0.92], [8e-4, 0.988]]  # 1 is a newcomer, 0 takes over from 2


def table() -> lineage.Lineage:
    """Three slots, two ready points; slot 1 has diverged by the second."""
    made = lineage.begin(jnp.array(START), 5)
    made = lineage.record(
        made, jnp.int32(4), jnp.array([0, 1, 0]), jnp.array([9.0, 7.0, 1.0]), jnp.array(FIRST)
    )
    fitness = jnp.array([11.0, -jnp.inf, 12.0])
    return lineage.record(made, jnp.int32(8), jnp.array([2, -1, 2]), fitness, jnp.array(SECOND))


def leave(root: Path, seeds: tuple[int, ...] = (0,), **choices: Any) -> Path:
    """Leave a run of a search whose seeds have this table; of odd seeds the newcomer is the best."""
    make_run(root, "pbt", seeds=seeds, **choices)
    members = [
        {"member": place, "seed": seed, "priors": [prior._asdict() for prior in PRIORS]}
        | lineage.schedule(table(), seed % 2, NAMES, 10)
        for place, seed in enumerate(seeds)
    ]
    rundir.write_json(root / "schedule.json", {"members": members})
    return root


def read(root: Path) -> list[searches.Search]:
    return [found for record in records.read(root).records for found in searches.read(record)]


def strokes(axes: Any) -> list[Any]:
    """Return all lines of the collections of axes: ((x, y), (x, y), colour's value), rounded."""
    return [
        (*[tuple(np.round(point, 6).tolist()) for point in path.vertices], round(float(value), 6))
        for lines in axes.collections
        for path, value in zip(lines.get_paths(), np.ma.filled(lines.get_array(), np.nan), strict=True)
    ]


def test_the_numbers_drawn_are_those_of_the_state(tmp_path: Path) -> None:
    (found,) = read(leave(tmp_path / "run"))
    made = table()
    np.testing.assert_array_equal(found.numbers.astype(np.float32), made.numbers[:3])
    np.testing.assert_array_equal(found.source, made.source[:3])
    rate, discount, bar = searches.numbers("who", found).axes
    assert [axes.get_yscale() for axes in (rate, discount)] == ["log", "log"]
    assert [axes.get_ylabel() for axes in (rate, discount)] == ["lr", "1 - discount"]
    drawn = strokes(rate)
    for row, (begin, end) in enumerate(((0, 40), (40, 80))):
        for slot in range(3):
            value, fitness = round(float(made.numbers[row, slot, 0]), 6), float(made.fitness[row + 1, slot])
            (shown,) = [line[2] for line in drawn if line[:2] == ((begin, value), (end, value))]
            assert shown == fitness or (np.isnan(shown) and fitness == -np.inf)
    forks = [line for line in drawn if line[0][0] == line[1][0]]
    assert forks == [
        ((40.0, 0.001), (40.0, 0.0008), 9.0),
        ((80.0, 0.0008), (80.0, 0.0006), 12.0),
    ]
    (best,) = discount.lines
    assert best.get_xdata().tolist() == [0, 40, 80]
    np.testing.assert_allclose(best.get_ydata(), [0.01, 0.012, 0.01], rtol=1e-4)
    assert bar.get_ylabel() == "fitness at the next ready point (return)"


def test_a_lineage_shows_who_took_over_whom_and_with_which_number(tmp_path: Path) -> None:
    (found,) = read(leave(tmp_path / "run"))
    rate = searches.lineage("who", found).axes[0]
    drawn, broad = strokes(rate)[:11], strokes(rate)[11:]
    slanted = [line for line in drawn if line[0][1] != line[1][1]]
    assert slanted == [((24.0, 0.0), (40.0, 2.0), 0.001), ((64.0, 2.0), (80.0, 0.0), 0.0008)]
    assert [line[:2] for line in broad] == [
        ((0, 0), (24, 0)),
        ((24, 0), (40, 2)),
        ((40, 2), (64, 2)),
        ((64, 2), (80, 0)),
    ]
    (newcomer,) = rate.lines
    assert (newcomer.get_xdata().tolist(), newcomer.get_ydata().tolist()) == ([80], [1])


def test_schedules_of_seeds_are_drawn_from_the_beginning_of_their_lines(tmp_path: Path) -> None:
    """A newcomer's line begins at the second ready point, at 0 of its own steps, where the others' are."""
    found = read(leave(tmp_path / "run", seeds=(0, 1, 2)))
    axes = searches.schedules("who", found).axes[0]
    each, median = axes.lines[:3], axes.lines[3]
    assert [line.get_xdata().tolist() for line in each] == [[0, 40, 80], [0], [0, 40, 80]]
    np.testing.assert_allclose(each[1].get_ydata(), [5e-3])
    assert median.get_xdata().tolist() == [0]
    np.testing.assert_allclose(median.get_ydata(), [1e-3], rtol=1e-6)


def test_the_table_is_the_winners_line(tmp_path: Path) -> None:
    (found,) = read(leave(tmp_path / "run"))
    header, rows = searches.table(found)
    assert header[-2:] == NAMES
    assert rows == [
        ["0", "0", "0", "", "", "0.001", "0.99"],
        ["1", "40", "2", "0", "9.0", "0.0008", "0.988"],
        ["2", "80", "0", "2", "12.0", "0.0006", "0.99"],
    ]


def test_a_report_has_the_views_of_a_search_and_all_its_ready_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path / "search", seeds=(0, 1))
    make_run(tmp_path / "fixed", "onpolicy", seeds=(0, 1))
    out = tmp_path / "out"
    runs = [str(tmp_path / "search"), str(tmp_path / "fixed")]
    assert cli.report([*runs, "--csv", "--out", str(out)]) == 0
    names = {path.stem for path in out.glob("*.png")}
    views = {f"{view}-pbt-probe-context" for view in ("numbers", "takeovers", "schedules")}
    assert views | {"anytime-probe-context"} <= names
    assert not {f"{view}-onpolicy-probe-context" for view in ("numbers", "takeovers", "schedules")} & names
    with (out / "lineage.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == 2 * 3 * 3
    (row,) = [x for x in written if (x["seed"], x["ready"], x["slot"]) == ("1", "2", "0")]
    assert (row["env_steps"], row["source"], row["fitness"]) == ("80", "2", "11.0")
    assert np.float32(row["lr"]) == np.float32(6e-4)
    capsys.readouterr()


def test_anytime_curves_end_where_the_first_method_does(tmp_path: Path) -> None:
    """The best so far of 3, 1, 2, 5 is 3, 3, 3, 5; the other method has gone half as far."""
    values = [3.0, 1.0, 2.0, 5.0]
    make_run(tmp_path / "far", "far", seeds=(0,), evaluations=4, level=lambda _, place: values[place])
    make_run(tmp_path / "near", "near", seeds=(0,), evaluations=3)
    groups = records.grouped([r for name in ("far", "near") for r in records.read(tmp_path / name).records])
    steps, hours = charts.anytime("task", groups, charts.styles(records.methods(groups))).axes
    for axes, end in ((steps, 200), (hours, 73 / 3600)):
        far, near = axes.lines
        assert far.get_xdata()[-1] == near.get_xdata()[-1] == pytest.approx(end)
        assert far.get_ydata().tolist() == [3, 3, 3]
        assert near.get_ydata().tolist() == [0, 1, 2]
