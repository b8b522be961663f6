"""gymnax: classic control, MinAtar, bsuite and small tasks in pure JAX. https://github.com/RobertTLange/gymnax"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import libraries
from popjax.core import Env, Key, PyTree, Spec
from popjax.envs.episodic import episodic, rescale
from popjax.envs.options import check, keywords, types

with libraries.plotting():  # some of its tasks import matplotlib
    import gymnax
    from gymnax.environments.environment import Environment


def tasks() -> Sequence[str]:
    """Return the tasks that the installed gymnax registers, without the one that downloads images first."""
    return tuple(task for task in gymnax.registered_envs if task != "MNISTBandit-bsuite")


def make(task: str, **options: Any) -> Env:
    """Return a gymnax task.

    ``options`` are keywords of its constructor, such as the ``size`` of DeepSea, and fields of its
    ``EnvParams``, such as ``max_steps_in_episode``.

    The task's own automatic reset is not used. Observations are float32, but bool in MinAtar, whose frames
    are 0 and 1, so that a replay takes a quarter of the memory. A discrete observation of ``n`` values, as in
    FrozenLake, is one-hot, [n]; a scalar becomes a vector [1]. Continuous actions in [-1, 1] are
    rescaled to the task's bounds.

    Raises:
        ValueError: there is no such option, or a value is of the wrong type or refused by the task.
    """
    env, params = _construct(task, options)
    dtype = jnp.bool_ if task.endswith("-MinAtar") else jnp.float32
    highest = float(params.max_steps_in_episode) if task == "CartPole-v1" else None
    return adapt(f"gymnax/{task}", env, params, obs_dtype=dtype, highest_return=highest)


def adapt(name: str, env: Any, params: Any, **further: Any) -> Env:
    """Return an ``Env`` of an environment with gymnax's interface and its ``EnvParams``; see ``make``.

    Episodes are truncated where its ``is_truncated`` says so, and at ``max_steps_in_episode``. Images
    [H, W, C] that ``observation_space`` declares as bool, or as uint8 up to 255, stay so. Values of a
    Discrete are counted from its ``start``, so that actions begin at 0.

    ``further`` are fields of its ``Spec``.

    Raises:
        ValueError: the task's actions are neither discrete nor a vector, its observations are not one array
            of the declared shape, or it tells its ends as before gymnax 1.0.
    """
    kind = type(env)
    if _defined(kind, "is_terminal") < _defined(kind, "is_terminated"):
        raise ValueError(
            f"{name} overrides is_terminal, where gymnax before 1.0 had the time limit, too; move the natural"
            " end to is_terminated"
        )
    action_space, seen = env.action_space(params), env.observation_space(params)
    for field, space in (("action_space", action_space), ("observation_space", seen)):
        if not (_is(space, "Discrete") or _is(space, "Box")):
            raise ValueError(f"{name}: {field} is a {type(space).__name__}; popjax needs a Discrete or a Box")
    discrete = _is(action_space, "Discrete")
    if not discrete and len(action_space.shape) != 1:
        raise ValueError(f"{name} has actions of shape {action_space.shape}; a vector [A] is needed")
    dtype = _dtype_seen(name, env, params, seen)
    dt = getattr(params, "dt", getattr(params, "tau", None))  # CartPole's name for it
    states = int(seen.n) if _is(seen, "Discrete") else 0
    spec = Spec(
        name=name,
        obs_shape=(states,) if states else tuple(seen.shape) or (1,),
        action_dim=int(action_space.n) if discrete else int(action_space.shape[0]),
        episode_length=int(params.max_steps_in_episode),
        discrete=discrete,
        dt=float(dt) if dt else None,
        **{"obs_dtype": dtype, **further},
    )
    lowest_action, lowest_obs = _lowest(action_space), _lowest(seen)
    native = (lambda action: action + lowest_action) if discrete else _to_box(action_space)

    def view(obs: Array) -> Array:
        return jax.nn.one_hot(obs - lowest_obs, states) if states else obs.reshape(spec.obs_shape)

    def reset(key: Key) -> tuple[PyTree, Array]:
        key, key_reset = jax.random.split(key)
        obs, state = env.reset_env(key_reset, params)
        return (key, state), view(obs)

    def step(carry: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        key, state = carry
        key, key_step = jax.random.split(key)
        obs, state, reward, terminated, _ = env.step_env(key_step, state, native(action), params)
        return (key, state), view(obs), reward, terminated

    if kind.is_truncated is Environment.is_truncated:
        return episodic(spec, reset, step)  # only at the time limit
    return episodic(spec, reset, step, lambda carry: env.is_truncated(carry[1], params))


def load(task: str, **options: Any) -> tuple[Any, Any]:
    """Return gymnax's own environment of a task and its ``EnvParams``, made with the keywords of ``make``."""
    return _construct(task, options)


