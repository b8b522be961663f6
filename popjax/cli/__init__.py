"""The command line: arguments and wiring, no logic of its own.

Exit codes: 0 done; 1 the run failed; 2 bad input, reported in one line; 130 (143) ended by Ctrl-C (SIGTERM)
with the State saved.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from popjax.cli import building, jax_setup, training
from popjax.cli.training import Program
from popjax.host import recipes
from popjax.host.errors import FAILURES, Interrupted, Refused
from popjax.host.recipes import METHODS
from popjax.host.terminal import complain

if TYPE_CHECKING:
    from popjax.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``popjax`` or ``python -m popjax``: the commands train, evaluate, report and export."""
    if argv is None:
        jax_setup.run_alone()
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": run, "evaluate": evaluate, "report": report, "export": export}
    if arguments[:1] == ["--version"]:
        return _guarded(lambda: None, arguments)
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:])
    if arguments[:1] in (["--help"], ["-h"]):
        print(_USAGE)
        return 0
    if not arguments:
        return _fail(f"no command given: popjax {' | '.join(commands)}; see popjax --help", 2)
    from popjax.arguments import nearest

    return _fail(f"unknown command {arguments[0]!r}{nearest(arguments[0], commands)}", 2)


_USAGE = """usage: popjax COMMAND ...

  train METHOD --env SUITE/TASK   train a population and write a run directory
  evaluate RUN_DIR                evaluate, compare with the original environment, film
  report RUN_DIR ...              write a page that compares runs
  export RUN_DIR --out DIR        write a policy that works without popjax

popjax COMMAND --help lists the options; popjax --version prints the version"""


def run(argv: Sequence[str] | None = None) -> int:
    """Train, as ``scripts/run.py``; return the exit code."""
    if argv is None:
        jax_setup.run_alone()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run(arguments), arguments)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Evaluate a run, as ``scripts/evaluate.py``; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from popjax.cli import results

    return _guarded(lambda: results.evaluate(arguments), arguments)


def report(argv: Sequence[str] | None = None) -> int:
    """Write a page about runs, as ``scripts/report.py``; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from popjax.cli import results

    return _guarded(lambda: results.report(arguments), arguments)


def export(argv: Sequence[str] | None = None) -> int:
    """Write a policy that acts without popjax, as ``scripts/export.py``; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from popjax.cli import results

    return _guarded(lambda: results.export(arguments), arguments)


def _guarded(command: Callable[[], None], argv: Sequence[str]) -> int:
    """Run ``command``, return its exit code; a user's mistake becomes one line, a bug keeps its traceback."""
    from popjax.host import terminal

    jax_setup.see_current_directory()
    terminal.open_missing()
    if list(argv) == ["--version"]:
        from popjax.version import __version__

        print(f"popjax {__version__}")
        return 0
    terminal.write_any_text()
    if wrong := jax_setup.setting_unknown_to_jax():
        return _fail(wrong, 2)
    from popjax.cli import forms

    try:
        return _exit_code(command)
    except Interrupted as interrupted:
        resume = [word for word in forms.bare_flags(argv, {"--resume": False}) if word != "--resume"]
        started = sys.argv[: len(sys.argv) - len(argv)] or sys.argv[:1]
        complain(f"{interrupted}\nto continue: {forms.command([*started, *resume, '--resume'])}")
        if interrupted.left:
            os._exit(128 + interrupted.signal_number)
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        complain("interrupted; what was not saved is lost")
        os._exit(130)  # do not wait for a chunk that may still be computed in the background
    finally:
        terminal.give_up_broken()


def _exit_code(command: Callable[[], None]) -> int:
    """Run ``command``; report a failure in one line and return its exit code. Ctrl-C passes through."""
    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Refused as refusal:
        return _fail(str(refusal), 2)
    except FAILURES as failure:
        return _fail(str(failure), 1)
    except BrokenPipeError:  # the program that reads our output has closed the pipe
        return 1
    except OSError as failure:
        return _fail(f"{type(failure).__name__}: {failure}", 1)
    return 0


