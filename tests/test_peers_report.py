"""What follows from the rows of a comparison: shares of what a device allows, bends, a figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accelerator_programs, accelerators, clock, peers_report
from benchmarks.trainers import Work

RESULTS = peers_report.ROOT / "benchmarks/results"


def row(population: int, ours: float, peer: float, algorithm: str = "sac", who: str = "rejax"):
    paces = {"ours_per_second": ours, "peer_per_second": peer, "ratio": ours / peer}
    return {"algorithm": algorithm, "population": population, "peer": who} | paces


def test_operations_of_an_update_are_those_of_its_products():
    """About 16 forward passes of 66,816 weights, of 256 rows each."""
    assert peers_report.update_flops(Work()) == 16 * 2 * 256 * 66_816


def test_a_bend_is_where_nine_tenths_of_the_highest_speed_are_reached():
    assert peers_report.bend({1: 10.0, 4: 89.0, 16: 90.0, 64: 100.0}) == 16
    assert peers_report.bend({1: 95.0, 4: 100.0, 16: 60.0}) == 1


def test_a_curve_that_still_grows_has_no_bend():
    assert peers_report.bend({1: 10.0, 64: 100.0}) is None
    assert peers_report.bend({1: 10.0}) is None


def test_every_trainer_has_the_bend_of_its_own_curve():
    failed = {"algorithm": "sac", "population": 4, "peer": "sbx", "cannot": "trains one agent a process"}
    rows = [row(4, 100, 50), row(1, 20, 48), row(16, 101, 49), row(16, 103, 1, who="qdax"), failed]
    assert peers_report.curves(rows)["popjax"] == {1: 20, 4: 100, 16: 102}  # the median of its rows
    assert peers_report.bends(rows) == {"sac": {"popjax": 4, "rejax": 1}}


def test_shares_are_those_of_peaks_and_of_the_bytes_that_a_step_moves():
    limit = peers_report.accelerator_limit("NVIDIA H200")
    found = peers_report.shares(row(64, 100_000, 1), limit)
    assert found["share_of_limit"] == pytest.approx(1e5 * 547_356_672 / 495e12, abs=1e-3)
    assert found["share_of_float32"] == pytest.approx(1e5 * 547_356_672 / 67e12, abs=1e-3)
    programs = json.loads((RESULTS / "programs.json").read_text())["rows"]
    (step,) = [each for each in programs if (each["case"], each["device"]) == ("sac-64", "h100")]
    moved = 1e5 / 64 * step["iteration"]["megabytes"] * 1e6
    assert found["share_of_bandwidth"] == pytest.approx(moved / 4.8e12, abs=1e-3)
    assert "share_of_bandwidth" not in peers_report.shares(
        row(3, 1, 1), limit
    )  # of which there is no program


def test_a_tpu_has_no_peak_in_float32_and_an_unknown_device_none_at_all():
    found = peers_report.shares(row(8, 1e4, 1), peers_report.accelerator_limit("TPU v5 lite"))
    assert found.keys() == {"share_of_limit", "share_of_bandwidth"}
    assert peers_report.accelerator_limit("TPU v9") is None


def test_programs_are_of_devices_whose_peaks_are_known():
    assert peers_report.PROGRAMS.keys() <= accelerators.PEAKS.keys()
    assert set(peers_report.PROGRAMS.values()) == accelerator_programs.PEAKS.keys()


def test_a_report_adds_to_a_file_and_keeps_what_was_measured(tmp_path: Path):
    measured = {
        "device": "NVIDIA H200",
        "git_commit": "a",
        "units": {"sac": "agent updates per second", "ppo": "environment steps per second"},
        "limit": None,
        "rows": [row(1, 5e3, 4e3), row(64, 8e4, 3e4), row(256, 8.2e4, 6e4), row(1, 3, 2, "ppo")],
    }
    file = tmp_path / "peers.json"
    file.write_text(json.dumps(measured))
    peers_report.report(file)
    found = json.loads(file.read_text())
    assert found["bends"] == {"sac": {"popjax": 64}, "ppo": {}}
    assert [set(measured["rows"][0]) <= set(each) for each in found["rows"]] == [True] * 4
    assert [each.get("share_of_limit") for each in found["rows"]] == [0.006, 0.088, 0.091, None]
    assert file.with_suffix(".png").stat().st_size > 5_000
    peers_report.report(file)
    assert json.loads(file.read_text()) == found


def test_processor_seconds_count_where_a_process_has_one_core(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda pid: {1}, raising=False)
    assert (clock.kind(), clock.chosen()) == ("processor", clock.time.process_time)
    monkeypatch.setattr(clock.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert (clock.kind(), clock.chosen()) == ("wall", clock.time.perf_counter)
