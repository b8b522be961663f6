"""Learning curves for the record: from run directories to small files that are kept with the code.

    python scripts/run.py pderl --env brax/inverted_pendulum --env-steps 120000 --run-dir runs/pendulum
    python benchmarks/returns.py runs/pendulum

writes ``benchmarks/results/pendulum.json``, which holds the command, the commit, the hardware, the seeds, the
summary and every evaluation, and the curve beside it as PNG.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def export(run: Path) -> Path:
    """Writes the record of a finished run; returns its JSON file."""
    config = json.loads((run / "config.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    lines = (run / "eval.jsonl").read_text().splitlines()
    evaluations = [json.loads(line) for line in lines]
    record = {
        "command": config["command"],
        "git_commit": config["git_commit"],
        "versions": config["versions"],
        "summary": summary,
        "evaluations": [[e["seed"], e["env_steps"], round(e["return"], 2)] for e in evaluations],
        "evaluations_columns": ["seed", "env_steps", "mean return"],
    }
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{run.name}.json"
    text = json.dumps(record, indent=1)
    target.write_text(text + "\n")
    shutil.copy(run / "curve.png", target.with_suffix(".png"))
    return target


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        print(export(Path(argument)))
