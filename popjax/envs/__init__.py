"""Environments by name: ``make("suite/task")``.

The libraries behind a suite are imported when a task of it is made, not before.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from popjax import importing, libraries, numerics
from popjax.arguments import typed
from popjax.contract import check_env
from popjax.core import Env, Origin
from popjax.envs import wrappers
from popjax.remember import remembered
from popjax.spelling import nearest

_SUITES = ("gymnax", "brax", "gym", "dmc", "pixels", "playground", "atari", "probe")


def suites() -> tuple[str, ...]:
    """Return the names of all suites."""
    return _SUITES


@typed()
def tasks(suite: str) -> tuple[str, ...]:
    """Return the names of all tasks of a suite, as its library spells them."""
    return tuple(_suite(suite).tasks())


@typed()
def make(name: str, **options: Any) -> Env:
    """Return the environment ``name``, for one lane: "suite/task", or your own as "package.module[:make]".

    Your own is a function of ``options`` that returns an ``Env``, a gymnax environment, or a pair of a gymnax
    environment and its ``EnvParams``.
    ``options`` go to the suite's adapter. ``brax``, ``gymnax`` and ``gym`` take keywords of the original's
    constructor, ``brax`` also ``backend``, and ``gymnax`` also fields of ``EnvParams``; ``playground`` takes
    entries of the task's configuration; ``gym``, ``dmc`` and ``playground`` also take ``impl``, MJX's
    implementation of the physics, jax or warp. All but ``gymnax`` and ``probe`` take ``episode_length``, the
    time limit in environment steps, which ``gymnax`` calls ``max_steps_in_episode``.
    Every task takes ``action_repeat``, ``frame_stack``, ``reward_scale`` and ``reward_clip``.

    The environment's functions are always traced under ``numerics.tracing``.

    Equal calls for a task of a suite return the same object, so that nothing is compiled twice, unless the
    content of ``xml_file`` has changed. Your own function is called every time, since you may have edited it
    or what it reads: keep the ``Env`` to use its compiled programs again.

    Raises:
        ValueError: the suite, task or option is unknown (the message names the nearest that exists), or your
            own environment cannot be imported or breaks the contract of ``Env``.
    """
    if "/" in name or not importing.is_path(name):
        return _kept(name, _digest(options.get("xml_file")), **options)
    path = importing.full(name, "make")
    function = importing.named(path, "make")
    if not callable(function):
        raise ValueError(
            f"{path} is of type {type(function).__name__}; name a function that returns an environment"
        )
    return _made(path, function, options)


@remembered
def _kept(name: str, version: bytes | None, /, **options: Any) -> Env:
    """Return a task of a suite; the ``version`` of its model file only tells calls apart."""
    return _made(name, None, options)


@numerics.standardized
def _made(name: str, function: Callable[..., Any] | None, options: dict[str, Any]) -> Env:
    """Return the environment ``name``, made by the user's ``function`` or by a suite."""
    theirs = inspect.signature(function).parameters if function else {}
    general = {key: options[key] for key in options if key in wrappers.OPTIONS and key not in theirs}
    special = {key: options[key] for key in options if key not in general}
    env = _own(name, function, special) if function else _of_suite(name, special)
    if general:
        env = wrappers.wrapped(env, general)
    if origin(env):  # a user's function may return one that was made here
        return env
    env, written = _traced(env), _json(options)
    return env if written is None else env._replace(origin=Origin(name, written, env))


def _traced(env: Env) -> Env:
    """Return ``env`` with its functions always traced under ``numerics.tracing``."""
    if origin(env):  # made here, so traced already
        return env
    return env._replace(
        reset=numerics.traced(env.reset),
        step=numerics.traced(env.step),
        scored=env.scored and _traced(env.scored),
        origin=None,
    )


def _digest(model: str | None) -> bytes | None:
    """Return the digest of a model file of ``gym``; None if there is none, which making the task reports."""
    if not isinstance(model, str):
        return None
    try:
        with libraries.physics():
            from gymnasium.envs.mujoco.mujoco_env import expand_model_path

        with open(expand_model_path(model), "rb") as file:
            return hashlib.sha256(file.read()).digest()
    except (ImportError, OSError, ValueError):
        return None


def origin(env: Env) -> Origin | None:
    """Return the call of ``make`` that made ``env``; None if it was made otherwise or changed, or with arrays
    as options."""
    made = env.origin
    return made if made and made.returned == env._replace(origin=None) else None


def _json(options: dict[str, Any]) -> str | None:
    """Return ``options`` as JSON, or None if they hold arrays."""
    try:
        return json.dumps(options, sort_keys=True, default=_number)
    except TypeError:
        return None


def _number(value: Any) -> Any:
    """Convert a NumPy number to a Python number."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not a number")


def _own(path: str, function: Callable[..., Any], options: dict[str, Any]) -> Env:
    """Return the environment made by a user's function."""
    try:
        inspect.signature(function).bind(**options)
    except TypeError as misfit:
        raise ValueError(f"{path} does not take the options {options}: {misfit}") from None
    made = function(**options)
    if not isinstance(made, Env):
        from popjax.envs import gymnax

        game, params = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(game, gymnax.Environment):
            raise ValueError(
                f"{path} returns a value of type {type(made).__name__}; let it return a popjax.Env, an"
                " environment of gymnax, or one with its EnvParams"
            )
        made = gymnax.adapt(path, game, game.default_params if params is None else params)
    check_env(made)
    return made


def _of_suite(name: str, options: dict[str, Any]) -> Env:
    suite, slash, task = name.partition("/")
    if not slash:
        hint = nearest(name, _all_tasks(name), quoted=True)
        raise ValueError(f"an environment is named suite/task, got {name!r}{hint}")
    if suite not in _SUITES and (elsewhere := _all_tasks(task)):
        raise ValueError(f"unknown suite {suite!r}{_or(elsewhere)}")
    module = _suite(suite)
    known = module.tasks()
    if task not in known:
        hint = _or(_all_tasks(task)) or nearest(task, known, quoted=True)
        raise ValueError(f"suite {suite!r} has no task {task!r}{hint}")
    env: Env = module.make(task, **options)
    return env


def _suite(suite: str) -> ModuleType:
    if suite not in _SUITES:
        raise ValueError(f"unknown suite {suite!r}{nearest(suite, _SUITES, quoted=True)}")
    return importlib.import_module(f"popjax.envs.{suite}")


def _or(names: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _all_tasks(name: str) -> list[str]:
    found = []
    for suite in _SUITES:
        with contextlib.suppress(ValueError):  # skip suites whose library is not installed
            found += [f"{suite}/{task}" for task in tasks(suite) if task.lower() == name.lower()]
    return found
