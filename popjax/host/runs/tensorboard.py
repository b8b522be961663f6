"""TensorBoard scalars of many members, encoded in batches; no file stays open between them."""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from popjax.host.paths import file_name
from popjax.host.runs.background_writer import Background, background
from popjax.host.runs.history import History, Scalars
from popjax.host.runs.recorded_scalars import of_history
from popjax.host.scaling.sweep import Member

_PREFIX = "events.out.tfevents."
_REPLAYED = 10_000


def event_files(
    directory: Path, members: Sequence[Member], env_steps: np.ndarray, earlier: Iterable[Scalars] = ()
) -> AbstractContextManager[Background]:
    """Write scalars below ``directory`` in the background, as a sink; see ``EventFiles``."""
    return background(EventFiles(directory, members, env_steps, earlier).write)


class EventFiles:
    """Event files below ``directory``, one run per member.

    Scalars are those of ``recorded_scalars``, over environment steps. Events after ``env_steps`` [S] are
    hidden, since those steps are about to be repeated. A member without event files starts with its records
    in ``earlier``.
    """

    def __init__(
        self,
        directory: Path,
        members: Sequence[Member],
        env_steps: np.ndarray,
        earlier: Iterable[Scalars] = (),
    ):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._members = tuple(members)
        # TensorBoard reads the event files of a run in the order of their names, and clocks may be set back.
        runs = [directory / file_name(member.name) for member in members]
        stamp = max(time.time_ns() // 1000, 1 + max(map(_newest, runs), default=0))
        name = f"{_PREFIX}{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._paths = [run / name for run in runs]
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
            records = (record for record in earlier if record.member in begin)
            while batch := list(itertools.islice(records, _REPLAYED)):
                self._write(batch)

    def write(self, histories: Iterable[History]) -> None:
        """Append the records of ``histories``, with one write for each member."""
        numbers = [member.number for member in self._members]
        self._write(itertools.chain.from_iterable(of_history(history, numbers) for history in histories))

    def _write(self, records: Iterable[Scalars]) -> None:
        now, events = time.time(), defaultdict(list)
        for record in records:
            events[record.member].append(_event(now, record))
        for member, path in zip(self._members, self._paths, strict=True):
            if own := events.get(member.number):
                _append(path, own)


def _newest(run: Path) -> int:
    """Return the largest time stamp [us] in the names of a run's event files, 0 if there is none."""
    stamps = (path.name.removeprefix(_PREFIX).partition(".")[0] for path in run.glob(f"{_PREFIX}*"))
    return max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)


def _event(now: float, record: Scalars) -> Any:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in record.values.items()]
    return Event(wall_time=now, step=record.env_steps, summary=Summary(value=scalars))


def _append(path: Path, events: Sequence[Any]) -> None:
    with path.open("ab") as file:
        file.write(b"".join(_framed(event.SerializeToString()) for event in events))


def _framed(content: bytes) -> bytes:
    """Return a record in the format of event files: length and content, each followed by a checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(content))
    checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    return length + next(checks) + content + next(checks)
