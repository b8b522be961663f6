"""Entries of ``config.json`` from which a method and an environment can be built again."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import asdict
from typing import Any

from popjax import envs
from popjax.core import Built, Env, Method
from popjax.host.recipes import METHODS, recipe
from popjax.recipe import Recipe, default_config, kinds_of


class Unknown(Exception):
    """Reason why a part of a run cannot be rebuilt from its ``config.json``, with the remedy."""


def describe(method: Method, env: Env, name: str | None = None) -> dict[str, Any]:
    """Return the entries of ``config.json`` that build ``method`` and ``env`` again.

    ``name`` is a built-in name or the import path of the method; None to derive it. The entry "not_rebuilt"
    is None, or the reason why the run cannot be rebuilt.
    """
    facts: dict[str, Any] = {
        "method": name or method.init.__module__.rpartition(".")[2],
        "agents": {},
        "env": _told(env),
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


def _told(env: Env) -> str:
    """Return the name of an environment for ``config.json``, marked "(changed)" if it has the name of a
    suite's task but differs from what ``popjax.make`` returns."""
    of_suite = env.spec.name.partition("/")[0] in envs.suites()
    return f"{env.spec.name} (changed)" if of_suite and envs.origin(env) is None else env.spec.name


def _of_env(env: Env) -> dict[str, Any]:
    made = envs.origin(env)
    if made is None:
        how = "was changed after popjax.make"
        if env.origin is None:
            how = "was not made by popjax.make, or with options that JSON cannot hold, such as arrays"
        raise Unknown(
            f"the environment {env.spec.name} {how}; write a function that returns it"
            " and call popjax.make('module:function')"
        )
    if made.name.startswith("__main__"):
        raise Unknown(
            f"the environment {made.name} is defined in the script that was run; move it to a module"
        )
    return {"env": made.name, "env_options": json.loads(made.options)}


def _call(env: Env) -> tuple[str, str] | None:
    """Return the name and options by which ``popjax.make`` made ``env``, if it did: two calls may have."""
    made = envs.origin(env)
    return made and (made.name, made.options)


def _of_method(built: Built | None, env: Env, name: str | None) -> dict[str, Any]:
    if built is None:
        raise Unknown("the method does not record how it was built; decorate its build with popjax.recorded")
    if _call(built.env) != _call(env):
        raise Unknown(f"the method was built for another environment, {built.env.spec.name}")
    found, made_by = (name, recipe(name)) if name else _named(built)
    config = built.config
    try:
        if config is None:  # it was left to the task's defaults
            config = default_config(made_by, env.spec)
        agents = kinds_of(made_by, config)
    except ValueError as refusal:
        raise Unknown(f"its Config is not one of {found}: {refusal}") from None
    rest = dict(built.further)
    tasks = {option: [_task(task) for task in rest.pop(key, ())] for option, key in made_by.envs.items()}
    runs = {
        option: [_run(option, entry, made.record) for entry in rest.pop(made.keyword, ())]
        for option, made in made_by.runs.items()
    }
    parameters = inspect.signature(built.build).parameters
    if other := [key for key, value in rest.items() if value is not parameters[key].default]:
        raise Unknown(f"its build received {other[0]}; name it among the runs or envs of the Recipe {found}")
    return {"method": found, "agents": agents, "config": asdict(config), "runs": runs, "envs": tasks}


def _named(built: Built) -> tuple[str, Recipe]:
    """Return name and Recipe of this build; the name is a built-in one or an import path."""
    module = built.build.__module__
    if module == "__main__":
        raise Unknown(
            "the method is defined in the script that was run; move it to a module with METHOD = Recipe(...)"
        )
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        path = ".".join(parts[:length])
        for attribute, value in vars(sys.modules[path]).items():
            if isinstance(value, Recipe) and value.build is built.build:
                known = next((name for name, home in METHODS.items() if home == path), path)
                return known if attribute == "METHOD" else f"{path}:{attribute}", value
    raise Unknown(f"{module} has no popjax.Recipe with its build; add METHOD = Recipe(build, Config, hyper)")


def _task(env: Env) -> str:
    """Return a further environment as written on the command line: "SUITE/TASK KEY=VALUE ..."."""
    made = envs.origin(env)
    if made is None:
        raise Unknown(
            f"the further environment {env.spec.name} was not made by popjax.make; pass one that was"
        )
    options = json.loads(made.options).items()
    return " ".join([made.name, *(f"{name}={value!r}".replace(" ", "") for name, value in options)])


def _run(option: str, entry: Any, record: Any) -> dict[str, Any]:
    """Return the path and facts of a finished run that the method builds on."""
    origin = entry[0].origin if isinstance(entry, record) else None
    if origin is None:
        raise Unknown(
            f"a {option} does not come from a run directory; load it with popjax.pretrained(run_dir)"
        )
    return {**origin, **dict(list(entry._asdict().items())[1:])}
