"""Methods by name: built-in ones by a short name, users' own by import path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from popjax import importing
from popjax.host.errors import Refused
from popjax.spelling import nearest

if TYPE_CHECKING:
    from popjax.recipe import Recipe

METHODS = {
    "pderl": "popjax.methods.pderl",
    "erl": "popjax.methods.erl",
    "cem_rl": "popjax.methods.cem_rl",
    "es": "popjax.methods.es",
    "ce": "popjax.methods.ce",
    "sunrise": "popjax.methods.sunrise",
    "dice": "popjax.methods.dice",
    "diayn": "popjax.methods.diayn",
    "independent": "popjax.methods.independent",
    "onpolicy": "popjax.methods.onpolicy",
    "pbt": "popjax.methods.pbt",
    "cspc": "popjax.methods.cspc",
    "ca2e": "popjax.methods.ca2e",
    "cdrl": "popjax.methods.cdrl",
    "align": "popjax.methods.align",
    "distil": "popjax.methods.distil",
}
"""The built-in methods: name -> module, which exports a Recipe as ``METHOD``."""


def recipe(name: str) -> Recipe:
    """Return the Recipe of a built-in method, or the one at an import path ``package.module[:NAME]``.

    Raises:
        Refused: there is no such method.
    """
    # It imports JAX, whose errors the command line is to catch.
    from popjax.recipe import Recipe, check

    if name not in METHODS and not importing.is_path(name):
        hint = nearest(name, METHODS)
        raise Refused(f"unknown method {name!r}{hint}, or name one of your own: package.module[:NAME]")
    path = METHODS.get(name, name)
    try:
        found = importing.named(path, "METHOD")
        if not isinstance(found, Recipe):
            kind, where = type(found).__name__, importing.full(path, "METHOD")
            raise ValueError(f"{where} is of type {kind}; make it a popjax.Recipe(build, config, hyper)")
        check(found)
    except ValueError as refusal:
        raise Refused(f"method {name}: {refusal}") from None
    return found
