"""Environments, methods and finished runs, built from the command line or a ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from popjax.cli import parse
from popjax.core import Built, Env, Method
from popjax.envs import make
from popjax.host import garbage, paths, recipes
from popjax.host.checkpoints import checkpoint
from popjax.host.deploy import chosen_policy
from popjax.host.errors import Refused
from popjax.host.runs import run_group, rundir
from popjax.host.scaling import Member, sweep
from popjax.host.terminal import complain
from popjax.recipe import Recipe, checked, defaults
from popjax.replay import packed


class Loaded(NamedTuple):
    """A run read back: its environment, method and ``Config``, the State [S, ...] of a checkpoint, the
    content of ``config.json``, the members and the environment steps of each. If one member was requested,
    all others are left out. ``individual`` is the one of the population whose policy ``method`` has, or None.
    """

    env: Env
    method: Method
    config: Any
    state: Any
    saved: dict[str, Any]
    members: tuple[Member, ...]
    env_steps: list[int]
    individual: int | None = None


def load(run_dir: str | Path, member: int | None = None, picked: str | None = None) -> Loaded:
    """Load the run in ``run_dir`` to evaluate or build on it; with ``member``, that member of a sweep alone.

    ``picked`` is "best" or the environment steps, as text, of a checkpoint older than the newest.

    Raises:
        Refused: there is no run, no intact checkpoint or no such member.
    """
    root = run_group.run_of(paths.path(run_dir), member)
    saved = _buildable(root)
    env, method, config, hyper = rebuilt(saved)
    members = sweep.of_config(saved)
    begin = partial(_beginning, method, hyper)
    with garbage.paused(), packed.laid_out_on(str(saved.get("device"))):
        shapes = jax.eval_shape(lambda: begin(members))
    files = rundir.RunDirectory(root)
    until = None
    if picked not in (None, chosen_policy.BEST):
        until = chosen_policy.generation(files, str(picked), saved["options"]["checkpoint_every"])
    wanted = dict(enumerate(members))
    if member is None:
        found = checkpoint.restore_newest(files.checkpoints, shapes, complain, until=until)
    else:
        place = run_group.place_of(root, members, member)
        wanted = {place: members[place]}
        found = checkpoint.member_of_newest(files.checkpoints, shapes, complain, place, until)
    if found is None:
        raise Refused(f"{root} has no intact checkpoint")
    with packed.laid_out_on(str(saved.get("device"))):
        state, steps = chosen_policy.with_last_good(
            files,
            shapes,
            found[1:],
            wanted,
            lambda place: begin(members[place : place + 1]),
            (lambda line: None) if picked == chosen_policy.BEST else complain,
        )
    if picked == chosen_policy.BEST:
        numbers = [chosen.number for chosen in wanted.values()]
        method, state, steps = chosen_policy.with_best(method, (state, steps), files, numbers)
    return Loaded(env, method, config, state, saved, tuple(wanted.values()), steps)


def _buildable(root: Path) -> dict[str, Any]:
    """Return the content of ``config.json``, after checking that the run can be rebuilt from it."""
    saved = rundir.read_config(root)
    if saved.get("not_rebuilt") or not saved.get("config"):
        why = saved.get("not_rebuilt") or "it was not made by popjax train"
        raise Refused(f"{root} cannot be rebuilt: {why}; evaluate it from Python with popjax.evaluate")
    return saved


def rebuilt(saved: dict[str, Any]) -> tuple[Env, Method, Any, Any]:
    """Rebuild the environment, method, ``Config`` and ``Hyper`` recorded in a ``config.json``."""
    from popjax.cli import pretrained  # which loads runs by this module

    if "agents" not in saved:
        raise Refused(f"the run was made by an earlier popjax; read it with commit {saved.get('git_commit')}")
    recipe = recipes.recipe(saved["method"])
    try:
        config, hyper = defaults(recipe, saved["agents"])
        config, hyper = parse.rebuild(config, saved["config"]), parse.rebuild(hyper, saved["hyper"])
    except ValueError as refusal:
        raise Refused(f"{one_line(refusal)}; the run was made at commit {saved.get('git_commit')}") from None
    env = make_env(saved["env"], saved["env_options"])
    built_on = pretrained.rebuild(recipe, saved.get("runs", {}))
    built_on |= further_envs(recipe, saved.get("envs", {}))
    return env, build(recipe, env, config, built_on), config, hyper


def further_envs(recipe: Recipe, tasks: dict[str, list[str]]) -> dict[str, Any]:
    """Return the further tasks that ``build`` is given, by keyword."""
    return {
        recipe.envs[option]: tuple(_further_env(option, text) for text in texts)
        for option, texts in tasks.items()
    }


def _further_env(option: str, text: str) -> Any:
    """Return the task that "SUITE/TASK" or "SUITE/TASK KEY=VALUE ..." names."""
    if not text.strip():
        raise Refused(f"--{option} needs SUITE/TASK, got {text!r}")
    name, *options = text.split()
    return make_env(name, parse.key_values(options, f"--{option}"))


def preset_options(recipe: Recipe, task: str | None, given: Mapping[str, Any]) -> list[str]:
    """Return the options "KEY=VALUE" that the method's preset for ``task`` adds to those ``given``."""
    preset = recipe.preset(task) if task else None
    options = preset.env_options if preset else {}
    return [f"{name}={value}" for name, value in options.items() if name not in given]


def with_preset(recipe: Recipe, option: str, text: str) -> str:
    """Return the further task "SUITE/TASK KEY=VALUE ..." with the options of the method's preset for it."""
    name, *given = text.split() or [text]
    return " ".join([name, *preset_options(recipe, name, parse.key_values(given, f"--{option}")), *given])


def make_env(name: str, options: dict[str, Any]) -> Any:
    """Return the environment ``name``; raise Refused if there is none."""
    try:
        return make(name, **options)
    except ValueError as refusal:
        raise Refused(one_line(refusal)) from None
    except TypeError as refusal:
        if not options:
            raise
        raise Refused(f"--env-option: {one_line(refusal)}") from None


def build(recipe: Recipe, env: Any, config: Any, built_on: dict[str, Any]) -> Any:
    """Build the method; raise Refused if that fails."""
    try:
        method = checked(recipe.build, recipe.build(env, config, **built_on))
    except ValueError as refusal:
        raise Refused(one_line(refusal)) from None
    return method._replace(built=Built(recipe.build, env, config, built_on))


def _beginning(method: Method, hyper: Any, members: Sequence[Member]) -> Any:
    """Return the initial State [S, ...] of ``members``."""
    start = sweep.keys(members), sweep.hypers(hyper, members)
    return jax.jit(sweep.lift(method.init, len(members)))(*start)


def one_line(error: Exception) -> str:
    """Return the message of an exception in one line."""
    return " ".join(str(error).split())
