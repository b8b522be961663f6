"""Output of sinks: the records of TensorBoard, batches in the background, and no file open in between."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popjax.host.runs import log, rundir
from popjax.host.runs.background_writer import Background, background
from popjax.host.runs.history import Evaluation, History, Seconds
from popjax.host.runs.recorded_scalars import recorded
from popjax.host.runs.tensorboard import event_files
from popjax.host.scaling.sweep import grid
from tests.host.tiny import Losses, Metrics


def history(members: int, first: int = 1, rows: int = 2, still: frozenset[int] = frozenset()) -> History:
    """Generations from ``first`` on; member ``i`` has fitness [i + generation, 0] in each."""
    generation = np.tile(np.arange(first, first + rows), (members, 1))
    best = np.arange(members)[:, None] + generation
    fitness = np.stack([best, np.zeros_like(best)], -1).astype(np.float32)
    made = tuple(Evaluation(i, first, 10 * first, (1.0, 3.0), (5, 7), i) for i in range(members))
    metrics = Metrics(fitness, Losses(best.astype(np.float32) / 4), generation.astype(np.int32))
    return History(generation, 10 * generation, metrics, Seconds(*2 * (np.arange(rows),)), made, still)


def events(path: Path) -> list[Any]:
    """The events of a file, whose checksums must be right."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        body = content[12 : 12 + length]
        checks = (
            struct.unpack("<I", content[8:12])[0],
            struct.unpack("<I", content[12 + length : 16 + length])[0],
        )
        assert checks == (masked_crc32c(content[:8]), masked_crc32c(body))
        found.append(Event.FromString(body))
        content = content[16 + length :]
    return found


def test_scalars_are_what_was_recorded(tmp_path: Path) -> None:
    members = grid(0, 2, {})
    with event_files(tmp_path, members, np.array([0, 40])) as sink:
        sink(0, history(2))
        sink(1, history(2, first=3, still=frozenset({0})))
    files = [next((tmp_path / member.name).glob("events*")) for member in members]
    first, second = map(events, files)
    assert first[0].file_version == "brain.Event:2"
    assert [event.step for event in (first[1], second[1])] == [1, 41]  # what is beyond is hidden
    assert first[1].session_log.status == 1
    scalars = [
        (event.step, {value.tag: value.simple_value for value in event.summary.value}) for event in second[2:]
    ]
    named = {"metrics/fitness/mean": 1.0, "metrics/fitness/max": 2.0}
    assert scalars[0] == (10, named | {"metrics/losses.loss": 0.5, "metrics/count": 1.0})
    assert scalars[2] == (10, {"eval/return": 2.0, "eval/length": 6.0})
    assert [step for step, _ in scalars] == [10, 20, 10, 30, 40, 30]
    assert [event.step for event in first[2:]] == [10, 20, 10, 30]  # it stood still


def test_members_take_no_files_or_threads(tmp_path: Path) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    members, before, threads = grid(0, 200, {}), opened(), threading.active_count()
    with (
        event_files(tmp_path / "tb", members, np.zeros(200, int)) as scalars,
        log.metrics_file(tmp_path / "metrics.jsonl", members) as lines,
    ):
        for sink in (scalars, lines):
            sink(0, history(200))
            sink.drain()
        assert opened() - before <= 4
        assert threading.active_count() - threads <= 4
    assert len(log.read_lines(tmp_path / "metrics.jsonl")) == 400


def test_what_is_drained_is_written(tmp_path: Path) -> None:
    with log.metrics_file(tmp_path / "metrics.jsonl", grid(0, 1, {})) as sink:
        for first in range(1, 100, 2):
            sink(0, history(1, first))
        sink.drain()
        generations = [line["generation"] for line in log.read_lines(tmp_path / "metrics.jsonl")]
        assert generations == list(range(1, 101))


