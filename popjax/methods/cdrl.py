"""Collaborative Deep RL (cA3C): a student learns its task and, through an alignment of actions, from teachers
of other tasks. Lin, Wang & Zhou, 2017, https://arxiv.org/abs/1702.05796.

A step: collect -> follow -> learn. All tasks play a rollout; the student learns from its rewards, its
alignment networks learn to say the teachers' logits as the student's policy would, and the student's
distillation head learns from what they make of them; teachers that train learn from their rewards. Without a
teacher it is A3C, restated for lanes.

Differs from the paper and its code: workers are lanes of one program, so that rollouts run across the ends of
episodes and nothing is asynchronous; a lane's gradients are taken where the lanes before it have brought the
parameters (``grad_at``); rollouts of one episode are not merged; KL divergences are exact where the code adds
1e-10 inside of the logarithm. A teacher carries its own memory along the student's episodes, advanced as the
student's is when it acts, where the code gives it the student's (``teacher_state``). Several teachers have
an alignment network each and share the student's Adam for distillation. The paper's measure is
``Metrics.score``, of the policy that samples; a run's evaluations play it greedily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import advantage, distributions, rollout, tree
from popjax.advantage import Targets
from popjax.agents import a2c
from popjax.checks import check_choices, check_least, check_widths
from popjax.core import (
    Env,
    Ingredient,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    Recurrent,
    Timestep,
    Trajectory,
    as_arrays,
    chain,
    number,
    stacked,
)
from popjax.distillation import Direction, softened_kl
from popjax.nets import recurrent
from popjax.nets.recurrent import Heads
from popjax.optimize import adam
from popjax.population import imitation, lanes, learning, policy, schedule, scoring, tutoring
from popjax.population.imitation import Learner, Teacher, Told
from popjax.population.lanes import Lanes
from popjax.population.schedule import Times
from popjax.population.tutoring import Distillation, Guide, Lesson, Tutor
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring

EPISODES = 100  # over which a score is the mean, as in the paper
_ACTIONS = distributions.categorical()
Pull: TypeAlias = Callable[[Heads], tuple[Params]]
"""From a direction of the heads to the gradient of the parameters."""


@dataclass(frozen=True)
class Config:
    """How a student learns from its task and its teachers, and how teachers do that train beside it."""

    network: recurrent.Config = field(default_factory=recurrent.Config)  # of the student and those teachers
    lanes: int = 8  # environments of each task, the workers of A3C
    steps: int = 20  # environment steps of each lane in a rollout
    # a gradient step for each lane, one after the other, or one for the mean over lanes: with 8 lanes 8 times
    # fewer of every kind, so that lr, distil_lr and align_lr are to be raised together
    update_mode: Literal["sequential", "batched"] = "sequential"
    # where a lane's gradients are taken: the parameters so far, or those that acted
    grad_at: Literal["current", "behaviour"] = "current"
    student_gae: bool = True  # the student learns from its own rewards, too
    timeout_bootstrap: bool = False  # the value behind a time limit counts, else a time limit is an end
    distil_head: Literal["distil", "policy"] = "distil"  # the student's head that learns from teachers
    # whose memory a teacher reads a rollout with; "student" as in the authors' code
    teacher_state: Literal["own", "student"] = "own"
    # no alignment of logits, by a network trained before, or by one that is trained meanwhile
    align: Literal["none", "offline", "online"] = "online"
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)  # hidden layers of an alignment network, units
    align_act: recurrent.AlignActivation = "elu"  # between them; "relu" in the paper's text
    align_kl: Direction = "code"  # KL(aligned || student), or the other way about
    # teachers see observations with other channels or components padded with zeros or cropped
    pad_observations: bool = False
    pad_actions: bool = False  # without alignment, a teacher's logits are padded with -inf or cropped

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 1, "lanes", "steps")
        check_widths(self)
        if self.align != "none" and self.pad_actions:
            raise ValueError(f"pad_actions is for align none; align {self.align} maps actions by a network")


@struct.dataclass
class Hyper:
    """Numbers of a student and its teachers.

    ``align_from``, ``distil_from`` and ``distil_until`` are times of ``population.schedule`` in the student's
    environment steps. The defaults are those of two tasks that both start from scratch, with the paper's
    budget: a shorter run needs a smaller one, else it ends before anything is distilled. Where alignment
    networks train online, ``distil_from`` is to be after ``align_from``.
    """

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    trace_decay: Number = number(1.0, high=1.0)  # lambda of the advantages
    value_coef: Number = number(0.5)  # of half the summed squared error of the values in the loss
    entropy: Number = number(0.01)  # weight of the policy's summed entropy in the loss, per nat
    max_grad_norm: Number = number(40.0)  # global norm to which every gradient is clipped
    lr: Number = number(1e-4)  # Adam's rate for the task's own rewards
    distil_lr: Number = number(1e-4)  # that of distillation, which has an Adam of its own
    align_lr: Number = number(1e-4)  # that of the alignment networks
    temperature: Number = number(1.0, low=1e-6)  # tau, by which a teacher's logits are divided
    align_from: Number = number(0.15)  # T1, when alignment networks begin to train
    distil_from: Number = number(0.2)  # T2, when distillation begins
    distil_until: Number = number(0.75)  # when both end
    budget: Number = number(2e7, low=1.0)  # what fractions are fractions of, environment steps of the student


@struct.dataclass
class Metrics:
    """What a step shows. P is the student and then the teachers that train, each in its own task.

    fitness:       float32 [P] return of the last finished episode, mean over lanes.
    score:         float32 [P] mean return of the last 100 episodes; of those there are, 0 before the first.
    lengths:       float32 [P] environment steps of the last finished episode, mean over lanes.
    episodes:      int32 [P]   finished episodes.
    losses:        [P] each    of A2C, means over rows.
    gradient_norm: float32 [P] global norm of their gradient before clipping, mean over gradient steps.
    actions:       [A]         mean probabilities of the student's actions in its rollouts.
    distillations: of every teacher, see ``Distillation``.
    """

    fitness: Array
    score: Array
    lengths: Array
    episodes: Array
    losses: a2c.Losses
    gradient_norm: Array
    actions: Array
    distillations: tuple[Distillation, ...]


@struct.dataclass
class Student:
    """The network of a task with the moments of its two Adams: for its rewards, and for its teachers."""

    params: Params
    optimizer: PyTree
    distil_optimizer: PyTree


@struct.dataclass
class Task:
    """Who learns a task; its lanes [1, N]; rollouts [T, N] with ``Heads`` as outputs, and their targets."""

    student: Student
    lanes: Lanes
    played: Trajectory
    targets: Targets


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] of the student, in all lanes; a teacher that trains takes as many
    generation: Array  # int32 [] rollouts
    metrics: Metrics
    tasks: tuple[Task, ...]  # the student's and then those of the teachers that train
    guides: tuple[Guide, ...]  # the finished teachers, then those that train
    scores: Ring = stacked()  # [P] of the returns of the last episodes


class Learned(NamedTuple):
    """What a rollout has made of a task's network and of its tutors' alignment networks; means over steps."""

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
    """Return a student of ``env`` with finished ``teachers``, and others that train beside the student in
    ``teacher_envs``. ``alignments`` are runs of align for align offline, one for each teacher in this order.

    Raises:
        ValueError: actions are continuous; a teacher has no logits, cannot read the student's observations,
            or has other actions and no alignment; an offline alignment is missing or was made for something
            else; the student has nothing to learn from.
    """
    envs = [env, *teacher_envs]
    networks = [_network(each, config) for each in envs]
    players = [imitation.of_network(e.spec, network) for e, network in zip(envs, networks, strict=True)]
    tutors = [_tutor(env, teacher, networks[0], config) for teacher in (*teachers, *players[1:])]
    if not (tutors or config.student_gae):
        raise ValueError("student_gae False without a teacher: the student would learn from nothing")
    offline = tutors if config.align == "offline" else []
    trained = tutoring.trained(env.spec, offline, alignments, config.align_act) or [None] * len(tutors)
    # Tasks of one environment play side by side, so that its physics stands in the program once.
    crews = [[i for i, each in enumerate(envs) if each == world] for world in dict.fromkeys(envs)]
    plays = [_player(envs[crew[0]], networks[crew[0]], config) for crew in crews]
    learns = [_learner(networks[0], tutors, config)]
    learns += [_learner(network, (), replace(config, student_gae=True)) for network in networks[1:]]
    scores, taken = ring(EPISODES), config.lanes * config.steps

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_tasks, key_align = jax.random.split(key, 3)
        keys = jax.random.split(key_tasks, len(envs))
        tasks = tuple(_start_task(*task, config, hyper) for task in zip(envs, networks, keys, strict=True))
        keys = jax.random.split(key_align, len(tutors))
        guides = (_start_guide(*guide, config, hyper) for guide in zip(tutors, trained, keys, strict=True))
        state = State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=None,  # type: ignore[arg-type]  # its shapes are those of the first step's
            tasks=tasks,
            guides=tuple(guides),
            scores=tree.repeat(scores.init(jnp.float32(0)), len(envs)),
        )
        after = jax.eval_shape(step, state)
        played = [learning.zeros((task.played, task.targets)) for task in after.tasks]
        tasks = tuple(replace(t, played=p, targets=q) for t, (p, q) in zip(tasks, played, strict=True))
        return replace(state, metrics=learning.zeros(after.metrics), tasks=tasks)

    def collect(s: State) -> State:
        """Every task's lanes play a rollout with the parameters as they are."""
        key, *keys = jax.random.split(s.key, 1 + len(crews))
        tasks, totals = list(s.tasks), [s.scores.rows[0]] * len(envs)
        for play, crew, key_play in zip(plays, crews, keys, strict=True):
            before = tree.concat([s.tasks[i].lanes for i in crew])
            params = tree.stack([s.tasks[i].student.params for i in crew])
            after, rows = play(before, params, s.hyper, key_play)
            for place, i in enumerate(crew):
                played, targets, totals[i] = tree.take(rows, place)
                own = tree.take(after, jnp.array([place]))
                tasks[i] = replace(tasks[i], lanes=own, played=played, targets=targets)
        ended = jnp.stack([task.played.done.reshape(-1) for task in tasks])
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            tasks=tuple(tasks),
            scores=jax.vmap(scores.add)(s.scores, jnp.stack(totals).reshape(ended.shape), ended),
        )

    def learn(s: State) -> State:
        """The student learns from its rewards and its teachers, teachers that train from their rewards."""
        training = [task.student.params for task in s.tasks[1:]]
        params = [guide.frozen for guide in s.guides[: len(teachers)]] + training
        before = s.env_steps - taken
        learned = [learns[0](s.tasks[0], s.guides, params, before, s.hyper)]
        for alone, task in zip(learns[1:], s.tasks[1:], strict=True):
            learned.append(alone(task, (), (), before, s.hyper))
        guides = zip(s.guides, follow(s, params), learned[0].aligners, strict=True)
        return replace(
            s,
            metrics=metrics(s, learned),
            tasks=tuple(replace(t, student=its.student) for t, its in zip(s.tasks, learned, strict=True)),
            guides=tuple(replace(guide, memory=memory, aligner=aligner) for guide, memory, aligner in guides),
        )

    def follow(s: State, params: Sequence[Params]) -> list[PyTree]:
        """The teachers' own memories behind the rollouts, as long as there is anything to distil."""
        played, before = s.tasks[0].played, [guide.memory for guide in s.guides]

        def behind(memories: list[PyTree]) -> tuple[list[PyTree], tuple[()]]:
            each = zip(tutors, params, memories, strict=True)
            return [imitation.follow(tutor.policy, *its, played.obs, played.done) for tutor, *its in each], ()

        going_on = _times(s.hyper).going_on(s.env_steps - taken)
        return learning.once(behind, before, going_on, ())[0] if jax.tree.leaves(before) else before

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


