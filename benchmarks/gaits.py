"""Gaits of every agent of a run: paths of head, waist and foot, as in Collaborative Exploration's figure 6.

    python benchmarks/reproduce.py ce-figure6
    python benchmarks/gaits.py runs/walker --out runs/gaits.json

plays one greedy episode of each agent from the same start, on Walker2d or Hopper, and draws height against
distance of the three points, a panel for each agent of the first seed. The JSON file has distance, length and
return of each agent of every seed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import mujoco
import numpy as np
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax import rollout
from popjax.cli import building
from popjax.core import Env, Key, Timestep
from popjax.envs import gym
from popjax.host.errors import Refused

COLOURS = {"head": "tab:orange", "waist": "tab:green", "foot": "tab:blue"}


@dataclass(frozen=True)
class Arguments:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run on gym/Walker2d or gym/Hopper."""
    out: Path
    """JSON file for the results; the figure has its name."""
    steps: int = 300
    """Environment steps that are drawn [count]."""
    seed: int = 0
    """Seed of the episode."""


def watched(env: Env) -> Env:
    """Return ``env`` that shows (positions [nq], observation) in place of the observation."""

    def reset(key: Key) -> tuple[Any, Any]:
        state, obs = env.reset(key)
        return state, (state.inner.qpos, obs)

    def step(state: Any, action: Any) -> tuple[Any, Timestep]:
        state, timestep = env.step(state, action)
        return state, replace(timestep, obs=(state.inner.qpos, timestep.obs))

    return env._replace(reset=reset, step=step)


def play(run: building.Loaded, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions [S, P, T, nq], lengths [S, P] and returns [S, P] of every agent's episode."""
    individuals = trained.individuals(run)

    def one(params: Any, key: Key) -> Any:
        def policy(memory: Any, seen: Any, key: Key) -> Any:
            return run.method.act(params, memory, seen[1], key, 0.0)[:2]

        episode = (watched(run.env), policy, run.method.memory, key)
        found = rollout.episode(*episode, record=lambda seen, *_: seen[0])
        return found.steps, found.length, found.total

    everybody = jax.jit(
        jax.vmap(lambda state: jax.vmap(one, (0, None))(individuals(state), jax.random.key(seed)))
    )
    return jax.device_get(everybody(run.state))


def points(model: Any, poses: np.ndarray) -> dict[str, np.ndarray]:
    """Return distance and height [m] of head, waist and foot, [T, 2] each."""
    data, found = mujoco.MjData(model), {name: np.zeros((len(poses), 2)) for name in COLOURS}
    torso = model.geom("torso_geom")
    for place, pose in enumerate(poses):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        axis = data.geom("torso_geom").xmat.reshape(3, 3)[:, 2]
        ends = [data.geom("torso_geom").xpos + sign * torso.size[1] * axis for sign in (1, -1)]
        found["head"][place] = max(ends, key=lambda end: end[2])[[0, 2]]
        found["waist"][place] = data.joint("thigh_joint").xanchor[[0, 2]]
        found["foot"][place] = data.geom("foot_geom").xpos[[0, 2]]
    return found


def draw(model: Any, paths: list[np.ndarray], file: Path) -> None:
    """Draw a panel for each agent's positions [T, nq]."""
    figure = Figure(figsize=(8, 1.8 * len(paths)), layout="constrained")
    axes = figure.subplots(len(paths), squeeze=False, sharex=True, sharey=True)[:, 0]
    for agent, (axis, poses) in enumerate(zip(axes, paths, strict=True)):
        for name, path in points(model, poses).items():
            axis.plot(*path.T, color=COLOURS[name], label=name, linewidth=1)
        axis.set(ylabel="height [m]", title=f"agent {agent}")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, ncols=3, loc="upper right")
    axes[-1].set_xlabel("distance [m]")
    figure.savefig(file, dpi=150)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Play, draw and write."""
    run = trained.load(arguments.run)
    suite, _, task = run.env.spec.name.partition("/")
    if suite != "gym" or task.partition("-")[0] not in ("Walker2d", "Hopper"):
        raise Refused(
            f"{run.env.spec.name} has no head, waist and foot; use gym/Walker2d-v4 or gym/Hopper-v4"
        )
    poses, lengths, returns = play(run, arguments.seed)
    kept = [own[: min(length, arguments.steps)] for own, length in zip(poses[0], lengths[0], strict=True)]
    draw(gym.load(task), kept, arguments.out.with_suffix(".png"))
    distance = np.take_along_axis(poses[..., 0], lengths[..., None] - 1, -1)[..., 0]
    told = {"distance": distance.round(3), "length": lengths, "return": returns.round(2)}
    rows = {name: values.tolist() for name, values in told.items()}
    record.write(arguments.out, runs=[trained.origin(arguments.run)], by_seed_and_agent=rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
