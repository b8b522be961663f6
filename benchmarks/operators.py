"""Effect of variation on fitness: children compared with parents, as in figures 5 and 7 of PDERL's paper.

    python scripts/run.py pderl --env brax/hopper --env-steps 150000 --run-dir runs/pderl-hopper
    python benchmarks/operators.py runs/pderl-hopper

takes the final population of a run, crosses ten random pairs with the distilling and with the n-point
operator, mutates ten random individuals, and the fitter parent of each pair, with ERL's Gaussian mutation and
with the proximal one at every magnitude of ``--magnitudes``, and plays ten episodes of each. The run is not
changed. Returns after crossover are relative to the first parent, the fitter one; after mutation, to the
unmutated individual. Writes a JSON file and a figure of the same name.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax import agents, tree
from popjax.cli import building
from popjax.evolution import crossover, mutate
from popjax.population import scoring
from popjax.replay.ring import draw, merge

METHODS = ("pderl", "erl")  # whose States have the fields that are used here
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arguments:
    """Which run, and how much of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a finished run of ``pderl`` or ``erl``."""
    out: Path | None = None
    """JSON file to write; by default operators-RUN.json among the results."""
    trials: int = 10
    """Pairs of parents, and individuals that are mutated [count]."""
    episodes: int = 10
    """Episodes whose mean return is a fitness [count]."""
    magnitudes: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2)
    """Standard deviations of proximal mutation in addition to the run's, in units of the action."""
    seed: int = 0
    """Seed of all random choices and episodes."""


Returns = dict[str, np.ndarray]
"""Mean returns [trials] by who plays."""


def study(run: building.Loaded, arguments: Arguments) -> dict[str, Returns]:
    """Return the mean returns of parents and children in the first seed's population: ``crossover`` of pairs,
    mutation of ``fitter`` parents and of ``random`` individuals."""
    state, trials = tree.take(run.state, 0), arguments.trials
    keys = jax.random.split(jax.random.key(arguments.seed), 6)
    population = state.metrics.fitness.shape[0]
    play = jax.jit(jax.vmap(partial(mean_return, run, arguments.episodes, keys[0])))
    returns = play(state.actors)

    ranks = jax.vmap(lambda k: jax.random.choice(k, population, (2,), replace=False))
    pairs = ranks(jax.random.split(keys[1], trials))
    swap = returns[pairs[:, 1]] > returns[pairs[:, 0]]
    pairs = jnp.where(swap[:, None], pairs[:, ::-1], pairs)  # [trials, 2] the fitter one first
    chosen = jax.random.choice(keys[2], population, (trials,), replace=trials > population)
    children = crossed(run, state, pairs, keys[3])
    found = {
        "crossover": {"parent 1": returns[pairs[:, 0]], "parent 2": returns[pairs[:, 1]]}
        | {name: play(actors) for name, actors in children.items()}
    }
    for name, who, key in (("fitter", pairs[:, 0], keys[4]), ("random", chosen, keys[5])):
        mutants = mutated(run, state, who, key, arguments.magnitudes)
        found[name] = {"parent": returns[who]} | {name: play(actors) for name, actors in mutants.items()}
    # Not by jax.tree.map, which would sort the names: the parent must come first.
    return {kind: {name: np.asarray(x) for name, x in returns.items()} for kind, returns in found.items()}


def crossed(run: building.Loaded, state: Any, pairs: jax.Array, key: jax.Array) -> dict[str, Any]:
    """Return the children [trials] of each operator."""
    agent = agents.build(run.env.spec, run.config.agent)
    key_merge, key_vary = jax.random.split(key)
    x, y = tree.take(state.actors, pairs[:, 0]), tree.take(state.actors, pairs[:, 1])
    memories = jax.vmap(merge)(
        tree.take(state.memories, pairs[:, 0]),
        tree.take(state.memories, pairs[:, 1]),
        jax.random.split(key_merge, len(pairs)),
    )
    keys = jax.random.split(key_vary, len(pairs))

    def distilled(x: Any, y: Any, memory: Any, key: jax.Array) -> Any:
        rest = (run.config.distillation, state.hyper.crossover_lr, jnp.bool_(True))
        return crossover.distil(agent, state.learner, x, y, memory, key, *rest)

    return {
        "distilled": jax.jit(jax.vmap(distilled))(x, y, memories, keys),
        "n-point": jax.vmap(crossover.n_point)(keys, x, y)[0],
    }


