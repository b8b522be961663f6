"""Add derived figures to a file of ``peers.py``, and draw it.

    python benchmarks/peers_report.py benchmarks/results/peers-h200.json

Nothing is measured. A row of SAC gets the shares of the device's limits that popjax reaches: of its rate of
matrix products (``share_of_limit``) and, on an accelerator, of its rate in full float32 and of its memory
bandwidth, with the bytes that a step moves from ``programs.json``. The file gets the bend of each trainer's
curve: the smallest size with at least 90% of the curve's highest speed.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
from benchmarks.accelerators import PEAKS  # noqa: E402
from benchmarks.trainers import PEERS, Work  # noqa: E402

PROGRAMS = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h100", "TPU v5 lite": "v5e"}
"""Device -> its name in ``programs.json``; the programs of an H200 are those of an H100."""
ENOUGH = 0.9
"""Share of a curve's highest speed above which more agents are hardly faster."""


def update_flops(work: Work) -> int:
    """Return the floating-point operations of the matrix products in one update of SAC on Pendulum-v1,
    without those that only some trainers need, about one in a hundred.

    A forward pass is one product per layer; a backward pass is two, or one if only the action's gradient is
    needed. The actor computes the next action and one forward and backward pass. Both critics compute the
    target, one forward and backward pass, and one forward pass and backward pass to the action.
    """
    widths = [(3, *work.hidden, 2), (4, *work.hidden, 1)]
    actor, critic = (2 * work.batch * sum(map(math.prod, itertools.pairwise(each))) for each in widths)
    return (1 + 3) * actor + 2 * (1 + 3 + 2) * critic


def accelerator_limit(device: str) -> dict[str, Any] | None:
    """Return what bounds SAC on an accelerator; None for one whose peaks are not known."""
    if device not in PEAKS:
        return None
    peak = PEAKS[device]
    return {
        "flops_per_second": peak.products,
        "float32_flops_per_second": peak.float32,
        "bytes_per_second": peak.bytes,
        "flops_per_update": update_flops(Work()),
        "bytes_per_update": _bytes_per_update(PROGRAMS.get(device)),
    }


def _bytes_per_update(device: str | None) -> dict[str, float]:
    """Return the bytes that a step of the compiled program moves per agent, by number of agents."""
    rows = json.loads((ROOT / "benchmarks/results/programs.json").read_text(encoding="utf-8"))["rows"]
    sizes = {row["case"].removeprefix("sac-"): row for row in rows if row["device"] == device}
    return {
        size: round(row["iteration"]["megabytes"] * 1e6 / int(size))
        for size, row in sizes.items()
        if size.isdecimal()
    }


def shares(row: Mapping[str, Any], limit: Mapping[str, Any]) -> dict[str, float]:
    """Return the shares of the device's limits that popjax reaches in a row of SAC."""
    pace = row["ours_per_second"]
    found = {"share_of_limit": pace * limit["flops_per_update"] / limit["flops_per_second"]}
    if full := limit.get("float32_flops_per_second"):
        found["share_of_float32"] = pace * limit["flops_per_update"] / full
    if moved := limit.get("bytes_per_update", {}).get(str(row["population"])):
        found["share_of_bandwidth"] = pace * moved / limit["bytes_per_second"]
    return {name: round(share, 3) for name, share in found.items()}


def curves(rows: Iterable[Mapping[str, Any]], told: str = "per_second") -> dict[str, dict[int, float]]:
    """Return trainer -> number of agents -> the quantity ``told``, popjax first, from rows of one algorithm.
    popjax's is the median of its rows."""
    rows = sorted((row for row in rows if "ratio" in row), key=lambda row: row["population"])
    found: dict[str, dict[int, float]] = {
        "popjax": {
            size: statistics.median(row[f"ours_{told}"] for row in rows if row["population"] == size)
            for size in dict.fromkeys(row["population"] for row in rows)
        }
    }
    for row in rows:
        found.setdefault(row["peer"], {})[row["population"]] = row[f"peer_{told}"]
    return found


