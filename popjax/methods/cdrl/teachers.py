"""Who teaches: policies over discrete actions that are asked about another task's observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax import agents, tree
from popjax.core import Params, Pretrained, PyTree, Spec
from popjax.nets import recurrent
from popjax.nets.recurrent import RecurrentNetwork, recurrent_actor_critic


class Teacher(NamedTuple):
    """A policy, and how to ask it.

    spec:      of the task that it knows
    unroll:    (params, memory, obs [T, ...], done bool [T]) -> (memory, logits [T, A]); its memory starts
               anew behind every row in which an episode ended
    memory:    what it remembers at the start of an episode
    params:    of a teacher that no longer learns; None of one that trains beside its student
    """

    spec: Spec
    unroll: Callable[[Params, PyTree, Array, Array], tuple[PyTree, Array]]
    memory: PyTree
    params: Params | None = None


class Finished(NamedTuple):
    """The policy of a finished run."""

    policy: Pretrained


def finished(policies: Sequence[Pretrained]) -> tuple[Finished, ...]:
    """Runs that can teach.

    Raises:
        ValueError: one has no logits over actions.
    """
    records = tuple(map(Finished, policies))
    for record in records:
        of_run(record)
    return records


def ask(teacher: Teacher, params: Params, memory: PyTree, obs: Array) -> tuple[PyTree, Array]:
    """What a teacher says of one observation: its memory, logits [A]."""
    memory, logits = teacher.unroll(params, memory, obs[None], jnp.zeros(1, jnp.bool_))
    return memory, logits[0]


def follow(teacher: Teacher, params: Params, memory: PyTree, obs: Array, done: Array) -> PyTree:
    """A teacher's memory behind the rows [T] of a lane, observation by observation as the student acted.

    One ``unroll`` of all rows rounds otherwise, so that a teacher equal to its student would soon remember,
    and say, something else.
    """

    def one(memory: PyTree, row: tuple[Array, Array]) -> tuple[PyTree, None]:
        obs, done = row
        memory, _ = ask(teacher, params, memory, obs)
        return tree.where(done, teacher.memory, memory), None

    return jax.lax.scan(one, memory, (obs, done))[0]


def of_network(spec: Spec, network: RecurrentNetwork, params: Params | None = None) -> Teacher:
    """A teacher that is an actor-critic with memory; what its policy head says."""

    def unroll(params: Params, memory: PyTree, obs: Array, done: Array) -> tuple[PyTree, Array]:
        memory, heads = network.unroll(params, memory, obs, done)
        return memory, heads.policy

    return Teacher(spec, unroll, network.memory, params)


def of_agent(spec: Spec, config: Any, params: Params) -> Teacher:
    """A teacher that is an on-policy agent, such as A2C or PPO, with the ``Config`` and what it acts by.

    Raises:
        ValueError: its actions are continuous.
    """
    _require_discrete(spec, "a teacher")
    agent = agents.build_on_policy(spec, config)
    return Teacher(spec, agent.unroll, agent.memory, params)


def of_run(run: Finished) -> Teacher:
    """The teacher in a finished run of this method or of on-policy agents.

    Raises:
        ValueError: it is a run of something that has no logits over actions.
    """
    spec, config, params = run.policy.spec, run.policy.config, run.policy.params
    if isinstance(getattr(config, "network", None), recurrent.Config) and spec.discrete:
        network = recurrent_actor_critic(spec.obs_shape, spec.action_dim, config.network)
        return of_network(spec, network, params)
    try:
        return of_agent(spec, getattr(config, "agent", config), params)
    except ValueError as fault:
        raise ValueError(
            f"a teacher is a run of cdrl, distil or onpolicy with discrete actions; {run.policy.name} is not:"
            f" {fault}"
        ) from None


def view(student: Spec, teacher: Spec, pad: bool) -> Callable[[Array], Array]:
    """What a teacher sees of the student's observations [..., *obs].

    With ``pad`` the last axis, channels or components, is cropped or padded with zeros to the teacher's.

    Raises:
        ValueError: the shapes differ by more than that, or at all without ``pad``.
    """
    here, there = tuple(student.obs_shape), tuple(teacher.obs_shape)
    if here == there:
        return lambda obs: obs
    if len(here) != len(there) or here[:-1] != there[:-1]:
        raise ValueError(
            f"a teacher of {teacher.name} reads observations {there}; those of {student.name} are {here},"
            " which no adapter makes of it: choose tasks that differ in channels or components only"
        )
    if not pad:
        raise ValueError(
            f"a teacher of {teacher.name} reads observations {there}; those of {student.name} are {here}:"
            " pad_observations crops the last axis or pads it with zeros"
        )
    return lambda obs: _fit(obs, there[-1], 0.0)


def translation(student: Spec, teacher: Spec, pad: bool) -> Callable[[Array], Array]:
    """A teacher's logits [..., A] as they stand for the student's actions without alignment: one by one.

    With ``pad`` actions that the student does not have are dropped, those that the teacher does not have are
    impossible.

    Raises:
        ValueError: the numbers of actions differ, and not ``pad``.
    """
    here, there = student.action_dim, teacher.action_dim
    if here == there:
        return lambda logits: logits
    if not pad:
        raise ValueError(
            f"a teacher of {teacher.name} has {there} actions, {student.name} has {here}: align online or"
            " offline, or pad_actions"
        )
    return lambda logits: _fit(logits, here, -jnp.inf)


def require_readable(spec: Spec, network: recurrent.Config) -> None:
    """That a student or concurrent teacher can be trained on a task.

    Raises:
        ValueError: its actions are continuous, or the torso cannot read its observations.
    """
    _require_discrete(spec, "cdrl")
    recurrent.torso_for(spec.obs_shape, network)


def require_same_memory(network: RecurrentNetwork, teacher: Teacher) -> None:
    """That a teacher can read the student's memory.

    Raises:
        ValueError: it cannot.
    """
    mine, its = (jax.tree.map(jnp.shape, x) for x in (network.memory, teacher.memory))
    if its == ():
        raise ValueError(f"teacher_state student: a teacher of {teacher.spec.name} has no memory: say own")
    if mine != its:
        raise ValueError(
            f"teacher_state student: the memory of the student is {mine}, that of a teacher of"
            f" {teacher.spec.name} {its}: give both as many units, or say own"
        )


def _require_discrete(spec: Spec, who: str) -> None:
    if not spec.discrete:
        raise ValueError(f"{who} needs discrete actions; {spec.name} has {spec.action_dim} continuous ones")


def _fit(x: Array, size: int, filling: float) -> Array:
    """The last axis cropped, or padded behind with ``filling``, to ``size``."""
    missing = max(size - x.shape[-1], 0)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=filling)
    return padded[..., :size]