def mutated(
    run: building.Loaded, state: Any, who: jax.Array, key: jax.Array, magnitudes: tuple[float, ...]
) -> dict[str, Any]:
    """Return the mutants of individuals [trials] by each operator and magnitude."""
    agent = agents.build(run.env.spec, run.config.agent)
    actors, memories = tree.take(state.actors, who), tree.take(state.memories, who)
    keys = jax.random.split(key, len(who))

    def greedy(actor: Any, obs: jax.Array) -> jax.Array:
        return agent.actions.vector(agent.outputs(actor, obs))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, 0, None))
    def proximal(actor: Any, memory: Any, key: jax.Array, std: jax.Array) -> Any:
        key_rows, key_noise = jax.random.split(key)
        rows, valid = draw(memory, key_rows, run.config.mutation_batch)
        return mutate.proximal(greedy, actor, rows.obs, valid, key_noise, std, state.hyper.sensitivity_floor)

    stds = sorted({float(np.float32(x)) for x in (*magnitudes, state.hyper.mutation_std)})
    mutants = {f"proximal {std:.3g}": proximal(actors, memories, keys, jnp.float32(std)) for std in stds}
    return {"gaussian": jax.vmap(mutate.gaussian)(actors, keys)} | mutants


def mean_return(run: building.Loaded, episodes: int, key: jax.Array, actor: Any) -> jax.Array:
    """Return the mean return of greedy episodes, which are the same for every actor."""
    one = jax.tree.map(lambda x: x[None], actor)
    return scoring.returns(run.env, run.method.act, one, (), key, episodes).mean()


def draw_figure(found: dict[str, Returns], title: str, path: Path) -> None:
    """Draw bars of return relative to the first parent, a group for every trial, a panel for every study."""
    figure = Figure(figsize=(10, 9), layout="constrained")
    panels = figure.subplots(len(found), 1)
    for panel, (kind, returns) in zip(panels, found.items(), strict=True):
        parent, *_ = returns
        order = np.argsort(-returns[parent])
        for place, (name, values) in enumerate(returns.items()):
            offset = (place - (len(returns) - 1) / 2) * 0.8 / len(returns)
            heights = (values / returns[parent])[order]
            panel.bar(np.arange(len(order)) + offset, heights, 0.8 / len(returns), label=name)
        panel.axhline(1, color="0.35", linewidth=0.8)
        panel.set_ylabel(f"{kind}: return / {parent}")
        panel.set_xticks(range(len(order)))
        panel.margins(y=0.25)
        panel.legend(ncols=len(returns), fontsize=8, loc="upper right")
    panels[0].set_title(title)
    panels[-1].set_xlabel("trial, by the return of the first parent")
    figure.savefig(path, dpi=120)


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Study, print and write."""
    loaded = trained.load(arguments.run, *METHODS)
    found = study(loaded, arguments)
    medians = {
        kind: {
            name: round(float(np.median(x / next(iter(returns.values())))), 3) for name, x in returns.items()
        }
        for kind, returns in found.items()
    }
    target = arguments.out or RESULTS / f"operators-{arguments.run.name}.json"
    record.write(
        target,
        runs=[trained.origin(arguments.run)],
        median_ratio_to_parent=medians,
        returns={
            kind: {name: np.round(values, 2).tolist() for name, values in returns.items()}
            for kind, returns in found.items()
        },
    )
    draw_figure(found, f"Variation on {loaded.saved['env']}", target.with_suffix(".png"))
    print(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
