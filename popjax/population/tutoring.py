"""Teachers of a student that acts in another task: alignment of their actions with the student's, and
distillation.

Source: "Collaborative Deep Reinforcement Learning" (Lin, Wang & Zhou, 2017), section 4 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from popjax import optimize, tree
from popjax.core import Env, Key, Network, Params, Pretrained, PyTree, Spec, Trajectory
from popjax.distillation import Direction, alignment_loss
from popjax.population import imitation, learning
from popjax.population.imitation import Learner, Teacher

S = TypeVar("S")
UNIVERSE = MappingProxyType({"preset": "universe"})
"""Options of Atari games as in the paper's code, which builds on universe-starter-agent."""


class Tutor(NamedTuple):
    """A teacher, and the translation of its actions to one student's actions.

    policy:    reads the student's observations.
    alignment: maps the policy's logits to logits over the student's actions.
    direction: direction of the alignment network's loss; None if that network does not learn.
    """

    policy: Pretrained
    alignment: Network
    direction: Direction | None = None


@struct.dataclass
class Guide:
    """State of a tutor.

    frozen:  parameters by which it acts; unused for a teacher that trains beside the student and acts by its
             current parameters.
    memory:  its memory in the student's lanes [N]; () if it uses the student's memory.
    aligner: its alignment network; parameters () if logits are used as they are.
    """

    frozen: Params
    memory: PyTree
    aligner: Learner


@struct.dataclass
class Distillation:
    """Metrics of one tutor, means over rows; 0 while neither it nor its alignment network is due.

    align_loss:  []   loss of the alignment network; 0 while it does not learn.
    distil_loss: []   loss of the student; 0 while it does not learn from this tutor.
    teacher:     [A'] probabilities of the teacher's actions on the student's observations.
    aligned:     [A]  the same after alignment, over the student's actions, at temperature 1.
    """

    align_loss: Array
    distil_loss: Array
    teacher: Array
    aligned: Array


class Due(NamedTuple):
    """Conditions, bool [] each, for alignment networks and the student to learn now."""

    align: Array
    distil: Array


class Lesson(NamedTuple):
    """Material of one tutor: the student's rollouts [T, n] with ``Heads`` as outputs, the tutor's parameters
    and its memory [n] before the rollouts, which networks learn now, and the temperature of
    ``alignment_loss``."""

    played: Trajectory
    params: Params
    memory: PyTree
    due: Due
    temperature: Array | float


def start(
    tutor: Tutor, aligner: Params | None, key: Key, memories: int, optimizer: optax.GradientTransformation
) -> Guide:
    """Return the state of a tutor before the student's first rollout.

    aligner:   parameters of the alignment network, trained before; None: fresh ones.
    memories:  lanes along which the tutor remembers; 0: none.
    optimizer: of the alignment network.
    """
    params = tutor.alignment.init(key) if aligner is None else aligner
    return Guide(
        frozen=jax.tree.map(jnp.asarray, tutor.policy.params),
        memory=tree.repeat(tutor.policy.memory, memories) if memories else (),
        aligner=imitation.beginner(params, optimizer),
    )


def follow(
    tutors: Sequence[Tutor],
    guides: Sequence[Guide],
    params: Sequence[Params],
    played: Trajectory,
    ready: Array,
) -> list[PyTree]:
    """Return the tutors' memories after the rollouts [T, N] if ``ready``, else unchanged."""
    before = [guide.memory for guide in guides]

    def behind(memories: list[PyTree]) -> tuple[list[PyTree], tuple[()]]:
        each = zip(tutors, params, memories, strict=True)
        rows = played.obs, played.done
        return [imitation.follow(tutor.policy, its, memory, *rows) for tutor, its, memory in each], ()

    return learning.once(behind, before, ready, ())[0] if jax.tree.leaves(before) else before


def teach(
    tutor: Tutor,
    lesson: Lesson,
    distil: Callable[[Array, S], tuple[S, Array]],
    optimizer: optax.GradientTransformation,
    pupils: tuple[S, Learner],
) -> tuple[tuple[S, Learner], Distillation]:
    """Return a student and the tutor's alignment network after a gradient step of each that is due.

    distil:    (aligned logits [T, n, A], student) -> (student, loss): one gradient step of the student.
    optimizer: of the alignment network.
    pupils:    the student and the alignment network.

    The tutor reads the rollouts. Its alignment network takes a step, then the student, which learns from the
    alignment before that step. If neither is due, the tutor is not evaluated.
    """

    def both(pupils: tuple[S, Learner]) -> tuple[tuple[S, Learner], Distillation]:
        student, aligner = pupils
        assert tutor.policy.unroll is not None
        said = tutor.policy.unroll(lesson.params, lesson.memory, lesson.played.obs, lesson.played.done)[1]
        aligned, align_loss = tutor.alignment.apply(aligner.params, said), jnp.float32(0)
        if tutor.direction is not None:
            align = partial(_align, tutor, optimizer, said, lesson)
            aligner, align_loss = learning.once(align, aligner, lesson.due.align, align_loss)
        student, distil_loss = learning.once(
            partial(distil, aligned), student, lesson.due.distil, jnp.float32(0)
        )
        histograms = (jax.nn.softmax(x).mean((0, 1)) for x in (said, aligned))
        return (student, aligner), Distillation(align_loss, distil_loss, *histograms)

    due = lesson.due.distil if tutor.direction is None else lesson.due.distil | lesson.due.align
    return learning.once(both, pupils, due, learning.no_losses(both, pupils))


