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
from contextlib import ExitStack
from dataclasses import asdict, replace
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
    "ca2e": "popjax.methods.ca2e",
    "cdrl": "popjax.methods.cdrl",
    "align": "popjax.methods.cdrl.offline",
    "distil": "popjax.methods.distil",
}
"""Every method of the command line: its name and its module. A module has ``Config`` and ``build`` and, where
a task has constants of its own, ``preset(task)``. One that leaves open which agents it is made of has a table
``AGENTS`` of the kinds that a field of its Config may be, with "none" for None, ``default_hyper(config)``
and, where the Config of an agent in it is not the agent's default, ``agent_config(kind)``; where its own
defaults differ from agent to agent, ``default_config(**agents)``, and where it takes another agent on another
task, ``default_kinds(spec)``. One that builds on finished runs has a table ``RUNS``: see ``pretrained``; one
that plays in further tasks has a table ``ENVS``: option -> keyword of ``build``, which takes a tuple. One
that has something to say before a run has ``remarks(env, config, hyper, env_steps, **built_on)``: lines."""


def run(argv: Sequence[str] | None = None) -> int:
    """``scripts/run.py``: trains. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run(arguments), arguments)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """``scripts/evaluate.py``: evaluates what a run has left. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _evaluate(arguments), arguments)


def report(argv: Sequence[str] | None = None) -> int:
    """``scripts/report.py``: writes a page about runs. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from popjax import results

    return _guarded(lambda: results.report(arguments), arguments)


def export(argv: Sequence[str] | None = None) -> int:
    """``scripts/export.py``: writes a policy that acts without popjax. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from popjax import results

    return _guarded(lambda: results.export(arguments), arguments)


def _guarded(command: Callable[[], None], argv: Sequence[str]) -> int:
    """Runs ``command``; what a user can cause becomes one line and a code, a bug keeps its traceback."""
    from popjax.host.errors import Interrupted, NonFiniteMetric, Refused
    from popjax.parse import Fault

    try:
        command()
    except SystemExit as stop:
        return int(stop.code or 0)
    except (Fault, Refused) as fault:
        return _fail(str(fault), 2)
    except NonFiniteMetric as failure:
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
    from popjax import parse, pretrained

    if not argv:
        raise parse.Fault(f"which method? Say {' or '.join(METHODS)} first, or --help")
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        _help(parse)
    if name not in METHODS:
        raise parse.Fault(f"unknown method {name!r}{parse.nearest(name, list(METHODS))}")
    prepare_jax()
    module = importlib.import_module(METHODS[name])
    task = parse.peel(rest, "--env")[0]
    runs, rest = pretrained.peel_runs(module, rest)
    tasks, rest = _peel_envs(module, rest)
    kinds, rest = _peel_agents(module, rest, task)
    try:
        config, hyper = _defaults(module, kinds, task)
    except ValueError as refusal:
        raise parse.Fault(_one_line(refusal)) from None
    arguments = _parse_run(parse, name, rest, config, hyper, list(kinds), _beyond(module))
    _tell_preset(module, task, config)
    _train(name, module, kinds, runs, tasks, arguments)


def _train(
    name: str,
    module: ModuleType,
    kinds: dict[str, str],
    runs: dict[str, list[str]],
    tasks: dict[str, list[str]],
    arguments: Any,
) -> None:
    from popjax import parse, pretrained, results, show
    from popjax.host import rundir
    from popjax.host.train import train

    common = arguments.common
    env_options = parse.key_values(common.env_option)
    env = _make(common.env, env_options)
    root = Path(common.run_dir or _default_directory(name, common.env, common.options))
    if any(runs.values()) and not common.resume:
        rundir.check(root, {}, resume=False)  # before anything that takes long
    built_on, kept = pretrained.take(module, env, env_options, runs, resumed=root if common.resume else None)
    _refuse_other_options(common, tasks)
    built_on |= _further_envs(module, tasks)
    method = _build(module, env, arguments.config, built_on)
    remarks = getattr(module, "remarks", lambda *_, **__: ())
    for remark in remarks(env, arguments.config, arguments.hyper, common.options.env_steps, **built_on):
        _say(remark)
    description = {
        "method": name,
        "agents": kinds,
        "env_options": env_options,
        "config": asdict(arguments.config),
        "runs": kept,
        "envs": tasks,
        "command": shlex.join(["python", *sys.argv]),
    }
    with ExitStack() as stack:
        result = train(
            method,
            env,
            **asdict(common.options),
            hyper=arguments.hyper,
            run_dir=root,
            resume=common.resume,
            sinks=results.tracking(common, root, description, stack),
            description=description,
        )
    show.result(result.summary, root)


