"""Seeds and hyperparameters as one more vmapped axis.

A sweep is a grid: every combination of the swept hyperparameters, each with every seed. A point of the grid
is a member; members are numbered with the seed varying fastest. On the host, the first axis of a State
is always that of the members, ``S``. For one member it is squeezed away and restored, which costs nothing;
for several, functions are mapped by ``vmap``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import tree
from popjax.checks import check_hyper
from popjax.core import Method, as_arrays
from popjax.host.errors import Refused

_PREFIX = "hyper."


@dataclass(frozen=True)
class Member:
    """One point of a sweep.

    number:  its place in the whole grid, even if only a part of the grid is run.
    seed:    its seed.
    numbers: the swept hyperparameters by name, such as "hyper.actor_lr"; empty if only seeds differ.
    """

    number: int
    seed: int
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """Swept hyperparameters as text, such as "hyper.actor_lr=0.001,hyper.polyak=0.01"."""
        return ",".join(f"{name}={spell(value)}" for name, value in self.numbers.items())

    @property
    def name(self) -> str:
        """Setting and seed as text; ``paths.file_name`` makes it a directory's name."""
        return ",".join(filter(None, (self.setting, f"seed{self.seed}")))

    @property
    def identity(self) -> str:
        """Return a text that is equal for the same member in other sweeps, where its number may differ."""
        return ",".join(
            [*sorted(f"{name}={spell(value)}" for name, value in self.numbers.items()), f"seed{self.seed}"]
        )


def grid(seed: int, seeds: int | Sequence[int], swept: Mapping[str, Sequence[Any]]) -> tuple[Member, ...]:
    """Return every combination of ``swept`` hyperparameters with every seed: ``seeds`` of them from ``seed``
    on, or the listed ``seeds``.

    Hyperparameters that vary together share a name with commas and have tuples as values.
    """
    own_seeds = range(seed, seed + seeds) if isinstance(seeds, int) else seeds
    points = itertools.product(itertools.product(*swept.values()), own_seeds)
    return tuple(
        Member(number, own, dict(_pairs(zip(swept, values, strict=True))))
        for number, (values, own) in enumerate(points)
    )


def _pairs(chosen: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, float]]:
    """Yield name and value of every hyperparameter."""
    for names, value in chosen:
        together = value if isinstance(value, list | tuple) else (value,)
        yield from zip(names.split(","), together, strict=True)


def of_config(config: Mapping[str, Any]) -> tuple[Member, ...]:
    """Return the members of the run with this ``config.json``."""
    options, bounds = config["options"], config.get("members")
    # JSON holds infinities as text.
    swept = {name: list(map(_floats, values)) for name, values in (config.get("sweep") or {}).items()}
    whole = grid(options["seed"], options["seeds"], swept)
    return part(whole, None if bounds is None else (bounds[0], bounds[1]))


def of_row(row: Mapping[str, Any]) -> Member:
    """Return the member that a row of ``summary.json`` is about."""
    return Member(row["member"], row["seed"], {name: float(x) for name, x in row["numbers"].items()})


def _floats(value: Any) -> Any:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)


def spell(value: float) -> str:
    """Return the shortest decimal of six or more digits that rounds to the same float32, so that values which
    ``check`` accepts as different have different texts."""
    short = (f"{value:.{digits}g}" for digits in range(6, 9))
    return next((text for text in short if np.float32(text) == np.float32(value)), f"{value:.9g}")


def part(members: Sequence[Member], bounds: tuple[int, int] | None) -> tuple[Member, ...]:
    """Return the members from the first of ``bounds`` to the last, which is excluded; all if it is None.

    Raises:
        Refused: there are no such members.
    """
    first, last = bounds or (0, len(members))
    if not 0 <= first < last <= len(members):
        raise Refused(f"--members {first}:{last} must lie in the members 0:{len(members)}")
    return tuple(members[first:last])


def check_names(axes: Iterable[str]) -> None:
    """Check that every name is in one axis of a sweep only, and there once: of two values, one would win.

    Raises:
        Refused: a name occurs twice.
    """
    counts = Counter(name for joined in axes for name in joined.split(","))
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise Refused(f"--sweep {repeated[0]} is given twice: list all its values in one")


def check(hyper: Any, swept: Mapping[str, Sequence[Any]]) -> None:
    """Check a sweep against the ``Hyper`` that it varies, before anything is built.

    Raises:
        Refused: a name occurs twice or is not a field of ``hyper``, or values are missing, repeated or out of
            range.
    """
    check_names(swept)
    _check_ranges(hyper)
    known = sorted(names(hyper))
    for joined, values in swept.items():
        own = joined.split(",")
        for name in own:
            if name not in known:
                raise Refused(
                    f"--sweep {name}: there is no such hyperparameter; choose from {', '.join(known)}"
                )
        if not values:
            raise Refused(f"--sweep {joined} needs at least one value, as in {joined}=1e-4,3e-4")
        rows = [value if isinstance(value, list | tuple) else (value,) for value in values]
        if any(len(row) != len(own) for row in rows):
            raise Refused(f"--sweep {joined} needs {len(own)} numbers in each value, as in 1e-4:0.1")
        if len({tuple(map(np.float32, row)) for row in rows}) < len(rows):
            spelt = ",".join(":".join(map(spell, row)) for row in rows)
            raise Refused(
                f"--sweep {joined}={spelt} repeats a value: remove it, since both runs would be the same"
            )
        for name, value in itertools.chain.from_iterable(zip(own, row, strict=True) for row in rows):
            _check_ranges(_with_value(hyper, name.removeprefix(_PREFIX), value))


