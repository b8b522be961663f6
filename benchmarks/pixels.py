"""Pictures of MuJoCo scenes per second: ray-cast in JAX, and drawn by the other renderers of this machine.

    MUJOCO_GL=egl python benchmarks/pixels.py

draws cheetah-run, walker-run and cartpole-swingup at 84 x 84 from random poses in 1, 8 and 32 lanes: with
``envs.raycast``, including kinematics; with ``mjx.render`` on Warp, from known positions of the geoms
(``pip install 'popjax[warp]'``); and with OpenGL, as ``MUJOCO_GL`` says, one picture after the other,
including physics. Missing renderers are recorded as absent. It reports pictures per second, and per second of
this process's processor time, which other programs disturb less (the best of several rounds, in which the
ways take turns), and the seconds of compiling; then a whole step of the environment in 8 lanes, the share of
it that the picture costs, and DrQ's gradient steps. Writes ``--out``, by default ``pixels-BACKEND.json`` in
``benchmarks/results``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax.agents import drq
from popjax.core import as_arrays, example_transition
from popjax.envs import dmc, make, pixels

RESULTS = Path(__file__).parent / "results"
TASKS, LANES, SIDE = ("cartpole-swingup", "cheetah-run", "walker-run"), (1, 8, 32), 84
ROUNDS, PICTURES, STEPS, STEP_LANES = 5, 256, 8, 8


def poses(task: str, lanes: int) -> np.ndarray:
    """Return random positions float32 [lanes, nq] around the model's initial one."""
    chance, model = np.random.default_rng(0), dmc.load(task)
    return np.float32(model.qpos0 + 0.1 * chance.normal(size=(lanes, model.nq)))


@dataclass(frozen=True)
class Way:
    """One way to do something: ``work`` does it ``count`` times."""

    count: int
    work: Callable[[], Any]
    facts: dict[str, Any] = field(default_factory=dict)


def best(ways: dict[str, Way]) -> dict[str, dict[str, Any]]:
    """Return the best rates of every way over several rounds, in which the ways take turns."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun, spent = time.perf_counter(), time.process_time()
            way.work()
            wall, processor = time.perf_counter() - begun, time.process_time() - spent
            rates[name].append((way.count / wall, way.count / processor))
    found = {}
    for name, rounds in rates.items():
        wall, processor = map(max, zip(*rounds, strict=True))
        found[name] = {"per_second": round(wall, 1), "per_processor_second": round(processor, 1)}
    return {name: rate | ways[name].facts for name, rate in found.items()}


def compiled(function: Callable[..., Any], *given: Any) -> tuple[Any, dict[str, float]]:
    """Return the compiled program, after one run, and the seconds of tracing and compiling."""
    begun = time.perf_counter()
    program = jax.jit(function).lower(*given).compile()
    seconds = time.perf_counter() - begun
    jax.block_until_ready(program(*given))
    return program, {"compile_seconds": round(seconds, 1)}


def repeated(program: Callable[..., Any], given: Any, calls: int, each: int, facts: dict[str, Any]) -> Way:
    """Return the way whose rounds are ``calls`` calls of a program that does its work ``each`` times."""

    def work() -> None:
        for _ in range(calls):
            jax.block_until_ready(program(given))

    return Way(calls * each, work, facts)


def by_rays(task: str, lanes: int) -> Way:
    see = jax.vmap(lambda qpos: pixels.painter(task, SIDE, SIDE, 0)(qpos, ()))
    given = jnp.asarray(poses(task, lanes))
    program, facts = compiled(see, given)
    return repeated(program, given, PICTURES // lanes, lanes, facts)


def by_warp(task: str, lanes: int) -> Way:
    """Return the way by MJX's ray tracer on Warp, with shadows off."""
    import warp

    from popjax.host.deploy import video

    warp.config.log_level = warp.LOG_ERROR
    from mujoco import mjx

    model = dmc.load(task)
    model.opt.solver, model.opt.enableflags = mujoco.mjtSolver.mjSOL_NEWTON, 0
    cameras = [camera == 0 for camera in range(model.ncam)]
    options = {"nworld": lanes, "cam_res": (SIDE, SIDE), "cam_active": cameras, "render_rgb": True}
    scene = mjx.create_render_context(model, **options)
    physics, handle = mjx.put_model(model, impl="warp"), scene.pytree()
    least = jax.vmap(lambda _: mjx.make_data(model, impl="warp", naconmax=1, naccdmax=1, njmax=1))
    empty = least(jnp.arange(lanes))
    placed = [video._placed(data) for data in video._posed(model, poses(task, lanes))]
    stacked = {name: np.stack([one[name] for one in placed]) for name in placed[0]}

    def draw(placed: dict[str, Any]) -> Any:
        data = mjx.refit_bvh(physics, empty.tree_replace(placed), handle)
        return mjx.get_rgb(handle, 0, mjx.render(physics, data, handle)[0])

    program, facts = compiled(draw, stacked)
    shown = np.asarray(program(stacked))
    assert len({picture.tobytes() for picture in shown}) == lanes, "every lane has a pose of its own"
    # Keep the context alive, since the program uses it.
    return repeated(lambda given, kept=scene: program(given), stacked, PICTURES // lanes, lanes, facts)


def by_opengl(task: str, lanes: int) -> Way:
    if "MUJOCO_GL" not in os.environ:
        raise RuntimeError("MUJOCO_GL is not set")  # GLFW ends the process if there is no display
    model = dmc.load(task)
    data, renderer, given = mujoco.MjData(model), mujoco.Renderer(model, SIDE, SIDE), poses(task, lanes)

    def work() -> None:
        for qpos in given:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera=0)
            renderer.render()

    work()
    return Way(lanes, work, {"by": os.environ["MUJOCO_GL"]})