def _times(hyper: Hyper) -> Times:
    return Times(hyper.align_from, hyper.distil_from, hyper.distil_until, hyper.budget)


def _network(env: Env, config: Config) -> Recurrent:
    """The network of the student or of a teacher that trains."""
    if not env.spec.discrete:
        raise ValueError(
            f"cdrl needs discrete actions; {env.spec.name} has {env.spec.action_dim} continuous ones"
        )
    return recurrent.recurrent_actor_critic(env.spec.obs_shape, env.spec.action_dim, config.network)


def _tutor(env: Env, teacher: Teacher, network: Recurrent, config: Config) -> Tutor:
    """``teacher`` as a student of ``env`` asks it."""
    policy = imitation.reading(teacher.policy, env.spec, config.pad_observations)
    if config.teacher_state == "student":
        tutoring.require_memory(network.memory, policy)
    if config.align == "none":
        return Tutor(policy, tutoring.one_by_one(env.spec, policy.spec, config.pad_actions))
    sizes = policy.spec.action_dim, env.spec.action_dim, config.align_hidden
    direction = config.align_kl if config.align == "online" else None
    return Tutor(policy, recurrent.alignment(*sizes, config.align_act), direction)


def _start_task(env: Env, network: Recurrent, key: Key, config: Config, hyper: Hyper) -> Task:
    """A task before its first rollout."""
    key_network, key_lanes = jax.random.split(key)
    params = network.init(key_network)
    optimizers = (adam(rate, hyper.max_grad_norm).init(params) for rate in (hyper.lr, hyper.distil_lr))
    start = lanes.start(rollout.autoreset(env), key_lanes, (1, config.lanes), network.memory)
    return Task(Student(params, *optimizers), start, None, None)  # type: ignore[arg-type]


