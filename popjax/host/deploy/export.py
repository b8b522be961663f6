"""Export of a policy as files that work without popjax.

policy.stablehlo  the greedy policy as a serialized program, needing only JAX: any batch, CPU, GPU or TPU
policy.py         the same, needing only NumPy, if NumPy has all its operations
policy.npz        the arrays that policy.py reads
policy.json       observations, actions and origin
README.md         how to use them
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from popjax import numerics, tree
from popjax.arguments import typed
from popjax.core import Env, Method, Params
from popjax.host import paths
from popjax.host.deploy.numpy_export import NotPlain, numpy_program
from popjax.host.errors import Refused
from popjax.host.runs.rundir import write_json
from popjax.host.scaling import sweep

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-3
"""Largest accepted difference of actions, or fraction of different choices, due to rounding."""
_RESETS = 64  # initial states on which a translation is compared
_README = """# {title}

{line}

- Observations: {obs_dtype} {obs_shape}, as the environment returns them; normalisation is part of the policy.
- Actions: {action}{options}
- `policy.json` holds the same facts for programs to read.

With JAX and without popjax, for any number of observations at once (`pip install "jax=={jax}" flatbuffers`;
later versions of JAX can read the program for at least half a year):

```python
import jax
from jax import export

policy = export.deserialize(bytearray(open("policy.stablehlo", "rb").read()))
actions = policy.call(observations)  # [batch, {obs}] -> [batch{components}]
```

{numpy}
"""
_NUMPY = """With NumPy alone (`pip install numpy`):

