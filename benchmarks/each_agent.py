"""Returns of every agent of a run over training, as on the left of Collaborative Exploration's figure 8.

    python benchmarks/reproduce.py ce-figure8
    python benchmarks/each_agent.py runs/replica --out runs/agents.json

plays every agent greedily, all from the same starts, at each checkpoint that the run has kept
(``--keep-checkpoints`` of run.py), and draws the agents of the first seed. The JSON file has the mean returns
of all seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax import Array

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax.cli import building
from popjax.host.report import charts
from popjax.host.report.records import Curve, Group
from popjax.host.training import evaluation


@dataclass(frozen=True)
class Arguments:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    out: Path
    """JSON file for the results; the figure has its name."""
    episodes: int = 10
    """Episodes of each agent at each checkpoint [count]."""
    seed: int = 0
    """Seed of the episodes."""


def player(run: building.Loaded, arguments: Arguments) -> Callable[[Any], Array]:
    """Return the function from a State [S, ...] to the mean returns [S, P] of its agents."""
    individuals, key = trained.individuals(run), jax.random.key(arguments.seed)

    def one(params: Any) -> Array:
        return evaluation.play(run.env, run.method, params, key, arguments.episodes)[0].mean()

    return jax.jit(jax.vmap(lambda state: jax.vmap(one)(individuals(state))))


def study(arguments: Arguments) -> tuple[np.ndarray, np.ndarray, str]:
    """Return environment steps [C] of the checkpoints, mean returns [C, S, P], and the task."""
    play, task, found = None, "", {}
    for steps, run in trained.checkpoints(arguments.run):
        play = play or player(run, arguments)  # compiled once
        task = run.saved["env"]
        found[steps] = np.asarray(play(run.state))
    return np.array(list(found)), np.stack(list(found.values())), task


def draw(steps: np.ndarray, returns: np.ndarray, title: str, file: Path) -> None:
    """Draw a curve for each agent of the first seed, of returns [C, S, P]."""
    names = [f"agent {agent}" for agent in range(returns.shape[-1])]
    groups = [
        Group(name, title, (), (Curve(0, steps, own),))
        for name, own in zip(names, returns[:, 0].T, strict=True)
    ]
    charts.learning_curves(title, groups, charts.styles(names)).savefig(file)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Study, print and write."""
    record.check_counts(episodes=[arguments.episodes])
    steps, returns, task = study(arguments)
    rows = [
        {"env_steps": int(at), "return_by_seed_and_agent": own.astype(float).round(2).tolist()}
        for at, own in zip(steps, returns, strict=True)
    ]
    record.write(arguments.out, runs=[trained.origin(arguments.run)], rows=rows)
    draw(steps, returns, f"{task}, every agent of {arguments.run.name}", arguments.out.with_suffix(".png"))
    print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
