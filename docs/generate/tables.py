"""Files of results, and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Load = Callable[[str], Any]
"""Return the content of a file of results, by its name without ``.json``."""


def loader(folder: Path) -> Load:
    """Return the function that reads the JSON files of ``folder``."""
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Return a table; the columns in ``right`` are aligned to the right."""
    rule = ["--:" if place in right else "---" for place in range(len(header))]
    lines = [header, rule, *([_cell(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
