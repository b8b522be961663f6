"""Finished runs as ingredients of a new one: their policies, from the command line and from config.json.

A method that builds on finished runs lists them in ``runs`` of its Recipe: option -> ``Ingredient``.
``--prior RUN_DIR``, repeated for each run, selects the policy of the seed with the best last evaluation;
``RUN_DIR:SEED`` selects another seed's. ``Ingredient.make`` turns the policies into records for ``build``.
The records, without the policies' parameters, also go into config.json. Since the State holds the parameters,
the method can be rebuilt after the original runs are gone.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from popjax import envs, numerics, tree
from popjax.arguments import typed
from popjax.cli import building, parse
from popjax.core import Env, Ingredient, Method, Pretrained
from popjax.envs import wrappers
from popjax.host import paths
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.runs import rundir
from popjax.recipe import Recipe


def peel_runs(recipe: Recipe, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Take the options of ``recipe.runs`` out of ``argv``; return their run directories and the rest."""
    found = {}
    for name in recipe.runs:
        found[name], argv = parse.peel_all(argv, f"--{name}")
    return found, argv


def take(
    recipe: Recipe, env: Env, runs: dict[str, list[str]], resumed: Path | None
) -> dict[str, tuple[Any, ...]]:
    """Load the runs; return the arguments for ``build`` made from them, by keyword.

    For a ``resumed`` run, the records come from its directory, and so do the policies if one of its
    checkpoints holds them.

    Raises:
        Refused: a directory holds no complete run, the resumed run began with other runs, or a run does not
            fit the task.
    """
    before = rundir.read_config(resumed).get("runs", {}) if resumed and runs else None
    built = {}
    for name, arguments in runs.items():
        ingredient = recipe.runs[name]
        if before is None or resumed is None:
            loaded = [_policy(*split(argument), name=argument) for argument in arguments]
            records = _made(name, ingredient, env, loaded)
        else:
            kept = _same(name, arguments, before.get(name, []))
            whole = checkpoint.generations(rundir.RunDirectory(resumed).checkpoints)
            again = _shapes if whole else _unchanged
            records = [_record(ingredient, again(entry), entry) for entry in kept]
        built[ingredient.keyword] = tuple(records)
    return built


