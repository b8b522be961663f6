"""Film a population that learns: four agents of Collaborative Exploration on Pendulum, at three times.

python docs/film.py    # two minutes on two cores; writes docs/_static/population.webp
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import popjax
from popjax import rollout
from popjax.agents import sac
from popjax.methods import ce

OUT = Path(__file__).parent / "_static/population.webp"
TIMES = (1_000, 3_000, 10_000)  # environment steps of all agents after which these are filmed
AGENTS = ("best", "second", "third", "worst")
EVERY = 2  # environment steps, of 0.05 s each, between two frames
STARTS = 16  # episodes, of which the mean return ranks agents; the first is filmed


def main() -> None:
    """Train, play and draw."""
    env = popjax.make("gymnax/Pendulum-v1")
    config = ce.Config(
        learner=sac.Config(hidden=(64, 64)),
        population=len(AGENTS),
        batch=128,
        capacity=20_000,
        warmup=TIMES[0],
    )
    method = ce.build(env, config)
    hyper = method.hyper.replace(learner=sac.Hyper(actor_lr=1e-3, critic_lr=1e-3, temperature_lr=1e-3))

    @jax.jit
    def train(state, count):
        return jax.lax.fori_loop(0, count, lambda _, state: method.step(state), state)

    @jax.jit
    def play(state):
        """Return mean returns [P], and the angles [P, T] of one episode each."""

        def one(policy, key):
            def choose(memory, obs, key):
                return method.act(policy, memory, obs, key, 0.0)[:2]

            def record(obs, action, timestep):
                return jnp.arctan2(obs[1], obs[0])

            return rollout.episode(env, choose, method.memory, key, record=record)

        keys = jax.random.split(jax.random.key(3), STARTS)  # the same starts for every agent at every time
        played = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(method.individuals(state), keys)
        return played.total.mean(1), played.steps[:, 0]

    state = jax.jit(method.init)(jax.random.key(0), hyper)
    scenes = []
    for time in TIMES:
        state = train(state, (time - int(state.env_steps)) // method.steps_bound)
        returns, angles = jax.device_get(play(state))
        order = np.argsort(-returns)
        scenes.append((int(state.env_steps), returns[order], angles[order]))
        print(f"{int(state.env_steps)} environment steps: mean returns {returns[order].round()}")
    first, *rest = list(draw(scenes))
    first.save(OUT, save_all=True, append_images=rest, duration=50 * EVERY, loop=0, quality=60)
    print(f"{OUT}: {1 + len(rest)} frames, {OUT.stat().st_size / 1e6:.2f} MB")


def draw(scenes):
    """Yield the frames: a row for each time, a column for each agent."""
    figure, axes = plt.subplots(len(scenes), len(AGENTS), figsize=(6.4, 5.3), dpi=100)
    figure.subplots_adjust(0.05, 0.01, 0.99, 0.93, wspace=0.04, hspace=0.16)
    rods = np.empty_like(axes)
    for row, (steps, returns, _) in enumerate(scenes):
        axes[row, 0].set_ylabel(f"{steps:,} steps", weight="bold")
        for column, total in enumerate(returns):
            axis = axes[row, column]
            axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
            axis.set_title(f"return {total:.0f}", fontsize=9, pad=3)
            (rods[row, column],) = axis.plot([], [], color="tab:blue", linewidth=6, solid_capstyle="round")
            axis.plot([0], [0], "o", color="0.2", markersize=5)
    for column, name in enumerate(AGENTS):
        axes[0, column].annotate(name, (0.5, 1.18), xycoords="axes fraction", ha="center", weight="bold")
    canvas = FigureCanvasAgg(figure)
    for t in range(0, scenes[0][2].shape[1], EVERY):
        for row, (_, _, angles) in enumerate(scenes):
            for rod, angle in zip(rods[row], angles[:, t], strict=True):
                rod.set_data([0, -np.sin(angle)], [0, np.cos(angle)])
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


if __name__ == "__main__":
    main()
