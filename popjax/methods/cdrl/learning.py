"""Gradient steps: from a task's own rewards, of the alignment networks, and from teachers.

Three kinds with an Adam each. They are taken for one bundle of lanes after the other, in the order of the
authors' code: one lane at a time as their asynchronous workers would, or all lanes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Network, Params, PyTree
from popjax.distillation import alignment_loss, softened_kl
from popjax.methods.cdrl.acting import Rollout, actor_critic_loss
from popjax.methods.cdrl.config import Config, Hyper, reached
from popjax.methods.cdrl.teachers import Teacher
from popjax.nets.recurrent import Heads, RecurrentNetwork
from popjax.optimize import adam

_Pull = Callable[[Heads], tuple[Params]]


@struct.dataclass
class Learner:
    """The network of a task with the moments of its two Adams: for its rewards, and for its teachers."""

    params: Params
    optimizer: PyTree
    distil_optimizer: PyTree


@struct.dataclass
class Aligner:
    """An alignment network with Adam's moments; both () where logits are taken as they are."""

    params: Params
    optimizer: PyTree


@struct.dataclass
class Losses:
    """Of one task, means over rows: ``-log pi A``; half the squared error of the values; the policy's
    entropy, nats; and the global norm of the loss's gradient before clipping, mean over gradient steps."""

    policy_loss: Array
    value_loss: Array
    entropy: Array
    gradient_norm: Array


@struct.dataclass
class Distillation:
    """Of one teacher, means over rows; 0 while neither it nor its alignment network teaches anything.

    align_loss:  []   what the alignment network is trained to reduce; 0 while it is not.
    distil_loss: []   what the student is trained to reduce; 0 while it is not.
    teacher:     [A'] probabilities of the teacher's actions on the student's observations.
    aligned:     [A]  of the student's actions as the teacher would choose them, at temperature 1.
    """

    align_loss: Array
    distil_loss: Array
    teacher: Array
    aligned: Array


class AlignedTeacher(NamedTuple):
    """A teacher as one student asks it.

    teacher:   the record
    view:      observations of the student's task -> what the teacher sees
    alignment: logits -> logits over the student's actions, a network
    """

    teacher: Teacher
    view: Callable[[Array], Array]
    alignment: Network


def start(network: RecurrentNetwork, key: Array, hyper: Hyper) -> Learner:
    """A learner that has learned nothing."""
    params = network.init(key)
    return Learner(
        params,
        adam(hyper.lr, hyper.max_grad_norm).init(params),
        adam(hyper.distil_lr, hyper.max_grad_norm).init(params),
    )


def start_aligner(params: Params, hyper: Hyper) -> Aligner:
    """An alignment network before its first gradient step."""
    return Aligner(params, adam(hyper.align_lr, hyper.max_grad_norm).init(params))


def learn(
    network: RecurrentNetwork,
    sources: Sequence[AlignedTeacher],
    config: Config,
    learner: Learner,
    aligners: tuple[Aligner, ...],
    played: Rollout,
    memories: tuple[PyTree, ...],
    params: tuple[Params, ...],
    taken: Array,
    hyper: Hyper,
) -> tuple[Learner, tuple[Aligner, ...], Losses, tuple[Distillation, ...]]:
    """All gradient steps that the rollouts ``played`` [N, T] of one task are worth.

    memories: [N] of each teacher before the rollouts; () where it has none or reads the student's.
    params:   of each teacher.
    taken:    int32 [] environment steps before the rollouts.

    Returns learner, alignment networks, and means over the steps.
    """
    behaviour, bundle = learner.params, config.lanes if config.update_mode == "batched" else 1

    def one(carry: Any, rows: Any) -> tuple[Any, Any]:
        learner, aligners, taken = carry
        played, memories = rows
        point = learner.params if config.grad_at == "current" else behaviour
        heads, pull = jax.vjp(lambda p: _heads(network, p, played), point)
        learner, losses = _reinforce(learner, heads, pull, played, hyper, config)
        taken = taken + bundle * config.steps
        aligners, distillations = list(aligners), []
        for i, source in enumerate(sources):
            student, its = (learner, aligners[i]), (params[i], memories[i])
            (learner, aligners[i]), distillation = _teach(
                source, config, student, its, heads, pull, played, taken, hyper
            )
            distillations.append(distillation)
        return (learner, tuple(aligners), taken), (losses, tuple(distillations))

    bundles = jax.tree.map(lambda x: x.reshape(-1, bundle, *x.shape[1:]), (played, memories))
    (learner, aligners, _), means = jax.lax.scan(one, (learner, aligners, taken), bundles)
    losses, distillations = jax.tree.map(lambda x: x.mean(0), means)
    return learner, aligners, losses, distillations


def learn_alone(
    network: RecurrentNetwork, config: Config, learner: Learner, played: Rollout, hyper: Hyper
) -> tuple[Learner, Losses]:
    """The same of a task without teachers, such as a teacher's own, which always learns from its rewards."""
    config = replace(config, student_gae=True)
    learner, _, losses, _ = learn(network, (), config, learner, (), played, (), (), jnp.int32(0), hyper)
    return learner, losses


