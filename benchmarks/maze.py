"""A maze with two goals, and where the agents of a run go in it: Collaborative Exploration's figure 5.

    python benchmarks/reproduce.py ce-figure5
    python benchmarks/maze.py runs/maze --out runs/maze.json

The paper gives a picture of its maze and no numbers: here a point starts at the left of a square, behind a
wall that it can pass above or below, and both goals are on the right, one at either end. The study plays
every agent of a run, as it explores in training, at each checkpoint that there is; it writes how often each
goal is reached, and the paths as a figure beside it, a panel for each checkpoint and a colour for each agent.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax import rollout
from popjax.cli import building
from popjax.core import Env, Key, Spec, Timestep
from popjax.host.errors import Refused

START = (-0.9, 0.0)
GOALS = ((0.9, 0.8), (0.9, -0.8))
WALL, REACH, SPEED = 0.5, 0.15, 0.1  # half the wall's height at x = 0, a goal's radius, a step's length
COLOURS = ("tab:blue", "tab:brown", "tab:green", "tab:orange")


def make(length: int = 100) -> Env:
    """Return the maze: obs is the place [2], an action [2] a step; at a goal, the reward is 1 and the episode
    ends."""

    def reset(key: Key) -> tuple[Any, Array]:
        place = jnp.array(START)
        return (place, jnp.int32(0)), place

    def step(state: Any, action: Array) -> tuple[Any, Timestep]:
        place, time = state
        moved = jnp.clip(place + SPEED * action, -1.0, 1.0)
        crosses = (place[0] * moved[0] <= 0) & (jnp.abs(place[1] + moved[1]) / 2 < WALL)
        place = jnp.where(crosses, place, moved)
        arrived = reached(place).any()
        time = time + 1
        timestep = Timestep(
            obs=place,
            next_obs=place,
            reward=jnp.float32(arrived),
            terminated=arrived,
            truncated=(time >= length) & ~arrived,
        )
        return (place, time), timestep

    return Env(reset, step, Spec("maze", (2,), 2, length))


def reached(place: Array) -> Array:
    """Return bool [..., 2]: whether each goal is reached at places [..., 2]."""
    return jnp.linalg.norm(place[..., None, :] - jnp.array(GOALS), axis=-1) < REACH


@dataclass(frozen=True)
class Arguments:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run in the maze."""
    out: Path
    """JSON file for the results; the figure of the first seed has its name."""
    episodes: int = 10
    """Episodes of each agent at each checkpoint [count]."""
    seed: int = 0
    """Seed of the play."""


def play(run: building.Loaded, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the paths float [S, P, episodes, T, 2] of every seed's agents, and the steps of each [S, P,
    episodes]."""
    individuals, exploration = trained.individuals(run), run.method.exploration

    def one(params: Any, scale: Array, key: Key) -> tuple[Array, Array]:
        def choose(memory: Any, obs: Array, key: Key) -> tuple[Any, Array]:
            return run.method.act(params, memory, obs, key, scale)[:2]

        found = rollout.episode(run.env, choose, run.method.memory, key, record=lambda obs, *_: obs)
        return found.steps, found.length

    @jax.jit
    @jax.vmap
    def everybody(state: Any) -> tuple[Array, Array]:
        params, scale = individuals(state), exploration(state)  # type: ignore[misc]
        keys = jax.random.split(jax.random.key(seed), episodes)
        several = jax.vmap(one, (None, None, 0))
        return jax.vmap(several, (0, None, None))(params, scale, keys)

    paths, lengths = everybody(run.state)
    return np.asarray(paths), np.asarray(lengths)


def study(arguments: Arguments) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return the result of ``play`` for each checkpoint, by environment steps."""
    task = trained.config(arguments.run)["env"]
    if task.partition(":")[0].rpartition(".")[2] != "maze":
        raise Refused(f"{arguments.run} is a run on {task}; name a run on benchmarks.maze:make")
    each = trained.checkpoints(arguments.run)
    return {steps: play(run, arguments.episodes, arguments.seed) for steps, run in each}


def ends(paths: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the share [S, P, 2] of an agent's episodes in which it comes within a step of each goal."""
    near = np.linalg.norm(paths[..., None, :] - np.array(GOALS), axis=-1) < REACH + 1.5 * SPEED
    played = np.arange(paths.shape[-2]) < lengths[..., None]
    return (near & played[..., None]).any(-2).mean(-2)


def draw(found: dict[int, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw the paths of the first seed."""
    figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (steps, (paths, lengths)) in zip(panels, found.items(), strict=True):
        for agent, (own, played) in enumerate(zip(paths[0], lengths[0], strict=True)):
            for line, count in zip(own, played, strict=True):
                panel.plot(*line[:count].T, color=COLOURS[agent % len(COLOURS)], linewidth=0.8, alpha=0.7)
        panel.plot([0, 0], [-WALL, WALL], color="black", linewidth=3)
        for goal in GOALS:
            panel.plot(*goal, marker="*", color="tab:red", markersize=12)
        panel.set(
            title=f"{steps:,} steps", xlabel="x", ylabel="y", xlim=(-1, 1), ylim=(-1, 1), aspect="equal"
        )
    figure.savefig(path)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Study, print and write."""
    found = study(arguments)
    shares = {steps: ends(*played) for steps, played in found.items()}
    rows = [
        {
            "env_steps": steps,
            "share_of_episodes_by_seed_agent_goal": share.round(3).tolist(),
            "seeds_in_which_both_goals_are_found": float((share.max(1) > 0).all(-1).mean()),
        }
        for steps, share in shares.items()
    ]
    record.write(arguments.out, runs=[trained.origin(arguments.run)], rows=rows)
    draw(found, arguments.out.with_suffix(".png"))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
