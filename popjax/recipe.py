"""The contract of a method module: one record with everything that the host and the command line use.

    METHOD = Recipe(build, Config, lambda config: Hyper())

at the end of a module is enough for ``popjax train my_package.my_module`` to train, sweep and resume it, and
for the other commands to evaluate, report and export its runs.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec

from popjax import numerics
from popjax.arguments import typed
from popjax.core import Built, Ingredient, Method, Spec, Unfit
from popjax.remember import remembered

P = ParamSpec("P")
_NONE: Mapping[str, Any] = MappingProxyType({})
_FUNCTIONS = ("init", "step", "policy", "act", "individuals", "exploration", "unroll")
"""Fields of a Method that are traced."""


BUDGET = 1_000_000
"""Environment steps of a run, summed over agents, unless the preset or the method sets another number."""


class Preset(NamedTuple):
    """Constants of one task. ``env_steps`` is the paper's budget; ``env_options`` are the command line's
    defaults for the environment's options, whether it is the first environment or a further one."""

    config: Any
    hyper: Any
    env_steps: int
    env_options: Mapping[str, Any] = _NONE


class Recipe(NamedTuple):
    """A method as its module exports it.

    build:   (env, config, **further) -> Method, ``recorded``.
    config:  () -> the default Config, a frozen dataclass. It takes a keyword for every field of ``agents``,
             so that their Configs can decide the other defaults. Usually the Config class itself.
    hyper:   Config -> its default hyperparameters, a struct.
    agents:  field of Config -> name on the command line -> default Config of such an agent, or None if the
             field may be None. Its Hyper, if any, is the field of the same name in the default Hyper.
    kinds:   Spec -> name of the kind of agent for each field of ``agents``, if the task decides; None: as in
             ``config()``.
    runs:    option -> Ingredient of ``build`` made from finished runs.
    envs:    option -> keyword of ``build`` that takes a tuple of further environments.
    preset:  name of a task -> its constants; None for other tasks.
    budget:  Config -> the default budget of tasks without a preset [environment steps, summed over agents].
    remarks: (env, config, hyper, env_steps, **further) -> warnings to print when a run starts.
    """

    build: Callable[..., Method]
    config: Callable[..., Any]
    hyper: Callable[[Any], Any]
    agents: Mapping[str, Mapping[str, Any]] = _NONE
    kinds: Callable[[Spec], Mapping[str, str]] | None = None
    runs: Mapping[str, Ingredient] = _NONE
    envs: Mapping[str, str] = _NONE
    preset: Callable[[str], Preset | None] = lambda task: None
    budget: Callable[[Any], int] = lambda config: BUDGET
    remarks: Callable[..., Sequence[str]] = lambda *_, **__: ()


def recorded(build: Callable[P, Method]) -> Callable[P, Method]:
    """Decorate the ``build`` of a method so that the Method records the call that made it.

    With this record, ``popjax.train`` writes the same config.json as the command line. Equal calls of
    a method of popjax return the same Method, so that nothing is compiled twice; a ``build`` of your own is
    called every time, since you may have edited it: keep the Method to use its compiled programs again. The
    Method's functions are always traced under ``numerics.tracing``. Arguments must match their annotations.

    If agents cannot play the task, the error names the option that selects agents that can, according to the
    Recipe METHOD of the module.

    Raises:
        ValueError: ``build`` takes no Config.
    """
    signature = inspect.signature(build)
    if len(signature.parameters) < 2:
        raise ValueError(f"{build.__qualname__}{signature} takes no Config; let it take (env, config)")

    @typed()
    @remembered
    @numerics.standardized
    @wraps(build)
    def recording(*args: P.args, **kwargs: P.kwargs) -> Method:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        env, config, *further = call.arguments.items()
        try:
            method = checked(build, build(*args, **kwargs))
        except Unfit as unfit:
            raise ValueError(_advised(unfit, recording, build, env[1], dict(further))) from None
        functions = {name: getattr(method, name) for name in _FUNCTIONS if getattr(method, name) is not None}
        traced: dict[str, Any] = {name: numerics.traced(function) for name, function in functions.items()}
        return method._replace(**traced, built=Built(recording, env[1], config[1], dict(further)))

    return recording


