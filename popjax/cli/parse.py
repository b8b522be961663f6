"""Dataclasses parsed from argument lists with tyro, with errors in one line, or rebuilt from JSON."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import NoneType
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import tyro

from popjax.arguments import UNIONS
from popjax.cli import forms
from popjax.host.errors import Refused
from popjax.host.runs.options import Options, option_name
from popjax.host.scaling.sweep import check_names
from popjax.spelling import closest

C = TypeVar("C")
H = TypeVar("H")
T = TypeVar("T")

_unset = partial(tyro.conf.arg, help_behavior_hint="")
"""For an option that is None unless given: its help shows no default, since its text says what None means."""


@dataclass(frozen=True)
class Common:
    """Arguments of every method."""

    # Environment as SUITE/TASK, such as gymnax/Pendulum-v1 or brax/hopper.
    env: str
    options: Annotated[tyro.conf.DisallowNone[Options], tyro.conf.arg(name="")]
    # Option of the environment as KEY=VALUE, such as backend=spring; may be repeated.
    env_option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    # Directory to write to; by default runs/METHOD-SUITE-TASK-seedS.
    run_dir: Annotated[str | None, _unset(metavar="DIR")] = None
    # Also send metrics and evaluations to this project of Weights & Biases, as one W&B run per member;
    # needs popjax[tracking]. WANDB_MODE=offline keeps them in the run directory.
    wandb: Annotated[str | None, _unset(metavar="PROJECT")] = None
    # Continue the run in --run-dir, or start it if there is none. A larger --env-steps extends the run,
    # more seeds or values of --sweep add members to it, and intervals may change.
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    # Train with each of these values; if the option is repeated, with every combination. Values of
    # hyper.NAME share one vmapped axis with the seeds; those of config.NAME run one after another, as
    # with several --env. hyper.A,hyper.B=1:2,3:4 vary together; hyper.NAME=loguniform(1e-5,1e-2) or
    # uniform(LOW,HIGH) is drawn at random.
    sweep: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=V1,V2,...")] = ()
    # Points to draw from the distributions in --sweep, by default 10 [count]; equal --seed gives equal
    # points.
    samples: Annotated[int | None, _unset(metavar="N")] = None
    # File of options, .toml, .json or .yaml; the command line takes precedence.
    file: Annotated[str | None, _unset(name="options", metavar="FILE")] = None
    # Train only these members of the sweep, END excluded, such as 0:8; members are numbered with the seed
    # varying fastest.
    members: Annotated[str | None, _unset(metavar="FIRST:END")] = None
    # Largest number of members trained at a time [count]; the others follow. By default as many as fit into
    # memory.
    slice: Annotated[int | None, _unset(metavar="N")] = None
    # Start from the State that the same members have in the run in DIR: its newest checkpoint, or that of
    # GENERATION.
    from_: Annotated[str | None, _unset(name="from", metavar="DIR[@GENERATION]")] = None
    # With --from a run of pbt: at its next ready point, slot SLOT takes over the individual of slot
    # PARENT, or none if both are the same.
    intervene: Annotated[str | None, _unset(metavar="SLOT=PARENT")] = None
    # Number of devices over which to spread the members or, if there is only one, its population; a CPU
    # has at most one device per core.
    devices: Annotated[str, tyro.conf.arg(metavar="N|all")] = "1"
    # Make GPUs compute the same bits every time, by XLA flags that the run directory records; slower.
    deterministic: tyro.conf.FlagCreatePairsOff[bool] = False
    # Train together with other processes: the address of the first one, or auto under SLURM, MPI or
    # Kubernetes.
    coordinator: Annotated[str | None, _unset(metavar="HOST:PORT|auto")] = None
    # Number of processes that train together; with --coordinator.
    processes: Annotated[tyro.conf.DisallowNone[int | None], _unset()] = None
    # Number of this process, from 0; with --coordinator.
    process: Annotated[tyro.conf.DisallowNone[int | None], _unset()] = None
    # Run the programs of a sweep one after another in this process (local), or as jobs of a cluster.
    launcher: Literal["local", "slurm", "ray"] = "local"
    # Setting of every job, such as num_gpus=1 (ray); may be repeated. SLURM needs timeout_min=MINUTES.
    launcher_option: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")
    ] = ()
    # How often a job that died or was preempted is continued from its checkpoint [count].
    retries: int = 3


@dataclass(frozen=True)
class RunArguments(Generic[C, H]):
    """All arguments of a method."""

    common: Annotated[Common, tyro.conf.arg(name="")]
    config: C
    hyper: H


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluates the policies of a run, one per member, by default those of the newest complete checkpoint."""

    # The run directory.
    run_dir: tyro.conf.Positional[str]
    # Only this member of a sweep, by its number; by default all of them.
    member: Annotated[tyro.conf.DisallowNone[int | None], _unset()] = None
    # Episodes per policy [count].
    episodes: int = 10
    # Seed of the episodes; equal seeds give equal episodes, none of them seen in training.
    seed: int = 0
    # Evaluate the policy with each member's best evaluation in training (best), or that of the checkpoint
    # after STEPS environment steps; by default that of the newest checkpoint.
    checkpoint: Annotated[str | None, _unset(metavar="best|STEPS")] = None
    # Explore as in training, for example by sampling; by default act greedily.
    stochastic: tyro.conf.FlagCreatePairsOff[bool] = False
    # Play under another option of the environment than the run's; may be repeated.
    env_option: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    # Evaluate this individual of the population, counted from 0, not the policy that the method chooses.
    individual: Annotated[tyro.conf.DisallowNone[int | None], _unset()] = None
    # Also play the same number of episodes in the original environment, on the host: gymnasium for gym/
    # and atari/ tasks, dm_control for dmc/ tasks.
    in_: Annotated[
        Literal["gymnasium", "dm_control"] | None,
        _unset(name="in", metavar="{gymnasium,dm_control}"),
    ] = None
    # Film one episode of the first member's policy, as .mp4 or .gif; brax/ tasks also as .html.
    video: Annotated[str | None, _unset(metavar="FILE")] = None
    # Print JSON to standard output instead of a table.
    json: tyro.conf.FlagCreatePairsOff[bool] = False


