"""Run directories as training leaves them, made without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

EVERY = 100  # environment steps between evaluations


def make_run(
    root: Path,
    method: str = "ours",
    *,
    task: str = "probe/context",
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    evaluations: int = 20,
    level: Callable[[int, int], float] = lambda seed, place: float(place + seed),
    config: dict[str, Any] | None = None,
    hyper: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    ends: Mapping[int, int] = MappingProxyType({}),
    metrics: Sequence[dict[str, Any]] = (),
    finished: bool = True,
) -> Path:
    """A run whose evaluation ``place`` of ``seed`` has the mean return ``level(seed, place)``; ``ends`` has
    the last one of seeds that ended early."""
    root.mkdir(parents=True)
    budget = EVERY * (evaluations - 1)
    asked = {"env_steps": budget, "seed": min(seeds), "seeds": len(seeds), "eval_every": EVERY}
    described = {
        "method": method,
        "agents": {},
        "env": task,
        "env_options": {},
        "config": config or {"population": 4},
        "hyper": hyper or {"rate": 0.1},
        "options": asked | (options or {}),
        "command": f"python scripts/run.py {method} <&>",
        "device": "cpu (x86_64, 2 threads)",
        "git_commit": "0123456789abcdef",
    }
    (root / "config.json").write_text(json.dumps(described))
    with (root / "eval.jsonl").open("w") as file:
        for place in range(evaluations):
            for seed in (seed for seed in seeds if place <= ends.get(seed, place)):
                value = level(seed, place)
                row = {"member": seeds.index(seed), "seed": seed, "generation": place}
                row |= {"env_steps": EVERY * place, "return": value}
                row |= {"train_seconds": 2.0 * place, "wall_seconds": 36.0 * place + 1}
                file.write(json.dumps(row | {"returns": [value - 1, value + 1], "lengths": [5, 5]}) + "\n")
    with (root / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in metrics)
    if finished:
        summary = {
            "env_steps": budget,
            "compile_seconds": 1.5,
            "wall_seconds": 75.2,
            "steps_per_second": 1234.5,
            "peak_memory_bytes": 5 * 10**8,
        }
        (root / "summary.json").write_text(json.dumps(summary))
    return root


def population(generations: int = 12, size: int = 4, spacing: int = 1) -> list[dict[str, Any]]:
    """Metrics of a population with parents, outsiders and transfers."""
    rng = np.random.default_rng(0)
    rows = []
    for generation in range(1, 1 + generations):
        parents = np.stack([np.arange(size), np.full(size, -1)], 1)
        parents[0] = [1, 2]
        if generation % 3 == 0:
            parents[3] = -1
        transfers = np.zeros((size, size), int)
        transfers[1, 0] = generation % 2
        rows.append(
            {
                "seed": 0,
                "generation": spacing * generation,
                "env_steps": 10 * spacing * generation,
                "fitness": rng.normal(generation, 1, size).round(3).tolist(),
                "parents": parents.tolist(),
                "transfers": transfers.tolist(),
            }
        )
    return rows
