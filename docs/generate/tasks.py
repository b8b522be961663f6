"""The table of tasks: speed and distance from the original, as measured."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from generate.tables import table


def parts(root: Path) -> dict[str, str]:
    """Return part -> Markdown: ``tasks-SUITE`` of every suite that was measured, ``tasks-two-cores``."""
    results = root / "benchmarks/results"
    rows = list(csv.DictReader((results / "envs-cpu-one-core.csv").open(encoding="utf-8")))
    suites: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        suites.setdefault(row["task"].partition("/")[0], []).append(row)
    made = {f"tasks-{suite}": _fidelity(rows) + _measured(rows) for suite, rows in suites.items()}
    two_cores = list(csv.DictReader((results / "envs-cpu.csv").open(encoding="utf-8")))
    made["tasks-two-cores"] = _speed(two_cores) + _measured(two_cores)
    return made


def _measured(rows: list[dict[str, str]]) -> str:
    """Return when rows were measured: those of the most frequent commit and clock together, others by
    name."""
    times = Counter((row["commit"][:8], row.get("clock")) for row in rows)
    (usual, _), *others = times.most_common()
    told = [_when(usual, "all tasks" if not others else "all others")]
    for when in sorted(when for when, _ in others):
        names = [f"`{row['task']}`" for row in rows if (row["commit"][:8], row.get("clock")) == when]
        told.append(_when(when, ", ".join(names)))
    return f"\nMeasured {'; '.join(reversed(told))}.\n"


def _when(when: tuple[str, str | None], tasks: str) -> str:
    commit, clock = when
    return f"at `{commit}`{', in processor seconds' if clock == 'processor' else ''}: {tasks}"


def _fidelity(rows: list[dict[str, str]]) -> str:
    header = ["task", "error of observations, median", "99th percentile", "of rewards, 99th percentile"]
    header += ["steps/s, 1 lane", "64 lanes", "1024 lanes", "compile, s"]
    columns = "truth_obs_median", "truth_obs_p99", "truth_reward_p99"
    speeds = "steps_per_second_1", "steps_per_second_64", "steps_per_second_1024", "compile_seconds"
    return table(
        header,
        [
            (f"`{row['task']}`", *(_error(row[x]) for x in columns), *(_whole(row[x]) for x in speeds))
            for row in rows
        ],
        range(1, 8),
    )


def _speed(rows: list[dict[str, str]]) -> str:
    columns = ["compile_seconds", "steps_per_second_1", "steps_per_second_64", "steps_per_second_1024"]
    return table(
        ["task", "compile, s", "1 lane", "64 lanes", "1024 lanes", "state, bytes per lane"],
        [(f"`{row['task']}`", *(_whole(row[x]) for x in [*columns, "state_bytes"])) for row in rows],
        range(1, 6),
    )


def _error(text: str) -> str:
    return "" if not text else "0" if float(text) == 0 else f"{float(text):.0e}".replace("e-0", "e-")


def _whole(text: str) -> str:
    return f"{float(text):,.0f}" if text else ""
