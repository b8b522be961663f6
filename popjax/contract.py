"""The contract of an environment: what it returns has the shapes and types that its Spec declares.

Values are checked while a program is traced, so a compiled program pays nothing for it.
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.arguments import INT32_MAX
from popjax.core import Env, Key, PyTree, Spec, Timestep


def check_env(env: Env) -> None:
    """Check one reset and one step of ``env`` against its Spec, without computing either.

    Raises:
        ValueError: a returned value does not fit; the message names the environment, the field, and the types
            expected and found.
    """
    spec, checking = env.spec, checked(env)
    shape = () if spec.discrete else (spec.action_dim,)
    action = jax.ShapeDtypeStruct(shape, jnp.int32 if spec.discrete else jnp.float32)
    state, _ = jax.eval_shape(checking.reset, jax.eval_shape(lambda: jax.random.key(0)))
    jax.eval_shape(checking.step, state, action)


def checked(env: Env) -> Env:
    """Return ``env`` with everything that it returns checked against its Spec during tracing.

    Python numbers and weakly typed arrays become arrays of the declared types, so that a scan compiles once.

    Raises:
        ValueError: ``spec`` is not a Spec or has a size that is no positive int32; during tracing: as
            ``check_env``.
    """
    spec = env.spec
    _check_spec(spec)

    def reset(key: Key) -> tuple[PyTree, Array]:
        state, obs = _pair(spec, env.reset(key), "reset", "(state, observation)")
        return jax.tree.map(_strong, state), _seen(spec, obs, "reset: the observation")

    def step(state: PyTree, action: Array) -> tuple[PyTree, Timestep]:
        after, timestep = _pair(spec, env.step(state, action), "step", "(state, Timestep)")
        if not isinstance(timestep, Timestep):
            raise ValueError(f"{spec.name}: step must return (state, Timestep), got {_told(timestep)} second")
        fields = {name: _seen(spec, getattr(timestep, name), f"step: {name}") for name in ("obs", "next_obs")}
        fields["reward"] = _scalar(spec, timestep.reward, "step: reward", jnp.float32)
        for name in ("terminated", "truncated", "cut"):
            fields[name] = _scalar(spec, getattr(timestep, name), f"step: {name}", jnp.bool_)
        return _same_form(spec, state, after), replace(timestep, **fields)

    return env._replace(reset=reset, step=step)


def _check_spec(spec: Spec) -> None:
    if not isinstance(spec, Spec):
        raise ValueError(f"an Env needs a popjax.Spec as its spec, got {_told(spec)}")
    for name in ("action_dim", "episode_length", "stack"):
        value = getattr(spec, name)
        if not _is_size(value):
            raise ValueError(
                f"{spec.name}: {name} of the Spec must be an integer from 1 to {INT32_MAX:,}, got {value!r}"
            )
    if not isinstance(spec.obs_shape, tuple) or not all(map(_is_size, spec.obs_shape)):
        raise ValueError(
            f"{spec.name}: obs_shape of the Spec must be a tuple of integers from 1 to"
            f" {INT32_MAX:,}, got {spec.obs_shape!r}"
        )


def _is_size(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= INT32_MAX


def _pair(spec: Spec, answer: Any, name: str, wanted: str) -> tuple[Any, Any]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(f"{spec.name}: {name} must return {wanted}, got {_told(answer)}")
    return answer


def _seen(spec: Spec, obs: Any, what: str) -> Array:
    remedy = "let obs_shape and obs_dtype of the Spec match what the environment returns"
    return _fitting(spec, obs, what, tuple(spec.obs_shape), jnp.dtype(spec.obs_dtype), remedy)


def _scalar(spec: Spec, value: Any, what: str, dtype: Any) -> Array:
    return _fitting(spec, value, what, (), jnp.dtype(dtype), f"return a scalar {jnp.dtype(dtype).name}")


def _fitting(spec: Spec, x: Any, what: str, shape: tuple[int, ...], dtype: Any, remedy: str) -> Array:
    """Return ``x`` as an array of ``shape`` and ``dtype``; a Python number may be of a narrower kind, such as
    1 for 1.0."""
    plain = isinstance(x, bool | int | float)
    kinds = ("b",) if isinstance(x, bool) else ("f",) if isinstance(x, float) else ("i", "u", "f")
    fits = dtype.kind in kinds if plain else _is_array(x) and jnp.result_type(x) == dtype
    if not fits or jnp.shape(x) != shape:
        expected = f"{dtype.name} {list(shape)}"
        raise ValueError(f"{spec.name}: {what} must be {expected}, got {_told(x)}; {remedy}")
    return jnp.asarray(x, dtype)


def _same_form(spec: Spec, before: PyTree, after: PyTree) -> PyTree:
    """Return ``after`` with strong types, after checking that it has the structure, shapes and types of
    ``before``."""
    structures: Any = [jax.tree.structure(x) for x in (before, after)]
    expected, found = map(str, structures)
    # Static arrays can be compared by their text only, and objects whose text is an address by == only.
    if found != expected and structures[0] != structures[1]:
        form = f"{expected[:200]}, got {found[:200]}"
        raise ValueError(f"{spec.name}: step must return a state of the structure {form}; keep its structure")

    def same(path: Any, old: Any, new: Any) -> Any:
        if jnp.shape(old) != jnp.shape(new) or jnp.result_type(old) != jnp.result_type(new):
            where = f"state{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{spec.name}: step must return {where} as {_told(old)}, as it was given, got {_told(new)}"
            )
        return _strong(new)

    return jax.tree.map_with_path(same, before, after)


def _strong(x: Any) -> Any:
    """Return a weakly typed array or number with a strong type; others unchanged."""
    weak = isinstance(x, bool | int | float) or getattr(x, "weak_type", False)
    return jax.lax.convert_element_type(x, jnp.result_type(x)) if weak else x


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | bool | int | float)


def _told(x: Any) -> str:
    """Return a text: dtype and shape of an array, length of a tuple, type of anything else."""
    if _is_array(x):
        return f"{jnp.result_type(x).name} {list(jnp.shape(x))}"
    return f"tuple of {len(x)}" if type(x) is tuple else type(x).__name__