def check_driven(driven: Sequence[str], hyper: Any, default: Any, swept: Mapping[str, Sequence[Any]]) -> None:
    """Check that hyperparameters which the method sets itself (``Method.driven``) are left at their defaults.

    Raises:
        Refused: such a hyperparameter is swept or differs from ``default``.
    """
    named = {name for joined in swept for name in joined.split(",")}
    for name in driven:
        value, usual = attrgetter(name)(hyper), attrgetter(name)(default)
        why = "as configured here, the method sets this hyperparameter itself or does not use it"
        if f"{_PREFIX}{name}" in named:
            raise Refused(f"--sweep {_PREFIX}{name}: {why}; sweep another one")
        if np.ndim(value) == 0 and np.float32(value) != np.float32(usual):
            raise Refused(f"--{_PREFIX}{name} {value:g} would not be used: {why}; leave it out")


def check_own(method: Method, hyper: Any) -> None:
    """Check, without computing anything, that ``method`` can take its first step with the hyperparameters
    that have a value for each agent.

    Raises:
        Refused: such a hyperparameter does not have one value for each agent, or must have one for all.
    """
    given = {f"{_PREFIX}{name}": np.size(leaf) for name, leaf in tree.named(hyper) if np.ndim(leaf)}
    if not given:
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(lambda key, hyper: method.step(method.init(key, hyper)), key, as_arrays(hyper))
    except (TypeError, ValueError) as refusal:
        text = str(refusal).partition("\n")[0]
        if not text.startswith(_PREFIX):  # JAX's error about shapes that do not fit
            lists = ", ".join(f"{name} has {count} values" for name, count in given.items())
            text = f"{lists}{_size(method, key)}; give one for all, or one for each agent that has its own"
        raise Refused(text) from None


def _size(method: Method, key: Any) -> str:
    """Return the size of the population for a refusal; an empty text without individuals."""
    if method.individuals is None:
        return ""
    state = jax.eval_shape(method.init, key, as_arrays(method.hyper))
    leaf = jax.tree.leaves(jax.eval_shape(method.individuals, state))[0]
    return f", and there are {len(leaf)} individuals"


def hypers(hyper: Any, members: Sequence[Member]) -> Any:
    """Return the members' ``Hyper`` stacked, every leaf float32 [S, ...]."""
    each = [as_arrays(hyper_of(hyper, member)) for member in members]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def hyper_of(hyper: Any, member: Member) -> Any:
    """Return the ``Hyper`` that a run of ``member`` alone would have."""
    for name, value in member.numbers.items():
        hyper = _with_value(hyper, name.removeprefix(_PREFIX), value)
    return hyper


def names(hyper: Any, prefix: str = _PREFIX) -> Iterator[str]:
    """Yield the name of every field of a ``Hyper`` as a sweep has it, such as "hyper.actor_lr"."""
    for entry in fields(hyper):
        value = getattr(hyper, entry.name)
        if is_dataclass(value):
            yield from names(value, f"{prefix}{entry.name}.")
        elif value is not None:
            yield prefix + entry.name


def lift(function: Callable[..., Any], members: int) -> Callable[..., Any]:
    """Map ``function`` of one member over arguments [S, ...] to results [S, ...], as ``mapped`` does.

    Equal arguments give the same function as long as the generator is the same, since JAX caches traces by
    identity.
    """
    return _lifted(function, members, vmappable())


@lru_cache(maxsize=64)
def _lifted(function: Callable[..., Any], members: int, _: bool) -> Callable[..., Any]:
    return mapped(function, members)


def mapped(function: Callable[..., Any], members: int) -> Callable[..., Any]:
    """Map ``function`` of one member over arguments [S, ...] to results [S, ...]; a function that refers to
    values of a trace is mapped by this, as ``lift`` would keep them.

    With generators other than threefry, ``vmap`` draws with the first member's key for all, which would
    change results; members are then computed one after another.
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
    """Return whether the random generator draws the same numbers under ``vmap`` as without it."""
    return jax.config.jax_default_prng_impl == "threefry2x32"  # type: ignore[attr-defined]


def keys(members: Sequence[Member]) -> Array:
    """Return typed keys [S]; a member's key depends only on its seed."""
    return jnp.stack([jax.random.key(member.seed) for member in members])


def _with_value(hyper: Any, path: str, value: float) -> Any:
    """Return ``hyper`` with one field set to ``value``, for all individuals if each has its own value."""
    name, _, rest = path.partition(".")
    before = getattr(hyper, name)
    if rest:
        return replace(hyper, **{name: _with_value(before, rest, value)})
    return replace(hyper, **{name: jnp.full_like(before, value) if jnp.ndim(before) else float(value)})


def _check_ranges(hyper: Any) -> None:
    try:
        check_hyper(hyper)
    except ValueError as fault:
        raise Refused(str(fault)) from None