def _run(argv: list[str]) -> None:
    from popjax.cli import expand, forms, grid, parse, several
    from popjax.host import paths
    from popjax.host.runs import launchers
    from popjax.host.scaling import shard

    if not argv:
        raise Refused(f"no method given: name {' or '.join(METHODS)} first, or see --help")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        _help(parse)
    recipes.recipe(name)
    jax_setup.prepare_jax()
    rest = forms.bare_flags(expand.expanded(rest), {"--deterministic": False})
    if "--deterministic" in rest:  # the flags are read when JAX first looks for a device
        jax_setup.compute_deterministically()
    control, rest = grid.control(jax_setup.join_processes(rest))
    shard.divide_cpu(parse.peel(rest, "--devices")[0], grid.spread_axis(rest))
    jax_setup.require_backend()
    programs: dict[tuple[str, ...], Program] = {}

    def common(arguments: Sequence[str]) -> Any:
        programs[tuple(arguments)] = program = understand(name, list(arguments))
        return program.arguments.common

    entries = grid.programs(rest, common, control.launcher)
    commons = [program.arguments.common for program in programs.values()]
    named = grid.default_directory(name, commons) if control.run_dir is None else control.run_dir
    root = paths.path(named)
    tools = several.Tools(name, commons[0], partial(_train, name), _run_within, run)
    if len(entries) == 1 and control.launcher == "local":
        several.run_one(tools, entries[0].argv, root, control)
        return
    for program in programs.values():
        training.check_build(program)
    launchers.require(control.launcher, control.launcher_option)
    if len(entries) == 1:
        several.submit_one(tools, entries[0].argv, root, control)
        return
    grid.open_index(root, entries, commons[0], resume=control.resume)
    several.run_all(tools, entries, root, control)


def _train(name: str, argv: Sequence[str], root: Path, resume: bool) -> Any:
    return training.train_program(understand(name, list(argv)), root, resume)


def _run_within(argv: Sequence[str]) -> int:
    """Run one of several runs in this process; a failure does not stop the others, Ctrl-C does."""
    return _exit_code(lambda: _run(list(argv)))


def understand(name: str, argv: list[str]) -> Program:
    """Return the parsed arguments of one program, without those that several programs share."""
    from popjax.cli import parse, pretrained
    from popjax.recipe import defaults

    recipe = recipes.recipe(name)
    task = parse.peel(argv, "--env")[0]
    runs, rest = pretrained.peel_runs(recipe, argv)
    tasks, rest = _peel_envs(recipe, rest)
    kinds, rest = _peel_agents(recipe, rest, task)
    try:
        config, hyper = defaults(recipe, kinds, task)
    except ValueError as refusal:
        raise Refused(building.one_line(refusal)) from None
    preset = recipe.preset(task) if task else None
    options = parse.Options(env_steps=preset.env_steps if preset else recipe.budget(config))
    about, beyond = _about(recipe, name, kinds), _beyond(recipe)
    arguments = _parse_run(parse, name, rest, config, hyper, recipe.agents, about, beyond, options)
    if preset:
        given = arguments.common.env_option
        env_option = (*building.preset_options(recipe, task, parse.key_values(given)), *given)
        arguments = replace(arguments, common=replace(arguments.common, env_option=env_option))
    elif parse.peel(rest, "--env-steps")[0] is None:  # --config may have changed it
        options = replace(arguments.common.options, env_steps=recipe.budget(arguments.config))
        arguments = replace(arguments, common=replace(arguments.common, options=options))
    training.refuse_other_options(recipe, arguments.common, tasks)
    tasks = {
        option: [building.with_preset(recipe, option, text) for text in texts]
        for option, texts in tasks.items()
    }
    return Program(name, recipe, kinds, runs, tasks, arguments)


