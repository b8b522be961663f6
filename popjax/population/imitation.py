"""Imitation of teachers by a student: teachers, their answers to observations, the student's gradient steps.

A teacher is any policy with the common signature of acting, such as a finished run's. All teachers give
actions; those with an ``unroll`` also give logits along rows of lanes. The losses are in
``popjax.distillation``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import distributions, optimize, tree
from popjax.core import Choice, Env, Key, OnPolicyAgent, Params, Pretrained, PyTree, Recurrent, Spec
from popjax.nets.recurrent import behind
from popjax.population import learning

BUILT_ON = 0x4255494C
"""Folded into the key of a run that builds on others; with a small number alone, ``fold_in`` gives a key that
``split`` also gives."""


class Teacher(NamedTuple):
    """A policy that others learn from: a finished run's, or one made by ``of_network`` or ``of_agent``."""

    policy: Pretrained


class Told(NamedTuple):
    """A ``Choice`` and the answer that a student imitates.

    said: the outputs of the network that acted, or the label that a teacher gives.
    """

    memory: PyTree
    action: Array
    sampled: Array
    log_prob: Array
    said: Any


@struct.dataclass
class Learner:
    """A network that learns by imitation, and its optimizer's moments."""

    params: Params
    optimizer: PyTree


@struct.dataclass
class Aligned:
    """The policy of a teacher whose actions are translated to those of another task.

    teacher:   parameters of the teacher's policy.
    alignment: the network that maps its logits.
    """

    teacher: Params
    alignment: Params


def own_key(key: Key, finished: Sequence[Pretrained]) -> Key:
    """Return the key with which a run begins that builds on ``finished`` runs; ``key`` without any.

    Runs with equal seeds begin with equal keys, so a student would otherwise begin with the weights from
    which a teacher with the same seed was trained.
    """
    depth = max((_depth(policy.origin) for policy in finished), default=0)
    return jax.random.fold_in(jax.random.fold_in(key, BUILT_ON), depth) if depth else key


def _depth(origin: Mapping[str, Any] | None) -> int:
    """Return 1 for a run that builds on no other, else 1 more than the largest depth of those."""
    runs = origin["config"].get("runs", {}) if origin else {}
    return 1 + max((_depth(one) for several in runs.values() for one in several), default=0)


# Teachers.


def of_runs(env: Env, policies: Sequence[Pretrained]) -> tuple[Teacher, ...]:
    """Return finished runs as teachers, whatever task they were trained on.

    Raises:
        ValueError: a run has no logits.
    """
    for policy in policies:
        require_logits(policy)
    return tuple(map(Teacher, policies))


def of_network(spec: Spec, network: Recurrent, params: Params = ()) -> Teacher:
    """Return a teacher that acts by the policy head of an actor-critic of ``nets.recurrent``; its continuous
    actions are the tanh of the outputs."""
    actions = distributions.categorical() if spec.discrete else distributions.squashed_mean()

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, heads = network.step(params, memory, obs)
        return distributions.choose(actions, memory, heads.policy, key, scale)

    def unroll(params: Params, memory: PyTree, obs: Array, done: Array) -> tuple[PyTree, Array]:
        memories, heads = network.unroll(params, memory, obs, done)
        return behind(network, memories, done), heads.policy

    logits = unroll if spec.discrete else None
    return Teacher(Pretrained(spec.name, spec, act, params, network.memory, unroll=logits))


def of_agent(spec: Spec, agent: OnPolicyAgent, params: Params) -> Teacher:
    """Return an on-policy agent, such as A2C or PPO, with parameters to act by, as a teacher."""
    logits = agent.unroll if spec.discrete else None
    return Teacher(Pretrained(spec.name, spec, agent.act, params, agent.memory, unroll=logits))


def require_logits(policy: Pretrained) -> None:
    """Check that a policy has logits over discrete actions.

    Raises:
        ValueError: the policy has no logits.
    """
    if policy.unroll is None or not policy.spec.discrete:
        raise ValueError(
            f"{policy.name} has no logits over discrete actions; give a run of cdrl, align, distil or"
            " onpolicy with discrete actions, or of another method that has an unroll"
        )


def require_task(spec: Spec, policy: Pretrained, option: str) -> None:
    """Check that a policy is of the task of ``spec``.

    Raises:
        ValueError: the policy is of another task, or has other shapes.
    """
    here, there = ((s.name, tuple(s.obs_shape), s.action_dim, s.discrete) for s in (spec, policy.spec))
    if here != there:
        kind = {True: "discrete", False: "continuous"}
        raise ValueError(
            f"{policy.name} is a run of {there[0]} with observations {there[1]} and {there[2]}"
            f" {kind[there[3]]} actions; {here[0]} has {here[1]} and {here[2]} {kind[here[3]]}: give {option}"
            " a run of the same task"
        )


