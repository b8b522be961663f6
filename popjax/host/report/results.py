"""Scores of methods on tasks, and the table and the notes that a report begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from popjax.host.report import measures, records
from popjax.host.report.page import Cells, Section, Text
from popjax.host.report.records import Group

Scores: TypeAlias = Mapping[tuple[str, str], np.ndarray]
"""(method, task) -> float [seeds], NaN of a seed without a score; in the order of the groups' curves."""


def scores_of(groups: Sequence[Group], judged: measures.Measure) -> Scores:
    """Return the scores of all groups, at the steps at which methods are compared on their task."""
    return {(g.label, g.task): judged.of(g, records.budget(groups, g.task)) for g in groups}


def known(scores: np.ndarray) -> np.ndarray:
    """Return the scores of the seeds that have one."""
    return scores[~np.isnan(scores)]


def caption(groups: Sequence[Group], judged: measures.Measure, statistic: measures.Statistic) -> str:
    """Return the words under a table of scores."""
    told = f"{measures.WORDS[statistic].capitalize()}; the score of a seed is {judged.words}"
    if judged.evaluations > (fewest := min(counts := _evaluations(groups))):
        told += f", of which {'there are' if max(counts) == fewest else 'some seeds have'} only {fewest}"
    return f"{told}."


def _evaluations(groups: Sequence[Group]) -> list[int]:
    """Return the number of evaluations of each seed up to the steps at which methods are compared."""
    return [len(c.until(records.budget(groups, g.task))) for g in groups for c in g.curves]


def comparable(groups: Sequence[Group], common: Sequence[str], scores: Scores) -> bool:
    """Return whether there are several methods, all have scores on the common tasks, and one has several
    seeds on one of them."""
    seeds = [len(known(scores[g.label, g.task])) for g in groups if g.task in common]
    return len(records.methods(groups)) > 1 and min(seeds) > 0 and max(seeds) > 1


def section(
    groups: Sequence[Group],
    missing: Sequence[str],
    scores: Scores,
    judged: measures.Measure,
    statistic: measures.Statistic,
) -> Section:
    """Return the section with the table of results and its notes; ``missing`` are runs not begun yet."""
    parts: list[Text | Cells] = [
        Text(caption(groups, judged, statistic)),
        _table(groups, scores, judged, statistic),
        Text(" ".join(_notes(groups, scores)), note=True),
    ]
    if missing:
        parts.append(Text(f"Not begun yet: {'; '.join(missing)}.", note=True))
    return Section("Results", parts)


def _table(
    groups: Sequence[Group], scores: Scores, judged: measures.Measure, statistic: measures.Statistic
) -> Cells:
    """Return a row for each task and a column for each method; the highest is bold if it is the best."""
    labels, rows, best = records.methods(groups), [], set()
    for place, task in enumerate(records.tasks(groups)):
        here = {g.label: known(scores[g.label, task]) for g in groups if g.task == task}
        rows.append([task, *(_cell(here.get(label), statistic) for label in labels)])
        centres = {name: measures.centre(found, statistic) for name, found in here.items() if len(found)}
        if len(here) > 1 and centres and judged.higher_is_better:
            best.add((place, 1 + labels.index(max(centres, key=lambda label: centres[label]))))
    return Cells(["task", *labels], rows, frozenset(best))


def _cell(scores: np.ndarray | None, statistic: measures.Statistic) -> str:
    if scores is None or not len(scores):
        return ""
    return f"{measures.summary(scores, statistic)} ({len(scores)})"


def _notes(groups: Sequence[Group], scores: Scores) -> list[str]:
    """Return the steps at which methods are compared, the seeds that reached their goal or have no score, and
    the runs that are unfinished."""
    told = ["In round brackets: number of seeds. Standard deviations divide by that number minus one."]
    for task in records.tasks(groups):
        told.append(_limit(groups, task) or f"{_at(groups, task)}.")
        for group in groups:
            if group.task == task and (absent := np.isnan(scores[group.label, task])).any():
                seeds = [f"seed {c.seed}" for c, none in zip(group.curves, absent, strict=True) if none]
                told.append(f"Without a score: {', '.join(seeds)} of {group.label} on {task}.")
            if group.task == task and (held := [f"seed {c.seed}" for c in group.curves if c.held]):
                who = f"{', '.join(held)} of {group.label} on {task}"
                told.append(f"Reached --stop-at-return, and the last return counts up to the budget: {who}.")
    unfinished = {str(r.root): None for group in groups for r in group.records if r.summary is None}
    if unfinished:
        told.append(f"Unfinished: {', '.join(unfinished)}.")
    for record in {str(r.root): r for group in groups for r in group.records}.values():
        if record.failed:
            rows = (f"member {row['member']} (seed {row['seed']}): {row['reason']}" for row in record.failed)
            shown = {row["member"] for row in record.failed} & {one.member for one in record.evaluations}
            what = "all members failed and are shown" if shown else "failed members are left out"
            told.append(f"In {record.root}, {what}, since a metric became non-finite: {'; '.join(rows)}.")
    return told


def limits(groups: Sequence[Group]) -> list[str]:
    """Return the steps at which methods are compared on the tasks where some run has gone further."""
    return [line for task in records.tasks(groups) if (line := _limit(groups, task))]


def _limit(groups: Sequence[Group], task: str) -> str | None:
    """Return the steps at which methods are compared on a task, if some run has gone further."""
    budget = records.budget(groups, task)
    longer = [group.label for group in groups if group.task == task and group.furthest > budget]
    if not longer:
        return None
    names = ", ".join(longer)
    return f"{_at(groups, task)}, the most that all have reached; later evaluations of {names} do not count."


def _at(groups: Sequence[Group], task: str) -> str:
    return f"Scores on {task} are those at {records.budget(groups, task):,} environment steps per seed"
