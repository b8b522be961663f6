"""Seeds and numbers as one more vmapped axis.

A sweep is a grid: every combination of the swept numbers of a ``Hyper``, each with every seed. One point of
it is a member; members are numbered with the seeds running fastest. On the host a State always leads with
the axis ``S`` of the members. For one member the axis is squeezed away and put back, which costs nothing;
for several it is a ``vmap``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.checks import check_numbers
from popjax.core import as_arrays
from popjax.host.errors import Refused

_PREFIX = "hyper."


@dataclass(frozen=True)
class Member:
    """One point of a sweep: what a run of it alone would be started with.

    number:  its place in the whole grid, also where only a part of the grid is run.
    seed:    its seed.
    numbers: the swept numbers by name, such as "hyper.actor_lr"; empty where only seeds differ.
    """

    number: int
    seed: int
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The swept numbers in words, such as "hyper.actor_lr=0.001,hyper.polyak=0.01"."""
        return ",".join(f"{name}={spell(value)}" for name, value in self.numbers.items())

    @property
    def name(self) -> str:
        """Setting and seed in words; ``paths.file_name`` of it is the name of a directory."""
        return ",".join(filter(None, (self.setting, f"seed{self.seed}")))

    @property
    def identity(self) -> str:
        """Return the text by which it is the same member in another sweep, where its number may be
        another."""
        return ",".join(
            [*sorted(f"{name}={spell(value)}" for name, value in self.numbers.items()), f"seed{self.seed}"]
        )


def grid(seed: int, seeds: int | Sequence[int], swept: Mapping[str, Sequence[Any]]) -> tuple[Member, ...]:
    """Every combination of ``swept`` numbers with each of ``seeds`` seeds from ``seed`` on, or of the
    ``seeds`` that are listed.

    Names with a comma between them are numbers that vary together; their values are tuples.
    """
    own_seeds = range(seed, seed + seeds) if isinstance(seeds, int) else seeds
    points = itertools.product(itertools.product(*swept.values()), own_seeds)
    return tuple(
        Member(number, own, dict(_pairs(zip(swept, values, strict=True))))
        for number, (values, own) in enumerate(points)
    )