@dataclass(frozen=True)
class ExportArguments:
    """Writes the policy in the newest complete checkpoint of a run as files that need no popjax: a program
    for JAX and, if NumPy has its operations, one for NumPy alone."""

    # The run directory.
    run_dir: tyro.conf.Positional[str]
    # Directory to write to.
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    # Member of the sweep, by its number; members are numbered with the seed varying fastest.
    member: int = 0
    # Export the policy with the best evaluation in training (best), or that of the checkpoint after STEPS
    # environment steps; by default that of the newest checkpoint.
    checkpoint: Annotated[str | None, _unset(metavar="best|STEPS")] = None
    # Export this individual of the population, counted from 0, not the policy that the method chooses.
    individual: Annotated[tyro.conf.DisallowNone[int | None], _unset()] = None


@dataclass(frozen=True)
class ReportArguments:
    """Writes report.html, a page about runs, and figures as PNG; runs that differ only in seed are pooled."""

    # Run directories; the runs may still be training. Other directories are skipped, so runs/* works.
    run_dirs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_DIR ...")]
    # Directory to write to.
    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs/report"
    # Names of the methods, one for each run directory; by default they follow from the configurations.
    labels: Annotated[tuple[str, ...], _unset(metavar="NAME ...")] = ()
    # Write every evaluation to curves.csv, too: method, task, seed, env_steps and return.
    csv: tyro.conf.FlagCreatePairsOff[bool] = False
    # Score of a seed: the mean of its last ten evaluations, the last one, the best one, the area under
    # its curve, the wall-clock minutes until its last evaluation, or the last value of a metric, named as
    # in TensorBoard.
    measure: Annotated[str, tyro.conf.arg(metavar="last10|last|best|area|minutes|metric:NAME")] = "last10"
    # Statistic of the seeds in tables: mean and standard deviation, median and range, or interquartile
    # mean and its bootstrap interval.
    statistic: Literal["mean", "median", "iqm"] = "mean"


