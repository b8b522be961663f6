"""Tables of the options of methods, agents, drives and operators, from their dataclasses and comments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
from tyro._docstrings import get_field_docstring  # what --help shows; of the version in constraints.txt

from generate.tables import table
from popjax import agents
from popjax.host import recipes
from popjax.population import drives


def comment(record: type, field: str) -> str:
    """Return what the comment or docstring beside a field of a dataclass says, or ""."""
    return " ".join((get_field_docstring(record, field, ()) or "").split())


def parts() -> dict[str, str]:
    """Return part -> Markdown: ``method-NAME`` of every method, ``agent-NAME`` and ``drive-NAME``."""
    made = {}
    for name in recipes.METHODS:
        recipe = recipes.recipe(name)
        config = recipe.config()
        made[f"method-{name}"] = _options(config, recipe.hyper(config), recipe.agents)
    for name, module in {**agents.AGENTS, **agents.ON_POLICY_AGENTS}.items():
        made[f"agent-{name}"] = _options(module.Config(), module.Hyper(), {})
    for name, config in drives.KINDS.items():
        if config is not None:
            made[f"drive-{name}"] = _options(config, drives.default_hyper(config), {})
    return made


def _options(config: Any, hyper: Any, kinds: Any) -> str:
    """Return the tables of ``--config`` and ``--hyper``; agents and drives are explained on pages of their
    own."""
    own = {name: known for name, known in kinds.items() if _same_home(config, hyper, name)}
    rows = list(_rows(config, "config", kinds)), list(_rows(hyper, "hyper", own))
    titles = (
        "Configuration (`Config`), fixed when the program is compiled",
        "Hyperparameters (`Hyper`), swept without recompiling",
    )
    header = ["option", "default", "meaning"]
    return "\n\n".join(
        f"**{title}**\n\n" + (table(header, found) if found else "None.\n")
        for title, found in zip(titles, rows, strict=True)
    )


def _same_home(config: Any, hyper: Any, field: str) -> bool:
    """Return whether a field of the numbers has those of the agent or drive in the same field of Config."""
    chosen, numbers = getattr(config, field), getattr(hyper, field, ())
    return numbers is None or type(chosen).__module__ == type(numbers).__module__


def _rows(record: Any, prefix: str, kinds: Any) -> Iterator[tuple[str, str, str]]:
    hints = get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), f"{prefix}.{field.name.replace('_', '-')}"
        text = comment(type(record), field.name)
        if field.name in kinds:
            known = kinds[field.name]
            if prefix == "config":
                names = ", ".join(f"`{kind}`" for kind in known)
                yield f"`--{name}`", f"`{_kind(known, value)}`", f"{text}; one of {names}"
            else:
                yield f"`--{name}.*`", "", f"hyperparameters of `--config.{field.name.replace('_', '-')}`"
        elif dataclasses.is_dataclass(value):
            yield from _rows(value, name, {})
        else:
            choices = _choices(hints[field.name])
            more = f" ({' or '.join(f'`{x}`' for x in choices)})" if choices else ""
            yield f"`--{name}`", f"`{_shown(value)}`", text + more


def _kind(known: Any, value: Any) -> str:
    return next(name for name, default in known.items() if type(default) is type(value))


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(x).lower() if x is None else str(x) for x in get_args(hint)]
    return [x for each in get_args(hint) if get_origin(each) is Literal for x in _choices(each)]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "()"
    if value is None:
        return "none"
    if isinstance(value, float | jax.Array):
        return f"{float(value):g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "_")
    return str(value)