def _start_guide(tutor: Tutor, trained: Params | None, key: Key, config: Config, hyper: Hyper) -> Guide:
    """A teacher before the student's first rollout."""
    params = tutor.alignment.init(key) if trained is None else trained
    return Guide(
        frozen=jax.tree.map(jnp.asarray, tutor.policy.params),
        memory=tree.repeat(tutor.policy.memory, config.lanes) if config.teacher_state == "own" else (),
        aligner=imitation.beginner(params, adam(hyper.align_lr, hyper.max_grad_norm)),
    )


def _player(env: Env, network: Recurrent, config: Config) -> Callable[..., Any]:
    """Return ``(lanes [P, N], params [P], hyper, key) -> (lanes, (Trajectory, Targets, returns so far))`` [P,
    T, N], a rollout of ``config.steps`` of each network."""
    env = rollout.autoreset(env)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Told:
        memory, heads = network.step(params, memory, obs)
        return Told(*distributions.choose(_ACTIONS, memory, heads.policy, key, scale), said=heads)

    def value(params: Params, memory: PyTree, obs: Array) -> Array:
        return jax.vmap(jax.vmap(network.step, (None, 0, 0)))(params, memory, obs)[1].value

    def play(before: Lanes, params: Params, hyper: Hyper, key: Key) -> tuple[Lanes, Any]:
        keep = lanes.keep_trajectory(hyper.discount, timeout_is_terminal=not config.timeout_bootstrap)

        def record(now: Lanes, told: Told, timestep: Timestep) -> tuple[Trajectory, Array, Array]:
            row = replace(keep(now, told, timestep), outputs=told.said)
            beyond = jnp.zeros_like(timestep.reward)
            if config.timeout_bootstrap:  # the value of the true successor behind a time limit
                beyond = jax.lax.cond(
                    tree.any_lane(timestep.truncated),
                    lambda: value(params, told.memory, timestep.next_obs),
                    lambda: jnp.zeros_like(timestep.reward),
                )
            return row, now.account.running + timestep.reward, beyond

        everyone = policy.everyone(act, params, 1.0)
        played = lanes.play(env, everyone, before, key, config.steps, record, network.memory)
        after, (rows, totals, beyond) = played
        values, last = rows.outputs.value, value(params, after.memory, after.obs)
        following = jnp.where(rows.done, beyond, jnp.concatenate([values[1:], last[None]]))
        worth = rows.reward, rows.discount, values, following, rows.done
        targets = advantage.targets(*worth, hyper.trace_decay)
        each = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (targets, totals))
        return after, (lanes.trajectories(rows, before.memory), *each)

    return play


