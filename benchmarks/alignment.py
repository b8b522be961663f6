"""Effect of alignment on a teacher's choices, as in figure 5 of Collaborative Deep Reinforcement Learning.

    python benchmarks/reproduce.py cdrl-figure5
    python benchmarks/alignment.py runs/align --out runs/alignment.json

draws the mean probability of every action on the states that the expert visits, from the metrics of a
finished run of ``align``: the teacher's, the expert's own, and the aligned teacher's, averaged over seeds and
over the last tenth of the records, since a single record has the states of one rollout. The JSON file has
them for each seed, and the divergence KL(expert || aligned) of the means in nats, at the first record and in
the last tenth.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax.host.errors import Refused

POLICIES = {"teacher": "tab:blue", "expert": "tab:orange", "aligned": "tab:green"}


@dataclass(frozen=True)
class Arguments:
    """Which run."""

    run: tyro.conf.Positional[Path]
    """Directory of a finished run of ``align``."""
    out: Path
    """JSON file for the results; the figure has its name."""


def probabilities(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the three policies' mean probabilities in lines of metrics.jsonl."""
    return {name: np.mean([row[name] for row in rows], 0) for name in POLICIES}


def divergence(expert: np.ndarray, aligned: np.ndarray) -> float:
    """Return KL(expert || aligned) [nats]."""
    return float(np.sum(expert * np.log(np.maximum(expert, 1e-12) / np.maximum(aligned, 1e-12))))


def draw(last: list[dict[str, np.ndarray]], file: Path) -> None:
    """Draw a bar for every action of each policy, mean over seeds."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots(1, len(POLICIES), sharey=True)
    for axis, (name, colour) in zip(axes, POLICIES.items(), strict=True):
        mean = np.mean([row[name] for row in last], 0)
        axis.bar(range(len(mean)), mean, color=colour)
        axis.set(
            title={"aligned": "aligned teacher"}.get(name, name), xlabel="action", xticks=range(len(mean))
        )
    axes[0].set_ylabel("mean probability")
    figure.savefig(file, dpi=150)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Read, draw and write."""
    lines = list(trained.metrics(arguments.run))
    if absent := [name for name in POLICIES if name not in lines[0]]:
        raise Refused(f"{arguments.run} records no metric {absent[0]!r}; name a run of align")
    members = sorted({line["member"] for line in lines})
    each = [[line for line in lines if line["member"] == member] for member in members]
    first = [probabilities(rows[:1]) for rows in each]
    last = [probabilities(rows[-max(len(rows) // 10, 1) :]) for rows in each]
    draw(last, arguments.out.with_suffix(".png"))
    seeds = [
        {name: values.round(4).tolist() for name, values in end.items()}
        | {"divergence": [round(divergence(x["expert"], x["aligned"]), 4) for x in (start, end)]}
        for start, end in zip(first, last, strict=True)
    ]
    record.write(arguments.out, runs=[trained.origin(arguments.run)], seeds=seeds)
    print(json.dumps(seeds))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
