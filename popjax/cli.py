"""The command line: arguments and wiring, no logic of its own.

Exit codes: 0 done; 1 the run failed; 2 bad input, told in one line; 130 (143) ended by Ctrl-C (SIGTERM) with
the State saved.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from popjax.core import Env, Method

METHODS = {
    "pderl": "popjax.methods.pderl",
    "erl": "popjax.methods.erl",
    "ce": "popjax.methods.ce",
    "independent": "popjax.methods.independent",
    "onpolicy": "popjax.methods.onpolicy",
    "cspc": "popjax.methods.cspc",
}
"""Every method of the command line: its name and its module. A module has ``Config`` and ``build`` and, where
a task has constants of its own, ``preset(task)``. One that leaves open which agents it is made of has a table
``AGENTS`` of the kinds that a field of its Config may be, with "none" for None, ``default_hyper(config)``
and, where the Config of an agent in it is not the agent's default, ``agent_config(kind)``."""


def run(argv: Sequence[str] | None = None) -> int:
    """``scripts/run.py``: trains. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run(arguments), arguments)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``scripts/evaluate.py``: evaluates what a run has left. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _evaluate(arguments), arguments)


def _guarded(command: Callable[[], None], argv: Sequence[str]) -> int:
    """Runs ``command``; what a user can cause becomes one line and a code, a bug keeps its traceback."""
    from popjax.host.errors import Interrupted, NonFiniteMetric, NotSaved, Refused
    from popjax.parse import Fault

    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    except (Fault, Refused) as fault:
        return _fail(str(fault), 2)
    except (NonFiniteMetric, NotSaved) as failure:
        return _fail(str(failure), 1)
    except Interrupted as interrupted:
        resume = [argument for argument in argv if argument != "--resume"]
        _say(f"{interrupted}\nto continue: {shlex.join(['python', sys.argv[0], *resume, '--resume'])}")
        return 128 + interrupted.signal_number
    except KeyboardInterrupt:
        _say("interrupted; what was not saved is lost")
        os._exit(130)  # a chunk may still be computed in the background: nobody wants to wait for it
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as failure:
        return _fail(f"{type(failure).__name__}: {failure}", 1)
    return 0


def _run(argv: list[str]) -> None:
    from popjax import grid, parse, several

    if not argv:
        raise parse.Fault(f"which method? Say {' or '.join(METHODS)} first, or --help")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        _help(parse)
    if name not in METHODS:
        raise parse.Fault(f"unknown method {name!r}{parse.nearest(name, list(METHODS))}")
    _prepare_jax()
    control, rest = grid.control(_join_processes(rest))
    programs: dict[tuple[str, ...], _Program] = {}

    def understand(arguments: Sequence[str]) -> Any:
        programs[tuple(arguments)] = program = _understand(name, list(arguments))
        return program.arguments.common

    entries = grid.programs(rest, understand)
    commons = [program.arguments.common for program in programs.values()]
    root = Path(control.run_dir or grid.default_directory(name, commons))
    tools = several.Tools(name, commons[0], partial(_train_as, name), _run_within, run, _say)
    if len(entries) == 1 and control.launcher == "local":
        several.run_one(tools, entries[0].argv, root, control)
    else:
        for program in programs.values():
            _built(program)  # so that what cannot be built is known before the first is trained
        grid.open_index(root, entries, resume=control.resume)
        several.run_all(tools, entries, root, control)


class _Program(NamedTuple):
    """One program, understood: method, module, kinds of agents, task as it was asked for, arguments."""

    name: str
    module: ModuleType
    kinds: dict[str, str]
    arguments: Any


def _understand(name: str, argv: list[str]) -> _Program:
    from popjax import parse

    module = importlib.import_module(METHODS[name])
    task = parse.peel(argv, "--env")[0]
    kinds, rest = _peel_agents(module, argv)
    try:
        config, hyper = _defaults(module, kinds, task)
    except ValueError as refusal:
        raise parse.Fault(_one_line(refusal)) from None
    arguments = _parse_run(parse, name, rest, config, hyper, list(kinds))
    return _Program(name, module, kinds, arguments)


def _join_processes(argv: list[str]) -> list[str]:
    """Starts the processes that the arguments speak of, which must come before anything else of JAX."""
    from popjax import parse
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


def _run_within(argv: Sequence[str]) -> int:
    """One of several runs in this process: a failure is told and leaves the others alone, Ctrl-C does not."""
    from popjax.host.errors import NonFiniteMetric, NotSaved, Refused
    from popjax.parse import Fault

    try:
        _run(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    except (Fault, Refused) as fault:
        return _fail(str(fault), 2)
    except (NonFiniteMetric, NotSaved, OSError) as failure:
        return _fail(str(failure), 1)
    return 0


def _train_as(name: str, argv: Sequence[str], root: Path, resume: bool) -> Any:
    return _train(_understand(name, list(argv)), root, resume)


def _built(program: _Program) -> tuple[Env, Method]:
    from popjax import parse

    common = program.arguments.common
    env = _make(common.env, parse.key_values(common.env_option))
    return env, _build(program.module, env, program.arguments.config)


def _train(program: _Program, root: Path, resume: bool) -> Any:
    from popjax import parse
    from popjax.host import detach
    from popjax.host.train import train

    common, config = program.arguments.common, program.arguments.config
    members, swept = parse.bounds(common.members), parse.swept_numbers(common.sweep)
    env, method = _built(program)
    _tell_preset(program.module, common.env, config)
    description = {
        "method": program.name,
        "agents": program.kinds,
        "env_options": parse.key_values(common.env_option),
        "config": asdict(config),
        "command": shlex.join(["python", *sys.argv]),
    }
    if common.from_ is not None and not resume:
        detach.detach(Path(common.from_), root, members)
        resume = True
    return train(
        method,
        env,
        **asdict(common.options),
        hyper=program.arguments.hyper,
        swept=swept,
        members=members,
        devices=common.devices,
        run_dir=root,
        resume=resume,
        description=description,
    )


class Loaded(NamedTuple):
    """A run read back: its environment, method and ``Config``, the State of its newest whole checkpoint with
    a leading axis of its members, the content of ``config.json`` and the environment steps of each member.
    Of a single member that was asked for, all of that is its own."""

    env: Env
    method: Method
    config: Any
    state: Any
    saved: dict[str, Any]
    env_steps: list[int]


def load(run_dir: str | Path, member: int | None = None) -> Loaded:
    """The run in ``run_dir``, made by ``scripts/run.py``, as it can be evaluated or built upon; with
    ``member`` only that one of a sweep.

    Raises:
        Refused: there is no run, no whole checkpoint or no such member.
    """
    from popjax import parse
    from popjax.host import checkpoint, index, rundir, sweep
    from popjax.host.errors import Refused
    from popjax.host.run import complain

    root = index.run_of(Path(run_dir), member)
    saved = rundir.read_config(root)
    if saved.get("method") not in METHODS or not saved.get("config"):
        raise Refused(f"{root} was not made by run.py; evaluate it from Python with popjax.evaluate")
    module = importlib.import_module(METHODS[saved["method"]])
    config, hyper = _defaults(module, saved["agents"], None)
    config = parse.rebuild(config, saved["config"])
    env = _make(saved["env"], saved["env_options"])
    method = _build(module, env, config)
    members = sweep.of_config(saved)
    shapes = _state_shapes(method, parse.rebuild(hyper, saved["hyper"]), members)
    directory = rundir.RunDirectory(root).checkpoints
    if member is None:
        found = checkpoint.restore_newest(directory, shapes, complain)
    else:
        place = index.place_of(root, members, member)
        found = checkpoint.member_of_newest(directory, shapes, complain, place)
    if found is None:
        raise Refused(f"{root} has no whole checkpoint")
    _, state, extra = found
    steps = extra["env_steps"]
    if member is not None:
        saved, steps = saved | {"members": [member, member + 1]}, [steps[place]]
    return Loaded(env, method, config, state, saved, steps)


def _evaluate(argv: list[str]) -> None:
    from popjax import parse

    arguments = parse.parse(parse.EvaluateArguments, argv, program="evaluate.py")
    _prepare_jax()
    from popjax import show
    from popjax.host.evaluate import evaluate as evaluate_state

    run, root = load(arguments.run_dir, arguments.member), Path(arguments.run_dir)
    transfer, film = _transfer(arguments, run), _film(arguments, run)  # refuse before anything is played
    here = show.Played(
        *evaluate_state(run.method, run.env, run.state, episodes=arguments.episodes, seed=arguments.seed)
    )
    there = transfer() if transfer else None
    video = film() if film else None
    if arguments.json:
        show.evaluation_json(root, run.saved, run.env_steps, here, there, video)
        return
    show.evaluation(root, run.saved, run.env_steps, here)
    if there:
        show.transfer(run.saved, here, there)
    if video:
        show.film(video)


def _transfer(arguments: Any, run: Loaded) -> Callable[[], Any] | None:
    """``--in``: what plays the policies in the original environment."""
    library = arguments.in_
    if library is None:
        return None
    from popjax.host import original
    from popjax.show import Played

    copies = [original.make(library, run.env, run.saved["env_options"]) for _ in range(arguments.episodes)]
    return lambda: Played(*original.evaluate(run.method, copies, run.state, seed=arguments.seed), library)


def _film(arguments: Any, run: Loaded) -> Callable[[], dict[str, Any]] | None:
    """``--video``: what films an episode of the first member, and says what it shows."""
    if arguments.video is None:
        return None
    from popjax.host import sweep, video

    path = Path(arguments.video)
    subject = video.subject(run.env, run.saved["env_options"], path)

    def film() -> dict[str, Any]:
        shown = video.record(run.method, run.env, run.state, subject, path, seed=arguments.seed)
        first = sweep.of_config(run.saved)[0].seed
        episode = {"return": shown.total, "length": shown.length, "frames_per_second": shown.fps}
        return {"file": str(path), "seed": first, **episode}

    return film


def _prepare_jax() -> None:
    """Keeps compiled programs between processes and the libraries' remarks off the screen."""
    import logging
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popjax" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _peel_agents(module: ModuleType, argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The kinds of agent, by field, of a method that leaves them open, out of ``--config.FIELD KIND``."""
    from popjax.parse import Fault, nearest, peel

    kinds = {}
    for field, known in getattr(module, "AGENTS", {}).items():
        kind, argv = peel(argv, f"--config.{field.replace('_', '-')}")
        if kind is None:
            default = type(getattr(module.Config(), field))
            kind = next(k for k in known if type(_agent_config(module, known[k])) is default)
        if kind not in known:
            raise Fault(f"unknown agent {kind!r}{nearest(kind, list(known))}")
        kinds[field] = kind
    return kinds, argv