def _align(
    tutor: Tutor, optimizer: optax.GradientTransformation, said: Array, lesson: Lesson, aligner: Learner
) -> tuple[Learner, Array]:
    """Take one step of the alignment network from the tutor's logits ``said`` towards the student's own."""
    logits, temperature = lesson.played.outputs.policy, lesson.temperature

    def loss(params: Params) -> Array:
        assert tutor.direction is not None
        aligned = tutor.alignment.apply(params, said)
        return alignment_loss(aligned, logits, tutor.direction, temperature=temperature)

    value, gradient = jax.value_and_grad(loss)(aligner.params)
    return Learner(*optimize.step(optimizer, gradient, aligner.params, aligner.optimizer)), value


def one_by_one(student: Spec, teacher: Spec, pad: bool) -> Network:
    """Return the mapping of a teacher's logits [..., A'] to a student's [..., A] that maps the i-th action to
    the i-th; nothing is learned.

    With ``pad`` the teacher's surplus actions are dropped, and those that it lacks are impossible.

    Raises:
        ValueError: the numbers of actions differ, without ``pad``.
    """
    here, there = student.action_dim, teacher.action_dim
    if here != there and not pad:
        raise ValueError(
            f"a teacher of {teacher.name} has {there} actions, {student.name} has {here}: align online or"
            " offline, or set pad_actions"
        )
    return Network(lambda key: (), lambda params, logits: imitation.fit(logits, here, -jnp.inf))


def require_memory(memory: PyTree, policy: Pretrained) -> None:
    """Check that a teacher can use the ``memory`` of a student.

    Raises:
        ValueError: the teacher has no memory, or one of another shape.
    """
    mine, its = (jax.tree.map(jnp.shape, x) for x in (memory, policy.memory))
    if its == ():
        raise ValueError(f"teacher_state student: a teacher of {policy.spec.name} has no memory; set own")
    if mine != its:
        raise ValueError(
            f"teacher_state student: the memory of the student is {mine}, that of a teacher of"
            f" {policy.spec.name} {its}: give both the same number of units, or set own"
        )


# Alignment networks that were trained before.


def require_alignment(spec: Spec, policy: Pretrained) -> None:
    """Check that a policy is an aligned teacher in the task of ``spec``.

    Raises:
        ValueError: the policy is of another method or another task.
    """
    if not isinstance(policy.params, imitation.Aligned):
        raise ValueError(f"{policy.name} is not a run of align: train one with popjax train align")
    imitation.require_task(spec, policy, "--alignment")


def of_runs(env: Env, policies: Sequence[Pretrained]) -> tuple[Teacher, ...]:
    """Return runs of align in the student's task.

    Raises:
        ValueError: a run is of another method or another task.
    """
    for policy in policies:
        require_alignment(env.spec, policy)
    return tuple(map(Teacher, policies))


def trained(spec: Spec, tutors: Sequence[Tutor], given: Sequence[Teacher]) -> list[Params]:
    """Return the parameters of the tutors' alignment networks, from runs of align in their order.

    Raises:
        ValueError: there are too many or too few, or one is for another task, teacher or shape.
    """
    if len(given) != len(tutors):
        raise ValueError(
            f"{len(given)} trained alignment networks for {len(tutors)} teachers: align offline takes one"
            " run of align for each teacher, in order; align online and none take no runs of align"
        )
    return [_trained(spec, *each) for each in zip(tutors, given, strict=True)]


def _trained(spec: Spec, tutor: Tutor, given: Teacher) -> Params:
    require_alignment(spec, given.policy)
    name, aligned = given.policy.name, given.policy.params
    if not _same(tutor.policy.params, aligned.teacher):
        raise ValueError(
            f"the alignment network of {name} was trained with another teacher than {tutor.policy.name} in"
            " its place: give the same run and seed, in the same order"
        )
    fresh = jax.eval_shape(tutor.alignment.init, jax.random.key(0))
    needed, there = (jax.tree.map(jnp.shape, x) for x in (fresh, aligned.alignment))
    if needed != there:
        raise ValueError(
            f"the alignment network of {name} has shapes {there}; align_hidden and tasks need {needed}"
        )
    return jax.tree.map(jnp.asarray, aligned.alignment)


def _same(a: PyTree, b: PyTree) -> bool:
    structures: Any = jax.tree.structure(a), jax.tree.structure(b)
    if structures[0] != structures[1]:
        return False
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