def test_a_failure_in_the_background_is_raised_once() -> None:
    written: list[History] = []

    def write(histories: Any) -> None:
        written.extend(histories)
        raise OSError("No space left on device")

    sink = Background(write)
    sink(0, history(1))
    with pytest.raises(OSError, match="No space left"):
        sink.drain()
    for _ in range(1000):  # more than may wait: nobody is waited for
        sink(1, history(1))
    sink.close()
    assert len(written) == 1


def test_a_failure_at_the_end_is_raised() -> None:
    def write(histories: Any) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"), background(write) as sink:
        sink(0, history(1))


def test_a_curve_that_begins_late_has_its_beginning(tmp_path: Path) -> None:
    """Of a run that was copied from another, or whose events are gone; what is there is not written twice."""
    members = grid(0, 2, {})
    files = rundir.RunDirectory(tmp_path)
    with (
        log.metrics_file(files.metrics, members) as lines,
        log.evaluations_file(files.evaluations, members) as made,
    ):
        for sink in (lines, made):
            sink(0, history(2))
            sink(1, history(2, first=3))
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / members[0].name).mkdir()
    (tmp_path / "live" / members[0].name / "events.earlier").touch()
    with event_files(tmp_path / "live", members, np.array([40, 40]), recorded(files, members)) as sink:
        sink(2, history(2, first=5))
    known, new = (events(next((tmp_path / "live" / m.name).glob("events.out*"))) for m in members)
    assert [event.step for event in known[2:]] == [50, 60, 50]
    assert [event.step for event in new[2:]] == [10, 10, 20, 30, 30, 40, 50, 60, 50]
    earlier = {(e.step, v.tag): v.simple_value for e in new[2:8] for v in e.summary.value}
    assert earlier[20, "metrics/fitness/max"] == 3.0
    assert earlier[20, "metrics/fitness/mean"] == 1.5
    assert earlier[30, "eval/return"] == 2.0
    assert earlier[40, "metrics/count"] == 4.0


def test_a_run_resumed_after_its_clock_was_set_back_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads the files of a run by name, and the first record of a file hides what came before."""
    members = grid(0, 2, {})
    for now, (member, *more) in ((5_000, members), (2_000, members), (1_000, members[1:])):
        monkeypatch.setattr(time, "time_ns", lambda now=now: 10**12 * now)
        with event_files(tmp_path, [member, *more], np.full(1 + len(more), now)):
            pass
    found = [
        [events(file)[1].step for file in sorted((tmp_path / member.name).iterdir())] for member in members
    ]
    assert found == [[5_001, 2_001], [5_001, 2_001, 1_001]]


@pytest.mark.parametrize(("term", "bar"), [("dumb", False), ("xterm", True)])
def test_a_terminal_that_cannot_move_its_cursor_has_lines(
    term: str, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(log.sys, "stderr", terminal)
    monkeypatch.setattr(log, "_PLAIN_INTERVAL", 0)
    monkeypatch.setenv("TERM", term)
    with log.progress("pderl on a task", 50, np.array([10, 10])):
        begun = terminal.getvalue()
    assert ("\x1b" in begun) == bar
    assert begun.startswith("pderl on a task: 10 of 50 env steps") != bar


def test_progress_tells_steps_speed_and_the_latest_return_of_each_member(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run continues at 10 of 50 steps; two seconds later each of two members is at 30."""
    clock = iter([100.0, 100.0, 100.0, 100.0, 102.0, 102.0, 102.0, 104.0, 104.0, 104.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(log, "_PLAIN_INTERVAL", 0)
    earlier = tuple(Evaluation(i, 0, 0, (10.0,), (1,), i) for i in range(2))
    with log.progress("pderl on a task", 50, np.array([10, 10]), earlier) as sink:
        sink(0, replace(history(2, first=2), evaluations=()))
        sink(1, history(2, first=4))
    assert capsys.readouterr().err.splitlines() == [
        "pderl on a task: 10 of 50 env steps, 0 steps/s, return 10.0, - left",
        "pderl on a task: 30 of 50 env steps, 20 steps/s, return 10.0, 0:02 left",
        "pderl on a task: 50 of 50 env steps, 20 steps/s, return 2.0, 0:00 left",
    ]