def _peel_envs(recipe: Recipe, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Take the tasks of every option in ``recipe.envs`` out of ``argv``; return them and the rest."""
    from popjax.cli.parse import peel_all

    found = {}
    for option in recipe.envs:
        found[option], argv = peel_all(argv, f"--{option}")
    return found, argv


def _peel_agents(
    recipe: Recipe, argv: list[str], task: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Take ``--config.FIELD KIND``, the kinds of agent that a method lets the user choose, out of
    ``argv``."""
    from popjax.arguments import nearest
    from popjax.cli.parse import key_values, peel, peel_all
    from popjax.recipe import kinds_of

    given = {}
    for field in recipe.agents:
        given[field], argv = peel(argv, _option(field))
    preset = recipe.preset(task) if task else None
    kinds = kinds_of(recipe, preset.config if preset else recipe.config())
    if recipe.kinds and task and None in given.values():
        options = key_values(peel_all(argv, "--env-option")[0])
        kinds |= recipe.kinds(building.make_env(task, options).spec)
    kinds |= {field: kind for field, kind in given.items() if kind is not None}
    for field, kind in kinds.items():
        if kind not in recipe.agents[field]:
            raise Refused(f"unknown {field} {kind!r}{nearest(kind, recipe.agents[field])}")
    return kinds, argv


def _option(field: str) -> str:
    return f"--config.{field.replace('_', '-')}"


def _about(recipe: Recipe, name: str, kinds: Mapping[str, str]) -> list[str]:
    """Return the paragraphs of a method's help before its options: what it is, and its choices of agents."""
    from popjax.cli.narrow import one_of

    text = inspect.getdoc(inspect.getmodule(recipe.build)) or f"Train {name} and write a run directory."
    return [" ".join(text.partition("\n\n")[0].split())] + [
        f"{_option(field)} {one_of(recipe.agents[field])} (here: {kind}); {_option(field)} NAME --help shows"
        " the options of NAME."
        for field, kind in kinds.items()
    ]


def _beyond(recipe: Recipe) -> dict[str, str]:
    """Return a method's options other than its Config and Hyper, with their texts in ``--help``."""
    return {f"--{name}": known.help for name, known in recipe.runs.items()} | {
        f"--{name}": ("A further task, with its own options: 'SUITE/TASK KEY=VALUE ...'. May be repeated.")
        for name in recipe.envs
    }


def _parse_run(
    parse: ModuleType,
    name: str,
    argv: list[str],
    config: Any,
    hyper: Any,
    choices: Mapping[str, Collection[str]],
    about: Sequence[str] = (),
    beyond: Mapping[str, str] = MappingProxyType({}),
    options: Any = None,
) -> Any:
    import tyro

    from popjax.cli import narrow, per_agent

    options = narrow.narrowed(options or parse.Options(), {})
    common = parse.Common(env=tyro.MISSING, options=options)
    chosen = narrow.narrowed(config, choices), narrow.narrowed(hyper, narrow.open_fields(hyper))
    default = parse.RunArguments(common=common, config=chosen[0], hyper=chosen[1])
    shape = parse.RunArguments[type(chosen[0]), type(chosen[1])]
    given, rest = per_agent.taken(argv)
    arguments = parse.parse(
        shape,
        rest,
        program=f"popjax train {name}",
        default=default,
        description="\n".join([*about, *(f"{option}: {line}" for option, line in beyond.items())]),
        others=list(beyond),
    )
    return replace(
        arguments,
        common=replace(arguments.common, options=narrow.widened(arguments.common.options)),
        config=narrow.widened(arguments.config),
        hyper=per_agent.put(narrow.widened(arguments.hyper), given),
    )


def _help(parse: ModuleType) -> None:
    """Print the options that all methods share and exit."""
    methods = ", ".join(METHODS)
    parse.parse(
        parse.Common,
        ["--help"],
        program="popjax train METHOD",
        description=(
            f"Trains a population-based reinforcement learning method. METHOD is one of: {methods}. "
            "All methods share these options; popjax train METHOD --help adds the options of one method."
        ),
    )


def _fail(text: str, code: int) -> int:
    complain(f"error: {text}")
    return code