```python
from policy import act  # policy.py reads policy.npz beside it

action = act(observation)  # [{obs}] or [batch, {obs}]
```"""


_OPTIONS = "It was trained with the environment's options {}."
_CHANGES = {
    "action_repeat": "Repeat each action for {} steps of the environment.",
    "frame_stack": "Join the latest {} observations of the environment along the last axis, oldest first; an"
    " episode begins with its first observation repeated.",
}
"""What an environment option requires of a program that plays the policy, by option."""


@typed(Refused)
@numerics.standardized
def export_policy(
    method: Method, env: Env, state: Any, out: str | Path, origin: Mapping[str, Any]
) -> str | None:
    """Write the policy of the one member of ``state`` [1, ...] into the directory ``out``.

    origin: facts about the member, for ``policy.json``.
    Return the reason why there is no policy.npz, or None if there is one.

    Raises:
        Refused: the policy has memory, draws at random or has diverged.
    """
    if jax.tree.leaves(method.memory):
        raise Refused(
            "this policy has a memory; only policies that act on the present observation can be exported"
        )
    params = jax.device_get(tree.take(jax.jit(sweep.lift(method.policy, 1))(state), 0))
    observations = probes(env)
    actions = _actions(method, params, observations, jax.random.key(0))
    if not np.isfinite(actions).all():
        raise Refused("this policy's actions are not finite numbers: it has diverged")
    if not np.array_equal(actions, _actions(method, params, observations, jax.random.key(1))):
        raise Refused("this policy draws its actions at random; only greedy policies can be exported")
    program = _program(method, env, params)
    out = paths.path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "policy.stablehlo").write_bytes(program)
    reason = None
    try:
        _write_numpy(out, _greedy(method, params, jax.random.key(0)), observations, actions)
    except NotPlain as why:
        reason = str(why)
        for name in ("policy.npz", "policy.py"):  # of an earlier export, perhaps
            (out / name).unlink(missing_ok=True)
    facts = _facts(env, origin)
    write_json(out / "policy.json", facts)
    (out / "README.md").write_text(_readme(facts, reason), encoding="utf-8")
    return reason


def probes(env: Env) -> np.ndarray:
    """Return observations [B, *obs] for comparing policies: initial ones, as they are and with noise of three
    scales or, if they are boolean, with three shares of flipped bits."""
    keys = jax.random.split(jax.random.key(0), _RESETS)
    first = jax.jit(jax.vmap(lambda key: env.reset(key)[1]))(keys)
    if env.spec.obs_dtype == jnp.bool_:
        shares = jnp.array([0.03, 0.1, 0.3]).reshape(3, *[1] * first.ndim)
        flipped = jax.random.bernoulli(keys[0], shares, (3, *first.shape))
        return np.asarray(jnp.concatenate([first, *(first ^ flipped)]))
    noise = jax.random.normal(keys[0], (3, *first.shape)) * jnp.array([0.3, 3.0, 30.0]).reshape(
        3, *[1] * first.ndim
    )
    return np.asarray(jnp.concatenate([first, *(first + noise)]).astype(env.spec.obs_dtype))


def _greedy(method: Method, params: Params, key: Array) -> Callable[[Array], Array]:
    """Return the function obs [*obs] -> action, in which the weights and the key are constants."""
    weights = jax.tree.map(jnp.asarray, params)
    return lambda obs: method.act(weights, method.memory, obs, key, 0.0)[1]


def _actions(method: Method, params: Params, observations: np.ndarray, key: Array) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(_greedy(method, params, key)))(observations))


def _write_numpy(
    out: Path, act: Callable[[Array], Array], observations: np.ndarray, actions: np.ndarray
) -> None:
    """Write policy.py and policy.npz, and test them.

    Raises:
        NotPlain: the policy cannot be translated, or the translation acts differently.
    """
    source, arrays = numpy_program(act, observations[0])
    (out / "policy.py").write_text(source, encoding="utf-8")
    np.savez(out / "policy.npz", allow_pickle=False, **arrays)
    found = runpy.run_path(str(out / "policy.py"))["act"](observations)
    discrete = np.issubdtype(actions.dtype, np.integer)
    apart = (found != actions).mean() if discrete else np.abs(found - actions).max()
    if not apart <= TOLERANCE:
        raise NotPlain(f"its actions in NumPy differ by {apart:.2g}")


def _program(method: Method, env: Env, params: Params) -> bytes:
    """Return the serialized program observations [b, *obs] -> actions [b, ...], for any b.

    The weights are constants of the program.
    """
    act = jax.vmap(_greedy(method, params, jax.random.key(0)))
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *env.spec.obs_shape), env.spec.obs_dtype)
    return bytes(export.export(jax.jit(act), platforms=PLATFORMS)(shape).serialize())


def _facts(env: Env, origin: Mapping[str, Any]) -> dict[str, Any]:
    spec = env.spec
    if spec.discrete:
        action = {"kind": "discrete", "count": spec.action_dim}
    else:
        action = {"kind": "continuous", "components": spec.action_dim, "low": -1.0, "high": 1.0}
    return {
        "env": spec.name,
        "observation": {"shape": list(spec.obs_shape), "dtype": jnp.dtype(spec.obs_dtype).name},
        "action": action,
        "step_seconds": spec.dt,
        "episode_length": spec.episode_length,
        "jax": jax.__version__,
        **origin,
    }


def _readme(facts: Mapping[str, Any], reason: str | None) -> str:
    observation, action = facts["observation"], facts["action"]
    if action["kind"] == "discrete":
        told = (
            f"an integer from 0 to {action['count'] - 1}; "
            "add the start of the environment's Discrete, if it has one."
        )
        components = ""
    else:
        told = (
            f"{action['components']} numbers in [-1, 1]; for other bounds of the environment, use "
            "low + (action + 1) / 2 * (high - low)."
        )
        components = f", {action['components']}"
    shape = ", ".join(map(str, observation["shape"]))
    who = ", ".join(
        f"{key} {facts[key]}"
        for key in ("member", "seed", "individual", "env_steps")
        if facts.get(key) is not None
    )
    options = facts.get("env_options") or {}
    lines = [_OPTIONS.format(", ".join(f"{name}={value}" for name, value in options.items()))] * bool(options)
    lines += [text.format(options[name]) for name, text in _CHANGES.items() if options.get(name, 1) != 1]
    return _README.format(
        title=f"A policy for {facts['env']}",
        line=f"Trained by {facts.get('method', 'popjax')} ({who}); it acts greedily.",
        obs_dtype=observation["dtype"],
        obs_shape=f"[{shape}]",
        obs=shape,
        action=told,
        options="".join(f"\n- {line}" for line in lines),
        components=components,
        jax=facts["jax"],
        numpy=_NUMPY.format(obs=shape)
        if reason is None
        else f"There is no version for NumPy alone: {reason}.",
    )
