"""Brax: locomotion and control with differentiable or MuJoCo (MJX) physics. https://github.com/google/brax"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import libraries
from popjax.core import Env, Key, PyTree, Spec
from popjax.envs.dynamics import tracing
from popjax.envs.episodic import episodic
from popjax.envs.mujoco import ended_if_lost
from popjax.envs.options import check, keywords, types

with libraries.physics():
    import brax.envs
    import brax.fluid
    from brax.envs.base import PipelineEnv

# The fluid of ``swimmer`` calls ``clip`` with a keyword that JAX has removed, so that no step would compile.
brax.fluid.jp = SimpleNamespace(**{**vars(jnp), "clip": lambda x, a_min: jnp.maximum(x, a_min)})
EPISODE_LENGTH = 1000
BACKENDS = ("mjx", "generalized", "positional", "spring")


def tasks() -> Sequence[str]:
    """Return the tasks that the installed Brax registers, without ``fast``, a stub for Brax's own tests."""
    return tuple(task for task in brax.envs._envs if task != "fast")


def make(task: str, backend: str | None = None, episode_length: int = EPISODE_LENGTH, **options: Any) -> Env:
    """Return a Brax task.

    backend:        physics: mjx, generalized, positional or spring; by default mjx if the task has it, else
                    generalized.
    episode_length: time limit, environment steps.
    options:        further keywords of the task's constructor.

    Actions are in [-1, 1], as in Brax. Physics runs in full float32 precision on every device; if it
    diverges, the episode ends with reward 0 and zeros as observation.

    Raises:
        ValueError: the task has no such backend or keyword, or a value is of the wrong type.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"brax/{task} has no backend {backend!r}; choose from {', '.join(BACKENDS)}")
    options = check(f"brax/{task}", {"episode_length": episode_length, **options}, _options(task))
    episode_length = options.pop("episode_length")
    env = _construct(task, backend, options)
    if not env.dt > 0:
        raise ValueError(f"brax/{task}: option n_frames must be at least 1, got {options.get('n_frames')}")
    spec = Spec(
        name=f"brax/{task}",
        # Brax's own observation_size plays a reset operation by operation, which takes 20 seconds.
        obs_shape=jax.eval_shape(env.reset, jax.random.key(0)).obs.shape,
        action_dim=int(env.action_size),
        episode_length=int(episode_length),
        dt=float(env.dt),
    )

    def reset(key: Key) -> tuple[PyTree, Array]:
        with tracing():
            state = env.reset(key)
        return state, state.obs

    def step(state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        with tracing():
            # Brax writes metrics into the state it is given; a copy keeps the caller's as it was.
            state = env.step(jax.tree.map(lambda x: x, state), action)
        physics = state.pipeline_state
        return state, *ended_if_lost(state.obs, state.reward, state.done > 0, physics.q, physics.qd)[1]

    return episodic(spec, reset, step)


def _options(task: str) -> dict[str, Any]:
    """Return the type of every option of a task's constructor, and of ``PipelineEnv``, to which the
    constructor passes other keywords.

    ``debug`` is left out: it only fills a field that nothing reads.
    """
    passed_on, own = keywords(PipelineEnv.__init__), keywords(brax.envs._envs[task].__init__)
    known = {"episode_length": int, **types({**passed_on, **own}), "backend": str}
    return {name: kind for name, kind in known.items() if name != "debug"}


def _construct(task: str, backend: str | None, options: dict[str, Any]) -> Any:
    try:
        return _environment(task, backend or "mjx", options)
    except ValueError as refusal:  # the task says itself that it has no such backend
        if backend is None and "backend" in str(refusal):
            return _construct(task, "generalized", options)
        raise ValueError(f"brax/{task}: {refusal}") from None
    except (TypeError, NotImplementedError) as refusal:
        raise ValueError(f"brax/{task}: {refusal}") from None


def _environment(task: str, backend: str, options: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        # Brax warns at every construction that it is no longer developed.
        warnings.filterwarnings("ignore", "Brax System", UserWarning)
        return brax.envs.get_environment(task, backend=backend, **options)
