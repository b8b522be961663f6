"""gymnax: classic control, MinAtar, bsuite and small tasks in pure JAX. https://github.com/RobertTLange/gymnax"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from jax import Array

from popjax.core import Env, Key, PyTree, Spec
from popjax.envs.episodic import episodic, rescale
from popjax.envs.options import check


def tasks() -> Sequence[str]:
    """The tasks that the installed gymnax registers; not the one that downloads images first."""
    return tuple(task for task in gymnax.registered_envs if task != "MNISTBandit-bsuite")


def make(task: str, **params: Any) -> Env:
    """A gymnax task; ``params`` replace fields of its ``EnvParams``, such as ``max_steps_in_episode``.

    The task's own automatic reset is not used. Observations are float32, and bool in MinAtar, whose frames
    are 0 and 1: a replay of them is a quarter the size; continuous actions in [-1, 1] are
    rescaled to the task's bounds.

    Raises:
        ValueError: there is no such field, or a value is of the wrong type.
    """
    env, defaults = gymnax.make(task)
    known = {name: type(value) for name, value in vars(defaults).items()} | {"max_steps_in_episode": int}
    params = check(f"gymnax/{task}", params, known)
    given = {n: _like(v, vars(defaults)[n], f"gymnax/{task}: option {n}") for n, v in params.items()}
    params_ = defaults.replace(**given)
    action_space = env.action_space(params_)
    discrete = isinstance(action_space, spaces.Discrete)
    if not discrete and len(action_space.shape) != 1:
        raise ValueError(f"gymnax/{task} has actions of shape {action_space.shape}; a vector [A] is needed")
    spec = Spec(
        name=f"gymnax/{task}",
        obs_shape=tuple(env.observation_space(params_).shape),
        obs_dtype=jnp.bool_ if task.endswith("-MinAtar") else jnp.float32,
        action_dim=int(action_space.n) if discrete else int(action_space.shape[0]),
        episode_length=int(params_.max_steps_in_episode),
        discrete=discrete,
        dt=float(params_.dt) if "dt" in known else None,
        highest_return=float(params_.max_steps_in_episode) if task == "CartPole-v1" else None,
    )
    native = (lambda action: action) if discrete else _to_box(action_space)

    def reset(key: Key) -> tuple[PyTree, Array]:
        key, key_reset = jax.random.split(key)
        obs, state = env.reset_env(key_reset, params_)
        return (key, _strong(state)), obs

    def step(carry: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        key, state = carry
        key, key_step = jax.random.split(key)
        obs, state, reward, terminated, _ = env.step_env(key_step, state, native(action), params_)
        return (key, state), obs, reward, terminated

    return episodic(spec, reset, step)


def _like(value: Any, default: Any, what: str) -> Any:
    """``value`` as gymnax has the ``default`` of a field: an integer is no float to it, a list no array."""
    if isinstance(default, float) and isinstance(value, int):
        return float(value)  # the limit of BernoulliBandit
    if not isinstance(default, jax.Array) or isinstance(value, jax.Array):
        return value
    try:
        array = jnp.asarray(value, default.dtype)
    except (TypeError, ValueError):
        array = None
    if array is None or array.shape != default.shape:
        raise ValueError(f"{what} must be numbers {list(default.shape)}, got {value!r}")
    return array


def _to_box(space: Any) -> Any:
    low, high = (jnp.broadcast_to(jnp.asarray(bound), space.shape) for bound in (space.low, space.high))
    return rescale(low, high)


def _strong(state: PyTree) -> PyTree:
    """gymnax resets with Python numbers; a scan needs arrays of settled dtype."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
