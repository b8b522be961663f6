"""Collaborative Deep RL (cA3C): a student learns from its task's rewards and from teachers of other tasks,
whose actions are aligned with its own. Lin, Wang & Zhou, 2017, https://arxiv.org/abs/1702.05796.

A step: collect -> learn. A rollout is played in every task. The student learns from its rewards; its
alignment networks learn to translate the teachers' logits into those of the student's policy; its
distillation head learns from the translated logits. Teachers that train beside the student learn from their
own rewards. Without teachers this is A3C, restated for lanes.

Differs from the paper and its code:

- Workers are lanes of one program, so nothing is asynchronous and rollouts run across the ends of episodes.
- Lanes take their gradient steps in turn, each computed with the parameters that the previous lane's update
  produced.
- The rollouts of an episode are not merged, and KL divergences have no 1e-10 inside the logarithm.
- Adam adds 1e-8 to the root of the corrected second moment, where the code's TensorFlow adds it to the root
  of the raw one, which in the first step amounts to 3.2e-7.
- A teacher keeps its own memory along the student's episodes, updated whenever the student acts; the code
  gives it the student's memory (``teacher_state``).
- Each of several teachers has its own alignment network, and all share the student's Adam for distillation.

As in the code, alignment networks have ELU, a time limit counts as the end of the task, and the alignment
loss has the code's direction unless ``align_kl`` is "paper". The paper's measure is ``Metrics.score``, the
return of a policy that samples its actions; evaluations of a run are greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, optimize, rollout, tree
from popjax.advantage import Targets
from popjax.agents import a2c
from popjax.core import Env, Ingredient, Key, Method, Params, Recurrent, Trajectory, as_arrays, chain, stacked
from popjax.methods.cdrl_config import (
    BUDGET,
    NEVER,
    Config,
    Hyper,
    Metrics,
    Student,
    Task,
    due,
    preset,
    reached,
    remarks,
)
from popjax.nets import recurrent
from popjax.optimize import adam, global_norm
from popjax.population import actor_critic, imitation, lanes, learning, scoring, tutoring
from popjax.population.actor_critic import Reading
from popjax.population.imitation import Learner, Teacher
from popjax.population.tutoring import Distillation, Guide, Lesson, Tutor
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring

__all__ = ["METHOD", "NEVER", "Config", "Hyper", "Metrics", "State", "build"]

EPISODES = 100  # latest episodes whose mean return is a score, as in the paper


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] of the student in all lanes; a teacher that trains takes the same number
    generation: Array  # int32 [] rollouts
    metrics: Metrics
    tasks: tuple[Task, ...]  # the student's, then those of the teachers that train
    guides: tuple[Guide, ...]  # the finished teachers, then those that train
    scores: Ring = stacked()  # [P] returns of the last episodes


class Learned(NamedTuple):
    """A task's network and its tutors' alignment networks after a rollout; losses are means over gradient
    steps."""

    student: Student
    aligners: tuple[Learner, ...]
    losses: a2c.Losses
    gradient_norm: Array
    distillations: tuple[Distillation, ...]


@recorded
def build(
    env: Env,
    config: Config = Config(),
    teachers: Sequence[Teacher] = (),
    teacher_envs: Sequence[Env] = (),
    alignments: Sequence[Teacher] = (),
) -> Method:
    """Return a student of ``env`` with finished ``teachers``, and with teachers that train beside it in
    ``teacher_envs``. With align "offline", ``alignments`` are runs of ``align``, one for each teacher in the
    same order.

    Raises:
        ValueError: actions are continuous; a teacher has no logits, cannot read the student's observations,
            or has other actions and no alignment; an offline alignment is missing or was made for another
            task, teacher or network; the student has nothing to learn from.
    """
    envs = [env, *teacher_envs]
    networks = [actor_critic.network(each.spec, config.network) for each in envs]
    players = [imitation.of_network(e.spec, network) for e, network in zip(envs, networks, strict=True)]
    tutors = [_tutor(env, teacher, networks[0], config) for teacher in (*teachers, *players[1:])]
    if not (tutors or config.student_gae):
        raise ValueError(
            "student_gae False without a teacher: the student would learn from nothing; set student_gae"
        )
    offline = tutors if config.align == "offline" else []
    trained = tutoring.trained(env.spec, offline, alignments) or [None] * len(tutors)
    play = actor_critic.side_by_side(envs, networks, config.steps)
    learns = [_learner(networks[0], tutors, config)]
    learns += [_learner(network, (), replace(config, student_gae=True)) for network in networks[1:]]
    scores, taken = ring(EPISODES), config.lanes * config.steps

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key = imitation.own_key(key, [teacher.policy for teacher in teachers])
        key, key_tasks, key_align = jax.random.split(key, 3)
        keys = jax.random.split(key_tasks, len(envs))
        tasks = tuple(_start_task(*task, config, hyper) for task in zip(envs, networks, keys, strict=True))
        keys = jax.random.split(key_align, len(tutors))
        remembered = config.lanes if config.teacher_state == "own" else 0
        how = remembered, adam(hyper.align_lr, hyper.max_grad_norm)
        guides = (tutoring.start(*guide, *how) for guide in zip(tutors, trained, keys, strict=True))
        state = State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=None,  # type: ignore[arg-type]  # filled in below, in the shapes of a step's
            tasks=tasks,
            guides=tuple(guides),
            scores=tree.repeat(scores.init(jnp.float32(0)), len(envs)),
        )
        after = jax.eval_shape(step, state)
        played = [learning.zeros((task.played, task.targets)) for task in after.tasks]
        tasks = tuple(replace(t, played=p, targets=q) for t, (p, q) in zip(tasks, played, strict=True))
        return replace(state, metrics=learning.zeros(after.metrics), tasks=tasks)

    def collect(s: State) -> State:
        """Play a rollout in every task's lanes with the current parameters."""
        key, key_play = jax.random.split(s.key)
        before, params = [task.lanes for task in s.tasks], [task.student.params for task in s.tasks]
        rollouts = play(before, params, s.hyper.discount, s.hyper.trace_decay, key_play)
        ended = [(rows.returns.reshape(-1), rows.trajectory.done.reshape(-1)) for _, rows in rollouts]
        tasks = (
            replace(task, lanes=after, played=rows.trajectory, targets=rows.targets)
            for task, (after, rows) in zip(s.tasks, rollouts, strict=True)
        )
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            tasks=tuple(tasks),
            scores=jax.vmap(scores.add)(s.scores, *tree.stack(ended)),
        )

    def learn(s: State) -> State:
        """Train every task's network on its rewards, and the student also on its teachers' logits."""
        training = [task.student.params for task in s.tasks[1:]]
        params = [guide.frozen for guide in s.guides[: len(teachers)]] + training
        before = s.env_steps - taken
        learned = [learns[0](s.tasks[0], s.guides, params, before, s.hyper)]
        for alone, task in zip(learns[1:], s.tasks[1:], strict=True):
            learned.append(alone(task, (), (), before, s.hyper))
        going_on = ~reached(before, s.hyper.distil_until, s.hyper)
        memories = tutoring.follow(tutors, s.guides, params, s.tasks[0].played, going_on)
        guides = zip(s.guides, memories, learned[0].aligners, strict=True)
        return replace(
            s,
            metrics=metrics(s, learned),
            tasks=tuple(replace(t, student=its.student) for t, its in zip(s.tasks, learned, strict=True)),
            guides=tuple(replace(guide, memory=memory, aligner=aligner) for guide, memory, aligner in guides),
        )

    def metrics(s: State, learned: Sequence[Learned]) -> Metrics:
        played = [task.lanes for task in s.tasks]
        return Metrics(
            fitness=jnp.concatenate([each.fitness for each in played]),
            score=jax.vmap(scoring.recent)(s.scores),
            lengths=jnp.concatenate([each.account.latest_length.mean(1) for each in played]),
            episodes=jnp.concatenate([each.episodes for each in played]),
            losses=tree.stack([each.losses for each in learned]),
            gradient_norm=jnp.stack([each.gradient_norm for each in learned]),
            actions=jax.nn.softmax(s.tasks[0].played.outputs.policy).mean((0, 1)),
            distillations=learned[0].distillations,
        )

    step = chain(collect, learn)
    return Method(
        init=init,
        step=step,
        policy=lambda s: s.tasks[0].student.params,
        act=players[0].policy.act,
        hyper=Hyper(),
        steps_bound=taken,
        memory=networks[0].memory,
        unroll=players[0].policy.unroll,
    )


