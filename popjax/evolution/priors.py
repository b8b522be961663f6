"""Hyperparameters that evolve: where they begin, how they are perturbed, and their bounds.

A prior is written as ``hyper.NAME=LOW:HIGH`` (uniform), ``hyper.NAME=LOW:HIGH:log`` (log-uniform) or
``hyper.NAME=V1,V2,...`` (one of these).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Key
from popjax.spelling import nearest

_WANTED = "write hyper.NAME=LOW:HIGH, hyper.NAME=LOW:HIGH:log or hyper.NAME=V1,V2"


class Prior(NamedTuple):
    """The initial distribution of a hyperparameter, which stays within its bounds.

    name:    field of the Hyper.
    low:     least value.
    high:    greatest value.
    log:     whether it is log-uniform between them, else uniform.
    top:     upper end of the hyperparameter's range if the default is nearer to it than to the lower end,
             such as 1 for a discount; ``log`` and perturbation then apply to ``top - x`` instead. Else None.
    choices: the only values allowed, ascending; () if all between the bounds are.
    """

    name: str
    low: float
    high: float
    log: bool = False
    top: float | None = None
    choices: tuple[float, ...] = ()


def parse(text: str, hyper: Any, shapes: Sequence[str] = ()) -> Prior:
    """Return the prior that ``text`` describes for a field of ``hyper``. ``shapes`` are fields of Configs;
    the error for a user who tries to evolve one says that it is fixed.

    Raises:
        ValueError: there is no such hyperparameter, or the bounds are not valid for it.
    """
    name, equals, values = text.replace(" ", "").partition("=")
    name = name.replace("-", "_")
    if not equals:
        raise ValueError(f"evolve {text!r} has no values: {_WANTED}")
    field = _field(name, hyper, shapes)
    if instead := field.metadata.get("instead"):
        raise ValueError(f"evolve {name}: {field.name} is read once, at the start; evolve {instead}")
    listed = "," in values
    parts = values.split("," if listed else ":")
    log = not listed and len(parts) == 3 and parts[2] == "log"
    try:
        numbers = sorted(map(float, parts)) if listed else list(map(float, parts[:2] if log else parts))
    except ValueError:
        raise ValueError(f"evolve {name}={values} is not made of numbers: {_WANTED}") from None
    if not listed and len(numbers) != 2:
        raise ValueError(f"evolve {name}={values} needs two bounds or several values: {_WANTED}")
    if len(set(numbers)) < len(numbers) or numbers != sorted(numbers):
        raise ValueError(f"evolve {name}={values}: give different values, the lower bound first")
    low, high = field.metadata["range"]
    if not (low <= numbers[0] and numbers[-1] <= high and all(map(math.isfinite, numbers))):
        raise ValueError(f"evolve {name}={values} must stay in [{low:g}, {high:g}] and be finite")
    top = high if high - field.default < field.default - low < math.inf else None
    prior = Prior(field.name, numbers[0], numbers[-1], log, top, tuple(numbers) if listed else ())
    if log and min(_bounds(prior)) <= 0:
        what = name if top is None else f"{top:g} - {name.partition('.')[2]}"
        raise ValueError(
            f"evolve {name}={values}: a log scale needs {what} above 0; move that bound or drop log"
        )
    return prior


def parse_all(texts: Sequence[str], hyper: Any, shapes: Sequence[str] = ()) -> tuple[Prior, ...]:
    """Return the priors that ``texts`` describe, see ``parse``.

    Raises:
        ValueError: as ``parse``, or a hyperparameter is given twice.
    """
    found = tuple(parse(text, hyper, shapes) for text in texts)
    names = [prior.name for prior in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"evolve hyper.{twice[0]} is given {names.count(twice[0])} times; give it once")
    return found


def _field(name: str, hyper: Any, shapes: Sequence[str]) -> Field[Any]:
    known = {
        f"hyper.{field.name}": field
        for field in fields(hyper)
        if "range" in field.metadata and not is_dataclass(getattr(hyper, field.name))
    }
    if name in known:
        return known[name]
    if name.startswith("config.") or name.rpartition(".")[2] in shapes:
        raise ValueError(
            f"evolve {name}: that is a shape, fixed while a program runs; evolve one of {', '.join(known)}"
        )
    raise ValueError(f"evolve {name}: there is no such hyperparameter{nearest(name, known)}")


def _bounds(prior: Prior) -> tuple[float, float]:
    """Return the bounds of the log-uniform quantity, ascending."""
    return (prior.low, prior.high) if prior.top is None else (prior.top - prior.high, prior.top - prior.low)


def draw(prior: Prior, key: Key, count: int) -> Array:
    """Return float32 [count] values of the prior."""
    if prior.choices:
        return jax.random.choice(key, jnp.array(prior.choices, jnp.float32), (count,))
    drawn = jax.random.uniform(key, (count,))
    if prior.log:
        low, high = map(math.log, _bounds(prior))
        drawn = jnp.exp(low + (high - low) * drawn)
        drawn = drawn if prior.top is None else prior.top - drawn
    else:
        drawn = prior.low + (prior.high - prior.low) * drawn
    return jnp.clip(drawn, prior.low, prior.high)


def perturb(prior: Prior, value: Array, up: Array, shrink: Array | float, grow: Array | float) -> Array:
    """Return ``value`` [P] multiplied by ``grow`` where ``up`` bool [P], else by ``shrink``. For a
    discount, the distance to 1 is multiplied; a choice moves to the next one up or down."""
    if prior.choices:
        known = jnp.array(prior.choices, jnp.float32)
        place = jnp.abs(value[:, None] - known).argmin(1) + jnp.where(up, 1, -1)
        return known[jnp.clip(place, 0, len(known) - 1)]
    factor = jnp.where(up, grow, shrink)
    moved = value * factor if prior.top is None else prior.top - (prior.top - value) * factor
    return jnp.clip(moved, prior.low, prior.high)


def begin(priors: Sequence[Prior], key: Key, hyper: Any, count: int) -> Any:
    """Return ``hyper`` with [count] values drawn from the priors; hyperparameters that already
    have a value for each individual keep it."""
    keys = jax.random.split(key, max(len(priors), 1))
    given = {prior.name: getattr(hyper, prior.name) for prior in priors}
    drawn = {
        prior.name: given[prior.name] if jnp.ndim(given[prior.name]) else draw(prior, key, count)
        for prior, key in zip(priors, keys[: len(priors)], strict=True)
    }
    return replace(hyper, **drawn)


def explore(
    priors: Sequence[Prior],
    key: Key,
    hyper: Any,
    which: Array,
    resample: Array | float,
    shrink: Array | float,
    grow: Array | float,
) -> Any:
    """Return ``hyper`` with the hyperparameters of the individuals ``which`` bool [P] explored: each is
    redrawn with probability ``resample``, else perturbed, the two ways of Jaderberg et al., 2017, section
    4."""
    found = {}
    for place, prior in enumerate(priors):
        key_new, key_draw, key_up = jax.random.split(jax.random.fold_in(key, place), 3)
        value, count = getattr(hyper, prior.name), which.shape[0]
        moved = perturb(prior, value, jax.random.bernoulli(key_up, shape=(count,)), shrink, grow)
        anew = jax.random.bernoulli(key_new, resample, (count,))
        moved = jnp.where(anew, draw(prior, key_draw, count), moved)
        found[prior.name] = jnp.where(which, moved, value)
    return replace(hyper, **found)