def _agent_config(module: ModuleType, kind: ModuleType | None) -> Any:
    """The Config that a kind of agent begins with in a method."""
    if kind is None:
        return None
    return module.agent_config(kind) if hasattr(module, "agent_config") else kind.Config()


def _defaults(module: ModuleType, kinds: dict[str, str], task: str | None) -> tuple[Any, Any]:
    """Default Config and Hyper of a method, for its agents and for a task where it has constants for one."""
    if kinds:
        known = module.AGENTS
        config = module.Config(
            **{field: _agent_config(module, known[field][kind]) for field, kind in kinds.items()}
        )
        return config, module.default_hyper(config)
    preset = _preset(module, task)
    return (preset.config, preset.hyper) if preset else (module.Config(), module.Hyper())


def _preset(module: ModuleType, task: str | None) -> Any:
    return module.preset(task) if task and hasattr(module, "preset") else None


def _tell_preset(module: ModuleType, task: str | None, config: Any) -> None:
    if _preset(module, task):
        plain = asdict(module.Config())
        changed = [f"{name} {value}" for name, value in asdict(config).items() if value != plain[name]]
        _say(f"preset for {task}: {', '.join(changed) or 'the defaults'}; --config and --hyper override it")


def _parse_run(
    parse: ModuleType, name: str, argv: list[str], config: Any, hyper: Any, agents: Sequence[str]
) -> Any:
    import tyro

    common = parse.Common(env=tyro.MISSING, options=parse.Options(env_steps=tyro.MISSING))
    narrow = parse.narrowed(config, agents), parse.narrowed(hyper, parse.open_fields(hyper))
    default = parse.RunArguments(common=common, config=narrow[0], hyper=narrow[1])
    shape = parse.RunArguments[type(narrow[0]), type(narrow[1])]
    arguments = parse.parse(shape, argv, program=f"run.py {name}", default=default)
    return replace(
        arguments,
        config=parse.widened(arguments.config, type(config)),
        hyper=parse.widened(arguments.hyper, type(hyper)),
    )


