"""Sinks, which receive the history of a run while it trains, and the files that they write.

A sink is any ``(chunk index, history) -> None``, called after every chunk with that chunk's records; chunk 0
is the evaluation before training. The sinks here keep a file or the terminal open, so they are context
managers.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TextIO, TypeAlias

import numpy as np

from popjax import tree
from popjax.host.errors import Refused
from popjax.host.numbers import plain
from popjax.host.paths import replacing
from popjax.host.runs.background_writer import Background, background
from popjax.host.runs.history import Evaluation, History, Seconds
from popjax.host.scaling.sweep import Member
from popjax.host.terminal import Lasting, complain

Sink: TypeAlias = Callable[..., Any]
"""``(chunk, History) -> None``, or with the policy as a third argument; returning True ends the run."""

TIMES = tuple(f"{name}_seconds" for name in Seconds._fields)
"""Names of the time fields in a line."""
FACTS = ("member", "seed", "generation", "env_steps", *TIMES)
"""Fields of a line that identify member and time; the others are swept hyperparameters and measurements."""

_PLAIN_INTERVAL = 15.0  # seconds between lines where stderr is not a terminal


def sees_policy(sink: Sink) -> bool:
    """Return whether a sink takes a third argument, the policy: a required positional one, or ``*args``."""
    try:
        parameters = inspect.signature(sink).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    needed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in needed if p.default is p.empty]) == 3 or any(
        p.kind is p.VAR_POSITIONAL for p in parameters
    )


def says_stop(answer: Any) -> bool:
    """Return whether a sink returned True, as a Python, NumPy or JAX boolean."""
    return answer is True or (
        getattr(answer, "dtype", None) == np.bool_ and np.ndim(answer) == 0 and bool(answer)
    )


@contextmanager
def metrics_file(path: Path, members: Sequence[Member]) -> Iterator[Background]:
    """Append to ``path``, in the background, one JSON line per recorded generation and member: ``member``,
    ``seed``, the swept hyperparameters by name, ``generation``, ``env_steps``, ``train_seconds`` and
    ``wall_seconds`` since the run began, and every metric by its dotted name, ``[P]`` metrics as lists.

    ``pandas.read_json(path, lines=True)`` reads it. NaN is null, an infinity "inf" or "-inf".
    """

    def rows(history: History) -> Iterator[dict[str, Any]]:
        metrics = dict(tree.named(history.metrics))
        for row in range(history.generation.shape[1]):
            for place in history.active:
                yield {
                    **_identity(members[place]),
                    "generation": int(history.generation[place, row]),
                    "env_steps": int(history.env_steps[place, row]),
                    **_times(Seconds(*(float(x[row]) for x in history.seconds))),
                    **{name: values[place, row] for name, values in metrics.items()},
                }

    def write(histories: Sequence[History]) -> None:
        _write_lines(file, itertools.chain.from_iterable(map(rows, histories)))

    with path.open("a", encoding="utf-8") as file, background(write) as sink:
        yield sink


@contextmanager
def evaluations_file(path: Path, members: Sequence[Member]) -> Iterator[Sink]:
    """Append to ``path`` one JSON line per evaluation and member: ``member``, ``seed``, the swept
    hyperparameters by name, ``generation``, ``env_steps``, ``train_seconds`` and ``wall_seconds`` since the
    run began, ``return`` (mean over the episodes), ``returns`` and ``lengths`` (one per episode)."""
    numbered = {member.number: member for member in members}

    def row(evaluation: Evaluation) -> dict[str, Any]:
        return {
            **_identity(numbered[evaluation.member]),
            "generation": evaluation.generation,
            "env_steps": evaluation.env_steps,
            **_times(evaluation.seconds),
            "return": evaluation.mean,
            "returns": list(evaluation.returns),
            "lengths": list(evaluation.lengths),
        }

    with path.open("a", encoding="utf-8") as file:
        yield lambda _, history: _write_lines(file, map(row, history.evaluations))


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """Return the evaluations in a file that ``evaluations_file`` wrote, in order; none if it is missing."""
    return tuple(map(evaluation, read_lines(path)))


def evaluation(line: Mapping[str, Any]) -> Evaluation:
    """Return a line of ``evaluations_file`` as an Evaluation."""
    return Evaluation(
        line["seed"],
        line["generation"],
        line["env_steps"],
        tuple(math.nan if x is None else float(x) for x in line["returns"]),  # JSON has no NaN
        tuple(line["lengths"]),
        line["member"],
        Seconds(*(line[name] for name in TIMES)) if line.keys() >= set(TIMES) else None,
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines; see ``each_line``."""
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines, without an incomplete last one; none if it is missing.

    Raises:
        Refused: the file or a line cannot be read.
    """
    try:
        with path.open(errors="replace", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):  # being written
                    return
                try:
                    yield json.loads(line)
                except ValueError:
                    raise Refused(f"line {number} of {path} is not JSON: remove that line") from None
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


def drop_after(
    path: Path, generation: int, members: Sequence[Member], limits: Mapping[int, int] = MappingProxyType({})
) -> None:
    """Remove records after ``generation`` from a file of JSON lines; ``limits`` has the members' own limits
    by number.

    Records get the present numbers of ``members``, which change with the order and the size of a sweep.
    """

    def key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
        values = (facts.get(name, np.nan) for name in members[0].numbers)
        return facts["seed"], *map(np.float32, values)  # an infinity is a text

    numbers = {key(_identity(member)): member.number for member in members}

    def kept(row: dict[str, Any]) -> dict[str, Any] | Literal[False]:
        number = numbers.get(key(row), row["member"])
        return row["generation"] <= limits.get(number, generation) and row | {"member": number}

    rewrite(path, path, kept)


def rewrite(
    source: Path, destination: Path, change: Callable[[dict[str, Any]], dict[str, Any] | Literal[False]]
) -> None:
    """Write the records of ``source`` to ``destination``, possibly the same file, as ``change`` returns them.

    Records for which it returns False are left out, and so are incomplete or malformed lines.
    """
    if not source.exists():
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Line by line: the metrics of a long run may not fit into memory.
    with (
        replacing(destination) as partial,
        source.open(errors="replace", encoding="utf-8") as old,
        partial.open("w", encoding="utf-8") as new,
    ):
        for line in old:
            try:
                row = line.endswith("\n") and change(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue
            if row:
                new.write(json.dumps(row, allow_nan=False) + "\n")


@contextmanager
def progress(
    title: str, budget: int, env_steps: np.ndarray, evaluations: Iterable[Evaluation] = ()
) -> Iterator[Sink]:
    """Show on standard error the environment steps per second of all members, mean return and time left.

    On a terminal that can move its cursor it is a bar, elsewhere a line every 15 seconds. ``env_steps`` [S]
    are those already done, ``evaluations`` those already made, oldest first.
    """
    begun, first = time.perf_counter(), env_steps.astype(np.int64)
    now = first
    latest = {evaluation.member: evaluation.mean for evaluation in evaluations}

    def measure(history: History) -> tuple[int, float, float]:
        """Return the steps of the slowest active member, steps per second of all, and seconds left."""
        nonlocal now
        latest.update({evaluation.member: evaluation.mean for evaluation in history.evaluations})
        now = history.env_steps[:, -1] if history.env_steps.size else now
        seconds = max(time.perf_counter() - begun, 1e-9)
        # If the last active member has just failed, all others have finished.
        slowest = min(history.active or range(len(now)), key=lambda place: int(now[place]))
        rate = (now - first)[slowest] / seconds
        left = max(budget - int(now[slowest]), 0) / rate if rate else float("nan")
        return int(now[slowest]), float((now - first).sum()) / seconds, left

    def text() -> str:
        return f"{np.mean(list(latest.values())):.1f}" if latest else "-"

    display = _bar if _redraws() else _lines
    with display(title, budget) as show:
        show(int(first.min()), 0.0, float("nan"), text())
        yield lambda _, history: show(*measure(history), text())


def _redraws() -> bool:
    """Return whether standard error is a terminal on which rich draws a bar; one with TERM=dumb is not."""
    stderr: Any = Lasting(sys.stderr)
    if not stderr.isatty():
        return False
    from rich.console import Console

    return Console(file=stderr).is_interactive


@contextmanager
def _bar(title: str, budget: int) -> Iterator[Callable[[int, float, float, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% of {task.total:,.0f} env steps"),
        TextColumn("[cyan]{task.fields[rate]} steps/s"),
        TextColumn("[green]return {task.fields[value]}"),
        TextColumn("{task.fields[left]} left"),
    )
    console = Console(file=Lasting(sys.stderr))  # type: ignore[arg-type]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=budget, rate="-", value="-", left="-")

        def show(steps: int, rate: float, left: float, value: str) -> None:
            bar.update(
                task, completed=min(steps, budget), rate=f"{rate:,.0f}", value=value, left=_clock(left)
            )

        yield show


@contextmanager
def _lines(title: str, budget: int) -> Iterator[Callable[[int, float, float, str], None]]:
    shown = time.perf_counter()

    def show(steps: int, rate: float, left: float, value: str) -> None:
        nonlocal shown
        if steps < budget and time.perf_counter() - shown < _PLAIN_INTERVAL:
            return
        shown = time.perf_counter()
        line = f"{title}: {steps:,} of {budget:,} env steps, {rate:,.0f} steps/s, return {value}"
        complain(f"{line}, {_clock(left)} left")

    yield show


def _clock(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _write_lines(file: TextIO, rows: Iterator[dict[str, Any]]) -> None:
    file.writelines(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
    file.flush()


def _identity(member: Member) -> dict[str, Any]:
    return {"member": member.number, "seed": member.seed, **member.numbers}


def _times(seconds: Seconds | None) -> dict[str, float]:
    return {} if seconds is None else {name: round(x, 4) for name, x in zip(TIMES, seconds, strict=True)}