def _pairs(chosen: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    """Every name with its own number."""
    for names, value in chosen:
        together = value if isinstance(value, list | tuple) else (value,)
        yield from zip(names.split(","), together, strict=True)


def of_config(config: Mapping[str, Any]) -> tuple[Member, ...]:
    """Return the members of the run whose ``config.json`` this is."""
    options, bounds = config["options"], config.get("members")
    # Infinities are kept as text.
    swept = {name: list(map(_floats, values)) for name, values in (config.get("sweep") or {}).items()}
    whole = grid(options["seed"], options["seeds"], swept)
    return part(whole, None if bounds is None else (bounds[0], bounds[1]))


def _floats(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def spell(value: float) -> str:
    """Return the shortest decimal of six digits or more that is rounded to the same float32: values that
    ``check`` has found different are spelt differently."""
    short = (f"{value:.{digits}g}" for digits in range(6, 9))
    return next((text for text in short if np.float32(text) == np.float32(value)), f"{value:.9g}")


def part(members: Sequence[Member], bounds: tuple[int, int] | None) -> tuple[Member, ...]:
    """Members ``first`` to ``last - 1`` of a grid; all of it without ``bounds``.

    Raises:
        Refused: there are no such members.
    """
    first, last = bounds or (0, len(members))
    if not 0 <= first < last <= len(members):
        raise Refused(f"--members {first}:{last} is no part of the members 0:{len(members)}")
    return tuple(members[first:last])


def check(hyper: Any, swept: Mapping[str, Sequence[Any]]) -> None:
    """Compare a sweep with the ``Hyper`` that it varies, before anything is built.

    Raises:
        Refused: a name is no number of ``hyper``, a list is empty or repeats a value, or one is out of range.
    """
    _check_ranges(hyper)
    known = sorted(names(hyper))
    for joined, values in swept.items():
        own = joined.split(",")
        for name in own:
            if name not in known:
                raise Refused(f"--sweep {name}: there is no such number; there is {', '.join(known)}")
        if not values:
            raise Refused(f"--sweep {joined} needs at least one value, as in {joined}=1e-4,3e-4")
        rows = [value if isinstance(value, list | tuple) else (value,) for value in values]
        if any(len(row) != len(own) for row in rows):
            raise Refused(f"--sweep {joined} needs {len(own)} numbers in each value, as in 1e-4:0.1")
        if len({tuple(map(np.float32, row)) for row in rows}) < len(rows):
            spelt = ",".join(":".join(map(spell, row)) for row in rows)
            raise Refused(f"--sweep {joined}={spelt} has a value twice: they would be the same runs")
        for name, value in itertools.chain.from_iterable(zip(own, row, strict=True) for row in rows):
            _check_ranges(_with_number(hyper, name.removeprefix(_PREFIX), value))


def check_driven(driven: Sequence[str], hyper: Any, default: Any, swept: Mapping[str, Sequence[Any]]) -> None:
    """Refuse one number for all where the method sets the number itself, see ``Method.driven``.

    Raises:
        Refused: such a number is swept, or is another in ``hyper`` than in ``default``.
    """
    named = {name for joined in swept for name in joined.split(",")}
    for name in driven:
        value, usual = getattr(hyper, name), getattr(default, name)
        if f"{_PREFIX}{name}" in named:
            raise Refused(f"--sweep {_PREFIX}{name}: the method sets that number itself; sweep another one")
        if np.ndim(value) == 0 and np.float32(value) != np.float32(usual):
            raise Refused(
                f"--{_PREFIX}{name} {value:g} would not be used: the method sets that number itself; leave it"
                " out"
            )


def hypers(hyper: Any, members: Sequence[Member]) -> Any:
    """Return the members' ``Hyper`` stacked, every leaf float32 [S, ...]."""
    each = [as_arrays(hyper_of(hyper, member)) for member in members]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def hyper_of(hyper: Any, member: Member) -> Any:
    """Return the ``Hyper`` that a run of ``member`` alone would have."""
    for name, value in member.numbers.items():
        hyper = _with_number(hyper, name.removeprefix(_PREFIX), value)
    return hyper


def names(hyper: Any, prefix: str = _PREFIX) -> Iterator[str]:
    """Every number of a ``Hyper`` by the name that a sweep calls it."""
    for entry in fields(hyper):
        value = getattr(hyper, entry.name)
        if is_dataclass(value):
            yield from names(value, f"{prefix}{entry.name}.")
        elif value is not None:
            yield prefix + entry.name


@lru_cache(maxsize=64)  # of the same function the same one: JAX keeps what it has traced by identity
def lift(function: Callable[..., Any], members: int) -> Callable[..., Any]:
    """Return ``function`` of one member's arguments as a function of arguments [S, ...] to results [S, ...].

    Of generators other than threefry, ``vmap`` makes one draw for all lanes, with the key of the first, so a
    member would be another run than it is alone: with these, members are computed one after the other.
    """
    if members > 1:
        if vmappable():
            return jax.vmap(function)
        return lambda *arguments: jax.lax.map(lambda xs: function(*xs), arguments)

    def single(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: jnp.squeeze(x, 0), arguments))
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), result)

    return single


def vmappable() -> bool:
    """Return whether a key's draws under ``vmap`` are those that it makes alone."""
    return jax.config.jax_default_prng_impl == "threefry2x32"  # type: ignore[attr-defined]


def keys(members: Sequence[Member]) -> Array:
    """[S] typed keys: a member has the key that a run of its seed alone would have."""
    return jnp.stack([jax.random.key(member.seed) for member in members])


def _with_number(hyper: Any, path: str, value: float) -> Any:
    """``hyper`` with one number replaced; one that every individual has of its own gets ``value`` for all."""
    name, _, rest = path.partition(".")
    before = getattr(hyper, name)
    if rest:
        return replace(hyper, **{name: _with_number(before, rest, value)})
    return replace(hyper, **{name: jnp.full_like(before, value) if jnp.ndim(before) else float(value)})


def _check_ranges(hyper: Any) -> None:
    try:
        check_numbers(hyper)
    except ValueError as fault:
        raise Refused(str(fault)) from None