class Loaded(NamedTuple):
    """A run read back: its environment, method and ``Config``, the State of its newest whole checkpoint with
    a leading seed axis, the content of ``config.json`` and the environment steps of each seed."""

    env: Env
    method: Method
    config: Any
    state: Any
    saved: dict[str, Any]
    env_steps: list[int]


def load(run_dir: str | Path) -> Loaded:
    """The run in ``run_dir``, made by ``scripts/run.py``, as it can be evaluated or built upon.

    Raises:
        Refused: there is no run, or no whole checkpoint.
    """
    from popjax.host import checkpoint, rundir
    from popjax.host.errors import Refused
    from popjax.host.run import complain

    root = Path(run_dir)
    saved = rundir.read_config(root)
    if saved.get("method") not in METHODS or not saved.get("config"):
        raise Refused(f"{root} was not made by run.py; evaluate it from Python with popjax.evaluate")
    env, method, config, hyper = rebuilt(saved)
    shapes = _state_shapes(method, hyper, saved["options"]["seeds"])
    found = checkpoint.restore_newest(rundir.RunDirectory(root).checkpoints, shapes, complain)
    if found is None:
        raise Refused(f"{root} has no whole checkpoint")
    _, state, extra = found
    return Loaded(env, method, config, state, saved, extra["env_steps"])


def rebuilt(saved: dict[str, Any]) -> tuple[Env, Method, Any, Any]:
    """The environment, method, ``Config`` and ``Hyper`` that a ``config.json`` tells of."""
    from popjax import parse, pretrained

    module = importlib.import_module(METHODS[saved["method"]])
    config, hyper = _defaults(module, saved["agents"], None)
    config = parse.rebuild(config, saved["config"])
    env = _make(saved["env"], saved["env_options"])
    built_on = pretrained.rebuild(module, saved.get("runs", {}))
    built_on |= _further_envs(module, saved.get("envs", {}))
    return env, _build(module, env, config, built_on), config, parse.rebuild(hyper, saved["hyper"])


def _evaluate(argv: list[str]) -> None:
    from popjax import parse

    arguments = parse.parse(parse.EvaluateArguments, argv, program="evaluate.py")
    prepare_jax()
    from popjax import results, show
    from popjax.host.evaluate import evaluate as evaluate_state

    run, root = load(arguments.run_dir), Path(arguments.run_dir)
    run = results.alone(run, arguments.individual)
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
    """``--video``: what films an episode of the first seed, and says what it shows."""
    if arguments.video is None:
        return None
    from popjax.host import video

    path = Path(arguments.video)
    subject = video.subject(run.env, run.saved["env_options"], path)

    def film() -> dict[str, Any]:
        shown = video.record(run.method, run.env, run.state, subject, path, seed=arguments.seed)
        first = run.saved["options"]["seed"]
        episode = {"return": shown.total, "length": shown.length, "frames_per_second": shown.fps}
        return {"file": str(path), "seed": first, **episode}

    return film


def prepare_jax() -> None:
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


