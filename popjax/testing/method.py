"""Checks of a method, of its sweeps, and of the memory that a step takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax import numerics, tree
from popjax.arguments import typed
from popjax.core import Env, Method, Spec, stacked_fields
from popjax.testing.compare import (
    alike,
    check_choice,
    check_close,
    check_same_form,
    numbers,
    same,
    through_the_host,
    told,
)


@typed()
@numerics.standardized
def check_method(method: Method, env: Env, *, steps: int = 5, members: bool = True) -> None:
    """Check that ``method``, built for ``env``, keeps the contract of ``Method``.

    A State must have the fields that the host reads and keep structure, shapes and types. ``steps`` steps
    must be traced once, count their environment steps, accept a donated State, and repeat with equal keys,
    also if every State goes to the host and back. The policy must act. With ``members``, also run
    ``check_members``.

    Raises:
        ValueError: the method breaks the contract; the message says how, and where.
    """
    shapes = jax.eval_shape(method.init, _key_shape(), method.hyper)
    _check_fields(shapes)
    _check_stacked(shapes)
    check_same_form(shapes, jax.eval_shape(method.step, shapes))
    traces: list[None] = []

    def step(state: Any) -> Any:
        traces.append(None)
        return method.step(state)

    init, compiled = jax.jit(method.init), jax.jit(step, donate_argnums=0)
    state = _check_steps(method, init, compiled, steps)
    if len(traces) != 1:
        raise ValueError(f"{steps} steps were traced {len(traces)} times; return every leaf as it was given")
    _check_policy(method, env.spec, state)
    if members:
        _check_members(method, init, compiled, steps)


@typed()
@numerics.standardized
def check_members(method: Method, *, steps: int = 5) -> None:
    """Check that the members of a sweep equal single runs, and that ``steps`` steps depend on ``Hyper``.

    There are two members; one has every hyperparameter halved, or changed otherwise within its range. They
    are compared after the first step and, with a wider tolerance, after the last.

    Raises:
        ValueError: a member differs in a leaf, which is named, or no hyperparameter changes anything.
    """
    _check_members(method, jax.jit(method.init), jax.jit(method.step, donate_argnums=0), steps)


@numerics.standardized
def check_in_place(method: Method, share: float) -> None:
    """Check that a step writes a donated State in place, with less than ``share`` of its size as temporaries.

    A copied replay would double the size. The step is compiled for the method's own sizes, but not run.

    Raises:
        ValueError: the step copies the State, or needs more memory than allowed.
    """
    state = jax.eval_shape(method.init, _key_shape(), method.hyper)
    memory: Any = jax.jit(method.step, donate_argnums=0).lower(state).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(numbers, state)))
    if memory.alias_size_in_bytes < 0.99 * size:
        raise ValueError(
            f"a step writes {memory.alias_size_in_bytes:,} of the State's {size:,} bytes in place; return"
            " every leaf in the shape and type in which it was given"
        )
    if memory.temp_size_in_bytes >= share * size:
        raise ValueError(
            f"a step needs {memory.temp_size_in_bytes:,} bytes beside a State of {size:,}, of which {share:g}"
            " is allowed; a large leaf is copied: update it with .at[...].set or a replay's add, outside of"
            " lax.cond"
        )


def _key_shape() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _check_fields(state: Any) -> None:
    """Check the fields that the host reads; it refuses a budget that ``env_steps`` cannot count."""
    kind: Any = type(state)
    if not is_dataclass(kind):
        raise ValueError(f"State must be a flax.struct.dataclass, got {kind.__name__}")
    for name in ("key", "hyper", "env_steps", "generation", "metrics"):
        if not hasattr(state, name):
            raise ValueError(f"State has no field {name}; the host reads it")
    if (state.generation.shape, state.generation.dtype) != ((), jnp.int32):
        raise ValueError(f"State.generation must be int32 [], got {told(state.generation)}")
    steps = jax.tree.leaves(state.env_steps)
    if [(x.shape, x.dtype) for x in steps] not in ([((), jnp.int32)], [((), jnp.uint32)] * 2):
        found = ", ".join(map(told, steps))
        raise ValueError(
            f"State.env_steps must be a counting.Count, or int32 [] for budgets below 2^31; got {found}"
        )
    if not jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"State.key must be a typed key of jax.random.key, got {told(state.key)}")
    for path, x in jax.tree.leaves_with_path(state.hyper):
        if x.dtype != jnp.float32:
            raise ValueError(
                f"State.hyper{jax.tree_util.keystr(path)} must be float32, got {told(x)}; use core.as_arrays"
            )
    fitness: Any = getattr(state.metrics, "fitness", None)
    if jnp.ndim(fitness) != 1:
        raise ValueError("State.metrics must have a field fitness [P]: how well each individual does")


def _check_stacked(state: Any) -> None:
    """Check that fields declared with ``stacked()`` lead with the population."""
    population, marked = len(state.metrics.fitness), stacked_fields(state)
    if population > 1 and not marked:
        raise ValueError(
            f"no field of State is declared with core.stacked(), though fitness has {population} individuals;"
            " mark those whose leaves lead with them"
        )
    for path, x in jax.tree.leaves_with_path(marked):
        if x.shape[:1] != (population,):
            raise ValueError(
                f"State{jax.tree_util.keystr(path)} is {told(x)}; as a stacked() field it must lead with the"
                f" {population} individuals of metrics.fitness"
            )


def _check_steps(method: Method, init: Callable[..., Any], step: Callable[[Any], Any], steps: int) -> Any:
    """Check that steps are pure and counted, and return a State after ``steps`` of them. ``step`` donates its
    argument."""

    def run(seed: int, interrupted: bool = False) -> Any:
        state = init(jax.random.key(seed), method.hyper)
        for _ in range(steps):
            before = int(state.env_steps)
            state = step(state)
            if not 0 <= int(state.env_steps) - before <= method.steps_bound:
                raise ValueError(
                    f"a step counted {int(state.env_steps) - before} environment steps, which must be 0 to"
                    f" steps_bound {method.steps_bound}"
                )
            if interrupted:
                state = jax.tree.map(through_the_host, state)
        return state

    state = run(0)
    if int(state.generation) != steps:
        raise ValueError(f"State.generation is {int(state.generation)} after {steps} steps; add 1 in each")
    if int(state.env_steps) < 1:
        raise ValueError(f"State.env_steps is still 0 after {steps} steps; count what is played")
    if not same(state, run(0, interrupted=True)):
        raise ValueError("the same key gives another State in a second run; keep everything in the State")
    if same(state.replace(key=()), run(1).replace(key=())):
        raise ValueError("another key gives the same State; draw from state.key")
    return state


def _check_members(method: Method, init: Callable[..., Any], step: Callable[[Any], Any], steps: int) -> None:
    keys = jnp.stack([jax.random.key(4)] * 2)
    hyper = jax.tree.map(
        lambda x, y: jnp.stack([jnp.float32(x), jnp.float32(y)]), method.hyper, _moved(method.hyper)
    )
    sweep = jax.jit(jax.vmap(method.init))(keys, hyper)
    sweep_step = jax.jit(jax.vmap(method.step), donate_argnums=0)
    singles = [init(keys[i], tree.take(hyper, i)) for i in range(2)]
    for count in range(1, steps + 1):
        sweep, singles = sweep_step(sweep), [step(single) for single in singles]
        for i, single in enumerate(singles if count in (1, steps) else ()):
            check_close(tree.take(sweep, i), single, f"member {i} of a sweep", count)
    first, second = (tree.take(sweep, i).replace(hyper=()) for i in range(2))
    if jax.tree.leaves(hyper) and same(first, second):
        raise ValueError(
            f"other values in hyper change nothing in {steps} steps; read them from state.hyper, which a"
            " sweep fills, and check a case that learns within these steps"
        )


def _moved(hyper: Any, low: float = -math.inf, high: float = math.inf) -> Any:
    """Return ``hyper`` with every value halved, or as near to that as its range allows; a value that this
    does not change is raised."""
    if is_dataclass(hyper) and not isinstance(hyper, type):
        leaves = [f for f in fields(hyper) if f.metadata.get("pytree_node", True)]
        ranges = {f.name: f.metadata.get("range", (low, high)) for f in leaves}
        return replace(hyper, **{name: _moved(getattr(hyper, name), *ends) for name, ends in ranges.items()})

    def move(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float32)
        half = np.clip(x / 2, low, high)
        return np.where(half != x, half, np.minimum(x + 0.1, high))

    return jax.tree.map(move, hyper)


def _check_policy(method: Method, spec: Spec, state: Any) -> None:
    """Check that the policy's actions fit the task, and that all individuals' policies have its structure."""
    params, key, obs = method.policy(state), jax.random.key(0), jnp.zeros(spec.obs_shape, spec.obs_dtype)
    check_choice(jax.jit(method.act)(params, method.memory, obs, key, 0.0), method.memory, spec)
    if method.individuals is None:
        return
    everybody, population = jax.eval_shape(method.individuals, state), len(state.metrics.fitness)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((population, *x.shape), x.dtype), params)
    if not alike(everybody, wanted):
        raise ValueError("individuals gives parameters whose structure differs from that of policy")
    for (path, x), y in zip(jax.tree.leaves_with_path(everybody), jax.tree.leaves(wanted), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(
                f"individuals gives {jax.tree_util.keystr(path) or 'parameters'} {told(x)}, where policies"
                f" of {population} are {y.dtype} {list(y.shape)}"
            )
