"""A page of the reference for every package and module of popjax, from their docstrings."""

from __future__ import annotations

import importlib
import pkgutil

import popjax


def pages() -> dict[str, str]:
    """Return page -> Markdown: ``index`` and one of every module and subpackage directly below popjax."""
    found = [
        (module.name, module.ispkg)
        for module in pkgutil.iter_modules(popjax.__path__)
        if not module.name.startswith("_")
    ]
    made = {name: _page(f"popjax.{name}", package) for name, package in found}
    groups = [
        ("Packages", [name for name, package in found if package]),
        ("Modules", [name for name, package in found if not package]),
    ]
    lines = ["# API reference", "", _TOP, ""]
    for title, names in groups:
        lines += [
            f"## {title}",
            "",
            *(f"- [popjax.{name}]({name}.md): {_summary(name)}" for name in names),
            "",
        ]
    toctree = ["```{toctree}", ":hidden:", *(name for _, names in groups for name in names), "```"]
    return made | {"index": "\n".join(lines + toctree)}


_TOP = (
    """`import popjax` gives the names below without further imports, each loaded when it is first used:
"""
    + ", ".join(f"`popjax.{name}`" for name in popjax.__all__ if not name.startswith("_"))
    + "."
)


def _summary(name: str) -> str:
    text = (importlib.import_module(f"popjax.{name}").__doc__ or "").strip().split("\n\n")[0]
    first = " ".join(text.split()).replace("``", "`")
    return first.partition(". ")[0].rstrip(".:") + "."


def _page(name: str, package: bool) -> str:
    parts = [f"# {name}", "", *_automodule(name)]
    if package:
        for module in sorted(_submodules(name)):
            parts += ["", f"## {module}", "", *_automodule(module)]
    return "\n".join(parts)


def _submodules(name: str) -> list[str]:
    path = importlib.import_module(name).__path__
    return [
        module.name
        for module in pkgutil.walk_packages(path, f"{name}.")
        if not any(part.startswith("_") for part in module.name.split("."))
    ]


def _automodule(name: str) -> list[str]:
    return ["```{eval-rst}", f".. automodule:: {name}", "```"]