def _peel_envs(module: ModuleType, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The tasks of every option in the module's ``ENVS``, out of ``argv``, and what remains."""
    from popjax.parse import peel_all

    found = {}
    for option in getattr(module, "ENVS", {}):
        found[option], argv = peel_all(argv, f"--{option}")
    return found, argv


def _further_envs(module: ModuleType, tasks: dict[str, list[str]]) -> dict[str, Any]:
    """What ``build`` is given of further tasks, by keyword."""
    return {module.ENVS[option]: tuple(_make(name, {}) for name in names) for option, names in tasks.items()}


def _refuse_other_options(common: Any, tasks: dict[str, list[str]]) -> None:
    """A further task has the defaults of its task; as the run's own task with other options it would be
    another."""
    from popjax.parse import Fault

    for option, names in tasks.items():
        if common.env_option and common.env in names:
            raise Fault(
                f"--{option} {common.env}: --env-option is for --env alone, a further task has its defaults;"
                " leave out --env-option"
            )


def _peel_agents(module: ModuleType, argv: list[str], task: str | None) -> tuple[dict[str, str], list[str]]:
    """The kinds of agent, by field, of a method that leaves them open, out of ``--config.FIELD KIND``."""
    from popjax.parse import Fault, key_values, nearest, peel, peel_all

    kinds = {}
    for field, known in getattr(module, "AGENTS", {}).items():
        kind, argv = peel(argv, f"--config.{field.replace('_', '-')}")
        if kind is None and task and hasattr(module, "default_kinds"):
            options = key_values(peel_all(argv, "--env-option")[0])
            kind = module.default_kinds(_make(task, options).spec)[field]
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
        make = getattr(module, "default_config", module.Config)
        config = make(**{field: _agent_config(module, known[field][kind]) for field, kind in kinds.items()})
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


def _beyond(module: ModuleType) -> dict[str, str]:
    """The options that a method has beside its Config and Hyper, and what ``--help`` says of them."""
    found = {f"--{name}": known.help for name, known in getattr(module, "RUNS", {}).items()}
    return found | {
        f"--{name}": "A further task, SUITE/TASK, with its defaults: --env-option is for --env alone."
        for name in getattr(module, "ENVS", {})
    }


def _parse_run(
    parse: ModuleType,
    name: str,
    argv: list[str],
    config: Any,
    hyper: Any,
    agents: Sequence[str],
    beyond: dict[str, str],
) -> Any:
    import tyro

    common = parse.Common(env=tyro.MISSING, options=parse.Options(env_steps=tyro.MISSING))
    narrow = parse.narrowed(config, agents), parse.narrowed(hyper, parse.open_fields(hyper))
    default = parse.RunArguments(common=common, config=narrow[0], hyper=narrow[1])
    shape = parse.RunArguments[type(narrow[0]), type(narrow[1])]
    also = [f"{option}: {line} May be repeated." for option, line in beyond.items()]
    arguments = parse.parse(
        shape,
        argv,
        program=f"run.py {name}",
        default=default,
        description="\n\n".join(["Trains a method in an environment and writes a run directory.", *also]),
        others=list(beyond),
    )
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


def _build(module: ModuleType, env: Any, config: Any, built_on: dict[str, Any]) -> Any:
    from popjax.parse import Fault

    try:
        return module.build(env, config, **built_on)
    except ValueError as refusal:
        raise Fault(_one_line(refusal)) from None


def _state_shapes(method: Any, hyper: Any, seeds: int) -> Any:
    import jax

    from popjax.core import as_arrays
    from popjax.host import sweep
    from popjax.host.programs import init_function

    return jax.eval_shape(init_function(method, seeds), sweep.keys(0, seeds), as_arrays(hyper))


def _default_directory(method: str, env: str, options: Any) -> str:
    first, count = options.seed, options.seeds
    seeds = f"seed{first}" if count == 1 else f"seeds{first}to{first + count - 1}"
    return f"runs/{method}-{env.replace('/', '-')}-{seeds}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str, code: int) -> int:
    _say(f"error: {text}")
    return code
