"""Values on the command line in the forms that people type, and messages about malformed ones."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tyro

from popjax.arguments import wanted
from popjax.host.numbers import whole

_BOX = re.compile(r"[─│╭╮╰╯]+|[+|]|-{3,}")  # also boxes in ASCII
_TRIED = re.compile(
    r"(--[a-z][\w.-]*): (?:no type matching .*? instantiated from|Could not find valid parse for arguments:)"
    r" (\[.*?\])(?:\.|$| Got)"
)


def command(words: Sequence[str]) -> str:
    """Return the command that runs ``words``, a program and its arguments, again."""
    installed = Path(words[0]).stem == "popjax"
    return shlex.join(["popjax", *words[1:]] if installed else ["python", *words])


NUMBERS = tyro.constructors.ConstructorRegistry()
"""Readers of values for which tyro's own are too strict."""


@NUMBERS.primitive_rule
def _whole_number(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[int] | None:
    """Read integers as budgets are written in papers, such as 1e6."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def bare_flags(argv: Sequence[str], flags: Mapping[str, bool]) -> list[str]:
    """Return ``argv`` with ``--flag True`` as ``--flag`` and ``--flag False`` as ``--no-flag``.

    ``flags`` maps each flag to whether it has the second form."""
    rest, place = [], 0
    while place < len(argv):
        name, equals, value = argv[place].partition("=")
        name = name.replace("_", "-")
        plain = re.sub(r"(^--|\.)no-(?=[^.]+$)", r"\1", name)
        if not equals:
            value = argv[place + 1] if place + 1 < len(argv) else ""
        if plain in flags and value.lower() in ("true", "false"):
            head, dot, last = plain.rpartition(".")
            negative = f"{head}{dot}no-{last}" if dot else f"--no-{plain[2:]}"
            if (value.lower() == "true") == (name == plain):
                rest.append(plain)
            elif flags[plain]:
                rest.append(negative)
            place += 1 if equals else 2
        else:
            rest.append(argv[place])
            place += 1
    return rest


def condensed(box: str, types: Mapping[str, Any]) -> str:
    """Return the message inside tyro's box, without its frame and help texts; ``types`` are those of the
    options. If tyro lists every type that it has tried, the message names the option's type in words."""
    lines = _BOX.sub("\n", box).splitlines()
    text = " ".join(line.strip() for line in lines if line.strip())
    text = re.split(r"Argument helptext:|For full helptext", text)[0].strip()
    if text.startswith("Required options"):
        return f"missing {', '.join(re.findall(r'--[a-z][a-z0-9.-]*', text)) or 'an argument, see --help'}"
    if (tried := _TRIED.search(text)) and tried[1] in types:
        with suppress(SyntaxError, ValueError):  # a bracket in what was given cuts the list short
            given = " ".join(ast.literal_eval(tried[2]))
            return f"{tried[1]} must be {wanted(types[tried[1]])}, got {given!r}"
        return f"{tried[1]} must be {wanted(types[tried[1]])}"
    text = re.sub(r"^(Value error|Missing argument|Parsing error|Invalid [a-z]+) ", "", text)
    return text.removeprefix("Error parsing ").rstrip(".") or "the arguments cannot be read; see --help"
