"""Collaborative Deep RL (cA3C): a student learns its task and, through an alignment of actions, from teachers
of other tasks. Lin, Wang & Zhou, 2017, https://arxiv.org/abs/1702.05796.

A step: all tasks play a rollout; the student learns from its rewards, its alignment networks learn to say the
teachers' logits as the student's policy would, and the student's distillation head learns from what they make
of them; teachers that train learn from their rewards. Without a teacher it is A3C, restated for lanes.

Differs from the paper and its code: workers are lanes of one program, so that rollouts run across the ends of
episodes and nothing is asynchronous; a lane's gradients are taken where the lanes before it have brought the
parameters (``grad_at``); rollouts of one episode are not merged; KL divergences are exact where the code adds
1e-10 inside of the logarithm. A teacher carries its own memory along the student's episodes, advanced as the
student's is when it acts, where the code gives it the student's (``teacher_state``). Several teachers
have an alignment network each and share the student's Adam for distillation. Adam's epsilon is optax's 1e-8,
as in the authors' code, and no option.

The paper's measure is ``Metrics.score``, of the policy that samples; a run's evaluations play it greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, rollout, tree
from popjax.core import (
    Choice,
    Env,
    Ingredient,
    Key,
    Method,
    Network,
    Params,
    PyTree,
    Spec,
    as_arrays,
    stacked,
)
from popjax.methods.cdrl import alignments as trained
from popjax.methods.cdrl import teachers as teaching
from popjax.methods.cdrl.acting import Rollout, play
from popjax.methods.cdrl.config import NEVER, Config, Hyper, reached
from popjax.methods.cdrl.learning import (
    AlignedTeacher,
    Aligner,
    Distillation,
    Learner,
    Losses,
    if_due,
    learn,
    learn_alone,
    start,
    start_aligner,
)
from popjax.methods.cdrl.teachers import Finished, Teacher, finished, of_agent, of_network, of_run
from popjax.methods.cdrl.times import remarks
from popjax.nets.recurrent import RecurrentNetwork, alignment, recurrent_actor_critic
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring

__all__ = [
    "METHOD",
    "NEVER",
    "Config",
    "Distillation",
    "Finished",
    "Hyper",
    "Losses",
    "Metrics",
    "State",
    "Teacher",
    "build",
    "of_agent",
    "of_network",
    "of_run",
    "remarks",
]  # fmt: skip

EPISODES = 100
"""Episodes over which a score is the mean, as in the paper."""


@struct.dataclass
class Metrics:
    """What a step shows. P is the student and then the teachers that train, each in its own task.

    fitness:       float32 [P] return of the last finished episode, mean over lanes.
    score:         float32 [P] mean return of the last 100 episodes; of those there are, 0 before the first.
    lengths:       float32 [P] environment steps of the last finished episode, mean over lanes.
    episodes:      int32 [P]   finished episodes.
    losses:        [P] each    see ``Losses``.
    actions:       [A]         mean probabilities of the student's actions in its rollouts.
    distillations: of every teacher, see ``Distillation``.
    """

    fitness: Array
    score: Array
    lengths: Array
    episodes: Array
    losses: Losses
    actions: Array
    distillations: tuple[Distillation, ...]


@struct.dataclass
class Task:
    """Who learns a task, and the lanes [N] that play it, which carry the network's memory."""

    learner: Learner
    lanes: rollout.Lane


@struct.dataclass
class State:
    """Everything that training carries.

    team:     the student and then the teachers that train.
    aligners: one for each teacher.
    frozen:   parameters of each teacher that does not train; () of one that does.
    memories: of each teacher along the student's lanes [N]; () where it has none of its own.
    """

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] of the student, in all lanes; a teacher that trains takes as many
    generation: Array  # int32 [] rollouts
    metrics: Metrics
    team: tuple[Task, ...]
    aligners: tuple[Aligner, ...]
    frozen: tuple[Params, ...]
    memories: tuple[PyTree, ...]
    returns: rollout.Returns = stacked()  # [P, N]
    lengths: rollout.Returns = stacked()  # [P, N] environment steps in the place of rewards
    finished: Ring = stacked()  # [P] of the returns of the last episodes