def _construct(task: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the environment and its parameters, whose defaults may depend on the keywords."""
    original, defaults = gymnax.make(task)
    own = types(keywords(type(original).__init__))
    own.pop("action_mapping_key", None)  # a random key, which no command line can write
    known = {name: type(value) for name, value in vars(defaults).items()} | {"max_steps_in_episode": int}
    options = check(f"gymnax/{task}", options, {**known, **own})
    given = {name: options.pop(name) for name in own if name in options}
    if given:
        try:
            original, defaults = gymnax.make(task, **given)
            jax.eval_shape(original.reset_env, jax.random.key(0), defaults)
        except Exception as refusal:  # every task raises its own kind of exception
            said = " ".join(str(refusal).split())[:200]
            raise ValueError(f"gymnax/{task} cannot be made with {given}: {said}") from None
    fields = {n: _like(v, vars(defaults)[n], f"gymnax/{task}: option {n}") for n, v in options.items()}
    return original, defaults.replace(**fields)


def _like(value: Any, default: Any, what: str) -> Any:
    """Convert ``value`` to the type of a field's ``default``: an integer to a float, a list to an array."""
    if isinstance(default, float) and isinstance(value, int):
        return float(value)  # such as the time limit of BernoulliBandit
    if not isinstance(default, jax.Array) or isinstance(value, jax.Array):
        return value
    try:
        array = jnp.asarray(value, default.dtype)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != default.shape:
        raise ValueError(f"{what} must be numbers {list(default.shape)}, got {value!r}")
    return array


def _defined(kind: type, name: str) -> int:
    """Return the place of the class that defines ``name`` in the order of resolution."""
    return next(place for place, each in enumerate(kind.__mro__) if name in vars(each))


def _is(space: Any, name: str) -> bool:
    """Return whether a space is of the class ``name`` of gymnax or of Gymnasium, whose spaces are alike."""
    return any(each.__name__ == name for each in type(space).__mro__)


def _lowest(space: Any) -> int:
    """Return the lowest value of a Discrete, which only Gymnasium's can set; 0 for a Box."""
    return int(getattr(space, "start", 0))


def _dtype_seen(name: str, env: Any, params: Any, space: Any) -> Any:
    """Return the dtype for observations; refuse those that differ from the ``space`` that is declared."""
    shown = jax.eval_shape(lambda: env.reset_env(jax.random.key(0), params)[0])
    if not isinstance(shown, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name}: reset_env returns observations of type {type(shown).__name__}; popjax needs one array"
        )
    if shown.shape != tuple(space.shape):
        raise ValueError(
            f"{name}: observation_space has shape {tuple(space.shape)}, but reset_env returns observations of"
            f" shape {shown.shape}; correct one of them"
        )
    declared = jnp.dtype(space.dtype)
    kept = declared == jnp.bool_ or (declared == jnp.uint8 and np.max(space.high) == 255)
    if len(shown.shape) != 3 or not kept:
        return jnp.float32
    if shown.dtype != declared:
        raise ValueError(
            f"{name}: observation_space has dtype {declared}, but reset_env returns observations of dtype"
            f" {shown.dtype}; correct one of them"
        )
    return declared


def _to_box(space: Any) -> Any:
    low, high = (jnp.broadcast_to(jnp.asarray(bound), space.shape) for bound in (space.low, space.high))
    return rescale(low, high)