def drawn(task: str, lanes: int) -> dict[str, Any]:
    """Return the rates of every way that this machine has."""
    ways, absent = {"rays": by_rays(task, lanes)}, {}
    for name, way in (("mjx_render", by_warp), ("opengl", by_opengl)):
        try:
            ways[name] = way(task, lanes)
        except Exception as failure:  # drivers fail in their own ways
            absent[name] = {"absent": f"{type(failure).__name__}: {failure}".splitlines()[0][:120]}
    return best(ways) | absent


def stepped(lanes: int) -> dict[str, Any]:
    """Return the rates of cartpole-swingup in lanes, with and without pixels; a step is eight of physics."""
    ways: dict[str, Way] = {}
    # The numbers of calls make rounds of both last about equally long.
    for name, env, calls in (
        ("pixels", make("pixels/cartpole-swingup", size=SIDE), 1),
        ("states", make("dmc/cartpole-swingup", action_repeat=8), 16),
    ):
        spec, (key_reset, key_act) = env.spec, jax.random.split(jax.random.key(0))
        states, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(key_reset, lanes))
        actions = jax.random.uniform(key_act, (STEPS, lanes, spec.action_dim), minval=-1.0, maxval=1.0)

        def play(states: Any, actions: Any, step: Any = env.step) -> Any:
            return jax.lax.scan(jax.vmap(step), states, actions)[1].next_obs

        program, facts = compiled(play, states, actions)
        ways[name] = repeated(partial(program, states), actions, calls, STEPS * lanes, facts)
    found: dict[str, Any] = best(ways)
    share = found["pixels"]["per_processor_second"] / found["states"]["per_processor_second"]
    return found | {"share_of_pictures": round(1 - share, 3)}


def learned() -> dict[str, Any]:
    """Return the rates of DrQ's gradient steps on 256 rows of 64 x 64 x 9."""
    spec = make("pixels/cartpole-swingup").spec
    agent, hyper = drq.build(spec), as_arrays(drq.Hyper())
    row = example_transition(spec)
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (256, *x.shape)), row)
    state = jax.jit(agent.init)(jax.random.key(0), hyper)
    program, facts = compiled(agent.learn, state, batch, hyper, jax.random.key(1))
    way = repeated(partial(program, state, batch, hyper), jax.random.key(1), 1, 1, facts)
    return best({"drq": way})["drq"]


def main(out: Path | None = None, note: str = "") -> None:
    """Measure, write and print.

    Args:
        out: JSON file for the results.
        note: kept with the figures, such as what else was running.
    """
    place = out or RESULTS / f"pixels-{jax.default_backend()}.json"
    pictures: dict[str, Any] = {}
    found: dict[str, Any] = {"note": note} if note else {}
    found |= {"size": SIDE, "pictures": pictures}
    for task in TASKS:
        pictures[task] = {str(lanes): drawn(task, lanes) for lanes in LANES}
        record.write(place, **found)
    found["environment"] = {"lanes": STEP_LANES} | stepped(STEP_LANES)
    record.write(place, **found)
    found["drq_updates"] = learned()
    record.write(place, **found)
    print(place.read_text(encoding="utf-8"))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