def _learner(network: Recurrent, tutors: Sequence[Tutor], config: Config) -> Callable[..., Learned]:
    """Return how a network and its alignment networks learn from a rollout: lane after lane, or from all."""
    size = config.lanes if config.update_mode == "batched" else 1

    def learn(
        task: Task, guides: Sequence[Guide], params: Sequence[Params], taken: Array, hyper: Hyper
    ) -> Learned:
        times, align_adam = _times(hyper), adam(hyper.align_lr, hyper.max_grad_norm)

        def one(carry: tuple[Student, tuple[Learner, ...]], rows: Any) -> Any:
            (student, aligners), (played, targets, memories, taken) = carry, rows
            point = (student if config.grad_at == "current" else task.student).params
            heads, pull = jax.vjp(partial(say, played), point)
            student, losses, norm = reinforce(student, played, targets, heads, pull)
            aligners, told = list(aligners), []
            for i, (tutor, its) in enumerate(zip(tutors, params, strict=True)):
                memory = tree.take(memories[i] if config.teacher_state == "own" else played.memory, 0)
                lesson = Lesson(played, its, memory, played.outputs.policy, times.due(taken))
                pupils, distil_it = (student, aligners[i]), partial(distil, heads, pull)
                (student, aligners[i]), said = tutoring.teach(tutor, lesson, distil_it, align_adam, pupils)
                told.append(said)
            return (student, tuple(aligners)), (losses, norm, tuple(told))

        def say(played: Trajectory, params: Params) -> Heads:
            """Gradients stop at the memory with which the rollouts begin."""
            return network.unroll(params, tree.take(played.memory, 0), played.obs, played.done)[1]

        def reinforce(
            student: Student, played: Trajectory, targets: Targets, heads: Heads, pull: Pull
        ) -> Any:
            """One step down the loss of A3C, a sum over the rows of a lane: T times that of A2C."""

            def loss(heads: Heads) -> tuple[Array, a2c.Losses]:
                losses = a2c.losses_of(_ACTIONS, heads.policy, heads.value, played, targets)
                return config.steps * a2c.total(losses, hyper.value_coef / 2, hyper.entropy), losses

            direction, losses = jax.grad(loss, has_aux=True)(heads)
            (gradient,) = pull(direction)
            if config.student_gae:
                optimizer = adam(hyper.lr, hyper.max_grad_norm)
                moved = imitation.descend(optimizer, Learner(student.params, student.optimizer), gradient)
                student = replace(student, params=moved.params, optimizer=moved.optimizer)
            return student, losses, optax.global_norm(gradient)

        def distil(heads: Heads, pull: Pull, aligned: Array, student: Student) -> tuple[Student, Array]:
            """One step towards the ``aligned`` logits."""

            def loss(heads: Heads) -> Array:
                logits = heads.distil if config.distil_head == "distil" else heads.policy
                return softened_kl(aligned, logits, hyper.temperature)

            value, direction = jax.value_and_grad(loss)(heads)
            (gradient,) = pull(direction)
            optimizer = adam(hyper.distil_lr, hyper.max_grad_norm)
            moved = imitation.descend(optimizer, Learner(student.params, student.distil_optimizer), gradient)
            return replace(student, params=moved.params, distil_optimizer=moved.optimizer), value

        def bundled(x: Array) -> Array:
            """[T, N, ...] as [N / size, T, size, ...]."""
            return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

        memories = [tree.repeat(guide.memory, 1) for guide in guides]
        rows = jax.tree.map(bundled, (task.played, task.targets, memories))
        counts = taken + size * config.steps * (1 + jnp.arange(config.lanes // size))
        start = task.student, tuple(guide.aligner for guide in guides)
        (student, aligners), means = jax.lax.scan(one, start, (*rows, counts))
        return Learned(student, aligners, *jax.tree.map(lambda x: x.mean(0), means))

    return learn


def remarks(
    env: Env,
    config: Config,
    hyper: Hyper,
    env_steps: int,
    teachers: Sequence[Any] = (),
    teacher_envs: Sequence[Env] = (),
    alignments: Sequence[Any] = (),
) -> list[str]:
    """Return a line for each reason why a run of ``env_steps`` distils nothing, or the wrong thing."""
    if not (teachers or teacher_envs):
        return []
    return schedule.remarks(_times(hyper), env_steps, aligns=config.align == "online")


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            imitation.of_runs,
            Teacher,
            "A finished run of cdrl, or another with logits, RUN_DIR or RUN_DIR:SEED, that teaches.",
        ),
        "alignment": Ingredient(
            "alignments",
            tutoring.of_runs,
            Teacher,
            "For --config.align offline, a finished run of align; one for each teacher, in this order.",
        ),
    },
    envs={"teacher-env": "teacher_envs"},
    remarks=remarks,
)
