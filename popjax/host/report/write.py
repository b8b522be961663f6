"""Reports made from run directories: their figures, tables and captions."""

from __future__ import annotations

import csv as csv_file
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from popjax.arguments import typed
from popjax.host import paths
from popjax.host.errors import NoRun, Refused
from popjax.host.report import charts, measures, population, records, results, searches, statistics
from popjax.host.report.labels import spread
from popjax.host.report.page import Cells, Picture, Section, Text, render
from popjax.host.report.record import Record
from popjax.host.report.records import Group
from popjax.host.scaling.memory import human

PAGE = "report.html"
_TITLE = 60  # maximum length of a list of methods, or of tasks, in a title [characters]
_CHANGES = {False: "", True: " with changes", None: " perhaps with changes"}
_INTERVAL = (
    f"{statistics.LEVEL:.0%} percentile-bootstrap interval, {statistics.RESAMPLES:,} resamples of the seeds "
    "within each task"
)


@dataclass(frozen=True)
class Report:
    """A report that was written.

    page:    the HTML file.
    figures: names of the figures; each lies beside the page as PNG.
    table:   the table of results; ``caption`` describes it.
    missing: runs and members that have not begun yet.
    limits:  environment steps at which methods are compared on the tasks where some run has gone further.
    skipped: given directories that are not runs, and why.
    """

    page: Path
    figures: tuple[str, ...]
    table: Cells
    caption: str
    missing: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


@typed(Refused)
@charts.literal_text()
def report(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    labels: Sequence[str] = (),
    csv: bool = False,
    measure: str = "last10",
    statistic: measures.Statistic = "mean",
) -> Report:
    """Write a self-contained ``report.html``, and every figure as PNG, into ``out``.

    Runs that differ only in their seeds are pooled. A seed that reached ``stop_at_return`` keeps its last
    return up to its budget; seeds that are merely unfinished limit the comparison to the steps that they have
    reached. A directory stands for all runs below it; runs that have
    not begun are listed. Anything that is not a run, such as an earlier report, is skipped.

    Args:
        labels: names of the methods, one for each run directory.
        csv: also write every evaluation to ``curves.csv`` (method, task, seed, env_steps, return), and the
            ready points of searches over hyperparameters to ``lineage.csv``.
        measure: score of a seed, see ``measures.measure``.
        statistic: statistic over seeds in the tables.

    Raises:
        Refused: there is no run with evaluations, a path does not exist, or no task is shared by all methods.
    """
    read, labels, skipped = _read(run_dirs, labels)
    found = [each.records for each in read]
    missing = [line for each in read for line in each.missing]
    groups = records.grouped([record for each in found for record in each], spread(found, labels))
    common, out, judged = records.common_tasks(groups), paths.path(out), measures.measure(measure)
    scores = results.scores_of(groups, judged)
    compared = results.comparable(groups, common, scores)
    sections = [
        results.section(groups, missing, scores, judged, statistic),
        _curves(groups),
        *([_comparison(groups, common, scores, judged)] if compared else []),
        *_populations(groups),
        _costs(groups),
    ]
    sections = _named_apart(sections)
    pictures = [part for section in sections for part in section.parts if isinstance(part, Picture)]
    out.mkdir(parents=True, exist_ok=True)
    if csv:
        _write_csv(groups, out / "curves.csv")
        _write_lineages(groups, out / "lineage.csv")
    for picture in pictures:
        (out / f"{picture.name}.png").write_bytes(picture.png)
    (out / PAGE).write_text(render(_title(groups), sections), encoding="utf-8")
    table = next(part for part in sections[0].parts if isinstance(part, Cells))
    figures = tuple(picture.name for picture in pictures)
    caption = results.caption(groups, judged, statistic)
    limits = tuple(results.limits(groups))
    return Report(out / PAGE, figures, table, caption, tuple(missing), limits, tuple(skipped))


def _read(
    run_dirs: Sequence[str | Path], labels: Sequence[str]
) -> tuple[list[records.Found], Sequence[str], list[str]]:
    """Return the records and labels of the directories with runs, and why others are skipped."""
    if not run_dirs:
        raise Refused("a report needs at least one run directory")
    found, kept, skipped = [], [], []
    for place, run_dir in enumerate(map(paths.path, run_dirs)):
        try:
            found.append(records.read(run_dir))
            kept.append(place)
        except NoRun as refusal:
            if len(run_dirs) == 1 or not run_dir.exists():
                raise
            skipped.append(str(refusal))
    if not found:
        raise Refused(f"there is no run to report: {'; '.join(skipped)}")
    return found, [labels[place] for place in kept] if len(labels) == len(run_dirs) else labels, skipped


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """Return the sections with the pictures renamed to distinct file names."""
    names = [part.name for section in sections for part in section.parts if isinstance(part, Picture)]
    files = iter(paths.distinct([paths.file_name(_slug(name)) for name in names], names))

    def renamed(part: Any) -> Any:
        return replace(part, name=next(files)) if isinstance(part, Picture) else part

    return [Section(section.title, [renamed(part) for part in section.parts]) for section in sections]


