"""Values on the command line in the forms in which people type them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro

from popjax.host.numbers import whole


def command(words: Sequence[str]) -> str:
    """Return the command that runs ``words``, a program and its arguments, again."""
    installed = Path(words[0]).stem == "popjax"
    return shlex.join(["popjax", *words[1:]] if installed else ["python", *words])


NUMBERS = tyro.constructors.ConstructorRegistry()
"""Readers of values where tyro's own are too narrow."""


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

    ``flags`` are the flags by name, and whether there is the second form."""
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
