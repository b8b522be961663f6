"""Import paths ``package.module[:NAME]``, which name users' own methods and environments."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from typing import Any

_foreign: set[str] = set()


def foreign() -> bool:
    """Return whether this process has imported a user's module, which may have changed anything."""
    return bool(_foreign)


def is_path(text: str) -> bool:
    """Return whether ``text`` is an import path: identifiers with a dot or a colon between them, or the name
    of an existing module."""
    module, colon, name = text.partition(":")
    parts = [*module.split("."), *([name] if colon else [])]
    if not all(part.isidentifier() for part in parts):
        return False
    return bool(colon) or "." in module or importlib.util.find_spec(module) is not None


def full(path: str, name: str) -> str:
    """Return ``path`` with the default ``name`` if it has none."""
    return path if ":" in path else f"{path}:{name}"


def named(path: str, default: str) -> Any:
    """Return the object that ``path`` names; its name is ``default`` if the path has none.

    Raises:
        ValueError: the module does not exist, cannot be imported, or has no such name; in one line.
    """
    module, _, name = full(path, default).partition(":")
    if not module.startswith("popjax."):
        _foreign.add(module)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # importing an author's module may raise anything
        raise ValueError(_why(module, error)) from error
    if name not in vars(found):
        raise ValueError(
            f"module {module} has no {name!r}; define it there, or give {module}:NAME with a name that it has"
        )
    return vars(found)[name]


def _why(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return (
            f"there is no module {error.name!r}; correct the path, run in the directory that holds it, or add"
            " that directory to PYTHONPATH"
        )
    last, message = traceback.extract_tb(error.__traceback__)[-1], str(error)
    file, line = last.filename, last.lineno
    if isinstance(error, SyntaxError) and error.filename:  # not raised in that file
        file, line, message = error.filename, error.lineno, error.msg
    told = " ".join(f"{type(error).__name__}: {message}".split())
    return f"importing {module} failed: {told} ({file}:{line}); fix the module"