@recorded
def build(
    env: Env,
    config: Config = Config(),
    teachers: Sequence[Teacher | Finished] = (),
    teacher_envs: Sequence[Env] = (),
    alignments: Sequence[Finished | Params] = (),
) -> Method:
    """A student of ``env`` with ``teachers``, who are done learning, and others that train beside the student
    in ``teacher_envs``. ``alignments`` are the networks of align offline, one for each teacher in this order.

    Raises:
        ValueError: actions are continuous; a teacher has no parameters, cannot read the student's
            observations, or has other actions and no alignment; an offline alignment is missing or was
            made for something else; the student has nothing to learn from.
    """
    envs = [env, *teacher_envs]
    for each in envs:
        teaching.require_readable(each.spec, config.network)
    networks = [_network(each.spec, config) for each in envs]
    records = [t if isinstance(t, Teacher) else of_run(t) for t in teachers]
    for record in records:
        if record.params is None:
            raise ValueError(
                f"a teacher of {record.spec.name} has no params: give of_network some, or its task to"
                " teacher_envs, where one trains"
            )
    records += [of_network(each.spec, _network(each.spec, config)) for each in teacher_envs]
    sources = [_aligned_teacher(env.spec, record, config) for record in records]
    if not (sources or config.student_gae):
        raise ValueError("student_gae False without a teacher: the student would learn from nothing")
    aligned_before = trained.initial(env.spec, sources, alignments, config)
    if config.teacher_state == "student":
        for record in records:
            teaching.require_same_memory(networks[0], record)
    lanes_envs = [rollout.autoreset(each) for each in envs]
    scores = ring(EPISODES)
    tasks, taken = len(envs), config.lanes * config.steps

    def teachers_params(s: State) -> tuple[Params, ...]:
        training = iter(s.team[1:])
        return tuple(
            next(training).learner.params if record.params is None else frozen
            for record, frozen in zip(records, s.frozen, strict=True)
        )

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_tasks, key_align = jax.random.split(key, 3)
        begin = partial(_start_task, config, hyper)
        team = tuple(map(begin, lanes_envs, networks, jax.random.split(key_tasks, tasks)))
        keys = jax.random.split(key_align, len(sources))
        aligners = tuple(
            start_aligner(source.alignment.init(key) if before is None else before, hyper)
            for source, before, key in zip(sources, aligned_before, keys, strict=True)
        )
        own = config.teacher_state == "own"
        state = State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=None,  # type: ignore[arg-type]  # its shapes are those of the first step's
            team=team,
            aligners=aligners,
            frozen=tuple(() if t.params is None else jax.tree.map(jnp.asarray, t.params) for t in records),
            memories=tuple(tree.repeat(t.memory, config.lanes) if own else () for t in records),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), config.lanes), tasks),
            lengths=tree.repeat(tree.repeat(rollout.no_returns(), config.lanes), tasks),
            finished=tree.repeat(scores.init(jnp.float32(0)), tasks),
        )
        shapes = jax.eval_shape(step, state).metrics
        return replace(state, metrics=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

    def collect(s: State, key: Key) -> tuple[State, list[Rollout]]:
        """Every task's lanes play a rollout with the parameters as they are."""
        team, played = [], []
        for task, lanes_env, network, key_task in zip(
            s.team, lanes_envs, networks, jax.random.split(key, tasks), strict=True
        ):
            one = partial(play, lanes_env, network, task.learner.params, hyper=s.hyper, config=config)
            lanes, rows = jax.vmap(lambda lane, key: one(lane=lane, key=key))(
                task.lanes, jax.random.split(key_task, config.lanes)
            )
            team.append(replace(task, lanes=lanes))
            played.append(rows)
        return replace(s, team=tuple(team)), played

    def follow(s: State, params: Sequence[Params], played: Rollout) -> tuple[PyTree, ...]:
        """The teachers' own memories behind the rollouts, as long as there is anything to distil."""

        def remember() -> tuple[PyTree, ...]:
            return tuple(
                jax.vmap(partial(teaching.follow, source.teacher, its))(
                    memory, source.view(played.obs), played.done
                )
                for source, its, memory in zip(sources, params, s.memories, strict=True)
            )

        going_on = ~reached(s.env_steps, s.hyper.distil_until, s.hyper)
        return if_due(going_on, remember, s.memories) if jax.tree.leaves(s.memories) else s.memories

    def step(s: State) -> State:
        key, key_play = jax.random.split(s.key)
        params = teachers_params(s)
        s, played = collect(s, key_play)
        first, others = s.team[0], s.team[1:]
        memories = follow(s, params, played[0])
        learner, aligners, loss, distillations = learn(
            networks[0],
            sources,
            config,
            first.learner,
            s.aligners,
            played[0],
            s.memories,
            params,
            s.env_steps,
            s.hyper,
        )
        learned, losses = [replace(first, learner=learner)], [loss]
        for task, network, rows in zip(others, networks[1:], played[1:], strict=True):
            learner, loss = learn_alone(network, config, task.learner, rows, s.hyper)
            learned.append(replace(task, learner=learner))
            losses.append(loss)
        s = _keep_accounts(s, played)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=_metrics(s, played[0], tree.stack(losses), distillations),
            team=tuple(learned),
            aligners=aligners,
            memories=memories,
        )

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, heads = networks[0].step(params, memory, obs)
        return distributions.choose(distributions.categorical(), memory, heads.policy, key, scale)

    return Method(
        init=init,
        step=step,
        policy=lambda s: s.team[0].learner.params,
        act=act,
        hyper=Hyper(),
        steps_bound=taken,
        memory=networks[0].memory,
    )


