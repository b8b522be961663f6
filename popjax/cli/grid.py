"""Division of a command into several programs: for several environments, swept Configs or slices of a large
sweep."""

from __future__ import annotations

import itertools
import math
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from popjax.cli import forms, parse
from popjax.host import paths
from popjax.host.errors import Refused, TooLarge
from popjax.host.numbers import whole
from popjax.host.runs import run_group, rundir
from popjax.host.runs.options import Options, option_name
from popjax.host.runs.run_group import Entry
from popjax.host.scaling import processes, shard, sweep
from popjax.host.terminal import complain

Understand = Callable[[Sequence[str]], Any]
"""Parses the arguments of one program; returns those that all methods have."""


class Control(NamedTuple):
    """Arguments that apply to the whole directory of runs, not to each run."""

    run_dir: str | None
    resume: bool
    launcher: str
    launcher_option: dict[str, Any]
    retries: int


def control(argv: Sequence[str]) -> tuple[Control, list[str]]:
    """Take the ``Control`` out of the arguments."""
    run_dir, rest = parse.peel(argv, "--run-dir")
    launcher, rest = parse.peel(rest, "--launcher")
    options, rest = parse.peel_all(rest, "--launcher-option")
    retries, rest = parse.peel(rest, "--retries")
    rest = forms.bare_flags(rest, {"--resume": False})
    resume = "--resume" in rest
    rest = [argument for argument in rest if argument != "--resume"]
    if launcher not in (None, "local", "slurm", "ray"):
        raise Refused(f"--launcher must be local, slurm or ray, got {launcher!r}")
    if retries is not None and not retries.isdigit():
        raise Refused(f"--retries must be a whole number of at least 0, got {retries!r}")
    if launcher in (None, "local") and (options or retries is not None):
        raise Refused("--launcher-option and --retries are for --launcher slurm or ray")
    values = parse.key_values(options, "--launcher-option")
    return Control(run_dir, resume, launcher or "local", values, int(retries or 3)), rest


def programs(argv: Sequence[str], understand: Understand, launcher: str = "local") -> list[Entry]:
    """Parse all programs of a command, before the first one runs.

    A program that needs no name is called "".
    """
    axes, rest = _axes(argv)
    entries: list[Entry] = []
    origins: list[str] = []
    for choice in itertools.product(*axes.values()):
        label = ",".join(f"{_short(axis)}{name}" for axis, (name, _) in zip(axes, choice, strict=True))
        chosen = [token for _, tokens in choice for token in tokens]
        own = [*rest, *chosen]
        common = understand(own)
        if parse.peel(own, "--env-steps")[0] is None:  # each task may have a budget of its own
            own += ["--env-steps", str(common.options.env_steps)]
        if common.slice is None:
            entries.append(Entry(label, tuple(own)))
        else:
            parts = slices(own, common, common.slice, device_count(common, launcher))
            prefix = f"{label}," if label else ""
            alone = len(parts) == 1
            entries += [Entry(label if alone else prefix + part.directory, part.argv) for part in parts]
        origins += [shlex.join(chosen)] * (len(entries) - len(origins))
    asked = [entry.argv for entry in entries]
    for entry in entries:
        if asked.count(entry.argv) > 1:
            raise Refused(f"{entry.directory or 'the run'} is requested twice")
    names = [paths.file_name(entry.directory) for entry in entries]
    return [Entry(name, argv) for name, argv in zip(paths.distinct(names, origins), asked, strict=True)]


def device_count(common: Any, launcher: str) -> int:
    """Return the number of devices over which each program is spread; 1 if a cluster's workers decide
    that."""
    if launcher == "local":
        return shard.number(common.devices)
    return int(common.devices) if common.devices.isdigit() else 1


def spread_axis(argv: Sequence[str]) -> str:
    """Return the axis that ``--devices`` spreads; the population's if ``argv`` alone does not decide it.

    The command is parsed only later, since parsing builds environments, and JAX must be set up for that.
    """
    seeds, rest = _values(argv, "--seeds")
    grid = parse.swept(parse.peel_all(rest, "--sweep")[0])
    settings = math.prod(len(values) for name, values in grid.items() if name.startswith("hyper."))
    part = any(parse.peel(rest, option)[0] for option in ("--members", "--slice"))
    members = settings * (_count(seeds[-1]) if seeds else 1)
    return shard.SWEEP if members > 1 and not part else shard.POPULATION


def _count(seeds: Sequence[str]) -> int:
    """Return the number of seeds that ``--seeds`` asks for: a single number is their count."""
    with suppress(ValueError):  # the parser refuses it
        return whole(seeds[0]) if len(seeds) == 1 else len(seeds)
    return 1


