"""Scores of seeds, statistics over them, and the words under their table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from popjax.host.errors import Refused
from popjax.host.report import measures, records, report
from tests.host.runs import make_run

RETURNS = [0, 4, 9, 1, 2]  # after 0, 100, ... environment steps, of seed 0; of seed 1 ten more


def test_measures(tmp_path: Path) -> None:
    rows = [
        {"seed": seed, "env_steps": 100 * place, "fitness": [place, 3 * place], "rate": seed + place / 10}
        for place in range(1, 5)
        for seed in (0, 1)
    ]
    level = lambda seed, place: RETURNS[place] + 10 * seed  # noqa: E731
    run = make_run(tmp_path / "a", seeds=(0, 1), evaluations=5, level=level, metrics=rows)
    (group,) = records.grouped(records.read(run).records)
    wanted = {
        "last10": (400, [3.2, 13.2]),
        "last": (400, [2, 12]),
        "best": (400, [9, 19]),
        "area": (400, [(2 + 6.5 + 5 + 1.5) / 4, (2 + 6.5 + 5 + 1.5) / 4 + 10]),
        "metric:rate": (300, [0.3, 1.3]),
        "metric:fitness/max": (200, [6, 6]),
        "metric:fitness/mean": (400, [8, 8]),
        "metric:fitness/1": (400, [12, 12]),
        "metric:fitness/first:0": (400, [0, 0]),
        "metric:fitness/first:1": (400, [1, 1]),
    }
    for name, (budget, scores) in wanted.items():
        np.testing.assert_allclose(measures.measure(name).of(group, budget), scores, err_msg=name)
    np.testing.assert_allclose(measures.measure("area").of(group, 150), [462.5 / 150, 462.5 / 150 + 10])
    np.testing.assert_allclose(measures.measure("best").of(group, 100), [4, 14])
    np.testing.assert_allclose(measures.measure("metric:rate").of(group, 250), [0.3, 1.3])  # the first beyond
    refused = {
        "metric:fitness": r"ours on .* with axes \[2\]: name one of its numbers, metric:fitness/mean, /max",
        "metric:fitness/2": r"with axes \[2\].*, /0 to /1 or /first:0 to /first:1$",
        "metric:rate/0": "records 'rate' as one number: name metric:rate$",
        "metric:loss": "records no metric 'loss'; it records fitness, rate$",  # neither whose nor when
        "lst": "no measure 'lst'",
    }
    for name, told in refused.items():
        with pytest.raises(Refused, match=told):
            measures.measure(name).of(group, 400)


@pytest.mark.parametrize(
    ("lengths", "measure", "told"),
    [
        ((10, 12), "last10", "evaluations."),
        ((4, 4), "last10", "evaluations, of which there are only 4."),
        ((4, 12), "last10", "evaluations, of which some seeds have only 4."),
        ((4, 4), "best", "evaluation."),
    ],
)
def test_the_caption_tells_where_there_are_fewer_evaluations(
    lengths: tuple[int, int], measure: str, told: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "a", seeds=(0, 1), evaluations=max(lengths))
    lines = (json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines())
    # Every seed ends at the same step, but a resumed one may have been evaluated less often.
    kept = [line for line in lines if line["env_steps"] >= 100 * (max(lengths) - lengths[line["seed"]])]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    made = report([run], tmp_path / "out", measure=measure)
    assert made.caption.endswith(told)
    assert made.caption in made.page.read_text()


def test_statistics_of_a_table(tmp_path: Path) -> None:
    """Seeds score 0, 1, 2, 3 and 10: their mean is 3.2, their median 2, the mean of the middle half 2."""
    level = lambda seed, place: 10.0 if seed == 4 else float(seed)  # noqa: E731
    run = make_run(tmp_path / "a", level=level)
    cells = {
        name: report([run], tmp_path / name, measure="best", statistic=name).table.rows[0][1]
        for name in ("mean", "median", "iqm")
    }
    assert cells["mean"] == "3.2 ± 4.0 (5)"
    assert cells["median"] == "2.0 [0.0, 10.0] (5)"
    assert re.fullmatch(r"2\.0 \[0\.\d, [2-9]\.\d\] \(5\)", cells["iqm"])