def _network(spec: Spec, config: Config) -> RecurrentNetwork:
    return recurrent_actor_critic(spec.obs_shape, spec.action_dim, config.network)


def _start_task(config: Config, hyper: Hyper, env: Env, network: RecurrentNetwork, key: Key) -> Task:
    """A task before its first rollout; ``env`` resets itself."""
    key_learner, key_lanes = jax.random.split(key)
    lanes = jax.vmap(partial(rollout.start, env, network.memory))(jax.random.split(key_lanes, config.lanes))
    return Task(start(network, key_learner, hyper), lanes)


def _aligned_teacher(spec: Spec, teacher: Teacher, config: Config) -> AlignedTeacher:
    """``teacher`` as a student of ``spec`` asks it."""
    view = teaching.view(spec, teacher.spec, config.pad_observations)
    if config.align == "none":
        translate = teaching.translation(spec, teacher.spec, config.pad_actions)
        return AlignedTeacher(
            teacher, view, Network(lambda key: (), lambda params, logits: translate(logits))
        )
    network = alignment(teacher.spec.action_dim, spec.action_dim, config.align_hidden, config.align_act)
    return AlignedTeacher(teacher, view, network)


def _keep_accounts(s: State, played: Sequence[Rollout]) -> State:
    """The returns and lengths of episodes after the rollouts [N, T] of every task."""
    reward, done = (jnp.stack([getattr(rows, name) for rows in played]) for name in ("reward", "done"))
    track = jax.vmap(jax.vmap(rollout.track))
    returns, lengths = track(s.returns, reward, done), track(s.lengths, jnp.ones_like(reward), done)
    return replace(
        s, returns=returns, lengths=lengths, finished=jax.vmap(_finish)(s.finished, s.returns, reward, done)
    )


def _finish(finished: Ring, returns: rollout.Returns, reward: Array, done: Array) -> Ring:
    """A ring with the returns of the episodes that ended in ``reward`` and ``done`` [N, T] as well."""

    def one(running: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, done = row
        total = running + reward
        return jnp.where(done, 0.0, total), total

    totals = jax.lax.scan(one, returns.running, (reward.T, done.T))[1]  # [T, N]
    return ring(EPISODES).add(finished, totals.reshape(-1), done.T.reshape(-1))


def _metrics(s: State, played: Rollout, losses: Losses, distillations: tuple[Distillation, ...]) -> Metrics:
    stored = jnp.arange(EPISODES) < s.finished.size[:, None]
    score = jnp.where(stored, s.finished.rows, 0.0).sum(1) / jnp.maximum(s.finished.size, 1)
    return Metrics(
        fitness=s.returns.latest.mean(1),
        score=score,
        lengths=s.lengths.latest.mean(1),
        episodes=s.returns.episodes.sum(1),
        losses=losses,
        actions=jax.nn.softmax(played.logits).mean((0, 1)),
        distillations=distillations,
    )


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            lambda env, policies: finished(policies),
            Finished,
            "A finished run of cdrl or onpolicy, RUN_DIR or RUN_DIR:SEED, that teaches.",
        ),
        "alignment": Ingredient(
            "alignments",
            lambda env, policies: trained.of_runs(env.spec, policies),
            Finished,
            "For --config.align offline, a finished run of align; one for each teacher, in this order.",
        ),
    },
    envs={"teacher-env": "teacher_envs"},
    remarks=remarks,
)
