"""The training of one program of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from popjax.cli import building, forms, grid, parse, pretrained
from popjax.cli.program import Program
from popjax.core import Env, Method
from popjax.host import paths
from popjax.host.errors import Refused
from popjax.host.runs import member_subset, rundir
from popjax.host.runs.options import validate
from popjax.host.runs.wandb_sink import wandb_runs
from popjax.host.scaling import processes, sweep
from popjax.host.terminal import complain
from popjax.host.training import train
from popjax.recipe import Recipe, defaults, kinds_of

_MOST_REMARKS = 5
"""A sweep of many values may have one for each."""


def train_program(program: Program, root: Path, resume: bool) -> Any:
    """Train one program in this process and return its ``Result``."""
    recipe, arguments = program.recipe, program.arguments
    common = arguments.common
    members = parse.bounds(common.members)
    env = building.make_env(common.env, parse.key_values(common.env_option))
    _tell_preset(recipe, program.kinds, common.env)
    begun = resume and rundir.begun(root)
    if not begun:
        rundir.check(root, {}, resume=False)  # before anything that takes long
    elif any(_beginning(common).values()):
        processes.together(lambda: _refuse_other_beginning(common, root))
    built_on = pretrained.take(recipe, env, program.runs, resumed=root if begun else None)
    built_on |= building.further_envs(recipe, program.tasks)
    _tell_further_presets(recipe, program.tasks)
    method = building.build(recipe, env, arguments.config, built_on)
    _check_hyper(program, method)
    for remark in _remarks(program, env, built_on):
        complain(remark)
    with ExitStack() as stack:
        if common.from_ is not None and not begun:
            stack.enter_context(_begun_elsewhere(program, root, members))
            resume = True
        return train(
            method,
            env,
            **asdict(common.options),
            hyper=arguments.hyper,
            swept=parse.swept_numbers(common.sweep),
            members=members,
            devices=common.devices,
            run_dir=root,
            resume=resume,
            sinks=_tracking(common, root, stack),
            name=program.name,
            command=forms.command(sys.argv),
        )


def _remarks(program: Program, env: Env, built_on: Mapping[str, Any]) -> list[str]:
    """Return the method's remarks on the hyperparameters of every setting that is trained."""
    recipe, arguments, common = program.recipe, program.arguments, program.arguments.common
    swept = parse.swept_numbers(common.sweep)
    members = sweep.part(sweep.grid(common.options.seed, 1, swept), None)
    hypers = [sweep.hyper_of(arguments.hyper, member) for member in members]
    found = dict.fromkeys(
        remark
        for hyper in hypers
        for remark in recipe.remarks(env, arguments.config, hyper, common.options.env_steps, **built_on)
    )
    first, more = list(found)[:_MOST_REMARKS], len(found) - _MOST_REMARKS
    return [*first, *([f"and {more} remarks on other values of the sweep"] if more > 0 else [])]


def _tracking(common: Any, root: Path, stack: ExitStack) -> list[Any]:
    """Return the sink that sends to a project of Weights & Biases, for ``--wandb``."""
    if common.wandb is None or not processes.first():
        return []
    return [stack.enter_context(wandb_runs(common.wandb, root, grid.chosen(common)))]


def _begun_elsewhere(
    program: Program, root: Path, members: tuple[int, int] | None
) -> AbstractContextManager[None]:
    """Return the context in which ``root`` is a copy of the run that ``--from`` names."""
    common, edits = program.arguments.common, {}
    if common.intervene is not None:
        if any(program.runs.values()):
            raise Refused("--intervene changes a selection, and --replay repeats all of them: use only one")
        population = getattr(program.arguments.config, "population", 1)
        edits["intervene"] = _intervention(common.intervene, population)
    directory, generation = _checkpoint(common.from_)
    source, begun = paths.path(directory), _beginning(common)
    budget = common.options.env_steps
    return member_subset.detached(source, root, members, generation, edits, begun, budget)


def _beginning(common: Any) -> dict[str, str | None]:
    """Return the options that set the initial State of a run."""
    return {"from": common.from_, "intervene": common.intervene}