def bend(curve: Mapping[int, float]) -> int | None:
    """Return the smallest size with at least ``ENOUGH`` of the highest speed; None if that is the largest
    size, since more agents might be faster still."""
    found = min(size for size, pace in curve.items() if pace >= ENOUGH * max(curve.values()))
    return found if found < max(curve) else None


def bends(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return algorithm -> trainer -> the bend of its curve."""
    rows = list(rows)
    found = {}
    for algorithm in dict.fromkeys(row["algorithm"] for row in rows if "ratio" in row):
        mine = curves(row for row in rows if row["algorithm"] == algorithm)
        found[algorithm] = {who: place for who, curve in mine.items() if (place := bend(curve))}
    return found


def report(file: Path, per_call: str | None = None) -> None:
    """Add shares and bends to a file of results, and draw the figure beside it.

    ``per_call`` is what the figure shows in place of units per second; see ``peers.Protocol``.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if found.get("protocol", "default") == "default":
        found["limit"] = found["limit"] or accelerator_limit(found["device"])
    for row in found["rows"]:
        if found["limit"] and row["algorithm"] == "sac" and "ratio" in row:
            row |= shares(row, found["limit"])
    found["bends"] = bends(found["rows"])
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, file.with_suffix(".png"), per_call)


def draw(found: Mapping[str, Any], file: Path, per_call: str | None = None) -> None:
    """Draw every trainer's speed, or the seconds of a call, against the number of agents, with the bends and,
    for SAC, the limits."""
    from matplotlib.figure import Figure

    columns = min(2, len(found["bends"]))
    rows = math.ceil(len(found["bends"]) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained")
    for place, (algorithm, bent) in enumerate(found["bends"].items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        mine = [row for row in found["rows"] if row["algorithm"] == algorithm]
        drawn = curves(mine, "seconds" if per_call else "per_second")
        for who, curve in drawn.items():
            ours = who == "popjax"
            colour = "black" if ours else f"C{PEERS.index(who)}" if who in PEERS else None
            (line,) = axes.plot(*zip(*curve.items(), strict=True), "o-" if ours else "o--", color=colour)
            line.set_label(who)
            if who in bent:
                ring = {"markersize": 11, "markerfacecolor": "none", "color": line.get_color()}
                axes.plot(bent[who], curve[bent[who]], "o", **ring)
        if bent:
            axes.plot([], [], "o", markersize=11, markerfacecolor="none", color="grey", label="bend")
        if algorithm == "sac" and found["limit"]:
            _draw_limits(axes, found["limit"], drawn["popjax"])
        axes.set(
            xscale="log",
            xlabel="individuals" if algorithm == "es" else "agents",
            ylabel=per_call or found["units"][algorithm],
            title=algorithm.upper(),
        )
        best = drawn["popjax"].values()
        if max(best) > 10 * min(best):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks(list(drawn["popjax"]), [str(size) for size in drawn["popjax"]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def _draw_limits(axes: Any, limit: Mapping[str, Any], sizes: Iterable[int]) -> None:
    """Draw the updates per second that matrix products alone allow and, on an accelerator, bandwidth."""
    full = limit.get("float32_flops_per_second")
    products = "matrix products alone" + (", TF32" if full else "")
    axes.axhline(
        limit["flops_per_second"] / limit["flops_per_update"], color="grey", linestyle=":", label=products
    )
    if full:
        axes.axhline(
            full / limit["flops_per_update"],
            color="grey",
            linestyle="-.",
            label="matrix products alone, float32",
        )
    moved = limit.get("bytes_per_update", {})
    if within := [size for size in sizes if str(size) in moved]:
        most = [limit["bytes_per_second"] / moved[str(size)] for size in within]
        axes.plot(within, most, "x", color="grey", label="memory bandwidth alone")


if __name__ == "__main__":
    from benchmarks.peers import PROTOCOLS

    for name in sys.argv[1:]:
        asked = json.loads(Path(name).read_text(encoding="utf-8")).get("protocol", "default")
        report(Path(name), PROTOCOLS[asked].per_call)