def _heads(network: RecurrentNetwork, params: Params, played: Rollout) -> Heads:
    """What the network says of rollouts [n, T]; gradients stop at the memory with which they begin."""
    unroll = jax.vmap(network.unroll, (None, 0, 0, 0))
    return unroll(params, played.memory, played.obs, played.done)[1]


def _reinforce(
    learner: Learner, heads: Heads, pull: _Pull, played: Rollout, hyper: Hyper, config: Config
) -> tuple[Learner, Losses]:
    """One step for the mean over lanes of the loss of A3C, a sum over the rows of each lane."""
    lanes, rows = played.reward.shape[0], played.reward.size

    def loss(heads: Heads) -> tuple[Array, Any]:
        total, parts = actor_critic_loss(heads, played, hyper)
        return total / lanes, parts

    direction, parts = jax.grad(loss, has_aux=True)(heads)
    (gradient,) = pull(direction)
    policy, value, entropy = (part / rows for part in parts)
    losses = Losses(policy, value, entropy, optax.global_norm(gradient))
    if not config.student_gae:
        return learner, losses
    params, optimizer = _step(hyper.lr, hyper, gradient, learner.params, learner.optimizer)
    return replace(learner, params=params, optimizer=optimizer), losses


def _teach(
    source: AlignedTeacher,
    config: Config,
    student: tuple[Learner, Aligner],
    its: tuple[Params, PyTree],
    heads: Heads,
    pull: _Pull,
    played: Rollout,
    taken: Array,
    hyper: Hyper,
) -> tuple[tuple[Learner, Aligner], Distillation]:
    """One teacher's part, with ``its`` parameters and memory [n]: it reads the rollouts, then its alignment
    network learns, then the student. Where neither is due it is not even asked."""
    going_on = ~reached(taken, hyper.distil_until, hyper)
    aligns = going_on & reached(taken, hyper.align_from, hyper)
    distils = going_on & reached(taken, hyper.distil_from, hyper)
    due = distils | aligns if config.align == "online" else distils

    def teach() -> tuple[tuple[Learner, Aligner], Distillation]:
        (learner, aligner), (params, memory) = student, its
        memory = memory if config.teacher_state == "own" else played.memory
        read = jax.vmap(source.teacher.unroll, (None, 0, 0, 0))
        _, logits = read(params, memory, source.view(played.obs), played.done)
        aligned = source.alignment.apply(aligner.params, logits)  # before the alignment network's step
        align_loss = distil_loss = jnp.float32(0)
        if config.align == "online":
            pairs = logits, played.logits
            aligner, align_loss = _align(source.alignment, config, aligner, pairs, aligns, hyper)
        learner, distil_loss = _distil(config, learner, heads, pull, aligned, distils, hyper)
        histograms = (jax.nn.softmax(x).mean((0, 1)) for x in (logits, aligned))
        return (learner, aligner), Distillation(align_loss, distil_loss, *histograms)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(teach)[1])
    return if_due(due, teach, (student, nothing))


def _align(
    network: Network,
    config: Config,
    aligner: Aligner,
    logits: tuple[Array, Array],
    due: Array,
    hyper: Hyper,
) -> tuple[Aligner, Array]:
    """One step of the alignment network on the ``logits`` of teacher and student, if it is ``due``; its loss,
    else 0."""
    teacher_logits, student_logits = logits

    def align() -> tuple[Aligner, Array]:
        def loss(params: Params) -> Array:
            return alignment_loss(network.apply(params, teacher_logits), student_logits, config.align_kl)

        value, gradient = jax.value_and_grad(loss)(aligner.params)
        return Aligner(*_step(hyper.align_lr, hyper, gradient, aligner.params, aligner.optimizer)), value

    return if_due(due, align, (aligner, jnp.float32(0)))


def _distil(
    config: Config, learner: Learner, heads: Heads, pull: _Pull, aligned: Array, due: Array, hyper: Hyper
) -> tuple[Learner, Array]:
    """One step of the student towards the ``aligned`` logits, if it is ``due``; the loss, else 0."""

    def distil() -> tuple[Learner, Array]:
        def loss(heads: Heads) -> Array:
            return softened_kl(aligned, getattr(heads, config.distil_head), hyper.temperature)

        value, direction = jax.value_and_grad(loss)(heads)
        (gradient,) = pull(direction)
        moved = _step(hyper.distil_lr, hyper, gradient, learner.params, learner.distil_optimizer)
        return replace(learner, params=moved[0], distil_optimizer=moved[1]), value

    return if_due(due, distil, (learner, jnp.float32(0)))


def if_due(due: Array, act: Callable[[], Any], otherwise: Any) -> Any:
    """``act()`` where ``due``, computed only if it is for some seed."""
    return jax.lax.cond(tree.any_lane(due), lambda: tree.where(due, act(), otherwise), lambda: otherwise)


def _step(rate: Any, hyper: Hyper, gradient: Params, params: Params, state: PyTree) -> tuple[Params, PyTree]:
    updates, state = adam(rate, hyper.max_grad_norm).update(gradient, state, params)
    return optax.apply_updates(params, updates), state
