"""The program that a launcher runs on its workers: the command line with a method of the tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from popjax import cli


def run(argv: Sequence[str]) -> int:
    """Leaves the number of this process beside the run directory."""
    cli.METHODS["tiny"] = "tests.host.tiny"
    directory = Path(argv[list(argv).index("--run-dir") + 1])
    with (directory.parent / f"{directory.name}.pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return cli.run(argv)