# Answers of teachers.


def reading(policy: Pretrained, spec: Spec, pad: bool) -> Pretrained:
    """Return a policy with logits that reads the observations of ``spec``.

    With ``pad``, the last axis of the observations, channels or components, is cropped or padded with zeros
    to the policy's size.

    Raises:
        ValueError: the shapes differ by more than that, or at all without ``pad``; or there are no logits.
    """
    require_logits(policy)
    here, there = tuple(spec.obs_shape), tuple(policy.spec.obs_shape)
    if here == there:
        return policy
    told = f"a teacher of {policy.spec.name} reads observations {there}; those of {spec.name} are {here}"
    if len(here) != len(there) or here[:-1] != there[:-1]:
        raise ValueError(
            f"{told}, and no adapter fits: choose tasks that differ in channels or components only"
        )
    if not pad:
        raise ValueError(f"{told}: set pad_observations to crop the last axis or pad it with zeros")
    act, unroll = policy.act, policy.unroll
    assert unroll is not None

    def fitted(obs: Array) -> Array:
        return fit(obs, there[-1], 0.0)

    return policy._replace(
        act=lambda params, memory, obs, key, scale: act(params, memory, fitted(obs), key, scale),
        unroll=lambda params, memory, obs, done: unroll(params, memory, fitted(obs), done),
    )


def fit(x: Array, size: int, filling: float) -> Array:
    """Return ``x`` with the last axis cropped, or padded at its end with ``filling``, to ``size``."""
    missing = max(size - x.shape[-1], 0)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=filling)
    return padded[..., :size]


def ask(policy: Pretrained, params: Params, memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
    """Return a policy's memory and logits [A] after one observation."""
    assert policy.unroll is not None
    memory, logits = policy.unroll(params, memory, obs[None], jnp.zeros(1, jnp.bool_))
    return memory, logits[0]


def follow(policy: Pretrained, params: Params, memory: PyTree, obs: Array, done: Array) -> PyTree:
    """Return a policy's memory [N, ...] after rows [T, N], read one by one as if it acted.

    One ``unroll`` over all rows would round differently: a teacher equal to its student would drift away.
    """

    def one(memory: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, None]:
        obs, done = row
        memory, _ = jax.vmap(partial(ask, policy, params))(memory, obs)
        return tree.where(~done, memory, policy.memory), None

    return jax.lax.scan(one, memory, (obs, done))[0]


def telling(
    policy: Pretrained, labels: Literal["actions", "logits"]
) -> Callable[[Params, PyTree, Array, Key, Array | float], Told]:
    """Return ``(params, memory, obs, key, scale) -> Told`` of a policy that gives its logits or its action, a
    discrete action as logits of 0 for it and minus infinity for all others.

    Raises:
        ValueError: logits are needed, and the policy has none.
    """
    if labels == "logits":
        require_logits(policy)

    def with_logits(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Told:
        memory, logits = ask(policy, params, memory, obs)
        choice = distributions.choose(distributions.categorical(), memory, logits, key, scale)
        return Told(*choice, said=logits)

    def with_action(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Told:
        choice = policy.act(params, memory, obs, key, scale)
        if not policy.spec.discrete:
            return Told(*choice, said=choice.action)
        chosen = jnp.arange(policy.spec.action_dim) == choice.action
        return Told(*choice, said=jnp.where(chosen, 0.0, -jnp.inf))

    return with_logits if labels == "logits" else with_action


# Gradient steps of a student.


def beginner(params: Params, optimizer: optax.GradientTransformation) -> Learner:
    """Return a learner before its first gradient step."""
    return Learner(params, optimizer.init(params))


def study(
    optimizer: optax.GradientTransformation,
    loss: Callable[[Params, PyTree], Array],
    draw: Callable[[Key], PyTree],
    learner: Learner,
    count: int,
    key: Key,
) -> tuple[Learner, Array]:
    """Take ``count`` gradient steps of ``loss(params, batch)`` [] on batches from ``draw``; return the
    learner and the loss before the last step."""

    def update(learner: Learner, key: Key) -> tuple[Learner, Array]:
        value, gradient = jax.value_and_grad(loss)(learner.params, draw(key))
        return Learner(*optimize.step(optimizer, gradient, learner.params, learner.optimizer)), value

    return learning.steps(update, learner, count, key, jnp.float32(0))