def slices(argv: Sequence[str], common: Any, size: int, devices: int = 1) -> list[Entry]:
    """Split the members of one program into programs of ``size`` members; the last may have fewer.

    Raises:
        Refused: a slice cannot be spread over ``devices``. A single member spreads its population instead.
    """
    if size < 1:
        raise Refused(f"--slice must be at least 1, got {size}")
    members = chosen(common)
    if size > 1:
        shard.require_divisible(len(members), devices, "members of the sweep")
    if 1 < size < len(members) and size % devices:
        fitting = sorted({size // devices * devices, -(-size // devices) * devices} - {0})
        raise Refused(
            f"--slice {size}: {size} members do not divide evenly over {devices} devices; use --slice"
            f" {' or '.join(map(str, fitting))}"
        )
    _, bare = parse.peel(parse.peel(argv, "--members")[1], "--slice")
    entries = []
    for start in range(members[0].number, members[-1].number + 1, size):
        end = min(start + size, members[-1].number + 1)
        entries.append(Entry(f"members{start}to{end - 1}", (*bare, "--members", f"{start}:{end}")))
    return entries


def default_directory(method: str, programs: Sequence[Any]) -> str:
    """Return the default directory of a command; ``programs`` hold the arguments that all methods share."""
    options = programs[0].options
    first, count = options.seed, options.seeds
    if not isinstance(count, int):
        seeds = "seeds" + "+".join(map(str, count))
    else:
        seeds = f"seed{first}" if count == 1 else f"seeds{first}to{first + count - 1}"
    envs = "+".join(dict.fromkeys(_in_a_name(program.env) for program in programs))
    swept = "sweep-" if len(programs) > 1 or programs[0].sweep else ""
    return f"runs/{paths.file_name(f'{_in_a_name(method)}-{envs}-{swept}{seeds}')}"


def chosen(common: Any) -> tuple[sweep.Member, ...]:
    """Return the members that a command trains."""
    options = common.options
    whole = sweep.grid(options.seed, options.seeds, parse.swept_numbers(common.sweep))
    return sweep.part(whole, parse.bounds(common.members))


def largest_slice(common: Any, fault: TooLarge) -> int:
    """Return the largest number of members that fits into memory and divides over the devices.

    Raises:
        TooLarge: there are more devices than members that fit.
    """
    count = device_count(common, "local")
    size = fault.fitting // count * count
    if not size and fault.fitting:
        members = len(chosen(common))
        fewer = max(n for n in range(1, fault.fitting + 1) if members % n == 0)
        raise TooLarge(f"{fault}; {fault.fitting} would fit at a time: use --devices {fewer}", fault.fitting)
    return size


def budget(argv: Sequence[str]) -> int:
    """Return the environment steps of one of the ``programs``."""
    return whole(parse.peel(argv, "--env-steps")[0])


def identities(common: Any, argv: Sequence[str]) -> set[str]:
    """Return the identities of one program's members; ``common`` are the arguments all programs share."""
    bounds = parse.peel(argv, "--members")[0]
    return {member.identity for member in chosen(replace(common, members=bounds))}


def slices_again(argv: Sequence[str], common: Any, root: Path, devices: int = 1) -> list[Entry]:
    """Return the slices recorded in ``root``, whatever fits into memory today, and slices for new members.

    Raises:
        Refused: ``root`` holds other runs, or a slice that cannot be spread over ``devices``.
    """
    before = run_group.read(root)
    parts = [parse.peel(entry.argv, "--members")[0] for entry in before]
    if None in parts:
        raise Refused(f"{root} was made by another command: it has {before[0].directory}")
    for text in parts:
        first, end = parse.bounds(text) or (0, 1)
        if end - first > 1:
            shard.require_divisible(end - first, devices, f"members of a slice in {root}")
    bare = parse.peel(argv, "--members")[1]
    both = zip(before, parts, strict=True)
    again = [Entry(entry.directory, (*bare, "--members", str(bounds))) for entry, bounds in both]
    known = [parse.bounds(text) or (0, 1) for text in parts]
    size, end, last = known[0][1] - known[0][0], known[-1][1], chosen(common)[-1].number + 1
    if end < last:
        again += slices(bare, replace(common, members=f"{end}:{last}"), size, devices)
    return again


def open_index(root: Path, entries: Sequence[Entry], common: Any, *, resume: bool) -> None:
    """Make ``root`` a directory of these runs, or check that it is one; ``common`` are the arguments that all
    of them share.

    A directory in which no run has begun is overwritten.

    Raises:
        Refused: ``root`` holds something else, or these runs while ``resume`` is false.
    """

    def make() -> None:
        if run_group.started(root) and run_group.holds(root):
            if not resume:
                raise Refused(
                    f"{root} already holds runs: add --resume to continue them, or name another --run-dir"
                )
            require_same(root, run_group.read(root), entries, common)
        elif not run_group.holds(root) and rundir.RunDirectory(root).holds_a_run():
            raise Refused(f"{root} already holds a run: name another --run-dir")
        elif resume:
            complain(f"{root} holds no run yet: starting from the beginning")
        run_group.write(root, forms.command(sys.argv), entries)

    processes.together(make)


def require_same(root: Path, before: Sequence[Entry], now: Sequence[Entry], common: Any) -> None:
    """Raise Refused unless a command includes all runs begun in a directory, with all their members; it may
    add others."""
    known = {entry.directory: entry.argv for entry in before if run_group.started(root / entry.directory)}
    if left := sorted(known.keys() - {entry.directory for entry in now}):
        raise Refused(f"{root} was made by another command: it has {', '.join(left)}")
    for entry in now:
        if entry.directory not in known:
            continue
        was, asked = _decisive(known[entry.directory]), _decisive(entry.argv)
        if was != asked:
            told = [" ".join((a - b).elements()) or "nothing" for a, b in ((was, asked), (asked, was))]
            raise Refused(f"{root / entry.directory} was begun with other options: {' -> '.join(told)}")
        if "--members" in entry.argv:
            _require_members(root / entry.directory, identities(common, entry.argv))


def _require_members(root: Path, now: Set[str]) -> None:
    """Raise Refused unless all members of the run in ``root`` are among ``now``, given by identity.

    A slice is a range of member numbers, which are given to other members if every setting has more seeds.
    """
    if run_group.holds(root):  # each of its runs finds out
        return
    there = [member.identity for member in sweep.of_config(rundir.read_config(root))]
    if missing := [name for name in there if name not in now]:
        raise Refused(
            f"{root} was begun with {missing[0]}, which this command would not train there: append values to"
            " the first --sweep, or train other members, such as further seeds, in another --run-dir"
        )


def _decisive(argv: Sequence[str]) -> Counter[str]:
    """Return the arguments that identify a run.

    Environment steps, members, devices and the intervals of logging and evaluation do not: each run checks
    them itself when it is resumed.
    """
    free = {*(option_name(field.name) for field in fields(Options)), "--devices", "--wandb", "--sweep"}
    rest, decides = [], True
    for word in argv:
        if word.startswith("--"):
            decides = word.partition("=")[0].replace("_", "-") not in free
        rest += [word] if decides else []
    pairs = [text.split("=", 1) if text.startswith("--") else [text] for text in rest]
    return Counter(part for pair in pairs for part in pair)


def _axes(argv: Sequence[str]) -> tuple[dict[str, list[tuple[str, list[str]]]], list[str]]:
    """Return the options in which programs differ, by name, each with the name and arguments of every choice;
    and all other arguments."""
    given, rest = _values(argv, "--env")
    envs = [env for several in given for env in several]
    texts, rest = parse.peel_all(rest, "--sweep")
    axes = {"env": [(_in_a_name(env), ["--env", env]) for env in envs]} if len(envs) > 1 else {}
    if len(envs) == 1:
        rest += ["--env", envs[0]]
    for name, values in parse.swept(texts).items():
        if name.startswith("hyper."):
            rest += ["--sweep", f"{name}={','.join(values)}"]
        elif len(values) == 1:
            rest += _option(name, values[0])
        else:
            axes[name] = [
                (value.replace("/", "-").replace(" ", "x"), _option(name, value)) for value in values
            ]
    return axes, rest


def _values(argv: Sequence[str], option: str) -> tuple[list[list[str]], list[str]]:
    """Return the values of every ``option A B`` or ``option=A B``, in order, and all other arguments."""
    found: list[list[str]] = []
    rest: list[str] = []
    taking = False
    for argument in argv:
        name, equals, attached = argument.partition("=")
        if name == option:
            found.append([attached] if equals else [])
            taking = True
        elif taking and not argument.startswith("--" if not found[-1] else "-"):
            found[-1].append(argument)
        else:
            taking = False
            rest.append(argument)
    return found, rest


def _option(name: str, value: str) -> list[str]:
    """Return ``config.NAME=value`` as it is typed: "64 64" is two values, true and false are flags."""
    group, _, field = name.replace("_", "-").partition(".")
    if value.lower() in ("true", "false"):
        path, _, last = field.rpartition(".")
        no = "" if value.lower() == "true" else "no-"
        return [f"--{group}.{path + '.' if path else ''}{no}{last}"]
    return [f"--{group}.{field}", *value.split()]


def _in_a_name(task: str) -> str:
    """Return a task or an import path in a form fit for a directory's name."""
    return task.replace("/", "-").replace(":", "-")


def _short(axis: str) -> str:
    return "" if axis == "env" else f"{axis}="