def _help(parse: ModuleType) -> None:
    """Prints what all methods share and leaves."""
    methods = ", ".join(METHODS)
    parse.parse(
        parse.Common,
        ["--help"],
        program="run.py METHOD",
        description=(
            f"Trains a population-based reinforcement learning method. METHOD is one of: {methods}. "
            "These options are common to all; run.py METHOD --help adds the --config and --hyper of a method."
        ),
    )


def _make(name: str, options: dict[str, Any]) -> Any:
    from popjax.envs import make
    from popjax.parse import Fault

    try:
        return make(name, **options)
    except ValueError as refusal:
        raise Fault(_one_line(refusal)) from None
    except TypeError as refusal:
        if not options:
            raise
        raise Fault(f"--env-option: {_one_line(refusal)}") from None


def _build(module: ModuleType, env: Any, config: Any) -> Any:
    from popjax.parse import Fault

    try:
        return module.build(env, config)
    except ValueError as refusal:
        raise Fault(_one_line(refusal)) from None


def _state_shapes(method: Any, hyper: Any, members: Any) -> Any:
    import jax

    from popjax.host import sweep

    start = sweep.keys(members), sweep.hypers(hyper, members)
    return jax.eval_shape(sweep.lift(method.init, len(members)), *start)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str, code: int) -> int:
    _say(f"error: {text}")
    return code