def _seen(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that decide what a policy sees; a game without a preset gets the default one."""
    found = wrappers.seen(options)
    return {"preset": "dqn"} | found if name.startswith("atari/") else found


def _made(name: str, ingredient: Ingredient, env: Env, loaded: Sequence[Pretrained]) -> Sequence[Any]:
    """Return the records of the loaded policies."""
    here = envs.origin(env)
    for policy in loaded:
        there = policy.origin["config"] if policy.origin else {}
        if not here or there.get("env") != here.name:
            continue
        if _seen(here.name, there["env_options"]) != _seen(here.name, json.loads(here.options)):
            raise Refused(
                f"--{name}: {policy.name} was trained with --env-option {there['env_options']},"
                f" not {here.options}: give this run the same"
            )
    try:
        return ingredient.make(env, loaded)
    except ValueError as refusal:
        raise Refused(f"--{name}: {' '.join(str(refusal).split())}") from None


def rebuild(recipe: Recipe, kept: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments for ``build`` from the records ``kept`` in config.json; the policies' parameters
    are zeros in the right shapes, to be replaced from a checkpoint."""
    built = {}
    for name, entries in kept.items():
        ingredient = recipe.runs[name]
        built[ingredient.keyword] = tuple(_record(ingredient, _shapes(entry), entry) for entry in entries)
    return built


def _record(ingredient: Ingredient, policy: Pretrained, entry: dict[str, Any]) -> Any:
    """Return the record that ``ingredient.make`` returned for the policy when the run began."""
    return ingredient.record(policy, **{fact: entry[fact] for fact in ingredient.record._fields[1:]})


def _same(name: str, arguments: list[str], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``before`` if ``arguments`` name the same runs, even if these have moved."""
    given = [split(argument) for argument in arguments]
    if len(given) != len(before) or not all(
        seed in (None, entry["seed"]) and _is_run(path, entry)
        for (path, seed), entry in zip(given, before, strict=True)
    ):
        were = " ".join(f"{entry['run']}:{entry['seed']}" for entry in before) or "none"
        raise Refused(f"the run was begun with other runs; --{name} was {were}")
    return [entry | {"run": str(path.resolve())} for (path, _), entry in zip(given, before, strict=True)]


def _is_run(path: Path, entry: dict[str, Any]) -> bool:
    """Return whether ``path`` names the run of ``entry``: its recorded path, even if the run is gone, or its
    new place."""
    if path.resolve() == Path(entry["run"]):
        return True
    try:
        return not any(rundir.differences(entry["config"], rundir.read_config(path)))
    except Refused:
        return False


def _unchanged(entry: dict[str, Any]) -> Pretrained:
    """Load the policy of ``entry`` again, because no checkpoint holds it yet."""
    policy = _policy(Path(entry["run"]), entry["seed"])
    if policy.env_steps != entry["env_steps"]:
        raise Refused(
            f"{entry['run']} has been continued from {entry['env_steps']} to {policy.env_steps} environment"
            " steps since; begin the new run again in another --run-dir"
        )
    return policy


@typed(Refused)
@numerics.standardized
def pretrained(run_dir: str | Path, seed: int | None = None) -> Pretrained:
    """Return the policy of a finished run, for ``popjax.ca2e.measure``, ``popjax.distil.grade`` and others.

    If the run has several seeds, ``seed`` selects one by its number; the default is the seed with the highest
    last evaluation.

    Raises:
        Refused: there is no run, no intact checkpoint, or no such seed.
    """
    return _policy(run_dir, seed)


def _policy(run_dir: str | Path, seed: int | None = None, name: str = "") -> Pretrained:
    """Load as ``pretrained`` does; messages call the run ``name``."""
    path = paths.path(run_dir)
    run = building.load(path)
    seeds = [member.seed for member in run.members]
    if len(set(seeds)) < len(seeds):
        raise Refused(f"{path} is a sweep over hyperparameters; build on a run of one setting")
    seed = _best_seed(path, seeds) if seed is None else seed
    if seed not in seeds:
        raise Refused(f"{path} has the seeds {seeds[0]} to {seeds[-1]}, not {seed}")
    place = seeds.index(seed)
    env_steps, state = run.env_steps[place], tree.take(run.state, place)
    return Pretrained(
        name=name or str(path),
        spec=run.env.spec,
        act=run.method.act,
        params=run.method.policy(state),
        memory=run.method.memory,
        env_steps=env_steps,
        config=run.config,
        individuals=_individuals(run.method, state),
        unroll=run.method.unroll,
        origin={"run": str(path.resolve()), "seed": seed, "env_steps": env_steps, "config": run.saved},
        schedule=_schedule(run.method, state),
    )


def _individuals(method: Method, state: Any) -> Any:
    return None if method.individuals is None else method.individuals(state)


def _schedule(method: Method, state: Any) -> Any:
    if method.schedule is None:
        return None
    return method.schedule.tell(jax.device_get(method.schedule.read(state)))


def _shapes(entry: dict[str, Any]) -> Pretrained:
    """Return the policy described by ``entry`` with zeros for its parameters."""
    env, method, config, hyper = building.rebuilt(entry["config"])
    state = jax.eval_shape(method.init, jax.random.key(0), hyper)

    def zeros(shapes: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return Pretrained(
        name=entry["run"],
        spec=env.spec,
        act=method.act,
        params=zeros(jax.eval_shape(method.policy, state)),
        memory=method.memory,
        env_steps=entry["env_steps"],
        config=config,
        individuals=zeros(jax.eval_shape(partial(_individuals, method), state)),
        unroll=method.unroll,
        origin={fact: entry[fact] for fact in ("run", "seed", "env_steps", "config")},
    )


def split(argument: str) -> tuple[Path, int | None]:
    """Split ``RUN_DIR`` or ``RUN_DIR:SEED``."""
    path, colon, seed = argument.rpartition(":")
    if colon and seed.isdecimal() and not paths.path(argument).exists():
        return paths.path(path), int(seed)
    return paths.path(argument), None


def _best_seed(path: Path, seeds: Sequence[int]) -> int:
    """Return the seed with the highest last evaluation among those of ``seeds`` that did not fail, or among
    all if all failed; the first one if none was evaluated."""
    last = dict.fromkeys(seeds, -math.inf)
    evaluations = rundir.RunDirectory(path).evaluations
    lines = evaluations.read_text(encoding="utf-8") if evaluations.exists() else ""
    for line in lines.splitlines():
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            row = json.loads(line)
            # null stands for NaN
            last[row["seed"]] = -math.inf if row["return"] is None else float(row["return"])
    failed = {row["seed"] for row in rundir.failed(rundir.read_summary(path) or {})}
    return max([seed for seed in seeds if seed not in failed] or seeds, key=lambda seed: last[seed])
