"""Docstrings of popjax as reStructuredText, which is stricter than what reads well in an editor.

Lists of fields, ``name: text`` with what belongs to it indented, become lists, and lists with dashes stay
lists; indented examples become code; stars, bars and the like outside of ``code`` are characters. Fields of
structs whose comments explain them are listed with these.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from generate.settings import comment

_ENTRY = re.compile(r"(?P<name>[A-Za-z_][\w.,/ ]*):\s+(?P<text>\S.*)")
_SECTION = re.compile(r"(Raises|Returns|Args|Arguments|Yields|Example|Examples):$")


def connect(app: Any) -> None:
    """Let Sphinx rewrite every docstring by ``restructured`` before Napoleon reads it."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-skip-member", _skip)


def _skip(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of NamedTuples, which their class explains."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def _process(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)
    if what == "class" and dataclasses.is_dataclass(thing):
        told = [(field.name, comment(thing, field.name)) for field in dataclasses.fields(thing)]
        lines += ["", *(f"* ``{field}`` -- {escaped(text)}" for field, text in told if text), ""]


def restructured(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText."""
    made: list[str] = []
    before = ""
    for block in _blocks(lines):
        indented = all(line.startswith("    ") for line in block)
        if _SECTION.match(block[0]):
            made += [block[0], *_prose(_joined(block[1:]))]
        elif indented and not _SECTION.match(before):
            made += [*([] if before.endswith("::") else ["::", ""]), *block]
        elif block[0].startswith("- "):
            made += _prose(block)
        elif len(block) > 1 and _ENTRY.fullmatch(block[0]) and _is_list(block):
            made += _entries(block)
        elif any(line.startswith(" ") for line in block[1:]):
            head = next(i for i, line in enumerate(block) if i and line.startswith(" "))
            made += [*_prose(block[:head]), "", "::", "", *_levelled(block[head:])]
        else:
            made += _prose(block)
        made.append("")
        before = block[-1]
    return made


def escaped(text: str) -> str:
    """Return the text with the special characters of reStructuredText escaped, except in ``code``."""
    parts = re.split(r"(``.+?``)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"([*|`\\])", r"\\\1", re.sub(r"(?<=\w)_(?!\w)", r"\\_", x)) for x in parts[::2]]
    # Code ends before a space or a punctuation mark; any other character needs a mark of no width between.
    parts[2::2] = [re.sub(r"^(?=[^\s.,:;!?\-/'\")\]}>])", r"\\ ", x) for x in parts[2::2]]
    return "".join(parts)


def _prose(block: list[str]) -> list[str]:
    return escaped("\n".join(block)).split("\n")


def _joined(lines: list[str]) -> list[str]:
    """Return the lines of a section, with a list of names that spans two lines joined."""
    return re.sub(r"(?m)^( {4}\w+(?:, \w+)*,)\n\s+(?=\w+(?:, \w+)*:)", r"\1 ", "\n".join(lines)).split("\n")


def _blocks(lines: list[str]) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _is_list(block: list[str]) -> bool:
    return all(line.startswith(" ") or _ENTRY.fullmatch(line) for line in block)


def _entries(block: list[str]) -> list[str]:
    rows: list[tuple[str, str]] = []
    for line in block:
        found = None if line.startswith(" ") else _ENTRY.fullmatch(line)
        if found:
            rows.append((found["name"].strip(), found["text"]))
        else:
            rows[-1] = rows[-1][0], f"{rows[-1][1]} {line.strip()}"
    return [f"* ``{name}`` -- {escaped(text)}" for name, text in rows]


def _levelled(lines: list[str]) -> list[str]:
    """Return lines with the unindented ones, such as the first, indented by four spaces."""
    return [line if line.startswith(" ") else f"    {line}" for line in lines]
