"""Export learning curves from run directories to small files that are kept with the code.

    python scripts/run.py pderl --env brax/inverted_pendulum --env-steps 120000 --run-dir runs/pendulum
    python benchmarks/returns.py runs/pendulum

writes ``benchmarks/results/pendulum.json``, which holds the command, the commit, the hardware, the seeds, the
summary and every evaluation, and the curve beside it as PNG, against environment steps and, in
``pendulum-time.png``, against time. Members of the run are its seeds or, if hyperparameters were swept, those
in the summary (and there is no curve of all). A member's score is the mean of its last ten evaluations; the
record has every score, their interquartile mean and its bootstrap interval, and the area under each
member's curve up to the budget, its mean return over training. The summary has each member's last metrics,
such as the environment steps when CA2E's prior actors retired (-1: never). With ``--together NAME`` all runs
given are also drawn into ``benchmarks/results/NAME.png`` and ``NAME-time.png``: the mean of each over its
seeds, and one standard deviation around it.

``gym-swimmer-transfer.json`` holds the means and deviations that ``scripts/evaluate.py RUN --in gymnasium
--episodes 50 --json`` prints for the runs of ``gym-swimmer-*.json``; ``distilled-policies.json`` those of
``--episodes 100 --json`` for runs of ``distil`` and what they were distilled from, with the commands of all.
``cspc-*-metrics.jsonl`` are the ``metrics.jsonl`` of the runs of ``cspc-*-cspc.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import trained
from popjax.host.report import charts, measures, records
from popjax.host.report.labels import spread
from popjax.host.runs import log, rundir
from popjax.host.runs.history import Evaluation

RESULTS = Path(__file__).parent / "results"


def export(run: Path) -> Path:
    """Write the record of a run, whose summary is None while it is unfinished; return its JSON file."""
    config = trained.config(run)
    evaluations = log.read_lines(run / "eval.jsonl")
    curves, budget = by_member(evaluations), config["options"]["env_steps"]
    record = {
        "command": config["command"],
        "git_commit": config["git_commit"],
        "versions": config["versions"],
        "device": config["device"],
        "summary": rundir.read_summary(run),
        "evaluations": [[e["member"], e["env_steps"], round(e["return"], 2)] for e in evaluations],
        "evaluations_columns": ["member", "env_steps", "mean return"],
        "wall_seconds": [e["wall_seconds"] for e in evaluations if "wall_seconds" in e],
        "score": score(curves),
        "area": [round(measures.area(curve, budget), 2) for curve in curves],
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{run.name}.json"
    text = json.dumps(record, indent=1)
    target.write_text(text + "\n", encoding="utf-8")
    if (run / "curve.png").exists():
        shutil.copy(run / "curve.png", target.with_suffix(".png"))
    draw([run], run.name, by_time=True)
    return target


def by_member(lines: Sequence[Mapping[str, Any]]) -> list[records.Curve]:
    """Return the curve of every member, also of those that failed, from the lines of ``eval.jsonl``."""
    members: dict[int, list[Evaluation]] = {}
    for line in lines:
        members.setdefault(line["member"], []).append(log.evaluation(line))
    return [records.curve(own, own[0].seed) for own in members.values()]


def score(curves: Sequence[records.Curve]) -> dict[str, object]:
    """Return scores by member, their interquartile mean, and its 95% percentile-bootstrap interval."""
    scores = np.array([measures.last(curve, int(curve.env_steps[-1])) for curve in curves])
    middle = partial(measures.centre, statistic="iqm")
    found: dict[str, object] = {"scores": scores.round(2).tolist(), "iqm": round(middle(scores), 2)}
    if len(scores) > 1:
        drawn = stats.bootstrap((scores,), middle, method="percentile", vectorized=False, rng=0)
        found["iqm_95"] = [round(float(x), 2) for x in drawn.confidence_interval]
    return found


def draw(runs: Sequence[Path], name: str, by_time: bool = False) -> None:
    """Draw the curves of runs against environment steps, or ``by_time`` if all recorded it."""
    found = [records.read(run).records for run in runs]
    labels = spread(found, [run.name for run in runs])
    groups = records.grouped([record for own in found for record in own], labels)
    if not by_time or all(curve.seconds is not None for group in groups for curve in group.curves):
        look = charts.styles([group.label for group in groups])
        figure = charts.learning_curves(name, groups, look, by_time)
        figure.savefig(RESULTS / f"{name}{'-time' if by_time else ''}.png")


@dataclass(frozen=True)
class Arguments:
    """Runs whose learning curves are recorded."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs."""
    together: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Also draw all of them into NAME.png."""


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Write, draw and print."""
    for run in arguments.runs:  # before the first is written
        trained.config(run)
        records.read(run)
    exported = [export(run) for run in arguments.runs]
    if arguments.together:
        draw(arguments.runs, arguments.together)
        draw(arguments.runs, arguments.together, by_time=True)
    print(*exported, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
