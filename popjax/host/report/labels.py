"""Labels of methods, and the options that distinguish them."""

from __future__ import annotations

import json
import os.path
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from popjax.host.errors import Refused
from popjax.host.numbers import equal
from popjax.host.report.record import Record

_MOST_OPTIONS = 3  # maximum number of options in a label that distinguish methods of the same name


def spread(found: Sequence[Sequence[Record]], labels: Sequence[str]) -> list[str]:
    """Return one label for each record, from ``labels``, which has one for each directory of ``found``.

    Options in which records with the same label differ on a task are appended to it.

    Raises:
        Refused: there are not as many labels as directories.
    """
    if labels and len(labels) != len(found):
        raise Refused(f"--labels needs a label for each run: got {len(labels)} for {len(found)} runs")
    made, every = [], [record for group in found for record in group]
    for label, group in zip(labels, found, strict=bool(labels)):
        names = _told_apart(group)
        made += [_named(label, names, record, every) for record in group]
    return made


def default_labels(records: Sequence[Record]) -> list[str]:
    """Return a label for each record: the method's name and the options in which methods of that name differ
    on a task or, if they are too many, the run directory's name, with as many parents as distinguish it, and
    the options in which its settings differ."""
    names = dict.fromkeys(record.name for record in records)
    told = {name: _told_apart([record for record in records if record.name == name]) for name in names}
    short = {name for name in names if len(told[name]) <= _MOST_OPTIONS}
    firsts = [
        record if record.name in short else _first_alike(record, records, told[record.name])
        for record in records
    ]
    found = []
    for first in firsts:
        if first.name in short:
            found.append(_named(first.name, told[first.name], first, records))
        else:
            rivals = [one.root for one in firsts if one.name not in short and one.task == first.task]
            own = _told_apart([record for record in records if record.root == first.root])
            found.append(_named(_end(first.root, rivals, short), own, first, records))
    return found


def _first_alike(record: Record, records: Sequence[Record], options: Sequence[str]) -> Record:
    """Return the first record of the same task and method with equal values of ``options``."""
    rivals = (one for one in records if (one.task, one.name) == (record.task, record.name))
    return next(
        one for one in rivals if all(equal(one.choice(name), record.choice(name)) for name in options)
    )


def _end(root: Path, rivals: Iterable[Path], taken: Container[str]) -> str:
    """Return the last parts of a path, as few as no other path of ``rivals`` ends with; not one of the labels
    in ``taken``."""
    parts, *others = (Path(os.path.abspath(path)).parts for path in (root, *rivals))
    for length in range(1, len(parts)):
        end = parts[-length:]
        same = [other for other in others if other != parts and other[-length:] == end]
        if not same and str(Path(*end)) not in taken:
            return str(Path(*end))
    return str(Path(*parts))


def _named(label: str, names: Sequence[str], record: Record, records: Sequence[Record]) -> str:
    """Return ``label`` with the record's values of some options, in the same words for equal values in
    ``records``."""
    values = [next(x for r in records if equal(x := r.choice(name), record.choice(name))) for name in names]
    return ", ".join(
        [label, *(f"{_short(name)} {spelt(value)}" for name, value in zip(names, values, strict=True))]
    )


def _told_apart(records: Sequence[Record]) -> list[str]:
    """Return the options in which records of the same task differ, for all tasks."""
    told: dict[str, None] = {}
    for task in dict.fromkeys(record.task for record in records):
        told |= dict.fromkeys(differing_options([record for record in records if record.task == task]))
    return list(told)


def differing_options(records: Sequence[Record]) -> list[str]:
    """Return the options in which records differ."""
    names, first = sorted({name for record in records for name in record.choices}), records[0]
    return [
        name
        for name in names
        if not all(equal(record.choice(name), first.choice(name)) for record in records[1:])
    ]


def spelt(value: Any) -> str:
    """Return the value of an option as text."""
    return "unset" if value is None else json.dumps(value)


def _short(option: str) -> str:
    return option.rpartition(".")[2].replace("_", " ")