def _refuse_other_beginning(common: Any, root: Path) -> None:
    """Raise Refused if --from or --intervene of a resumed run differ from those with which it began."""
    before = rundir.read_config(root).get("begun") or {}
    for option, value in _beginning(common).items():
        if value is not None and value != before.get(option):
            how = f"with --{option} {before[option]}" if before.get(option) else f"without --{option}"
            raise Refused(
                f"{root} was begun {how}, and --resume continues it: leave out --{option} {value}, or name"
                " another --run-dir"
            )


def _checkpoint(text: str) -> tuple[str, int | None]:
    """Return the directory and the generation of ``DIR@GENERATION``, or ``DIR`` and None."""
    directory, at, generation = text.rpartition("@")
    return (directory, int(generation)) if at and generation.isdecimal() else (text, None)


def _intervention(text: str, population: int) -> tuple[int, int]:
    """Return ``"3=0"`` as two individuals of a population.

    Raises:
        Refused: ``text`` does not have this form, or there are no such individuals.
    """
    slot, equals, parent = text.partition("=")
    if not (equals and slot.isdecimal() and parent.isdecimal()):
        raise Refused(f"--intervene needs SLOT=PARENT such as 3=0, got {text!r}")
    if max(int(slot), int(parent)) >= population:
        raise Refused(f"--intervene {text}: individuals are numbered from 0 to {population - 1}")
    return int(slot), int(parent)


def _tell_preset(recipe: Recipe, kinds: Mapping[str, str], task: str | None) -> None:
    """Print what a method's preset for a task changes, if there is one: the kinds of agents that it chooses,
    and constants of these ``kinds`` that are not their defaults."""
    if not task or not (preset := recipe.preset(task)):
        return
    plain = kinds_of(recipe, recipe.config())
    changed = [
        f"--config.{field} {kind}"
        for field, kind in kinds_of(recipe, preset.config).items()
        if kind == kinds[field] != plain[field]
    ]
    for option, *values in zip(
        ("config", "hyper"), defaults(recipe, kinds, task), defaults(recipe, kinds), strict=True
    ):
        changed += [
            f"--{name.replace('_', '-')} {value}" for name, value in _changes(option, *map(asdict, values))
        ]
    changed += [f"--env-option {name}={value}" for name, value in preset.env_options.items()]
    told = ", ".join([*changed, f"--env-steps {preset.env_steps}"])
    complain(f"preset for {task}: {told}; given options override it")


def _tell_further_presets(recipe: Recipe, tasks: Mapping[str, Sequence[str]]) -> None:
    """Print the options that a method's presets have added to further tasks."""
    for option, texts in tasks.items():
        for name, *pairs in map(str.split, texts):
            added = building.preset_options(recipe, name, {})
            if added and set(added) <= set(pairs):
                task = " ".join([name, *added])
                complain(f"preset for {name}: --{option} '{task}'; given options override it")


def _changes(name: str, ours: Any, plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options below ``name`` that differ in ``ours`` and ``plain``, with the value in ``ours``."""
    if isinstance(ours, dict) and isinstance(plain, dict):
        for key in ours:
            yield from _changes(f"{name}.{key}", ours[key], plain.get(key))
    elif str(ours) != str(plain):  # a number may be an array
        yield name, ours


def _check_hyper(program: Program, method: Method) -> None:
    """Refuse hyperparameters and options that are out of range, before anything is written."""
    common = program.arguments.common
    if common.intervene is not None and common.from_ is None:
        raise Refused("--intervene continues a run: name it with --from RUN_DIR or RUN_DIR@GENERATION")
    validate(common.options, method)
    swept = parse.swept_numbers(common.sweep)
    sweep.check(program.arguments.hyper, swept)
    sweep.check_driven(method.driven, program.arguments.hyper, method.hyper, swept)
    sweep.check_own(method, program.arguments.hyper)
    grid.chosen(common)


def check_build(program: Program) -> None:
    """Build one of several programs, so that faults show before the first one trains."""
    if any(program.runs.values()):
        return  # loading these runs may take long
    common = program.arguments.common
    env = building.make_env(common.env, parse.key_values(common.env_option))
    further = building.further_envs(program.recipe, program.tasks)
    _check_hyper(program, building.build(program.recipe, env, program.arguments.config, further))
