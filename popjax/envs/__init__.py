"""Environments by name: ``make("suite/task")``.

The libraries behind a suite are imported when a task of it is made, not before.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from types import ModuleType
from typing import Any

from popjax import numerics
from popjax.core import Env
from popjax.envs import wrappers
from popjax.remember import remembered

_SUITES = ("gymnax", "brax", "gym", "dmc", "playground", "atari", "probe")


def suites() -> tuple[str, ...]:
    """The names of all suites."""
    return _SUITES


def tasks(suite: str) -> tuple[str, ...]:
    """The names of all tasks of a suite, as its library spells them."""
    return tuple(_suite(suite).tasks())


@remembered
@numerics.standard()
def make(name: str, **options: Any) -> Env:
    """The environment ``name``, "suite/task", for one lane.

    ``options`` go to the suite's adapter: the keywords of the constructor, with ``backend`` for ``brax`` and
    any field of ``EnvParams`` for ``gymnax``; those of the original's constructor for ``gym``; ``impl`` and
    entries of the task's configuration for ``playground``. All but ``gymnax`` and ``probe`` take
    ``episode_length``, the time limit in environment steps, which ``gymnax`` calls ``max_steps_in_episode``.
    Every task takes ``action_repeat``, ``frame_stack``, ``reward_scale`` and ``reward_clip``.

    Raises:
        ValueError: unknown suite, task or option; the message names the nearest one that exists.
    """
    suite, slash, task = name.partition("/")
    if not slash:
        raise ValueError(f"an environment is named suite/task, got {name!r}{hint(name, _all_tasks(name))}")
    if suite not in _SUITES and (elsewhere := _all_tasks(task)):
        raise ValueError(f"unknown suite {suite!r}{_or(elsewhere)}")
    module = _suite(suite)
    known = module.tasks()
    if task not in known:
        elsewhere = _all_tasks(task)
        raise ValueError(f"suite {suite!r} has no task {task!r}{_or(elsewhere) or hint(task, known)}")
    general = {name: value for name, value in options.items() if name in wrappers.OPTIONS}
    own = {name: value for name, value in options.items() if name not in general}
    env: Env = module.make(task, **own)
    return wrappers.wrapped(env, general) if general else env


def hint(word: str, known: Any) -> str:
    """'; did you mean ...?' with the nearest of ``known``, or a list of all if none is near."""
    known = list(known)
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {lower[near[0]]!r}?"
    return f"; there is {', '.join(map(repr, known))}" if known else ""


def _suite(suite: str) -> ModuleType:
    if suite not in _SUITES:
        raise ValueError(f"unknown suite {suite!r}{hint(suite, _SUITES)}")
    return importlib.import_module(f"popjax.envs.{suite}")


def _or(names: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _all_tasks(name: str) -> list[str]:
    found = []
    for suite in _SUITES:
        with contextlib.suppress(ValueError):  # a suite whose library is not installed has nothing to offer
            found += [f"{suite}/{task}" for task in tasks(suite) if task.lower() == name.lower()]
    return found
