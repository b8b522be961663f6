"""TensorBoard scalars of many members, encoded in batches; no file stays open between them."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popjax.host.paths import file_name
from popjax.host.runs.history import History, Recorded, named
from popjax.host.scaling.sweep import Member

_REPLAYED = 10_000


class Scalars:
    """Event files below ``directory``, one run per member.

    A metric that has axes beyond the generation is recorded as its mean and maximum, an evaluation as
    ``eval/return`` and ``eval/length``, over environment steps. What was written beyond ``env_steps`` [S] is
    hidden: those steps are about to be done again. A member of which nothing is there yet begins with what
    ``earlier`` has of it.
    """

    def __init__(
        self,
        directory: Path,
        members: Sequence[Member],
        env_steps: np.ndarray,
        earlier: Iterable[Recorded] = (),
    ):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._members = tuple(members)
        # TensorBoard reads the event files of a run in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._paths = [directory / file_name(member.name) / name for member in members]
        now = time.time()
        begin = {
            member.number
            for member, path, steps in zip(members, self._paths, env_steps, strict=True)
            if steps and not (path.parent.is_dir() and any(path.parent.iterdir()))
        }
        for path, steps in zip(self._paths, env_steps, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            start = SessionLog(status=SessionLog.START)
            _append(
                path,
                [
                    Event(wall_time=now, file_version="brain.Event:2"),
                    Event(wall_time=now, step=int(steps) + 1, session_log=start),
                ],
            )

        if begin:
            self._replay(record for record in earlier if record.member in begin)

    def _replay(self, earlier: Iterable[Recorded]) -> None:
        """Append what was recorded before, some thousands at a time."""
        paths = {member.number: path for member, path in zip(self._members, self._paths, strict=True)}
        now, records = time.time(), iter(earlier)
        while batch := list(itertools.islice(records, _REPLAYED)):
            for number in {record.member for record in batch}:
                own = [record for record in batch if record.member == number]
                _append(paths[number], [_event(now, r.env_steps, list(r.values.items())) for r in own])

    def write(self, histories: Iterable[History]) -> None:
        """Append what ``histories`` recorded, of each member in one write."""
        events: list[list[Any]] = [[] for _ in self._members]
        now = time.time()
        for history in histories:
            series = _series(history)
            for row in range(history.generation.shape[1]):
                for place in history.living:
                    values = [(name, float(rows[place, row])) for name, rows in series]
                    events[place].append(_event(now, int(history.env_steps[place, row]), values))
            places = {member.number: place for place, member in enumerate(self._members)}
            for made in history.evaluations:
                values = [("eval/return", made.mean), ("eval/length", float(np.mean(made.lengths)))]
                events[places[made.member]].append(_event(now, made.env_steps, values))
        for path, own in zip(self._paths, events, strict=True):
            if own:
                _append(path, own)


def _series(history: History) -> list[tuple[str, np.ndarray]]:
    """Every scalar by its name, [S, C]: a metric itself, or its mean and maximum over further axes."""
    found = []
    for name, values in named(history.metrics).items():
        if values.ndim == 2:
            found.append((f"metrics/{name}", values))
        elif values.size:
            flat = values.reshape(*values.shape[:2], -1)
            found += [(f"metrics/{name}/mean", flat.mean(-1)), (f"metrics/{name}/max", flat.max(-1))]
    return found


def _event(now: float, step: int, values: Sequence[tuple[str, float]]) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values]
    return Event(wall_time=now, step=step, summary=Summary(value=scalars))


def _append(path: Path, events: Sequence[Any]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(_framed(event.SerializeToString()) for event in events))


def _framed(content: bytes) -> bytes:
    """A record of an event file: its length and content, each followed by a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)
