"""One program of the command line: what it is made of, and its training."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from popjax.core import Method
    from popjax.recipe import Recipe


class Program(NamedTuple):
    """One program, understood: name and Recipe of the method, kinds of its agents, runs and further tasks
    that it builds on, arguments."""

    name: str
    recipe: Recipe
    kinds: dict[str, str]
    runs: dict[str, list[str]]
    tasks: dict[str, list[str]]
    arguments: Any


def train_program(program: Program, root: Path, resume: bool) -> Any:
    """Trains one program in this process; returns its ``Result``."""
    from popjax import cli
    from popjax.cli import parse, pretrained, results
    from popjax.host import rundir
    from popjax.host.train import train

    recipe, arguments = program.recipe, program.arguments
    common = arguments.common
    members = parse.bounds(common.members)
    env = cli.make_env(common.env, parse.key_values(common.env_option))
    _tell_preset(recipe, common.env, arguments.config)
    begun = resume and rundir.begun(root)
    if not begun:
        rundir.check(root, {}, resume=False)  # before anything that takes long
    built_on = pretrained.take(recipe, env, program.runs, resumed=root if begun else None)
    _refuse_other_options(common, program.tasks)
    built_on |= cli.further_envs(recipe, program.tasks)
    method = cli.build(recipe, env, arguments.config, built_on)
    _check_numbers(program, method)
    budget = common.options.env_steps
    for remark in recipe.remarks(env, arguments.config, arguments.hyper, budget, **built_on):
        cli.say(remark)
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
            sinks=results.tracking(common, root, stack),
            name=program.name,
            command=shlex.join(["python", *sys.argv]),
        )


def _begun_elsewhere(
    program: Program, root: Path, members: tuple[int, int] | None
) -> AbstractContextManager[None]:
    """Return the context in which ``root`` is a copy of the run that ``--from`` names."""
    from popjax.cli import parse
    from popjax.host import detach, paths

    common, edits = program.arguments.common, {}
    if common.intervene is not None:
        if any(program.runs.values()):
            raise parse.Fault("--intervene changes a selection, and --replay repeats all: leave out one")
        population = getattr(program.arguments.config, "population", 1)
        edits["intervene"] = _intervention(common.intervene, population)
    directory, generation = _checkpoint(common.from_)
    return detach.detached(paths.path(directory), root, members, generation, edits)


def _checkpoint(text: str) -> tuple[str, int | None]:
    """Return the directory and the generation of ``DIR@GENERATION``, or ``DIR`` and None."""
    directory, at, generation = text.rpartition("@")
    return (directory, int(generation)) if at and generation.isdecimal() else (text, None)


def _intervention(text: str, population: int) -> tuple[int, int]:
    """Return ``"3=0"`` as two individuals of a population.

    Raises:
        Fault: it does not look like that, or there are no such individuals.
    """
    from popjax.cli import parse

    slot, equals, parent = text.partition("=")
    if not (equals and slot.isdecimal() and parent.isdecimal()):
        raise parse.Fault(f"--intervene wants SLOT=PARENT such as 3=0, got {text!r}")
    if max(int(slot), int(parent)) >= population:
        raise parse.Fault(f"--intervene {text}: individuals are numbered from 0 to {population - 1}")
    return int(slot), int(parent)


def _tell_preset(recipe: Recipe, task: str | None, config: Any) -> None:
    """Says what a method's preset for a task has changed, where there is one."""
    from popjax import cli

    if task and recipe.preset(task):
        plain = asdict(recipe.config())
        changed = [f"{name} {value}" for name, value in asdict(config).items() if value != plain[name]]
        what = ", ".join(changed) or "the defaults"
        cli.say(f"preset for {task}: {what}; --config and --hyper override it")


def _refuse_other_options(common: Any, tasks: dict[str, list[str]]) -> None:
    """A further task without options has the defaults of its task; as the run's own task with other options
    it would be another."""
    from popjax.cli.parse import Fault

    for option, names in tasks.items():
        if common.env_option and common.env in names:
            raise Fault(
                f"--{option} {common.env}: --env-option is for --env alone, a further task has its defaults;"
                f" leave out --env-option, or give the task its own, --{option} '{common.env} KEY=VALUE'"
            )


def _check_numbers(program: Program, method: Method) -> None:
    """Refuse numbers that are out of range, before anything is written."""
    from popjax.cli import grid, parse
    from popjax.host import sweep
    from popjax.host.options import validate

    common = program.arguments.common
    if common.intervene is not None and common.from_ is None:
        raise parse.Fault("--intervene continues a run: name it with --from RUN_DIR or RUN_DIR@GENERATION")
    validate(common.options, method)
    swept = parse.swept_numbers(common.sweep)
    sweep.check(program.arguments.hyper, swept)
    sweep.check_driven(method.driven, program.arguments.hyper, method.hyper, swept)
    grid.chosen(common)


def check_build(program: Program) -> None:
    """Builds one of several programs, so that what cannot be built is known before the first is trained."""
    from popjax import cli
    from popjax.cli import parse

    if any(program.runs.values()):
        return  # what these have learned may take long to read
    common = program.arguments.common
    env = cli.make_env(common.env, parse.key_values(common.env_option))
    further = cli.further_envs(program.recipe, program.tasks)
    _check_numbers(program, cli.build(program.recipe, env, program.arguments.config, further))


def told(command: Callable[[], None], tell: Callable[[str, int], int]) -> int:
    """Runs ``command``; what goes wrong in it is told with an exit code, which is returned. Ctrl-C is not."""
    from popjax.cli.parse import Fault
    from popjax.host.errors import FAILURES, Refused

    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    except (Fault, Refused) as fault:
        return tell(str(fault), 2)
    except (*FAILURES, OSError) as failure:
        return tell(str(failure), 1)
    return 0


def join_processes(argv: list[str]) -> list[str]:
    """Starts the processes that the arguments speak of, which must come before anything else of JAX."""
    from popjax.cli import parse
    from popjax.host import processes

    coordinator, argv = parse.peel(argv, "--coordinator")
    numbers: list[int | None] = []
    for option in ("--processes", "--process"):
        text, argv = parse.peel(argv, option)
        if text is not None and not text.isdigit():
            raise parse.Fault(f"{option} must be a number from 0, got {text!r}")
        numbers.append(None if text is None else int(text))
    processes.start(coordinator, *numbers)
    return argv


def setting_unknown_to_jax() -> str | None:
    """Import JAX, which reads its environment variables; return why that fails where one is wrong."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        return f"{' '.join(str(error).split())}: correct or unset that environment variable"
    return None


def see_current_directory() -> None:
    """Let methods and environments be imported from it, whatever started this process."""
    with suppress(OSError):  # it may have been removed
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def prepare_jax() -> None:
    """Keep compiled programs between processes and the libraries' remarks off the screen."""
    import logging
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # it prints what it raises
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from popjax import cli, numerics
    from popjax.host.compilation import keep_compiled

    for setting in numerics.standardize():
        cli.say(f"{setting} is overruled: popjax computes with 32 bits and standard promotion")
    keep_compiled()


def require_backend() -> None:
    """Raise a Fault where JAX has nothing to compute on, such as CUDA that JAX_PLATFORMS names."""
    import jax

    from popjax.cli.parse import Fault

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        named = os.environ.get("JAX_PLATFORMS")
        told = f"JAX cannot use what JAX_PLATFORMS={named} names" if named else "JAX finds no device"
        why = " ".join(str(error).split())
        remedy = "name one that is here, such as cpu, or install JAX for it"
        raise Fault(f"{told}{f' ({why})' if why else ''}; {remedy}") from None
