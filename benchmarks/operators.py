"""What variation does to fitness: children against their parents, as in the studies of PDERL's paper.

    python scripts/run.py pderl --env brax/hopper --env-steps 150000 --run-dir runs/pderl-hopper
    python benchmarks/operators.py runs/pderl-hopper

takes the final population of a run, crosses ten random pairs with the distilling and with the n-point
operator and mutates ten individuals proximally and with ERL's Gaussian, and plays ten episodes of everybody.
Nothing of the run changes. Crossover is relative to the first parent, the fitter one; mutation to the parent.
Writes ``operators-RUN.json`` and a figure to ``benchmarks/results``.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from popjax import agents, cli, tree
from popjax.evolution import crossover, mutate
from popjax.population import scoring
from popjax.replay.ring import draw, merge

RESULTS = Path(__file__).parent / "results"
TRIALS, EPISODES = 10, 10


def study(run: cli.Loaded, key: jax.Array) -> dict[str, np.ndarray]:
    """Mean returns [TRIALS] of parents, children and mutants of the first seed's population."""
    state = tree.take(run.state, 0)
    agent = agents.build(run.env.spec, run.config.agent)
    key_pairs, key_merge, key_vary, key_play = jax.random.split(key, 4)
    population = state.metrics.fitness.shape[0]
    play = jax.jit(jax.vmap(partial(mean_return, run, key_play)))
    returns = play(state.actors)

    ranks = jax.vmap(lambda k: jax.random.choice(k, population, (2,), replace=False))
    pairs = ranks(jax.random.split(key_pairs, TRIALS))
    swap = returns[pairs[:, 1]] > returns[pairs[:, 0]]
    pairs = jnp.where(swap[:, None], pairs[:, ::-1], pairs)  # [TRIALS, 2] the fitter one first
    x, y = tree.take(state.actors, pairs[:, 0]), tree.take(state.actors, pairs[:, 1])
    memories = jax.vmap(merge)(
        tree.take(state.memories, pairs[:, 0]),
        tree.take(state.memories, pairs[:, 1]),
        jax.random.split(key_merge, TRIALS),
    )
    keys = jax.random.split(key_vary, TRIALS)

    def greedy(actor: Any, obs: jax.Array) -> jax.Array:
        return agent.actions.vector(agent.outputs(actor, obs))

    def distilled(x: Any, y: Any, memory: Any, key: jax.Array) -> Any:
        rest = (run.config.distillation, state.hyper.crossover_lr, jnp.bool_(True))
        return crossover.distil(agent, state.learner, x, y, memory, key, *rest)

    def proximal(actor: Any, memory: Any, key: jax.Array) -> Any:
        rows, valid = draw(memory, key, run.config.mutation_batch)
        numbers = (state.hyper.mutation_std, state.hyper.sensitivity_floor)
        return mutate.proximal(greedy, actor, rows.obs, valid, key, *numbers)

    own = tree.take(state.memories, pairs[:, 0])
    offspring = {
        "distilled": jax.jit(jax.vmap(distilled))(x, y, memories, keys),
        "n-point": jax.vmap(crossover.n_point)(keys, x, y)[0],
        "proximal": jax.jit(jax.vmap(proximal))(x, own, keys),
        "gaussian": jax.vmap(mutate.gaussian)(x, keys),
    }
    found = {"parent 1": returns[pairs[:, 0]], "parent 2": returns[pairs[:, 1]]}
    found |= {name: play(actors) for name, actors in offspring.items()}
    return {name: np.asarray(values) for name, values in found.items()}


def mean_return(run: cli.Loaded, key: jax.Array, actor: Any) -> jax.Array:
    """Return the mean return of ``EPISODES`` greedy episodes; everyone plays the same."""
    one = jax.tree.map(lambda x: x[None], actor)
    return scoring.mean_returns(run.env, run.method.act, one, (), key, EPISODES)[0]


def draw_figure(found: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Bars of return relative to the first parent, a group for every trial."""
    figure, panels = plt.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    groups = (("parent 1", "parent 2", "distilled", "n-point"), ("parent 1", "proximal", "gaussian"))
    colours = dict(
        zip(found, ("0.35", "0.65", "tab:blue", "tab:orange", "tab:blue", "tab:orange"), strict=True)
    )
    order = np.argsort(-found["parent 1"])
    for panel, names in zip(panels, groups, strict=True):
        for place, name in enumerate(names):
            offset = (place - (len(names) - 1) / 2) * 0.8 / len(names)
            heights = (found[name] / found["parent 1"])[order]
            panel.bar(np.arange(TRIALS) + offset, heights, 0.8 / len(names), label=name, color=colours[name])
        panel.axhline(1, color="0.35", linewidth=0.8)
        panel.set_ylabel("return / return of parent 1")
        panel.legend(ncols=len(names), fontsize=8, loc="upper right")
    panels[0].set_title(title)
    panels[1].set_xlabel("pair of parents, by return of the first")
    panels[1].set_xticks(range(TRIALS))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    loaded = cli.load(directory)
    results = study(loaded, jax.random.key(0))
    target = RESULTS / f"operators-{directory.name}.json"
    medians = {name: float(np.median(values / results["parent 1"])) for name, values in results.items()}
    record = {
        "command": f"python benchmarks/operators.py {sys.argv[1]}",
        "git_commit": loaded.saved["git_commit"],
        "device": loaded.saved["device"],
        "env": loaded.saved["env"],
        "median_ratio_to_parent_1": {name: round(value, 3) for name, value in medians.items()},
        "returns": {name: np.round(values, 2).tolist() for name, values in results.items()},
    }
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw_figure(results, f"Variation on {loaded.saved['env']}", target.with_suffix(".png"))
    print(json.dumps(record["median_ratio_to_parent_1"], indent=1))