def _tutor(env: Env, teacher: Teacher, network: Recurrent, config: Config) -> Tutor:
    """Return ``teacher`` with the translation of its actions for a student of ``env``."""
    policy = imitation.reading(teacher.policy, env.spec, config.pad_observations)
    if config.teacher_state == "student":
        tutoring.require_memory(network.memory, policy)
    if config.align == "none":
        return Tutor(policy, tutoring.one_by_one(env.spec, policy.spec, config.pad_actions))
    sizes = policy.spec.action_dim, env.spec.action_dim, config.align_hidden
    direction = config.align_kl if config.align == "online" else None
    return Tutor(policy, recurrent.alignment(*sizes), direction)


def _start_task(env: Env, network: Recurrent, key: Key, config: Config, hyper: Hyper) -> Task:
    """Return a task before its first rollout."""
    key_network, key_lanes = jax.random.split(key)
    params = network.init(key_network)
    optimizers = (adam(rate, hyper.max_grad_norm).init(params) for rate in (hyper.lr, hyper.distil_lr))
    start = lanes.start(rollout.autoreset(env), key_lanes, (1, config.lanes), network.memory)
    return Task(Student(params, *optimizers), start, None, None)  # type: ignore[arg-type]


def _learner(network: Recurrent, tutors: Sequence[Tutor], config: Config) -> Callable[..., Learned]:
    """Return the function by which a network and its alignment networks learn from a rollout: from one lane
    after the other, or from all at once."""
    size = config.lanes if config.update_mode == "batched" else 1

    def learn(
        task: Task, guides: Sequence[Guide], params: Sequence[Params], taken: counting.Count, hyper: Hyper
    ) -> Learned:
        rates = hyper.lr, hyper.distil_lr, hyper.align_lr
        reward_adam, distil_adam, align_adam = (adam(rate, hyper.max_grad_norm) for rate in rates)

        def one(carry: tuple[Student, tuple[Learner, ...]], rows: Any) -> Any:
            """Learn from the rewards of a bundle of lanes, then by alignment and distillation."""
            (student, aligners), (played, targets, memories, taken) = carry, rows
            reading = actor_critic.read(network, student.params, played)
            student, losses, norm = reinforce(reading, played, targets, student)
            taught, told = [], []
            for tutor, its, own, aligner in zip(tutors, params, memories, aligners, strict=True):
                memory = tree.take(own if config.teacher_state == "own" else played.memory, 0)
                lesson = Lesson(played, its, memory, due(taken, hyper), hyper.temperature)
                how = partial(distil, reading), align_adam
                (student, aligner), said = tutoring.teach(tutor, lesson, *how, (student, aligner))
                taught.append(aligner)
                told.append(said)
            return (student, tuple(taught)), (losses, norm, tuple(told))

        def reinforce(reading: Reading, played: Trajectory, targets: Targets, student: Student) -> Any:
            weights = hyper.value_coef, hyper.entropy
            gradient, losses = actor_critic.reward_gradient(reading, played, targets, *weights)
            if config.student_gae:
                params, moments = optimize.step(reward_adam, gradient, student.params, student.optimizer)
                student = replace(student, params=params, optimizer=moments)
            return student, losses, global_norm(gradient)

        def distil(reading: Reading, aligned: Array, student: Student) -> tuple[Student, Array]:
            how = config.distil_head, hyper.temperature
            gradient, loss = actor_critic.distil_gradient(reading, aligned, *how)
            params, moments = optimize.step(distil_adam, gradient, student.params, student.distil_optimizer)
            return replace(student, params=params, distil_optimizer=moments), loss

        def bundled(x: Array) -> Array:
            """Return [T, N, ...] as [N / size, T, size, ...]."""
            return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

        memories = [tree.repeat(guide.memory, 1) for guide in guides]
        rows = jax.tree.map(bundled, (task.played, task.targets, memories))
        counts = taken + size * config.steps * (1 + jnp.arange(config.lanes // size))
        start = task.student, tuple(guide.aligner for guide in guides)
        (student, aligners), means = jax.lax.scan(one, start, (*rows, counts))
        return Learned(student, aligners, *jax.tree.map(lambda x: x.mean(0), means))

    return learn


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            imitation.of_runs,
            Teacher,
            "A run of cdrl, or another with logits, RUN_DIR or RUN_DIR:SEED, that teaches. May be repeated.",
        ),
        "alignment": Ingredient(
            "alignments",
            tutoring.of_runs,
            Teacher,
            "For --config.align offline, a finished run of align; one for each teacher, in this order.",
        ),
    },
    envs={"teacher-env": "teacher_envs"},
    preset=preset,
    budget=lambda config: BUDGET,
    remarks=remarks,
)
