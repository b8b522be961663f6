"""Compare how many seconds SAC of popjax and of other trainers takes to a score on Pendulum-v1.

    python benchmarks/to_score.py --python /tmp/peers/bin/python --out benchmarks/results/to-score-cpu.json

One agent with the same networks, rates, discount, batch and gradient steps everywhere; the rest (initial
weights, treatment of time limits) is each trainer's own. Every seed is a new process. Trainers take turns,
seed by seed, so that a noisy machine is noisy for all. The clock starts with the process and stands still
while the policy is scored, by its most likely actions in the same ten episodes for everyone. Seconds of the
first chunk, which hold imports and compiling, are told apart. See ``peers.py`` for ``--python`` and
``--evorl``.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.peers import Others, versions  # noqa: E402
from benchmarks.trainers import Cannot, Work  # noqa: E402

EPISODES = 10
LENGTH = 200  # environment steps of an episode


@dataclass(frozen=True)
class Arguments(Others):
    """What to compare."""

    trainers: tuple[str, ...] = ("ours", "rejax", "sbx", "qdax", "evorl")
    """Which trainers."""
    seeds: int = 5
    """Runs of each."""
    score: float = -200.0
    """Mean return of ten episodes that ends a run."""
    chunk: int = 500
    """Environment steps between two scores."""
    env_steps: int = 20_000
    """Environment steps after which a run is given up."""
    limit: float = 900.0
    """Seconds to wait for a run."""


def scorer() -> Callable[[Callable[[Any], Any]], float]:
    """Return ``score(act)``, the mean return of ten episodes whose first states are the same for everyone."""
    import jax
    import jax.numpy as jnp
    from gymnax.environments.classic_control.pendulum import Pendulum

    task = Pendulum()
    constants = task.default_params
    obs, state = jax.vmap(task.reset_env, (0, None))(jax.random.split(jax.random.key(0), EPISODES), constants)

    @jax.jit
    def step(state: Any, action: Any) -> Any:
        key = jax.random.key(0)  # the physics draws nothing
        return jax.vmap(lambda s, a: task.step_env(key, s, a, constants)[:3])(state, action)

    def score(act: Callable[[Any], Any]) -> float:
        lanes, seen, total = state, obs, jnp.zeros(EPISODES)
        for _ in range(LENGTH):
            seen, lanes, reward = step(lanes, jnp.asarray(act(seen)))
            total += reward.reshape(EPISODES)
        return float(total.mean())

    return score


def work(name: str, amount: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Train in this process until the score is reached; print one line."""
    begun = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import importlib

    amount["hidden"] = tuple(amount["hidden"])
    try:
        training = importlib.import_module(f"benchmarks.trainers.{name}").build(Work(**amount))
    except (Cannot, ImportError) as error:
        print(json.dumps({"cannot": str(error)}), file=answers, flush=True)
        return
    assert training.act, "this trainer shows no policy"
    env_steps = training.chunk()
    first = seconds = time.perf_counter() - begun
    score, scores = scorer(), [[env_steps, round(seconds, 3), None]]
    while True:
        reached = score(training.act)
        scores[-1][2] = round(reached, 2)
        if reached >= arguments["score"] or env_steps >= arguments["env_steps"]:
            break
        begun = time.perf_counter()
        env_steps += training.chunk()
        seconds += time.perf_counter() - begun
        scores.append([env_steps, round(seconds, 3), None])
    said = {"reached": reached >= arguments["score"], "env_steps": env_steps, "seconds": seconds}
    print(json.dumps(said | {"first_chunk_seconds": first, "scores": scores}), file=answers, flush=True)


def run(name: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Return one row: a trainer with one seed."""
    amount = Work(iterations=arguments.chunk, seed=seed)
    stop = {"score": arguments.score, "env_steps": arguments.env_steps}
    process = arguments.start(__file__, name, asdict(amount), stop)
    row: dict[str, Any] = {"trainer": name, "seed": seed}
    assert process.stdout
    came = select.select([process.stdout], [], [], arguments.limit)[0]
    line = process.stdout.readline() if came else ""
    if not came:
        process.kill()
    status = process.wait()
    if line:
        return row | json.loads(line)
    return row | {
        "cannot": f"ended with exit status {status}" if came else f"no end in {arguments.limit:g} s"
    }


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return, for each trainer, the median over its seeds of each number; None where half never reach the
    score."""
    found: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(row["trainer"] for row in rows if "seconds" in row):
        mine = [row for row in rows if row["trainer"] == name and "seconds" in row]

        def median(value: Callable[[dict[str, Any]], float], mine: list[Any] = mine) -> float | None:
            middle = statistics.median(value(row) if row["reached"] else float("inf") for row in mine)
            return round(middle, 2) if middle < float("inf") else None

        found[name] = {
            "env_steps": median(lambda row: row["env_steps"]),
            "seconds": median(lambda row: row["seconds"]),
            "seconds_beyond_the_first_chunk": median(lambda row: row["seconds"] - row["first_chunk_seconds"]),
        }
    return found


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw scores over seconds, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["trainer"] for row in rows if "scores" in row))
    for row in rows:
        if "scores" not in row:
            continue
        _, seconds, scores = zip(*row["scores"], strict=True)
        place = names.index(row["trainer"])
        name = "popjax" if row["trainer"] == "ours" else row["trainer"]
        label = name if row["seed"] == 0 else None
        axes.plot(seconds, scores, color="black" if name == "popjax" else f"C{place}", label=label, alpha=0.8)
    axes.set(xlabel="seconds since the process began, scoring left out", ylabel="mean return of ten episodes")
    axes.set_title("SAC on Pendulum-v1, one agent")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main(arguments: Arguments) -> None:
    """Run, print and write after every run, so that what there is survives an interruption."""
    from benchmarks import record

    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name in arguments.trainers:
            rows.append(run(name, seed, arguments))
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "scores"}), flush=True)
            record.write(
                arguments.out,
                peers=versions(arguments.python),
                score=arguments.score,
                medians=medians(rows),
                rows=rows,
            )
    if arguments.out:
        draw(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(sys.argv[-3], json.loads(sys.argv[-2]), json.loads(sys.argv[-1]))
    else:
        import tyro

        main(tyro.cli(Arguments, description=__doc__))
