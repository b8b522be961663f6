"""The contract of training methods, and marks for fields of their State and Hyper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core.agent import Act, Unroll
from popjax.core.env import Env, Spec
from popjax.core.types import Key, Params, PyTree, S


class Built(NamedTuple):
    """The call that made a Method: ``build(env, config, **further)``."""

    build: Callable[..., Any]
    env: Env
    config: Any
    further: Mapping[str, Any]


class Schedule(NamedTuple):
    """The record for ``schedule.json`` of hyperparameters that a method changes.

    read: State -> arrays
    tell: those arrays, as NumPy arrays -> an object that JSON can hold
    """

    read: Callable[[Any], Any]
    tell: Callable[[Any], Mapping[str, Any]]


class Method(NamedTuple):
    """A training method, as the host uses it; the host relies on nothing else.

    init:        (key, hyper) -> State
    step:        State -> State; one generation or iteration, safe under jit, vmap, scan and sharding
    policy:      State -> parameters of the policy you would deploy now
    act:         (policy parameters, memory, obs, key, scale) -> Choice, see ``Act``; evaluation and export
                 use nothing else
    hyper:       the default hyperparameters, a struct of numbers
    steps_bound: the most environment steps that one ``step`` can count
    memory:      of a policy at the start of an episode; () without memory
    individuals: State -> parameters [P] of all individuals' policies, each like those of ``policy``; None if
                 they act together, share a policy or play different tasks
    built:       the call that made it; None unless ``build`` is ``recipe.recorded``
    exploration: State -> the ``scale`` [] at which the policy explores in training now
    unroll:      see ``Unroll``; gives the policy's logits, from which others can learn. None if there are
                 no logits
    learning_starts: environment steps before the first update; a warning is printed for a shorter run, which
                     learns nothing
    accepts:     environment steps of a whole run -> None; raises a ValueError if the method cannot use that
                 number
    driven:      fields of ``hyper``, by dotted name, that the method sets itself or does not use here
    schedule:    lineage and hyperparameters of a population over time; None if they do not change
    """

    init: Callable[[Key, PyTree], Any]
    step: Callable[[Any], Any]
    policy: Callable[[Any], Params]
    act: Act
    hyper: Any
    steps_bound: int
    memory: PyTree = ()
    individuals: Callable[[Any], Params] | None = None
    built: Built | None = None
    exploration: Callable[[Any], Array | float] = lambda state: 1.0
    unroll: Unroll | None = None
    learning_starts: int = 0
    accepts: Callable[[int], None] = lambda env_steps: None
    driven: tuple[str, ...] = ()
    schedule: Schedule | None = None


class Pretrained(NamedTuple):
    """The policy of a finished run, frozen.

    name:        its origin, for messages.
    spec:        specification of the task on which it was trained.
    act:         as ``Method.act``.
    params:      parameters for ``act``.
    memory:      memory of the policy at the start of an episode.
    env_steps:   environment steps of its training.
    config:      the Config of its method.
    individuals: parameters [P] of all policies of the population; None if individuals do not act alone.
    unroll:      as ``Method.unroll``.
    origin:      the run that it comes from, as in ``config.json``; None for other policies.
    schedule:    what ``Method.schedule`` tells of its State; None without one.
    """

    name: str
    spec: Spec
    act: Act
    params: Params
    memory: PyTree = ()
    env_steps: int = 0
    config: Any = None
    individuals: Params | None = None
    unroll: Unroll | None = None
    origin: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None


class Ingredient(NamedTuple):
    """A way in which a method builds on finished runs.

    keyword: keyword of ``build`` that takes a tuple of records.
    make:    (env, policies) -> records, one for each policy; raises a ValueError if one does not fit.
    record:  type of the records, a NamedTuple of a ``Pretrained`` and facts that JSON can hold.
    help:    the option's line in ``--help``.
    """

    keyword: str
    make: Callable[[Env, Sequence[Pretrained]], Sequence[Any]]
    record: Any
    help: str = ""


def chain(*phases: Callable[[S], S]) -> Callable[[S], S]:
    """Compose ``State -> State`` phases, left to right."""

    def step(state: S) -> S:
        for phase in phases:
            # The name of the phase labels its operations in profiles and compiled text.
            with jax.named_scope(getattr(phase, "__name__", "phase")):
                state = phase(state)
        return state

    return step


def stacked(when: Callable[[Any], bool] = lambda state: True, **kwargs: Any) -> Any:
    """Mark a field of a State: the first axis of all its leaves is the population ``P``, in States for which
    ``when`` holds.

    ``when`` reads a State of arrays or of their shapes, with or without the axis ``S``.
    """
    return struct.field(metadata={"stacked": when}, **kwargs)


def stacked_fields(state: Any) -> dict[str, PyTree]:
    """Return by name the fields of a State that ``stacked()`` marks and for which its condition holds."""
    marked = {f.name: f.metadata["stacked"] for f in fields(state) if "stacked" in f.metadata}
    return {name: getattr(state, name) for name, when in marked.items() if when(state)}


LARGEST = float(jnp.finfo(jnp.float32).max)
"""Largest finite hyperparameter."""


def number(default: float, low: float = 0.0, high: float = LARGEST, instead: str | None = None) -> Any:
    """Declare a hyperparameter, a field of a ``Hyper``: a number in [low, high]. ``checks.check_hyper``
    enforces the range before a run. Declare ``high=math.inf`` where infinity means something, such as never.

    A hyperparameter that only ``init`` reads cannot evolve; ``instead`` names the one to evolve in its place.
    """
    return struct.field(default=default, metadata={"range": (low, high), "instead": instead})


def as_arrays(hyper: S) -> S:
    """Return every leaf as a strong float32 array: weak types would make the first chunk compile twice."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)
