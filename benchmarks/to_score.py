"""Compare the seconds that popjax and other trainers take to reach a score: SAC on Pendulum-v1 and Brax's
Hopper, PPO on CartPole-v1 and MinAtar's Breakout.

    python benchmarks/to_score.py --python /tmp/peers/bin/python --out benchmarks/results/to-score-cpu.json

One agent or a population, with the same networks, rates, discount, batch and gradient steps everywhere; the
rest (initial weights, treatment of time limits, PPO's clipping of gradients and weighting of advantages) is
each trainer's own. Every seed is a new process. Trainers take turns, seed by seed, so that a noisy machine is
noisy for all. The clock starts with the process and stops while the agents are scored: each plays the same
ten episodes by its most likely actions, and the score is the mean over all episodes of all agents. The
seconds of the first chunk, which include imports and compiling, are also given separately. See ``peers.py``
for ``--python`` and ``--evorl``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import trainers  # noqa: E402
from benchmarks.processes import Others, versions  # noqa: E402
from benchmarks.trainers import PEERS, Cannot, Work, task_class  # noqa: E402

EPISODES = 10


@dataclass(frozen=True)
class Task:
    """The task, and the score at which a run ends."""

    work: Work
    """The iterations are those between two scores."""
    score: float
    """Mean return over agents, of ten episodes each, that ends a run."""
    env_steps: int
    """Environment steps of each agent after which a run is given up."""


TASKS = {
    "sac-pendulum": Task(Work(iterations=500), score=-200.0, env_steps=20_000),
    "ppo-cartpole": Task(
        Work("ppo", "CartPole-v1", iterations=1, lanes=64, hidden=(64, 64)), score=475.0, env_steps=500_000
    ),
    "sac-pendulum-4": Task(
        Work(population=4, iterations=500, hidden=(64, 64)), score=-200.0, env_steps=20_000
    ),
    "ppo-cartpole-16": Task(
        Work("ppo", "CartPole-v1", population=16, iterations=1, lanes=64, hidden=(64, 64)),
        score=350.0,
        env_steps=200_000,
    ),
    "ppo-breakout": Task(
        Work(
            "ppo",
            "Breakout-MinAtar",
            iterations=5,
            lanes=64,
            hidden=(64, 64),
            learning_rate=1e-3,
            entropy_weight=0.01,
        ),
        score=6.0,
        env_steps=1_000_000,
    ),
    "sac-hopper": Task(
        Work(task="brax/hopper", iterations=1_000, hidden=(64, 64), learning_rate=1e-3),
        score=1_200.0,
        env_steps=50_000,
    ),
}


@dataclass(frozen=True)
class Arguments(Others):
    """Choices of the comparison."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to train on."""
    trainers: tuple[str, ...] = ("ours", "rejax", "sbx", "qdax", "evorl")
    """Trainers to compare."""
    seeds: int = 5
    """Runs of each trainer on each task [count]."""
    limit: float = 900.0
    """Seconds to wait for a run."""


def task_functions(name: str) -> tuple[Callable[..., Any], Callable[..., Any], int]:
    """Return ``reset(key) -> (obs, state)``, ``step(state, action) -> (obs, state, reward, terminated)`` and
    the time limit of a task."""
    import jax

    if name == "brax/hopper":
        from brax import envs

        from benchmarks.trainers import on_brax

        hopper = envs.get_environment(on_brax.HOPPER)

        def begun(key: Any) -> Any:
            state = hopper.reset(key)
            return state.obs, state

        def moved(state: Any, action: Any) -> Any:
            state = hopper.step(state, action)
            return state.obs, state, state.reward, state.done > 0

        return begun, moved, on_brax.HOPPER_EPISODE
    task = task_class(name)()
    constants = task.default_params

    def step(state: Any, action: Any) -> Any:
        return task.step_env(jax.random.key(0), state, action, constants)[:4]  # the physics draws nothing

    return lambda key: task.reset_env(key, constants), step, constants.max_steps_in_episode


def scorer(name: str, population: int = 1) -> Callable[[Callable[[Any], Any]], float]:
    """Return ``score(act)``, the mean over agents of the mean return of ten episodes, whose first states are
    the same for every agent of every trainer; ``act`` is ``Training.act``."""
    import jax
    import jax.numpy as jnp

    reset, play, length = task_functions(name)
    first = jax.jit(jax.vmap(reset))(jax.random.split(jax.random.PRNGKey(0), EPISODES))
    obs, state = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], population, 0), first)
    shape = (population, EPISODES)
    step = jax.jit(jax.vmap(jax.vmap(play)))

    def score(act: Callable[[Any], Any]) -> float:
        lanes, seen, total, going = state, obs, jnp.zeros(shape), jnp.ones(shape, bool)
        for _ in range(length):
            seen, lanes, reward, terminated = step(lanes, jnp.asarray(act(seen)))
            total += jnp.where(going, reward.reshape(shape), 0)
            going &= ~terminated.reshape(shape)
            if not going.any():
                break
        return float(total.mean())

    return score


