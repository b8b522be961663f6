"""Tables of speed, compile time and programs, from ``benchmarks/results``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from generate.tables import Load, loader, table


def parts(root: Path) -> dict[str, str]:
    """Return part -> Markdown: a table for each place in the pages that shows measurements."""
    load = loader(root / "benchmarks/results")
    made = {
        "speed-peers": _peers(load, "peers-cpu"),
        "speed-peers-td3": _peers(load, "peers-cpu-td3"),
        "speed-peers-es": _peers(load, "peers-cpu-es"),
        "speed-peers-h200": _peers(load, "peers-h200"),
        "speed-fastpbrl": _calls(load),
        "speed-rejax": _peers(load, "peers-rejax-cpu"),
        "speed-to-score": _to_score(load),
        "speed-h200": _h200(load),
        "speed-programs": _programs(load),
        "speed-compile": _compile(load),
        "speed-compile-peers": _compile_peers(load),
        "speed-starts": _starts(load),
        "speed-against": _against(load),
        "speed-collaboration": _collaboration(load),
        "speed-devices": _devices(load),
        "speed-update-modes": _update_modes(load),
        "speed-prioritized": _prioritized(load),
        "speed-convolutions": _convolutions(load),
    }
    for part, name in _MEASURED.items():
        made[part] += f"\n\n{_measured(load(name))}"
    return made


_MEASURED = {
    "speed-h200": "throughput-h200",
    "speed-programs": "programs",
    "speed-compile": "compile-cpu",
    "speed-starts": "compile-cpu",
    "speed-against": "against-cpu",
    "speed-collaboration": "collaboration-cpu",
    "speed-devices": "devices-pendulum-cpu",
    "speed-update-modes": "update-modes-cpu",
    "speed-prioritized": "prioritized-cpu",
    "speed-convolutions": "convolutions-cpu",
}
"""Part -> file of its rows, for parts that do not say themselves where they were measured."""


def _peers(load: Load, name: str) -> str:
    found = load(name)
    tables = []
    for algorithm in dict.fromkeys(row["algorithm"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["algorithm"] == algorithm]
        peers = list(dict.fromkeys(row["peer"] for row in rows))
        shares = [name for name in _SHARES if any(name in row for row in rows)]
        cells = []
        for population in sorted({row["population"] for row in rows}):
            here = {row["peer"]: row for row in rows if row["population"] == population}
            ours = [row for row in here.values() if "ratio" in row]
            pace = statistics.median(row["ours_per_second"] for row in ours)
            reached = (
                f"{100 * statistics.median(row[name] for row in ours):.2g}%" if name in ours[0] else ""
                for name in shares
            )
            beside = (_beside(here[peer]) if peer in here else "" for peer in peers)
            cells.append((population, f"{pace:,.0f}", *reached, *beside))
        header = [
            _counted(algorithm),
            f"popjax, {found['units'][algorithm]}",
            *map(_SHARES.get, shares),
            *peers,
        ]
        tables.append(table(header, cells, range(len(header))) + _bends(found, algorithm))
        if timed := [row for row in rows if "first_chunk" in row]:
            tables.append(_first_chunks(algorithm, timed, peers))
    return "\n\n".join([*tables, _where(found)])


_SHARES = {
    "share_of_limit": "share of the peak in matrix products",
    "share_of_float32": "of the peak in float32",
    "share_of_bandwidth": "of memory bandwidth",
}
"""Fields of a row of SAC -> what they are called in tables."""


def _bends(found: Mapping[str, Any], algorithm: str) -> str:
    """Return the size from which on the curve of each trainer is flat."""
    rows = [row for row in found["rows"] if row["algorithm"] == algorithm and "ratio" in row]
    sizes = {row["population"] for row in rows}
    if len(sizes) < 2:
        return ""
    bent = found["bends"][algorithm]
    told = ", ".join(f"{who} {size:,}" for who, size in bent.items())
    return f"\nThe smallest size with 90% of the highest speed: {told or f'none below {max(sizes):,}'}.\n"


def _where(found: Mapping[str, Any]) -> str:
    """Return the commits and hardware of a comparison, and the versions of the other trainers."""
    versions = ", ".join(f"{name} {version}" for name, version in found["peers"].items())
    return f"At {_commits(found)} on {found['device']}, beside {versions}."


def _calls(load: Load) -> str:
    """Return the seconds of fastpbrl's calls, and a peer's over popjax's."""
    found = load("peers-fastpbrl-cpu")
    peers = list(dict.fromkeys(row["peer"] for row in found["rows"]))

    def beside(row: Mapping[str, Any]) -> str:
        return f"{row['peer_seconds']:.2f} ({row['ratio']:.2f})" if "ratio" in row else row["cannot"]

    cells = []
    for algorithm, population in dict.fromkeys(
        (row["algorithm"], row["population"]) for row in found["rows"]
    ):
        mine = (algorithm, population)
        here = {row["peer"]: row for row in found["rows"] if (row["algorithm"], row["population"]) == mine}
        ours = statistics.median(row["ours_seconds"] for row in here.values() if "ratio" in row)
        cells.append((algorithm.upper(), population, f"{ours:.2f}", *(beside(here[peer]) for peer in peers)))
    header = ["algorithm", "agents", "popjax, seconds for a call", *peers]
    return "\n\n".join([table(header, cells, range(1, len(header))), _where(found)])