def _advised(
    unfit: Unfit, recorded: Callable[..., Method], build: Callable[..., Method], env: Any, further: Any
) -> str:
    """Return the message of ``unfit`` with the method's option for agents that can play the task."""
    recipe = getattr(sys.modules.get(build.__module__), "METHOD", None)
    if isinstance(recipe, Recipe) and recipe.build is recorded:
        for field, kinds in recipe.agents.items():
            if unfit.played_by not in kinds:
                continue
            with suppress(ValueError):  # the rest of the method may not suit this task
                build(env, recipe.config(**{field: kinds[unfit.played_by]}), **further)
                return f"{unfit.problem}: set --config.{field.replace('_', '-')} {unfit.played_by}"
    return f"{unfit.problem}: use a method whose agents can be {unfit.played_by}, such as independent"


def checked(build: Callable[..., Any], made: Any) -> Method:
    """Return the result ``made`` by ``build``, after checking that it is a Method.

    Raises:
        ValueError: ``made`` is something else.
    """
    if not isinstance(made, Method):
        name = getattr(build, "__qualname__", repr(build))
        raise ValueError(
            f"{name} returns a value of type {type(made).__name__}; let it return a popjax.Method"
        )
    return made


def kinds_of(recipe: Recipe, config: Any) -> dict[str, str]:
    """Return the name of the kind of agent that ``config`` has in each field of ``recipe.agents``.

    Raises:
        ValueError: ``config`` has no such field, or an agent is of no kind that the recipe names.
    """
    found = {}
    for field, known in recipe.agents.items():
        if not hasattr(config, field):
            raise ValueError(
                f"agents of the Recipe names {field}, which {type(config).__name__} lacks; add the field"
            )
        value = getattr(config, field)
        names = [name for name, default in known.items() if type(default) is type(value)]
        if not names:
            raise ValueError(f"{field} is of type {type(value).__name__}; use one of {', '.join(known)}")
        found[field] = names[0]
    return found


def defaults(recipe: Recipe, kinds: Mapping[str, str], task: str | None = None) -> tuple[Any, Any]:
    """Return the default Config and Hyper for agents of ``kinds``, or the preset of ``task`` if any.

    A preset for other kinds is used only if all fields that differ may be None, such as a drive; these fields
    then take their defaults.

    Raises:
        ValueError: the recipe's Config or Hyper is not a dataclass.
    """
    found = recipe.preset(task) if task else None
    known = kinds_of(recipe, found.config) if found else {}
    if found and known == kinds:
        return found.config, found.hyper
    agents = {field: recipe.agents[field][kind] for field, kind in kinds.items()}
    config = _asked("config", recipe.config, **agents)
    others = [field for field in known if known[field] != kinds.get(field)]
    if not found or any(None not in recipe.agents[field].values() for field in others):
        return config, _asked("hyper", recipe.hyper, config)
    config = replace(found.config, **{field: getattr(config, field) for field in others})
    hyper = _asked("hyper", recipe.hyper, config)
    names = {field.name for field in fields(hyper)}.difference(others)
    kept = {name: value for name, value in vars(found.hyper).items() if name in names}
    return config, replace(hyper, **kept)


def default_config(recipe: Recipe, spec: Spec, **kinds: str) -> Any:
    """Return the default Config for a task, with agents of ``kinds`` where these are given.

    Raises:
        ValueError: the recipe's Config or Hyper is not a dataclass.
    """
    return defaults(recipe, {**(recipe.kinds(spec) if recipe.kinds else {}), **kinds})[0]


def check(recipe: Recipe) -> None:
    """Check that a Recipe has a ``build``, and that its other functions return defaults that fit together.

    Raises:
        ValueError: one is not a function, does not take its arguments, or does not return a dataclass; or the
            Config lacks an agent that ``agents`` names, or has one of another kind.
    """
    _check_function("build", recipe.build)
    defaults(recipe, kinds_of(recipe, _asked("config", recipe.config)))


def _asked(field: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the dataclass that a function of a Recipe returns, after checking both."""
    _check_function(field, function)
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as misfit:
        takes = "a Config" if args else f"the keywords {', '.join(kwargs)}" if kwargs else "no argument"
        raise ValueError(f"{field} of the Recipe must take {takes}: {misfit}") from None
    made = function(*args, **kwargs)
    if not is_dataclass(type(made)):
        wanted = {"config": "a frozen dataclass", "hyper": "a flax.struct.dataclass"}[field]
        kind = type(made).__name__
        raise ValueError(f"{field} of the Recipe returns a value of type {kind}; let it return {wanted}")
    return made


def _check_function(field: str, function: Any) -> None:
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f"{field} of the Recipe is of type {kind}; give a class or a function")
