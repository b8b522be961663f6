"""The command line: arguments and wiring, no logic of its own.

This module and ``jax_setup`` import others in functions: JAX may reject its settings when it is imported,
which is reported in one line, and ``popjax --help`` is immediate without it.

Exit codes: 0 done; 1 the run failed; 2 bad input, reported in one line; 130 (143) ended by Ctrl-C (SIGTERM)
with the State saved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from popjax.cli import jax_setup
from popjax.host import recipes, terminal
from popjax.host.errors import FAILURES, Interrupted, Refused
from popjax.host.recipes import METHODS
from popjax.host.terminal import complain
from popjax.spelling import nearest
from popjax.version import __version__


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
    return _of_results(lambda results, arguments: results.evaluate(arguments), argv)


def report(argv: Sequence[str] | None = None) -> int:
    """Write a page about runs, as ``scripts/report.py``; return the exit code."""
    return _of_results(lambda results, arguments: results.report(arguments), argv)


def export(argv: Sequence[str] | None = None) -> int:
    """Write a policy that acts without popjax, as ``scripts/export.py``; return the exit code."""
    return _of_results(lambda results, arguments: results.export(arguments), argv)


def _of_results(use: Callable[[Any, list[str]], None], argv: Sequence[str] | None) -> int:
    """Run ``use(results, arguments)``, with the module that needs JAX, whose settings are checked first."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> None:
        from popjax.cli import results

        use(results, arguments)

    return _guarded(command, arguments)


def _guarded(command: Callable[[], None], argv: Sequence[str]) -> int:
    """Run ``command``, return its exit code; a user's mistake becomes one line, a bug keeps its traceback."""
    jax_setup.see_current_directory()
    terminal.open_missing()
    if list(argv) == ["--version"]:
        print(f"popjax {__version__}")
        return 0
    terminal.write_any_text()
    if wrong := jax_setup.rejected_setting():
        return _fail(wrong, 2)
    from popjax.cli import forms

    def unless_unread() -> None:
        try:
            command()
        except BrokenPipeError:  # the program that reads our output has closed the pipe
            raise SystemExit(1) from None

    try:
        return _exit_code(unless_unread)
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
    except OSError as failure:
        return _fail(f"{type(failure).__name__}: {failure}", 1)
    return 0


def _run(argv: list[str]) -> None:
    from popjax.cli import expand, forms, grid, parse, several, training
    from popjax.cli.program import Program, shared_help, understand
    from popjax.host import paths
    from popjax.host.runs import launchers
    from popjax.host.scaling import shard

    if not argv:
        raise Refused(f"no method given: name {' or '.join(METHODS)} first, or see --help")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        shared_help()
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
    tools = several.Tools(name, commons[0], _run_within, run)
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


def _run_within(argv: Sequence[str]) -> int:
    """Run one of several runs in this process; a failure does not stop the others, Ctrl-C does."""
    return _exit_code(lambda: _run(list(argv)))


def _fail(text: str, code: int) -> int:
    complain(f"error: {text}")
    return code