def work(name: str, amount: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Train in this process until the score is reached; print one line."""
    begun = time.perf_counter()
    with trainers.answering() as answer:
        asked = trainers.sent(amount)
        training = trainers.build(name, asked)
        if training.act is None:
            raise Cannot("shows no policy")
        env_steps = training.chunk() // asked.population
        first = seconds = time.perf_counter() - begun
        score, scores = scorer(asked.task, asked.population), [[env_steps, round(seconds, 3), None]]
        while True:
            reached = score(training.act)
            scores[-1][2] = round(reached, 2)
            if reached >= arguments["score"] or env_steps >= arguments["env_steps"]:
                break
            begun = time.perf_counter()
            env_steps += training.chunk() // asked.population
            seconds += time.perf_counter() - begun
            scores.append([env_steps, round(seconds, 3), None])
        said = {"reached": reached >= arguments["score"], "env_steps": env_steps, "seconds": seconds}
        answer(**said, first_chunk_seconds=first, scores=scores)


def run(task: str, name: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Return one row: a trainer with one seed."""
    asked = TASKS[task]
    stop = {"score": asked.score, "env_steps": asked.env_steps}
    said = arguments.ask(__file__, name, asdict(replace(asked.work, seed=seed)), stop)
    return {"task": task, "trainer": name, "seed": seed} | said


def pace(rows: list[dict[str, Any]]) -> float | None:
    """Return the seconds that 1,000 steps of each agent take once everything is compiled: the median over
    runs, None if none went beyond its first chunk."""
    ends = [(row["scores"][0], row["scores"][-1]) for row in rows if len(row.get("scores", ())) > 1]
    paces = [1_000 * (last[1] - first[1]) / (last[0] - first[0]) for first, last in ends]
    return float(f"{statistics.median(paces):.3g}") if paces else None


def medians(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each task and trainer, the seeds that reached the score and the median over seeds of each
    number, None if half never reach it; the ``pace``; or what the trainer cannot do."""
    found: list[dict[str, Any]] = []
    for task, name in dict.fromkeys((row["task"], row["trainer"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["trainer"]) == (task, name)]
        if all("cannot" in row for row in mine):
            found.append({"task": task, "trainer": name, "cannot": mine[0]["cannot"]})
            continue

        def median(value: Callable[[dict[str, Any]], float], mine: list[Any] = mine) -> float | None:
            middle = statistics.median(value(row) if row.get("reached") else float("inf") for row in mine)
            return round(middle, 2) if middle < float("inf") else None

        found.append(
            {
                "task": task,
                "trainer": name,
                "seeds": len(mine),
                "reached": sum(row.get("reached", False) for row in mine),
                "env_steps": median(lambda row: row["env_steps"]),
                "seconds": median(lambda row: row["seconds"]),
                "seconds_beyond_the_first_chunk": median(
                    lambda row: row["seconds"] - row["first_chunk_seconds"]
                ),
                "seconds_for_1000_steps": pace(mine),
            }
        )
    return found


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw scores over seconds, a line for each seed."""
    from matplotlib.figure import Figure

    scored = [row for row in rows if "scores" in row]
    tasks = list(dict.fromkeys(row["task"] for row in scored))
    names = list(dict.fromkeys(row["trainer"] for row in scored))
    columns = min(2, len(tasks))
    rows_of_axes = -(-len(tasks) // columns)
    figure = Figure(figsize=(6 * columns, 4 * rows_of_axes), layout="constrained")
    for place, task in enumerate(tasks):
        axes = figure.add_subplot(rows_of_axes, columns, place + 1)
        for row in (row for row in scored if row["task"] == task):
            _, seconds, scores = zip(*row["scores"], strict=True)
            name = "popjax" if row["trainer"] == "ours" else row["trainer"]
            colour = "black" if name == "popjax" else f"C{names.index(name)}"
            axes.plot(seconds, scores, color=colour, label=name if row["seed"] == 0 else None, alpha=0.8)
        axes.set(xlabel="seconds since the process began, scoring left out", ylabel="mean return, greedy")
        work = TASKS[task].work
        agents = f"{work.population} agents" if work.population > 1 else "one agent"
        axes.set_title(f"{work.algorithm.upper()} on {work.task}, {agents}")
        axes.axhline(TASKS[task].score, color="grey", linestyle=":")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main(arguments: Arguments) -> None:
    """Run, print and write after every run; a run that the JSON file already has is not run again."""
    from benchmarks import record

    record.check_known(arguments.tasks, TASKS)
    record.check_known(arguments.trainers, ("ours", *PEERS))
    record.check_counts(seeds=[arguments.seeds])
    rows, _ = record.kept(arguments.out)
    had = {(row["task"], row["trainer"], row["seed"]) for row in rows}
    for task, seed, name in itertools.product(arguments.tasks, range(arguments.seeds), arguments.trainers):
        if (task, name, seed) in had:
            continue
        row = run(task, name, seed, arguments)
        print(json.dumps({k: v for k, v in row.items() if k != "scores"}), flush=True)
        rows = sorted([*rows, row], key=lambda row: list(TASKS).index(row["task"]))
        scores = {row["task"]: TASKS[row["task"]].score for row in rows}
        told = {"peers": versions(arguments.python), "scores": scores, "medians": medians(rows)}
        record.write(arguments.out, **told, rows=rows)
    if arguments.out and any("scores" in row for row in rows):
        draw(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[-3], json.loads(sys.argv[-2]), json.loads(sys.argv[-1]))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
