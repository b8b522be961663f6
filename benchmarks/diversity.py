"""Differences between the agents of trained populations: the two measures of Collaborative Exploration's
table 3.

    python benchmarks/diversity.py runs/ce-hopper runs/replica-hopper

For every run and seed: the mean divergence KL(pi_i || pi_j) over pairs of agents on states that they saw,
and the MINE lower bound on the mutual information of state and action, both in nats. Every agent plays
``--steps`` steps in each of ``--lanes`` environments, with actions sampled from its policy; the paper takes
3,000 trajectories.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record, trained
from popjax import diversity, nets, rollout
from popjax.cli import building
from popjax.core import continuous_dims
from popjax.host.errors import Refused
from popjax.intrinsic import diayn
from popjax.methods import ce
from popjax.population import learners


@dataclass(frozen=True)
class Arguments:
    """Which runs, and how much of them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs of ``ce``."""
    lanes: int = 16
    """Environments of each agent."""
    steps: int = 1_000
    """Environment steps of each lane."""
    every: int = 10
    """Keep one of this many consecutive steps, since neighbouring steps are nearly the same [count]."""
    training: int = 3_000
    """Gradient steps of the mutual information's estimator."""
    seed: int = 0
    """Seed of the play and of the estimator."""
    out: Path | None = None
    """JSON file for the results, beside the table on standard output."""


def measure(run: building.Loaded, arguments: Arguments) -> list[dict[str, float]]:
    """Return a row for each seed of a run."""
    config: ce.Config = run.config
    if isinstance(config.drive, diayn.Config):
        raise Refused("agents of diayn act by their skills, which observations of the task do not show")
    env, sizes = rollout.autoreset(run.env), continuous_dims(run.env.spec, "diversity")
    crew = learners.build(run.env.spec, config.learner, config.population)
    if crew.actions.kl is None:
        raise Refused("the policies of the run have no density; train it with --config.learner sac")

    def play(params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        def policy(carry: Any, obs: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
            return crew.act(params, carry, obs, key, 1.0)[:2]

        key_start, key_play = jax.random.split(key)
        lane = rollout.start(env, (), key_start)
        record = lambda obs, action, _: (obs, action)  # noqa: E731
        return rollout.collect(env, policy, lane, key_play, arguments.steps, record=record)[1]

    @jax.jit
    def one(agents: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_play, key_bound = jax.random.split(key)
        policies = crew.policies(agents)
        # Order rows by lane, so that the held-out rows of the bound are other episodes of all agents.
        keys = jax.random.split(key_play, (arguments.lanes, config.population))
        kept = jax.vmap(jax.vmap(play), (None, 0))(policies, keys)
        states, actions = (x[:, :, :: arguments.every].reshape(-1, x.shape[-1]) for x in kept)
        outputs = jax.vmap(crew.outputs, (0, None))(policies, states)
        divergence = diversity.mean_pairwise_kl(*outputs)
        network = nets.critic(*sizes, (128, 128))
        bound = diversity.mutual_information(states, actions, key_bound, network, steps=arguments.training)
        return divergence, bound

    seeds = run.saved["options"]["seeds"]
    rows = []
    for place in range(seeds):
        agents = jax.tree.map(lambda x, place=place: x[place], run.state.agents)
        divergence, bound = one(agents, jax.random.key(arguments.seed))
        rows.append({"kl": float(divergence), "mutual_information": float(bound)})
    return rows


@trained.in_one_line()
def main(arguments: Arguments) -> None:
    """Measure, print and write."""
    for directory in arguments.runs:  # before the first is measured, which takes long
        trained.config(directory, "ce")
    rows = []
    for directory in arguments.runs:
        for place, row in enumerate(measure(trained.load(directory, "ce"), arguments)):
            rows.append({"run": directory.name, "seed": place, **row})
            print(json.dumps(rows[-1]))
    record.write(arguments.out, runs=[trained.origin(run) for run in arguments.runs], rows=rows)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
