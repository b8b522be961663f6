"""Facts that a figure is kept with: the command that measured it, the hardware, the versions and the
commit."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from popjax.host.runs import configuration


def about() -> dict[str, Any]:
    """The facts, of this process."""
    return {
        "command": shlex.join(
            ["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_out(sys.argv[1:])]
        ),
        "device": configuration.device_name(),
        "versions": configuration.versions(),
        "git_commit": configuration.git_commit(),
    }


def check_known(names: Iterable[str], table: Collection[str]) -> None:
    """End the process, with what there is, if ``names`` has one that ``table`` does not."""
    for name in names:
        if name not in table:
            raise SystemExit(f"error: there is no {name!r}; use one of {', '.join(table)}")


def write(file: Path | None, **content: Any) -> None:
    """The facts and the content as JSON; nothing where no file was asked for."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(about() | content, indent=1) + "\n")


def _without_out(arguments: list[str]) -> list[str]:
    """Without the place of the results, which differs from machine to machine."""
    if "--out" in arguments:
        place = arguments.index("--out")
        arguments = arguments[:place] + arguments[place + 2 :]
    return [each for each in arguments if not each.startswith("--out=")]
