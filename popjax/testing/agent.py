"""Check of an agent: every function of its record that methods call."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import agents, numerics, tree
from popjax.arguments import typed
from popjax.core import Agent, OnPolicyAgent, PyTree, Spec, Trajectory, Transition, Weighted, as_arrays
from popjax.testing.compare import check_choice, check_same_form, is_key, same, told

STEPS, LANES = 6, 4
"""Time steps and lanes of the random rows; as transitions, they are a batch of their product."""


@typed()
@numerics.standardized
def check_agent(agent: Agent | OnPolicyAgent, spec: Spec, hyper: Any) -> None:
    """Check that ``agent``, built for ``spec``, keeps the contract of ``Agent`` or ``OnPolicyAgent``.

    Its actions must fit the task: at scale 0 they are the mode of its ``outputs``, at scale 1 they are
    random. A gradient step on random transitions must change the state, depend on rewards and discounts, and
    keep the state's form. ``adopt`` must be the inverse of ``policy``. Optional functions are checked if the
    agent has them.

    Raises:
        ValueError: the agent breaks the contract; the message says how.
    """
    hyper, keys = as_arrays(hyper), jax.random.split(jax.random.key(0), 4)
    if not hasattr(hyper, "discount"):
        raise ValueError(f"{type(hyper).__name__} has no number discount; methods read gamma from it")
    if isinstance(agent, Agent):
        agents.check_no_memory(agent)
    state, other = (jax.jit(agent.init)(key, hyper) for key in keys[:2])
    obs = jax.random.normal(keys[2], (STEPS, LANES, *spec.obs_shape)).astype(spec.obs_dtype)
    rows = _random_rows(agent, spec, obs, keys[3])
    _check_acting(agent, spec, state, obs, hyper, keys)
    _check_learning(agent, state, rows, hyper, keys[3])
    _check_adoption(agent, state, other)
    _check_value(agent, state, rows)
    if isinstance(agent, Agent):
        _check_priorities(agent, state, rows, hyper, keys[3])
        _check_replayed(agent, state, other, rows, hyper)
    else:
        _check_unroll(agent, state, obs, keys[2])


def _random_rows(agent: Agent | OnPolicyAgent, spec: Spec, obs: Array, key: Array) -> Any:
    """Return transitions [B], or a Trajectory [T, N], of random actions on ``obs`` [T, N, ...]."""
    shape = obs.shape[:2]
    if spec.discrete:
        action = jax.random.randint(key, shape, 0, spec.action_dim)
    else:
        action = jax.random.uniform(key, (*shape, spec.action_dim), minval=-1.0, maxval=1.0)
    rows = Transition(obs, action, jax.random.normal(key, shape), jnp.full(shape, 0.9), obs[::-1])
    if isinstance(agent, Agent):
        return tree.flatten(rows)
    memory = tree.repeat(tree.repeat(agent.memory, shape[1]), 1)
    nothing = jnp.zeros(shape)
    return Trajectory(**vars(rows), done=nothing > 0, log_prob=nothing - 1, memory=memory)


def _check_acting(
    agent: Agent | OnPolicyAgent, spec: Spec, state: Any, obs: Array, hyper: Any, keys: Array
) -> None:
    """Check that actions at scale 0 are the mode of ``outputs``, and that those at scale 1 are drawn."""
    policy, outputs, act = agent.policy(state), agent.outputs, jax.jit(agent.act)
    greedy, again, drawn = (
        act(policy, agent.memory, obs[0, 0], key, scale)
        for key, scale in ((keys[2], 0.0), (keys[3], 0.0), (keys[2], 1.0))
    )
    check_choice(greedy, agent.memory, spec)
    check_choice(drawn, agent.memory, spec)
    if not same(greedy.action, again.action):
        raise ValueError("act draws at random at scale 0; act greedily there")
    if isinstance(agent, OnPolicyAgent) or jnp.any(agent.exploration(hyper, jnp.float32(0)) > 0):
        draw = jax.vmap(lambda key: agent.act(policy, agent.memory, obs[0, 0], key, 1.0).action)
        actions = np.asarray(jax.jit(draw)(jax.random.split(keys[2], 16)))
        if (actions == actions[0]).all():
            raise ValueError(
                f"act plays {actions[0]} at scale 1 with 16 keys; draw by actions.sample(key, outputs, scale)"
            )
    if outputs is None:
        return
    mode = jax.jit(lambda p, o: agent.actions.bounded(agent.actions.mode(outputs(p, o))))(policy, obs[0, 0])
    if not np.allclose(mode, greedy.action, 1e-4, 1e-5):
        raise ValueError(
            f"act plays {greedy.action} at scale 0, where the mode of outputs is {mode};"
            " act by actions.mode(outputs(policy, obs)), which others imitate"
        )


def _check_learning(agent: Agent | OnPolicyAgent, state: Any, rows: Any, hyper: Any, key: Array) -> None:
    learn = jax.jit(agent.learn)
    after, losses = learn(state, rows, hyper, key)
    _check_form(state, after, "learn")
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(losses)):
        raise ValueError(f"learn gives losses that are not finite: {losses}")
    if _unchanged(state, after):
        raise ValueError("learn returns the state unchanged; take a gradient step")
    for name, other in (("reward", rows.reward[::-1]), ("discount", jnp.zeros_like(rows.discount))):
        if _unchanged(after, learn(state, replace(rows, **{name: other}), hyper, key)[0]):
            raise ValueError(f"learn gives the same state whatever the {name}; read it from the batch")


def _check_adoption(agent: Agent | OnPolicyAgent, state: Any, other: Any) -> None:
    """Check that ``adopt`` is the inverse of ``policy``, and takes over a state value if there is one."""
    try:
        inspect.signature(agent.adopt).bind(state, agent.policy(other), None)
    except TypeError:
        raise ValueError("adopt must take (state, policy, value=None)") from None
    adopted = agent.adopt(state, agent.policy(other))
    _check_form(state, adopted, "adopt")
    if not same(agent.policy(adopted), agent.policy(other)):
        raise ValueError("adopt(state, policy) does not act by that policy; let policy(adopt(s, p)) be p")
    if agent.state_value is None:
        return
    value = agent.state_value(other)
    both = agent.adopt(state, agent.policy(other), value)
    _check_form(state, both, "adopt")
    if not same(agent.state_value(both), value):
        raise ValueError("adopt(state, policy, value) keeps its own state value; take over the value given")


def _check_value(agent: Agent | OnPolicyAgent, state: Any, rows: Transition) -> None:
    """Check the shapes of ``value`` and, if the agent has it, of ``values``."""
    given, shape = (state, rows.obs, rows.action), rows.reward.shape
    value = jax.eval_shape(agent.value, *given)
    if value.shape != shape:
        raise ValueError(f"value gives {told(value)} for {list(shape)} observations")
    if isinstance(agent, OnPolicyAgent) or agent.values is None:
        return
    values = jax.eval_shape(agent.values, *given)
    if values.shape[1:] != shape or values.ndim != len(shape) + 1:
        raise ValueError(
            f"values gives {told(values)} for {list(shape)} observations; give [K, ...], one for each critic"
        )


def _check_priorities(agent: Agent, state: Any, rows: Transition, hyper: Any, key: Array) -> None:
    """Check ``td_error``, if the agent has it, and that ``learn`` then weighs transitions."""
    if agent.td_error is None:
        return
    td_error, learn = jax.jit(agent.td_error), jax.jit(agent.learn)
    error = td_error(state, rows)
    if error.shape != rows.reward.shape:
        raise ValueError(f"td_error gives {told(error)} for {list(rows.reward.shape)} transitions")
    if not (td_error(state, replace(rows, reward=rows.reward + 1.0)) > error).all():
        raise ValueError("td_error does not rise with the reward; give the target minus the value")
    ones = jnp.ones_like(rows.reward)
    light, heavy = (
        learn(state, Weighted(**vars(rows), weight=weight), hyper, key)[0]
        for weight in (ones, ones.at[0].set(9.0))
    )
    if _unchanged(light, heavy):
        raise ValueError("learn ignores weights; multiply each error by core.importance(batch)")


def _check_replayed(agent: Agent, state: Any, other: Any, rows: Transition, hyper: Any) -> None:
    """Check ``observe``, ``inherit`` and ``exploration``."""
    observe, nobody = jax.jit(agent.observe), jnp.zeros(rows.reward.shape, jnp.bool_)
    _check_form(state, observe(state, rows.obs, ~nobody), "observe")
    if not _unchanged(state, observe(state, rows.obs, nobody)):
        raise ValueError("observe changes the state by observations that are not valid; leave these out")
    heir = agent.inherit(state, other)
    _check_form(state, heir, "inherit")
    if not same(agent.policy(heir), agent.policy(other)):
        raise ValueError("inherit(state, other) does not act as other does; keep only the moments of state")
    for steps in (0.0, 1e6):
        scale = jnp.asarray(agent.exploration(hyper, jnp.float32(steps)))
        if scale.shape != () or not (np.isfinite(scale) and scale >= 0):
            raise ValueError(
                f"exploration gives {told(scale)} {scale} after {steps:g} environment steps, which must be"
                " one finite number of at least 0"
            )


def _check_unroll(agent: OnPolicyAgent, state: Any, obs: Array, key: Array) -> None:
    """Check that ``unroll`` follows lanes [T, N] as ``act`` does, also when it continues a first part."""
    half = STEPS // 2
    done = jnp.zeros((STEPS, LANES), jnp.bool_).at[1, 0].set(True)
    start = tree.repeat(agent.memory, LANES)

    def step(policy: PyTree, memory: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, Array]:
        seen, ends = row
        choice = jax.vmap(lambda m, o: agent.act(policy, m, o, key, 0.0))(memory, seen)
        return tree.where(ends, start, choice.memory), choice.action

    policy, unroll = agent.policy(state), jax.jit(agent.unroll)
    played = jax.jit(lambda p: jax.lax.scan(partial(step, p), start, (obs, done))[1])(policy)
    memory = unroll(policy, start, obs[:half], done[:half])[0]
    if _form(memory) != _form(start):
        raise ValueError("unroll returns a memory of another shape; return that after the last row, [N, ...]")
    outputs, later = (
        unroll(policy, *given)[1] for given in ((start, obs, done), (memory, obs[half:], done[half:]))
    )
    said = jax.jit(lambda x: agent.actions.bounded(agent.actions.mode(x)))(outputs)
    both = tree.take(outputs, slice(half, None)), later
    if said.shape != played.shape or not np.allclose(said, played, 1e-3, 1e-4):
        raise ValueError(
            "unroll differs from act at scale 0 along the rows of lanes [T, N]; restart the memory"
            " after every row that is done"
        )
    if not all(np.allclose(x, y, 1e-3, 1e-4) for x, y in zip(*map(jax.tree.leaves, both), strict=True)):
        raise ValueError("unroll in two parts differs from the whole; return the memory after the last row")


def _form(values: PyTree) -> list[Any]:
    return [(path, x.shape, x.dtype) for path, x in jax.tree.leaves_with_path(values)]


def _check_form(before: Any, after: Any, what: str) -> None:
    forms: Any = [jax.eval_shape(lambda x: x, s) for s in (before, after)]
    check_same_form(forms[0], forms[1], what)


def _unchanged(before: Any, after: Any) -> bool:
    """Return whether two states agree in every leaf that is not a random key."""
    kept = ([x for x in jax.tree.leaves(s) if not is_key(x)] for s in (before, after))
    return same(*kept)
