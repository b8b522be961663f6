"""Race searches over hyperparameters against each other: whole populations, several seeds of each, equal
environment steps.

    python benchmarks/race.py --tasks sac-pendulum ppo-cartpole --out benchmarks/results/race.json

Every row is one program with all seeds of one search on one task. ``fixed`` trains the same population with
the default hyperparameters; the other searches differ from ``pbt`` only in their decisions. The fitness of an
individual is its mean return over its last episodes in training; "best" and "mean" are over the population. A
row that the JSON file already has is not run again. The figure beside it draws them with 95% bootstrap
intervals over seeds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import popjax
from benchmarks import record
from popjax.agents import ppo, sac
from popjax.evolution import search
from popjax.methods import pbt

SEARCHES: dict[str, Any] = {
    "pbt": search.Pbt(),
    "mf": search.MultipleFrequencies((1, 2, 4, 8)),
    "halving": search.Halving(),
    "random": search.Random(),
    "fixed": search.Random(),
}
COMMON = ppo.Config(policy_epochs=4, value_epochs=4, minibatches=4)
RATES = "1e-6:1e-1:log"  # most of which are too small or too large
SMALL = {"warmup": 256, "batch": 64, "capacity": 20_000}
TASKS: dict[str, tuple[str, Any, dict[str, Any], tuple[str, ...], int, int]] = {
    "sac-pendulum": (
        "gymnax/Pendulum-v1",
        sac.Config(hidden=(64, 64)),
        SMALL,
        (f"hyper.actor_lr={RATES}", f"hyper.critic_lr={RATES}"),
        500,
        8_000,
    ),
    "ppo-cartpole": ("gymnax/CartPole-v1", COMMON, {"steps": 64}, (), 2_000, 50_000),
    "ppo-breakout": ("gymnax/Breakout-MinAtar", COMMON, {"steps": 64}, (), 20_000, 500_000),
}
"""Task, agent, sizes, evolved hyperparameters, and environment steps of an agent: between ready points, in
all."""
COLOURS = {"pbt": "#0072B2", "mf": "#D55E00", "halving": "#009E73", "random": "#CC79A7", "fixed": "#000000"}


@dataclass(frozen=True)
class Arguments:
    """Choices of what is run."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which tasks."""
    searches: tuple[str, ...] = tuple(SEARCHES)
    """Which searches."""
    population: int = 16
    """Individuals of each population."""
    seeds: int = 5
    """Populations of each search."""
    fraction: float = 1.0
    """Fraction of every task's budget and of its interval; the number of ready points stays."""
    out: Path = Path("runs/race.json")
    """JSON file for the results; the figure goes beside it."""


def run(task: str, name: str, arguments: Arguments) -> dict[str, Any]:
    """Train all seeds of one search on one task; return its curves [seeds, points] and its cost."""
    place, agent, sizes, evolve, interval, budget = TASKS[task]
    env = popjax.make(place)
    config = pbt.configured(
        agent,
        population=arguments.population,
        search=SEARCHES[name],
        evolve=evolve,
        interval=int(interval * arguments.fraction),
        **sizes,
    )
    method = pbt.build(env, config)
    hyper = method.hyper
    if name == "fixed":  # hyperparameters given for each individual are not drawn
        given = {prior.name: getattr(hyper, prior.name) for prior in pbt.evolved(config)}
        each = {key: np.full(arguments.population, value, np.float32) for key, value in given.items()}
        hyper = hyper.replace(**each)
    steps = int(budget * arguments.fraction) * arguments.population
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(index: int, history: Any) -> None:
        seen.append((history.env_steps, history.metrics.fitness))

    begun = time.perf_counter()
    every = max(steps // 40, method.steps_bound)
    result = popjax.train(
        method,
        env,
        env_steps=steps,
        seeds=arguments.seeds,
        eval_every=steps,
        eval_episodes=20,
        log_every=every,
        hyper=hyper,
        sinks=[watch],
        quiet=True,
    )
    seconds = time.perf_counter() - begun
    counted = np.concatenate([at for at, _ in seen], 1)
    fitness = np.concatenate([values for _, values in seen], 1)  # [S, C, P]
    return {
        "task": task,
        "search": name,
        "env_steps_of_all": counted[0].tolist(),
        "best": np.round(fitness.max(-1), 2).tolist(),
        "mean": np.round(fitness.mean(-1), 2).tolist(),
        "evaluation": np.round(result.returns, 2).tolist(),
        "seconds": round(seconds, 1),
    }


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% bootstrap interval of the mean over the first axis."""
    draws = np.random.default_rng(0).integers(0, len(values), (2_000, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975], 0)
    return low, high


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw best and mean of every search on every task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = Figure((10, 3.4 * len(tasks)), dpi=110, layout="constrained")
    for (left, right), task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
        for axes, what in (left, "best"), (right, "mean"):
            for row in rows:
                if row["task"] != task:
                    continue
                steps, values = np.array(row["env_steps_of_all"]), np.array(row[what])
                low, high = interval(values)
                axes.plot(steps, values.mean(0), color=COLOURS[row["search"]], label=row["search"])
                axes.fill_between(steps, low, high, color=COLOURS[row["search"]], alpha=0.15, linewidth=0)
            axes.set(title=f"{task}: {what} of the population", xlabel="environment steps of a population")
            axes.set_ylabel("mean return of the last episodes")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(alpha=0.25)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(SEARCHES), frameon=False)
    figure.savefig(file)


def main(arguments: Arguments) -> None:
    """Run what is missing, write and draw."""
    record.check_known(arguments.tasks, TASKS)
    record.check_known(arguments.searches, SEARCHES)
    rows, _ = record.kept(arguments.out)
    for task in arguments.tasks:
        for name in arguments.searches:
            if any((row["task"], row["search"]) == (task, name) for row in rows):
                continue
            rows.append(run(task, name, arguments))
            last = [round(float(np.mean(rows[-1][key], 0)[-1]), 1) for key in ("best", "mean")]
            print(task, name, rows[-1]["seconds"], *last, flush=True)
            record.write(arguments.out, population=arguments.population, seeds=arguments.seeds, rows=rows)
    draw(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
