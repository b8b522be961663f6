"""Results stored with the command that measured them, the hardware, the versions and the commit."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from popjax.host import provenance


def about() -> dict[str, Any]:
    """Return the command, device, versions and commit of this process."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_portable(sys.argv[1:])]),
        "device": provenance.device_name(),
        "versions": provenance.versions(),
        "git_commit": provenance.git_commit(),
    }


def check_known(names: Iterable[str], table: Collection[str]) -> None:
    """End the process with a list of ``table`` if one of ``names`` is not in it."""
    for name in names:
        if name not in table:
            raise SystemExit(f"error: there is no {name!r}; use one of {', '.join(table)}")


def check_counts(**counts: Iterable[int]) -> None:
    """End the process with a message if one of these numbers is below 1."""
    for name, numbers in counts.items():
        if any(number < 1 for number in numbers):
            raise SystemExit(f"error: --{name} must be at least 1")


def kept(file: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows that a file already has, each with its own commit and command, and all of its content;
    nothing if there is no file. End the process if another device measured them."""
    if not (file and file.exists()):
        return [], {}
    before = json.loads(file.read_text(encoding="utf-8"))
    if (device := before["device"]) != provenance.device_name():
        raise SystemExit(f"error: {file} holds rows of {device}; name another file as --out")
    own = {name: before[name] for name in ("git_commit", "command")}
    return [own | row for row in before["rows"]], before


def write(file: Path | None, **content: Any) -> None:
    """Write ``about()`` and the content as JSON, in one step, so that an interruption leaves the old file;
    without ``file``, do nothing."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.part")
        beside.write_text(json.dumps(about() | content, indent=1) + "\n", encoding="utf-8")
        beside.replace(file)


def _portable(arguments: list[str]) -> list[str]:
    """Return the arguments without ``--out``, and with only the last part of absolute paths, which differ
    from machine to machine."""
    if "--out" in arguments:
        place = arguments.index("--out")
        arguments = arguments[:place] + arguments[place + 2 :]
    split = [each.rpartition("=") for each in arguments if not each.startswith("--out=")]
    return [
        f"{name}{equals}{Path(value).name if Path(value).is_absolute() else value}"
        for name, equals, value in split
    ]
