"""Acting for a population: one closure ``(memory, obs, key) -> Choice`` over all lanes ``[P, N]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.agents.ddpg import ornstein_uhlenbeck
from popjax.core import Act, Agent, Choice, Key, Params, PyTree, Spec, as_arrays
from popjax.population.lanes import ActAll


def everyone(
    act: Callable[..., Any], params: Params, scale: Array | float, *, shared: bool = False
) -> ActAll:
    """Return the function by which every individual acts in its own lanes.

    act:    of one policy and one observation, such as ``Agent.act``.
    params: [P] policies; if ``shared``, one policy without the axis, which is never copied P times.
    scale:  [], [P] or [P, N] multiplies the exploration.
    """

    def act_all(memory: PyTree, obs: Array, key: Key) -> Any:
        shape = jax.tree.leaves(obs)[0].shape[:2]
        scales = jnp.broadcast_to(tree.align(scale, jnp.zeros(shape)), shape)
        over_lanes = jax.vmap(act, (None, 0, 0, 0, 0))
        over_all = jax.vmap(over_lanes, (None if shared else 0, 0, 0, 0, 0))
        return over_all(params, memory, obs, jax.random.split(key, shape), scales)

    return act_all


def randomly(act: ActAll, spec: Spec, random: Array) -> ActAll:
    """Return ``act`` with uniformly random actions where ``random`` bool [], [P] or [P, N] says so, as in a
    warm-up.

    A policy that has diverged acts at random, too: an action that is not finite would corrupt the lane, the
    replay and all agents that learn from it.
    """

    def act_all(memory: PyTree, obs: Array, key: Key) -> Choice:
        key_act, key_random = jax.random.split(key)
        choice = act(memory, obs, key_act)
        shape = choice.log_prob.shape
        sound = tree.finite(choice.action, len(shape))
        chance = jnp.broadcast_to(tree.align(random, choice.log_prob), shape) | ~sound
        action = tree.where(chance, uniform(spec, key_random, shape), choice.action)
        return choice._replace(action=action)

    return act_all


def several(acts: Sequence[Act], params: Sequence[Params], spec: Spec) -> Act:
    """Return policies of different kinds as one, whose parameter is the index int32 [] of the policy that
    acts.

    acts, params: of each policy. The memory is a tuple of the memories of all policies.

    All policies compute their action, which is cheap compared with an environment's step, so that the physics
    is compiled once whichever policy acts.
    """

    def act(which: Array, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        keys = jax.random.split(key, len(acts))
        told = [f(p, m, obs, k, scale) for f, p, m, k in zip(acts, params, memory, keys, strict=True)]
        memories, actions = zip(*(choice[:2] for choice in told), strict=True)
        action = jnp.stack(actions)[which]
        action = action if spec.discrete else jnp.clip(action, -1.0, 1.0)
        return Choice(tuple(memories), action, action, jnp.float32(0))

    return act


def with_noise(agent: Agent, theta: Array | float, sigma: Array | float) -> Act:
    """Return a deterministic policy's Act with Ornstein-Uhlenbeck noise [A], which is its memory.

    ``scale`` multiplies the noise before it is added to the action. This is how the learners of ERL and PDERL
    explore.
    """

    def act(params: Params, noise: Array, obs: Array, key: Key, scale: Array | float) -> Choice:
        noise = ornstein_uhlenbeck(noise, jax.random.normal(key, noise.shape), theta, sigma)
        greedy = agent.actions.vector(agent.outputs(params, obs))
        action = jnp.clip(greedy + scale * noise, -1.0, 1.0)
        return Choice(noise, action, action, jnp.float32(0))

    return act


def require_network(agent: Agent, hyper: PyTree) -> None:
    """Check that a policy is the parameters of ``agent.actor`` and nothing else, so that all of it can be
    crossed, mutated and trained.

    hyper: the agent's hyperparameters.

    Raises:
        ValueError: the policy also holds statistics of observations, or parameters of other shapes.
    """

    def policy(key: Key) -> Params:
        return agent.policy(agent.init(key, as_arrays(hyper)))

    own, learned = (jax.eval_shape(f, jax.random.key(0)) for f in (agent.actor.init, policy))
    if str(jax.tree.structure(own)) != str(jax.tree.structure(learned)):
        raise ValueError(
            "a policy that is crossed, mutated or imitated must be a network alone; choose an agent that does"
            " not normalize observations"
        )
    for (path, x), y in zip(jax.tree.leaves_with_path(own), jax.tree.leaves(learned), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"a policy that is crossed, mutated or imitated must be the network agent.actor; {name} is"
                f" {x.dtype} {list(x.shape)} there, and {y.dtype} {list(y.shape)} in agent.policy: let init"
                " use that network"
            )


def uniform(spec: Spec, key: Key, shape: tuple[int, ...]) -> Array:
    """Return uniformly random actions ``[*shape]`` (discrete) or ``[*shape, A]`` in [-1, 1]."""
    if spec.discrete:
        return jax.random.randint(key, shape, 0, spec.action_dim, jnp.int32)
    return jax.random.uniform(key, (*shape, spec.action_dim), minval=-1.0, maxval=1.0)
