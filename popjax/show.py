"""Results on standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def result(summary: Mapping[str, Any], root: Path) -> None:
    """The end of a run: final return of each seed, cost, and where the files are."""
    table = Table(title=f"{summary['method']} on {summary['env']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    finals = summary["final_return"]
    for seed, value in zip(summary["seeds"], finals, strict=True):
        table.add_row(f"final return, seed {seed}", f"{value:.2f}")
    if len(finals) > 1:
        table.add_row("final return, mean", f"{np.mean(finals):.2f}")
    table.add_row("environment steps per seed", f"{summary['env_steps']:,}")
    table.add_row("generations", f"{summary['generations']:,}")
    if summary["steps_per_second"]:
        table.add_row("environment steps per second", f"{summary['steps_per_second']:,.0f}")
    table.add_row("compile time", f"{summary['compile_seconds']:.1f} s")
    table.add_row("wall time", f"{summary['wall_seconds']:.1f} s")
    table.add_row("hardware", summary["hardware"])
    table.add_row("files", str(root))
    Console().print(table)


def evaluation(
    root: Path, config: Mapping[str, Any], env_steps: Sequence[int], returns: np.ndarray, lengths: np.ndarray
) -> None:
    """One row per seed; ``returns`` and ``lengths`` are [S, E]."""
    title = f"{config['method']} on {config['env']}, {returns.shape[1]} episodes per seed"
    table = Table("seed", "env steps", "return", "std", "min", "max", "length [steps]")
    table.title, table.title_justify = title, "left"
    for column in table.columns:
        column.justify = "right"
    for place, row in enumerate(returns):
        numbers = (row.mean(), row.std(), row.min(), row.max())
        table.add_row(
            str(config["options"]["seed"] + place),
            f"{env_steps[place]:,}",
            *(f"{number:.2f}" for number in numbers),
            f"{lengths[place].mean():.1f}",
        )
    if len(returns) > 1:
        table.add_row("all", "", f"{returns.mean():.2f}", "", "", "", f"{lengths.mean():.1f}")
    Console().print(table)


def evaluation_json(
    root: Path, config: Mapping[str, Any], env_steps: Sequence[int], returns: np.ndarray, lengths: np.ndarray
) -> None:
    """The same as one JSON object, with the return and length of every episode."""
    seeds = [
        {
            "seed": config["options"]["seed"] + place,
            "env_steps": int(env_steps[place]),
            "mean": float(row.mean()),
            "std": float(row.std()),
            "min": float(row.min()),
            "max": float(row.max()),
            "returns": row.tolist(),
            "lengths": lengths[place].tolist(),
        }
        for place, row in enumerate(returns)
    ]
    print(
        json.dumps(
            {
                "run_dir": str(root),
                "method": config["method"],
                "env": config["env"],
                "episodes": int(returns.shape[1]),
                "mean": float(returns.mean()),
                "seeds": seeds,
            },
            indent=2,
        )
    )
