"""Origins of a run, as ``config.json`` keeps them, from the records in its method and its environment."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict
from typing import Any

from popjax import envs
from popjax.core import Built, Env, Method
from popjax.host.recipes import METHODS, recipe
from popjax.recipe import Recipe, defaults, kinds_of


class Unknown(Exception):
    """Reason why a part of a run cannot be made again from its ``config.json``; a clause with its remedy."""


def describe(method: Method, env: Env, name: str | None = None) -> dict[str, Any]:
    """Return what ``method`` and ``env`` are made of: the entries of ``config.json`` that build them again.

    ``name`` is that of the method, an import path or a built-in one; None to find it. ``"not_rebuilt"`` is
    None, or says why the run cannot be built again.
    """
    facts: dict[str, Any] = {
        "method": name or method.init.__module__.rpartition(".")[2],
        "agents": {},
        "env": env.spec.name,
        "env_options": {},
        "config": {},
        "runs": {},
        "envs": {},
        "not_rebuilt": None,
    }
    for part in (lambda: _of_env(env), lambda: _of_method(method.built, env, name)):
        try:
            facts |= part()
        except Unknown as why:
            facts["not_rebuilt"] = facts["not_rebuilt"] or str(why)
    return facts


def _of_env(env: Env) -> dict[str, Any]:
    made = envs.origin(env)
    if made is None:
        raise Unknown(
            f"the environment {env.spec.name} was made or changed by hand; write a function that returns it"
            " and call popjax.make('module:function')"
        )
    if made.name.startswith("__main__"):
        raise Unknown(f"the environment {made.name} is of the script that was run; move it to a module")
    return {"env": made.name, "env_options": json.loads(made.options)}


def _of_method(built: Built | None, env: Env, name: str | None) -> dict[str, Any]:
    if built is None:
        raise Unknown("the method does not say how it was built; decorate its build with popjax.recorded")
    if envs.origin(built.env) != envs.origin(env):
        raise Unknown(f"the method was built for another environment, {built.env.spec.name}")
    found, made_by = (name, recipe(name)) if name else _named(built)
    config = built.config
    try:
        if config is None:  # the task decides
            config, _ = defaults(made_by, made_by.kinds(env.spec) if made_by.kinds else {})
        agents = kinds_of(made_by, config)
    except ValueError as refusal:
        raise Unknown(f"its Config is of none of the kinds in {found}: {refusal}") from None
    rest = dict(built.further)
    tasks = {option: [_task(task) for task in rest.pop(key, ())] for option, key in made_by.envs.items()}
    runs = {
        option: [_run(option, entry, made.record) for entry in rest.pop(made.keyword, ())]
        for option, made in made_by.runs.items()
    }
    parameters = inspect.signature(built.build).parameters
    if other := [key for key, value in rest.items() if value is not parameters[key].default]:
        raise Unknown(f"its build was given {other[0]}, which {found} does not name among its runs and envs")
    return {"method": found, "agents": agents, "config": asdict(config), "runs": runs, "envs": tasks}


def _named(built: Built) -> tuple[str, Recipe]:
    """Return the name of the Recipe that has this build, a built-in one or an import path."""
    module = built.build.__module__
    if module == "__main__":
        raise Unknown("the method is of the script that was run; move it to a module with a Recipe as METHOD")
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        for attribute, value in vars(sys.modules[path]).items():
            if isinstance(value, Recipe) and value.build is built.build:
                known = next((name for name, home in METHODS.items() if home == path), path)
                return known if attribute == "METHOD" else f"{path}:{attribute}", value
    raise Unknown(f"{module} has no popjax.Recipe with its build; add METHOD = Recipe(build, Config, hyper)")


def _task(env: Env) -> str:
    """Return "SUITE/TASK KEY=VALUE ...", as a further environment is named on the command line."""
    made = envs.origin(env)
    if made is None:
        raise Unknown(f"the further environment {env.spec.name} is not one that popjax.make makes; pass one")
    options = json.loads(made.options).items()
    return " ".join([made.name, *(f"{name}={value!r}".replace(" ", "") for name, value in options)])


def _run(option: str, entry: Any, record: Any) -> dict[str, Any]:
    """Return a finished run that the method builds on: where it lies, and what was made of it."""
    origin = entry[0].origin if isinstance(entry, record) else None
    if origin is None:
        raise Unknown(f"a {option} comes from no run directory; load it with popjax.pretrained(run_dir)")
    return {**origin, **dict(list(entry._asdict().items())[1:])}