def parse(
    shape: Any,
    argv: Sequence[str],
    *,
    program: str,
    default: Any = None,
    description: str = "",
    others: Sequence[str] = (),
) -> Any:
    """Parse ``argv`` into an instance of ``shape``.

    ``default`` is an instance with the defaults. ``others`` are options already taken out of ``argv``;
    an unknown option may be a misspelling of one of them.

    Raises:
        Refused: an option is unknown (the nearest one is named), lacks a value or has one of the wrong kind.
        SystemExit: with code 0, after ``--help`` was printed.
    """
    printed = io.StringIO()
    optional = {} if default is None else {"default": default}
    known = shape if default is None else default
    flags = dict(_flags(known))
    try:
        with contextlib.redirect_stderr(printed), forms.NUMBERS:
            arguments, unknown = tyro.cli(
                shape,
                args=forms.bare_flags(argv, flags),
                prog=program,
                description=description or None,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
                **optional,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        types = {
            option_name(name): hint if "." in name else _typed(hint) for name, *_, hint in _options(known)
        }
        raise Refused(forms.condensed(printed.getvalue(), types)) from None
    if unknown:
        raise Refused(unknown_option(unknown[0], [*option_names(known), *others, "--help"]))
    return arguments


def _typed(hint: Any) -> Any:
    """Return the type of a value that a user can type: without None, which stands for an option not given."""
    kinds = tuple(kind for kind in get_args(hint) if kind is not NoneType)
    return Union[kinds] if get_origin(hint) in UNIONS else hint  # noqa: UP007 - of types found at run time


def _flags(shape: Any) -> Iterator[tuple[str, bool]]:
    """Yield every flag of a dataclass or an instance as it is typed, and whether "no-" may precede it."""
    for name, field, value, _ in _options(shape):
        if isinstance(value, bool):
            yield option_name(name), "PairsOff" not in str(field.type)


def option_names(shape: Any, prefix: str = "") -> Iterator[str]:
    """Yield every option of a dataclass, or of an instance with nested dataclasses, as it is typed."""
    return (option_name(name) for name, *_ in _options(shape, prefix))


def _options(shape: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield dotted name, field, value and type of every option."""
    types = get_type_hints(shape if isinstance(shape, type) else type(shape))
    for field in fields(shape):
        value = getattr(shape, field.name, None)
        if is_dataclass(value):
            unnamed = isinstance(value, Common | Options)
            yield from _options(value, prefix if unnamed else f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value, types[field.name]


def peel(argv: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """Take ``option VALUE`` or ``option=VALUE`` out of ``argv``; return the last value and the rest.

    Raises:
        Refused: the option comes last, without a value.
    """
    values, rest = peel_all(argv, option)
    return values[-1] if values else None, rest


def peel_all(argv: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Take every value of a repeatable option out of ``argv``, in order; otherwise as ``peel``."""
    values: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(argv):
        name, equals, attached = argv[position].partition("=")
        if name.replace("_", "-") != option:
            rest.append(argv[position])
        elif equals:
            values.append(attached)
        elif position + 1 < len(argv):
            position += 1
            values.append(argv[position])
        else:
            raise Refused(f"{option} needs a value")
        position += 1
    return values, rest


def swept(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse ``["hyper.rate=0.1,0.2"]`` into a dictionary of the texts between the commas.

    Raises:
        Refused: a text has no "=" or no value, or a name occurs twice.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        parts = name.split(",")
        if not equals or not (
            (name.startswith("config.") and len(parts) == 1) or all(p.startswith("hyper.") for p in parts)
        ):
            raise Refused(
                f"--sweep needs hyper.NAME=V1,V2 or config.NAME=V1,V2, got {text!r}; seeds are --seeds"
            )
        check_names([*found, name])
        found[name] = [value.strip() for value in values.split(",")]
        if not all(found[name]):
            raise Refused(f"--sweep {name} needs values with commas between them, got {values!r}")
    return found


def swept_numbers(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Parse as ``swept`` does, into numbers, or tuples of numbers for names that vary together.

    Raises:
        Refused: as ``swept``, or a value is not a number.
    """
    numbers: dict[str, list[Any]] = {}
    for name, values in swept(texts).items():
        try:
            rows = [tuple(map(float, value.split(":"))) for value in values]
        except ValueError as fault:
            raise Refused(f"--sweep {name}: {fault}") from None
        numbers[name] = [row if "," in name else row[0] for row in rows if len(row) == 1 or "," in name]
        if len(numbers[name]) < len(rows):
            raise Refused(
                f"--sweep {name} has several numbers in a value: name each of them, as in hyper.A,hyper.B"
            )
    return numbers


def bounds(text: str | None) -> tuple[int, int] | None:
    """Parse ``"4:8"`` into two numbers.

    Raises:
        Refused: ``text`` does not have this form.
    """
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.isdigit() or not last.isdigit():
        raise Refused(f"--members needs FIRST:END such as 0:8, got {text!r}")
    return int(first), int(last)


def key_values(pairs: Sequence[str], option: str = "--env-option") -> dict[str, Any]:
    """Parse ``["backend=spring", "length=200"]`` into a dictionary of Python literals, else strings.

    Raises:
        Refused: a pair has no "=".
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise Refused(f"{option} needs KEY=VALUE, got {pair!r}")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def rebuild(default: T, saved: Any) -> T:
    """Return ``default`` with the values of an instance of its type saved as JSON.

    Raises:
        Refused: the instance had a field that the type does not have.
    """
    if is_dataclass(default) and not isinstance(default, type) and isinstance(saved, Mapping):
        known = {field.name for field in fields(default)}
        for name in saved:
            if name not in known:
                raise Refused(f"config.json has {name!r}, which {type(default).__name__} does not have")
        return replace(default, **{name: rebuild(getattr(default, name), saved[name]) for name in saved})
    if isinstance(saved, list) and isinstance(default, float):  # a number for each agent
        return cast(T, np.array([float(value) for value in saved], np.float32))
    if isinstance(saved, list):  # JSON has no tuples, and a Config has no lists
        saved = tuple(saved)
    return type(default)(saved) if isinstance(default, float) else saved  # infinities are kept as strings


def unknown_option(argument: str, known: list[str]) -> str:
    """Return the message about an ``argument`` that is not one of the ``known`` options."""
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}"
    name = argument.partition("=")[0]
    longer = (option for option in known if option.startswith(name))
    near = next(longer, None) or closest(name.replace("_", "-"), known)
    return f"unknown option {name}; " + (f"did you mean {near}?" if near else "see --help")
