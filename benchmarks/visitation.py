"""States that parents and their children visit, as in figures 6, 8 and 9 of PDERL's paper.

    python benchmarks/visitation.py runs/pderl-ant --out runs/visitation.json

plays the two parents of a random pair of a run's final population, their child by each crossover, and the
fitter parent's mutants by the Gaussian mutation and by the proximal one at every magnitude. Densities of two
state dimensions are kernel density estimates over all states of the episodes; for a mutant, the difference
from its parent is drawn. Writes every return and the divergence KL(parent || child) in nats to a JSON file,
and a figure of the same name.
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
from matplotlib.figure import Figure
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import operators, record, trained
from popjax import rollout, tree
from popjax.cli import building
from popjax.host.errors import Refused

GRID, POINTS = 60, 4_000  # cells per side, maximum number of states of an estimate


@dataclass(frozen=True)
class Arguments:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a finished run of ``pderl`` or ``erl``."""
    out: Path
    """JSON file for the results; the figure has its name."""
    episodes: int = 20
    """Episodes of each actor [count]."""
    magnitudes: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)
    """Standard deviations of proximal mutation in addition to the run's, in units of the action."""
    dimensions: tuple[int, int] = (0, 1)
    """The two components of the observation, counted from 0."""
    seed: int = 0
    """Seed of all random choices and episodes."""


def play(
    run: building.Loaded, actors: Any, arguments: Arguments, key: jax.Array
) -> tuple[np.ndarray, list[Any]]:
    """Return the mean return [K] of actors [K] and the states [M, 2] that each visits; all play the same
    episodes, greedily."""
    dimensions = jnp.array(arguments.dimensions)

    def one(actor: Any, key: jax.Array) -> rollout.Episode:
        def choose(memory: Any, obs: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
            return run.method.act(actor, memory, obs, key, 0.0)[:2]

        return rollout.episode(run.env, choose, (), key, record=lambda obs, *_: obs[dimensions])

    everybody = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    found = everybody(actors, jax.random.split(key, arguments.episodes))
    states, valid = np.asarray(found.steps), np.asarray(found.valid)
    return np.asarray(found.total.mean(1)), [own[kept] for own, kept in zip(states, valid, strict=True)]


def densities(visited: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the ends of the grid [2, 2] and the density [GRID, GRID] of each set of states, of sum 1.

    Raises:
        Refused: a dimension never changes, so there is no density.
    """
    together = np.concatenate(visited)
    ends = np.stack([together.min(0), together.max(0)])
    if (ends[0] == ends[1]).any():
        raise Refused("a state dimension never changes; choose others by --dimensions")
    axes = [np.linspace(low, high, GRID) for low, high in ends.T]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(2, -1)
    found = []
    for states in visited:
        rows = states[np.linspace(0, len(states) - 1, min(len(states), POINTS)).astype(int)]
        spread = 1e-3 * (ends[1] - ends[0])  # a policy may stand still in one of them
        jittered = rows + spread * np.random.default_rng(0).normal(size=rows.shape)
        density = stats.gaussian_kde(jittered.T)(places).reshape(GRID, GRID)
        found.append(density / density.sum())
    return ends, found


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Return KL(p || q) in nats of two densities on one grid, each of sum 1."""
    least = 1e-12
    return float(stats.entropy(*(np.maximum(x, least).ravel() for x in (p, q))))


def study(arguments: Arguments) -> dict[str, Any]:
    """Return names, returns, densities and divergences from the first parent."""
    run = trained.load(arguments.run, *operators.METHODS)
    components = run.env.spec.obs_shape[0]
    if not all(0 <= one < components for one in arguments.dimensions):
        told = " ".join(map(str, arguments.dimensions))
        raise Refused(f"--dimensions must be from 0 to {components - 1}, got {told}")
    state = tree.take(run.state, 0)
    key_pair, key_cross, key_mutate, key_play = jax.random.split(jax.random.key(arguments.seed), 4)
    pair = jax.random.choice(key_pair, state.metrics.fitness.shape[0], (2,), replace=False)
    # Slots have changed since their fitness was recorded.
    returns, _ = play(run, tree.take(state.actors, pair), arguments, key_play)
    pair = pair[np.argsort(-returns)]
    mutants = operators.mutated(run, state, pair[:1], key_mutate, arguments.magnitudes)
    children = operators.crossed(run, state, pair[None], key_cross)
    parents = {f"parent {i + 1}": tree.take(state.actors, pair[i : i + 1]) for i in range(2)}
    actors = parents | children | mutants
    stacked = jax.tree.map(lambda *xs: jnp.concatenate(xs), *actors.values())
    returns, visited = play(run, stacked, arguments, key_play)
    ends, found = densities(visited)
    names = list(actors)
    apart = [divergence(found[0], density) for density in found]
    return {"names": names, "returns": returns, "ends": ends, "densities": found, "divergences": apart}


def draw(found: dict[str, Any], arguments: Arguments, path: Path) -> None:
    """Draw a panel for each actor: densities of parents and children, differences of mutants."""
    names, count = found["names"], len(found["names"])
    figure = Figure(figsize=(3.2 * -(-count // 2), 6.4), layout="constrained", dpi=120)
    panels = figure.subplots(2, -(-count // 2), squeeze=False).ravel()
    axes = [np.linspace(low, high, GRID) for low, high in found["ends"].T]
    parent = found["densities"][0].T
    for panel, name, density, total, apart in zip(
        panels, names, found["densities"], found["returns"], found["divergences"], strict=False
    ):
        mutant = name.startswith(("gaussian", "proximal"))
        if mutant:
            panel.contour(*axes, parent, cmap="Blues", linewidths=0.8)
        shown = density.T - parent if mutant else density.T
        panel.contour(*axes, shown, cmap="Reds" if mutant else "Blues", linewidths=0.8)
        panel.set_title(f"{name}: {total:.0f}, KL {apart:.2f}", fontsize=9)
        panel.set(xlabel=f"state {arguments.dimensions[0]}", ylabel=f"state {arguments.dimensions[1]}")
    for panel in panels[count:]:
        panel.set_axis_off()
    figure.savefig(path)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Study, print and write."""
    found = study(arguments)
    rows = [
        {"who": name, "return": round(float(total), 2), "kl_from_parent_1": round(apart, 4)}
        for name, total, apart in zip(found["names"], found["returns"], found["divergences"], strict=True)
    ]
    record.write(arguments.out, runs=[trained.origin(arguments.run)], rows=rows)
    draw(found, arguments, arguments.out.with_suffix(".png"))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