def _title(groups: Sequence[Group]) -> str:
    """Return methods and tasks by name, or their number if the names are too long."""
    told = []
    for what, names in (("methods", records.methods(groups)), ("tasks", records.tasks(groups))):
        text = ", ".join(names)
        told.append(text if len(text) <= _TITLE or len(names) == 1 else f"{len(names)} {what}")
    return " on ".join(told)


def _write_csv(groups: Sequence[Group], path: Path) -> None:
    """Write a row for every evaluation of every seed."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv_file.writer(file)
        writer.writerow(["method", "task", "seed", "env_steps", "return"])
        for group in groups:
            for curve in group.curves:
                rows = list(zip(curve.env_steps.tolist(), curve.returns.tolist(), strict=True))
                made = rows[: len(rows) - curve.held]
                writer.writerows([group.label, group.task, curve.seed, *row] for row in made)


def _write_lineages(groups: Sequence[Group], path: Path) -> None:
    """Write a row for every slot at every ready point of all searches, if there are searches."""
    made = [
        {"method": group.label, "task": group.task, **row}
        for group in groups
        for search in _searched(group)
        for row in searches.rows(search)
    ]
    if made:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv_file.DictWriter(file, list({name: None for row in made for name in row}))
            writer.writeheader()
            writer.writerows(made)


def _curves(groups: Sequence[Group]) -> Section:
    look = charts.styles(records.methods(groups))
    parts: list[Picture | Text] = []
    caption = (
        "Return of the evaluations on {task} against the environment steps that a seed has trained for. "
        "Lines are means over seeds, linear between evaluations; bands are one standard deviation over seeds "
        "on either side, and there is none for a single seed."
    )
    timed = (
        "The same against wall-clock time since the run began, including compiling and evaluating; seeds "
        "that were trained side by side in one run share it."
    )
    anytime = (
        "The best evaluation so far, up to the point that all methods have reached: at equal environment "
        "steps and at equal wall-clock time. Lines and bands as above. The best of noisy evaluations "
        "overestimates every method."
    )
    for task in records.tasks(groups):
        here = [group for group in groups if group.task == task]
        drawn = [group for group in here if group.overlapping]
        if drawn:
            figure = charts.learning_curves(task, drawn, look)
            parts.append(_picture(f"curves-{task}", figure, caption.format(task=task)))
        if len(drawn) < len(here):
            without = ", ".join(group.label for group in here if group not in drawn)
            told = "no step lies between the first and the last evaluation of all seeds"
            parts.append(Text(f"Not drawn on {task}: {without}; {told}.", note=True))
        times = [group for group in here if group.timed]
        if times:
            parts.append(_picture(f"time-{task}", charts.learning_curves(task, times, look, True), timed))
        if len(drawn) > 1 and any(map(_searched, drawn)):
            parts.append(_picture(f"anytime-{task}", charts.anytime(task, drawn, look), anytime))
        if len(times) < len(here):
            without = ", ".join(group.label for group in here if group not in times)
            told = "no times were recorded, or no time lies within the training of all seeds"
            parts.append(Text(f"Not drawn against time on {task}: {without}; {told}.", note=True))
    return Section("Learning curves", parts)


def _comparison(
    groups: Sequence[Group], common: Sequence[str], found: results.Scores, judged: measures.Measure
) -> Section:
    labels, unit = records.methods(groups), judged.unit
    look = charts.styles(labels)
    scores: Any = {label: [results.known(found[label, task]) for task in common] for label in labels}
    parts: list[Text | Picture | Cells] = []
    if len(common) > 1:
        scores, ends = statistics.normalised(scores)
        unit = "normalised score (0: lowest, 1: highest run of a task)"
        scale = (f"{task} {low:.1f} to {high:.1f}" for task, (low, high) in zip(common, ends, strict=True))
        parts.append(Text(f"Scores are scaled from 0 to 1 within each task: {'; '.join(scale)}."))
    means = {
        label: statistics.estimate(statistics.interquartile_mean, found) for label, found in scores.items()
    }
    caption = f"The mean of the middle half of all runs on {', '.join(common)}; bars are the {_INTERVAL}."
    parts.append(_picture("interquartile-mean", charts.interquartile_means(means, look, unit), caption))
    parts.append(Cells(["method", "interquartile mean", "interval"], [_row(k, v) for k, v in means.items()]))
    if judged.higher_is_better:
        parts += _pairs(scores, look)
    caption = (
        f"Share of runs that score above the number on the axis; bands are the {_INTERVAL}, point by point."
    )
    parts.append(_picture("profiles", charts.profiles(scores, look, unit), caption))
    left_out = [task for task in records.tasks(groups) if task not in common]
    if left_out:
        parts.append(Text(f"Left out, since not all methods ran on them: {', '.join(left_out)}.", note=True))
    return Section("Comparison", parts)


def _pairs(scores: Any, look: Any) -> list[Picture | Cells]:
    labels = list(scores)
    found = {
        (x, y): statistics.estimate(statistics.improvement, scores[x], scores[y])
        for place, x in enumerate(labels)
        for y in labels[place + 1 :]
    }
    caption = (
        "The probability that a run of the first method scores higher than one of the second on a task drawn "
        f"at random; bars are the {_INTERVAL}. If the interval contains one half, neither is clearly better."
    )
    rows = [_row(f"{x} > {y}", value) for (x, y), value in found.items()]
    table = Cells(["pair", "probability of improvement", "interval"], rows)
    return [_picture("improvement", charts.improvements(found, look), caption), table]


def _row(name: str, found: statistics.Estimate) -> list[str]:
    value = f"{float(found.value):.2f}"
    if found.low is None or found.high is None:
        return [name, value, "needs at least two seeds on every task"]
    return [name, value, f"[{float(found.low):.2f}, {float(found.high):.2f}]"]


def _populations(groups: Sequence[Group]) -> list[Section]:
    """Return the section on populations, or nothing if no population was recorded."""
    parts: list[Text | Picture | Cells] = []
    for group in groups:
        searched = _searched(group)
        found = population.rows(group.records[0])
        label = f"{group.label} on {group.task}"
        views = [] if found is None else list(population.figures(label, found, fates=not searched))
        views += searches.figures(label, searched) if searched else []
        for kind, figure, caption in views:
            parts.append(_picture(f"{kind}-{group.label}-{group.task}", figure, caption))
        if searched:
            parts.append(Text(f"Hyperparameters of the best individual of {label}, seed {searched[0].seed}:"))
            parts.append(Cells(*searches.table(searched[0])))
        absent = None if searched else population.missing(found)
        if absent:
            parts.append(Text(f"{label}: {absent}", note=True))
    return [Section("Populations", parts)] if parts else []


def _searched(group: Group) -> list[searches.Search]:
    """Return the searches over hyperparameters of all seeds of a group; other methods have none."""
    return [search for record in group.records for search in searches.read(record)]


def _costs(groups: Sequence[Group]) -> Section:
    header = ["run", "method", "task", "seeds", "steps per seed", "compile", "wall time", "training"]
    cells = [_cost(group, record) for group in groups for record in group.records]
    table = Cells([*header, "steps/s", "memory", "hardware", "commit"], cells)
    commands = {
        f"{record.root.name}: {record.config['command']}": None
        for group in groups
        for record in group.records
        if record.config.get("command")
    }
    note = (
        "Training is the share of wall time spent in training; the rest went to compiling, evaluating, "
        "recording and saving. Steps/s are environment steps of all seeds per second of training. Memory is "
        "the peak of the process or, on an accelerator, of the device. '-' means not recorded."
    )
    return Section(
        "Cost and origin", [table, Text(note, note=True), *(Text(command, note=True) for command in commands)]
    )


def _cost(group: Group, record: Record) -> list[str]:
    summary, config = record.summary or {}, record.config
    done = max(evaluation.env_steps for evaluation in record.evaluations)
    seeds = len({evaluation.seed for evaluation in record.evaluations})
    return [
        record.root.name + ("" if record.summary else " (unfinished)"),
        group.label,
        group.task,
        str(seeds),
        f"{summary.get('env_steps', done):,}",
        _shown(summary.get("compile_seconds"), lambda x: f"{x:.1f} s"),
        _shown(summary.get("wall_seconds"), _duration),
        _shown(summary.get("time_shares", {}).get("training"), lambda x: f"{x:.0%}"),
        _shown(summary.get("steps_per_second"), lambda x: f"{x:,.0f}"),
        _shown(summary.get("peak_memory_bytes"), human),
        config.get("device") or "-",
        (config.get("git_commit") or "-")[:10] + _CHANGES[config.get("git_dirty", False)],
    ]


def _shown(value: Any, text: Any) -> str:
    return "-" if value is None else text(value)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s"


def _picture(name: str, figure: Any, caption: str) -> Picture:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return Picture(name, png.getvalue(), caption)


def _slug(name: str) -> str:
    """Return a file name; the signs of numbers become words, so that settings stay distinct."""
    words = name.replace(" -", " minus ").replace("+", "plus")
    return re.sub(r"[\W_]+", "-", words).strip("-").lower()
