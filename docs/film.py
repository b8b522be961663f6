"""Film a population that learns: PDERL's best, median and worst policies on Pendulum at three times.

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
from popjax.methods import pderl

OUT = Path(__file__).parent / "_static/population.webp"
GENERATIONS = (1, 8, 20)  # after which the population is filmed
RANKS = {"best": 0, "median": 3, "worst": 5}  # of six individuals
EVERY = 2  # environment steps, of 0.05 s each, between two frames
STARTS = 16  # episodes, of which the mean return ranks individuals


def main() -> None:
    """Train, play and draw."""
    env = popjax.make("gymnax/Pendulum-v1")
    method = pderl.build(env, pderl.Config(population=6, sync_period=2, capacity=50_000))
    hyper = pderl.Hyper()
    hyper = hyper.replace(agent=hyper.agent.replace(actor_lr=5e-4, critic_lr=1e-3, polyak=0.01))

    @jax.jit
    def train(state, count):
        return jax.lax.fori_loop(0, count, lambda _, state: method.step(state), state)

    @jax.jit
    def play(state):
        """Return mean returns [P], and the angles [P, T] and torques [P, T] of one episode each."""

        def one(policy, key):
            def choose(memory, obs, key):
                return method.act(policy, memory, obs, key, 0.0)[:2]

            def record(obs, action, timestep):
                return jnp.arctan2(obs[1], obs[0]), action[0]

            return rollout.episode(env, choose, method.memory, key, record=record)

        keys = jax.random.split(jax.random.key(3), STARTS)  # the same starts for everyone at every time
        played = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(method.individuals(state), keys)
        return played.total.mean(1), *(x[:, 0] for x in played.steps)

    state = jax.jit(method.init)(jax.random.key(0), hyper)
    panels = {}
    for column, (before, now) in enumerate(zip((0, *GENERATIONS), GENERATIONS, strict=False)):
        state = train(state, now - before)
        returns, angles, torques = jax.device_get(play(state))
        order = np.argsort(-returns)
        for row, rank in enumerate(RANKS.values()):
            who = order[rank]
            panels[row, column] = f"return {returns[who]:.0f}", angles[who], torques[who]
        print(f"{int(state.env_steps)} environment steps: returns {np.sort(returns)[::-1].round()}")
        panels[-1, column] = f"after {int(state.env_steps):,} steps"
    frames = list(draw(panels))
    frames[0].save(OUT, save_all=True, append_images=frames[1:], duration=50 * EVERY, loop=0, quality=60)
    print(f"{OUT}: {len(frames)} frames, {OUT.stat().st_size / 1e6:.2f} MB")


def draw(panels):
    """Yield the frames: a row for each rank, a column for each time."""
    figure, axes = plt.subplots(len(RANKS), len(GENERATIONS), figsize=(6.0, 6.3), dpi=100)
    figure.subplots_adjust(0.06, 0.01, 0.99, 0.93, wspace=0.05, hspace=0.15)
    rods, tips = {}, {}
    for (row, column), panel in panels.items():
        if row < 0:
            axes[0, column].annotate(panel, (0.5, 1.2), xycoords="axes fraction", ha="center", weight="bold")
            continue
        ax = axes[row, column]
        ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
        ax.set_title(panel[0], fontsize=9)
        if column == 0:
            ax.set_ylabel(list(RANKS)[row], fontsize=11, weight="bold")
        (rods[row, column],) = ax.plot([], [], color="tab:blue", linewidth=6, solid_capstyle="round")
        (tips[row, column],) = ax.plot([0], [0], "o", color="0.2", markersize=5)
    canvas = FigureCanvasAgg(figure)
    for t in range(0, len(panels[0, 0][1]), EVERY):
        for place, rod in rods.items():
            _, angles, torques = panels[place]
            rod.set_data([0, -np.sin(angles[t])], [0, np.cos(angles[t])])
            rod.set_color(plt.cm.coolwarm(0.5 + 0.5 * torques[t]))  # blue and red: torque right and left
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


if __name__ == "__main__":
    main()
