"""MuJoCo Playground's Control Suite on MJX. https://github.com/google-deepmind/mujoco_playground

Its models differ from dm_control's in time steps, integrators, solvers and bodies: these tasks are for
comparison with results on Playground.

Its robots, ``locomotion`` and ``manipulation``, are left out, because Playground clones their models from
another repository when a task is first made. Observations of pixels are left out, too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import Array

from popjax import libraries
from popjax.core import Env, Key, PyTree, Spec
from popjax.envs import warp
from popjax.envs.dynamics import tracing
from popjax.envs.episodic import episodic
from popjax.envs.mujoco import ended_if_lost, marked
from popjax.envs.options import check

# All of ``mjx.Data`` that a step depends on, which is what MuJoCo integrates. The rest is a hundred times as
# large, and Warp shares parts of it between lanes.
_CARRIED = ("time", "qpos", "qvel", "act", "qacc_warmstart", "mocap_pos", "mocap_quat")
# The first is for Playground's own training wrappers, and tasks ignore it; the others are for pixels.
_NOT_OURS = ("action_repeat", "vision", "vision_config")


def tasks() -> Sequence[str]:
    """Return the tasks of Playground's Control Suite, as Playground spells them.

    Raises:
        ValueError: Playground is missing.
    """
    return tuple(_suite().ALL_ENVS)


def make(task: str, impl: str = "jax", episode_length: int | None = None, **options: Any) -> Env:
    """Return a task of MuJoCo Playground, in full float32 precision on every device.

    If the physics diverges, the episode ends with reward 0 and zeros as observation.

    impl:           MJX's implementation of the physics, jax or warp.
    episode_length: time limit, environment steps; by default that of the task's configuration.
    options:        further entries of the task's configuration, such as ``ctrl_dt`` and ``sim_dt``, seconds.

    Raises:
        ValueError: Playground or Warp is missing, or the configuration has no such entry.
    """
    if episode_length is not None:
        check(f"playground/{task}", {"episode_length": episode_length}, {"episode_length": int})
    env = _construct(task, impl, options)
    obs = jax.eval_shape(env.reset, jax.random.PRNGKey(0)).obs
    if isinstance(obs, Mapping):
        raise ValueError(f"playground/{task} observes {', '.join(obs)}; popjax needs one array")
    spec = Spec(
        name=f"playground/{task}",
        obs_shape=obs.shape,
        action_dim=int(env.action_size),
        episode_length=int(env._config.episode_length if episode_length is None else episode_length),
        dt=float(env.dt),
    )
    blank = _blank(env)

    def reset(key: Key) -> tuple[PyTree, Array]:
        with tracing():
            state = env.reset(jax.random.key_data(key))  # Playground is written for raw keys
        return _carried(state), state.obs

    def step(state: PyTree, action: Array) -> tuple[PyTree, Array, Array, Array]:
        # Some tasks write metrics into the state they are given; a copy keeps the caller's as it was.
        state = jax.tree.map(lambda x: x, state)
        with tracing():
            state = env.step(state.replace(data=blank.replace(**state.data)), action)
        physics = state.data.qpos, state.data.qvel
        return _carried(state), *ended_if_lost(state.obs, state.reward, state.done > 0, *physics)[1]

    return episodic(spec, reset, step)._replace(reproducible=impl != "warp")


def load(task: str, **options: Any) -> Any:
    """Return the ``mujoco.MjModel`` of a task for rendering, made with the keywords of ``make``."""
    env = _construct(task, options.pop("impl", "jax"), options)
    if not task.startswith("FingerTurn"):
        return copy.deepcopy(env.mj_model)
    import mujoco

    return marked(mujoco.MjSpec.from_file(env.xml_path, env.model_assets), env.mj_model)


def _blank(env: Any) -> Any:
    """Return the ``mjx.Data`` that a task fills at its reset."""
    from mujoco import mjx

    config = env._config
    return mjx.make_data(env.mj_model, impl=config.impl, naconmax=config.naconmax, njmax=config.njmax)


def _suite() -> Any:
    """Import Playground's registry of Control Suite tasks, which takes seconds."""
    try:
        with libraries.physics():
            import mujoco
            from mujoco_playground import dm_control_suite
    except ImportError as absent:
        raise ValueError("playground needs MuJoCo Playground: pip install 'popjax[playground]'") from absent
    # Playground compares versions as text, and therefore uses a name from before MuJoCo 3.3 on MuJoCo 3.17.
    mujoco.MjSpec.find_body = mujoco.MjSpec.body
    return dm_control_suite


def _construct(task: str, impl: str, options: dict[str, Any]) -> Any:
    suite = _suite()
    warp.check(f"playground/{task}", impl)
    defaults = {
        name: value for name, value in suite.get_default_config(task).items() if name not in _NOT_OURS
    }
    options = check(f"playground/{task}", options, {name: type(value) for name, value in defaults.items()})
    _require_substeps(task, {**defaults, **options})
    try:
        return suite.load(task, config_overrides={"impl": impl, **options})
    except TypeError as refusal:
        raise ValueError(f"playground/{task}: {refusal}") from None


def _require_substeps(task: str, config: Mapping[str, Any]) -> None:
    """Check that an environment step is a whole number of physics steps, which Playground would round."""
    control, physics = config["ctrl_dt"], config["sim_dt"]
    if physics <= 0 or control <= 0 or abs(control / physics - round(control / physics)) > 1e-6:
        raise ValueError(
            f"playground/{task}: ctrl_dt must be sim_dt or a multiple, got {control:g} s and {physics:g} s"
        )


def _carried(state: PyTree) -> PyTree:
    """Replace the whole ``mjx.Data`` in Playground's state by the fields that a step depends on."""
    return state.replace(data={name: getattr(state.data, name) for name in _CARRIED})