def _first_chunks(algorithm: str, rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> str:
    """Return what the first chunk takes, with imports and compiling, and the memory at the end."""

    def told(rows: Sequence[Mapping[str, Any]], who: str) -> str:
        seconds = [row["first_chunk"][who]["first_chunk_processor_seconds"] for row in rows]
        memory = [row["peak_bytes"][who] / 1e6 for row in rows if row["peak_bytes"]]
        room = f" ({statistics.median(memory):,.0f})" if memory else ""
        return f"{statistics.median(seconds):.0f}{room}" if rows else ""

    cells = []
    for population in sorted({row["population"] for row in rows}):
        here = [row for row in rows if row["population"] == population and "ratio" in row]
        each = ([row for row in here if row["peer"] == peer] for peer in peers)
        cells.append(
            (population, told(here, "ours"), *(told(x, p) for x, p in zip(each, peers, strict=True)))
        )
    memory = " (memory, MB)" if any(row.get("peak_bytes") for row in rows) else ""
    header = [_counted(algorithm), f"popjax, first chunk, processor seconds{memory}", *peers]
    return table(header, cells, range(len(header)))


def _counted(algorithm: str) -> str:
    """Return the algorithm and what a population of it is made of."""
    return f"{algorithm.upper()}: {'individuals' if algorithm == 'es' else 'agents'}"


def _commits(found: Mapping[str, Any]) -> str:
    """Return the commits at which the rows were measured, each row's own before the file's."""
    measured = dict.fromkeys(row.get("git_commit", found["git_commit"]) for row in found["rows"])
    return " and ".join(f"`{commit[:8]}`" for commit in measured)


def _measured(found: Mapping[str, Any]) -> str:
    """Return the commits and hardware of a file of results."""
    commits = _commits(found) if "rows" in found else f"`{found['git_commit'][:8]}`"
    return f"At {commits} on {found['device']}."


def _beside(row: Mapping[str, Any]) -> str:
    """Return a peer's pace per second and popjax's pace over it, or the reason why there is none."""
    return f"{row['peer_per_second']:,.0f} ({row['ratio']:.2f})" if "ratio" in row else row["cannot"]


def _to_score(load: Load) -> str:
    found = load("to-score-cpu")
    rows = []
    for row in found["medians"]:
        numbers = (row.get(key) for key in ("env_steps", "seconds_beyond_the_first_chunk", "seconds"))
        shown = ("-" if number is None else f"{number:,.{number < 10:d}f}" for number in numbers)
        name = "popjax" if row["trainer"] == "ours" else row["trainer"]
        reached = row["cannot"] if "cannot" in row else f"{row['reached']} of {row['seeds']}"
        pace = row.get("seconds_for_1000_steps")
        rows.append((row["task"], name, reached, *shown, "-" if pace is None else f"{pace:.2g}"))
    header = [
        "task",
        "trainer",
        "seeds that reached the score",
        "environment steps of each agent",
        "seconds",
        "seconds, with imports and compiling",
        "seconds for 1,000 steps, once compiled",
    ]
    return "\n\n".join([table(header, rows, range(2, 7)), _where(found)])


def _against(load: Load) -> str:
    rows = [(row["case"], f"{row['ratio']:.2f}", len(row["ratios"])) for row in load("against-cpu")["rows"]]
    return table(["case", "speed over the first version's, median", "pairs of chunks"], rows, (1, 2))


def _compile(load: Load) -> str:
    """Return what compiling takes, beside the first version where that was compiled, too."""
    found = load("compile-cpu")
    before = {row["case"]: row for row in found["other_rows"]}
    rows = []
    for row in found["rows"]:
        old = before.get(row["case"])
        now, then = (
            each and each["trace_processor_seconds"] + each["compile_processor_seconds"]
            for each in (row, old)
        )
        counts = [
            f"{old[key]:,} -> {row[key]:,}" if old else f"{row[key]:,}"
            for key in ("steps", "resets", "stablehlo_lines")
        ]
        first = (f"{then:.0f}", f"{now:.0f}", f"{now / then:.2f}") if old else ("", f"{now:.0f}", "")
        rows.append((_compiled(row), *counts, *first))
    header = [
        "case",
        "copies of the step",
        "copies of the reset",
        "lines of StableHLO",
        "first version, s",
        "now, s",
        "ratio",
    ]
    return table(header, rows, range(1, 7))


def _compiled(row: Mapping[str, Any]) -> str:
    """Return a case, and its task if that is not the usual one."""
    return row["case"] if row["env"] == "gym/Hopper-v4" else f"{row['case']} (`{row['env']}`)"


def _starts(load: Load) -> str:
    rows = [
        (_compiled(row), *(f"{row[x]['processor_seconds']:.0f}" for x in ("cold_start", "warm_start")))
        for row in load("compile-cpu")["rows"]
        if "cold_start" in row
    ]
    return table(["case", "cold, processor seconds", "warm"], rows, (1, 2))


def _compile_peers(load: Load) -> str:
    found = load("compile-peers-cpu")

    def told(row: Mapping[str, Any], which: str) -> tuple[str, ...]:
        if "cannot" in row:
            return (row["cannot"], "-")
        return tuple(f"{row[which][name]:.0f}" for name in ("processor_seconds", "seconds"))

    rows = [
        (
            row["algorithm"].upper(),
            "popjax" if row["trainer"] == "ours" else row["trainer"],
            *told(row, "cold"),
            *told(row, "warm"),
        )
        for row in found["rows"]
    ]
    header = [
        "algorithm",
        "trainer",
        "cold, processor seconds",
        "seconds",
        "warm, processor seconds",
        "seconds",
    ]
    return "\n\n".join([table(header, rows, range(2, 6)), _where(found)])


def _h200(load: Load) -> str:
    rows = [
        (
            f"`{row['method']}`",
            row["population"],
            f"{row['gradient_steps_per_second']:,.0f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
        for row in load("throughput-h200")["rows"]
    ]
    return table(["method", "agents", "agent-updates per second", "memory, MB"], rows, (1, 2, 3))


def _programs(load: Load) -> str:
    """Return what an iteration of each case takes on an H100 and a TPU v5e, "" where it was not compiled."""
    rows = {(row["case"], row["device"]): row for row in load("programs")["rows"]}
    told = []
    for case in dict.fromkeys(case for case, _ in rows):
        gpu, tpu = rows.get((case, "h100")), rows.get((case, "v5e"))
        told.append(
            (
                f"`{case}`",
                f"{gpu['state_megabytes']:,.0f}" if gpu else "",
                f"{gpu['iteration']['launches']:,}" if gpu else "",
                f"{gpu['iteration']['roofline_microseconds']:,.0f}" if gpu else "",
                f"{gpu['temporary_megabytes']:,.0f}" if gpu else "",
                f"{tpu['iteration']['estimated_cycles'] / 1e3:,.0f}" if tpu else "",
                f"{tpu['temporary_megabytes']:,.0f}" if tpu else "",
            )
        )
    header = ["case", "State, MB", "H100: launches", "roofline, µs", "temporaries, MB"]
    return table([*header, "v5e: thousand cycles", "temporaries, MB"], told, range(1, 7))


def _collaboration(load: Load) -> str:
    rows = {(row["method"], row["population"]): row for row in load("collaboration-cpu")["rows"]}
    made = []
    for count in sorted({count for method, count in rows if method == "ce"}):
        over = [rows[name, count]["seconds_per_env_step_over_sac"] for name in ("replica", "ce")]
        shown = [f"{x:.3g}" for x in over]
        made.append((count, *shown, f"{rows['ce', count]['over_replica']:.2f}"))
    header = ["N", "Replica, time per step / SAC", "CE, time per step / SAC", "CE / Replica"]
    return table(header, made, range(4))


def _devices(load: Load) -> str:
    rows = []
    for task in ("pendulum", "hopper"):
        found = load(f"devices-{task}-cpu")
        how, on = found["arguments"], found["on_devices"]
        networks = "-".join(map(str, how["hidden"]))
        gain = on["times_as_fast_as_the_first"]["2"]
        rows.append((f"`{how['env']}`", networks, on["seeds"], f"{gain:.2f}"))
    return table(["task", "networks", "seeds", "speedup of two devices over one"], rows, (2, 3))


def _update_modes(load: Load) -> str:
    rows = [
        (
            f"`{row['target']}`",
            *(f"{row['env_steps_per_second'][x]:,}" for x in ("sequential", "batched")),
            f"{row['sequential_over_batched']:.2f}",
        )
        for row in load("update-modes-cpu")["rows"]
    ]
    header = ["task", "sequential, steps/s", "batched, steps/s", "time per step, sequential / batched"]
    return table(header, rows, (1, 2, 3))


def _prioritized(load: Load) -> str:
    rows = [
        (
            row["batch"],
            *(f"{row['processor']['seconds'][x] * 1e3:.3f}" for x in ("popjax", "flashbax", "uniform")),
            f"{row['processor']['popjax_over_ddpg']:.0%}",
            f"{row['processor']['popjax_over_ddpg_64']:.0%}",
        )
        for row in load("prioritized-cpu")["rows"]
    ]
    header = [
        "batch",
        "popjax, ms",
        "flashbax, ms",
        "uniform, ms",
        "share of a DDPG update",
        "with 64-64 networks",
    ]
    return table(header, rows, range(6))


def _convolutions(load: Load) -> str:
    rows = load("convolutions-cpu")["rows"]
    kinds = list(rows[0]["milliseconds"])
    made = [
        (
            row["torso"],
            row["population"],
            *(f"{row['milliseconds'][x]:.1f}" for x in kinds if x in row["milliseconds"]),
        )
        for row in rows
    ]
    return table(["torso", "population", *(f"{kind}, ms" for kind in kinds)], made, range(1, 2 + len(kinds)))
