"""Alignment before distillation: a network learns to say a teacher's logits as an expert of the student's
task would, on the states of that expert's play. CDRL, section 4.2 and experiment 5.3, offline.

A step: the expert plays a rollout, the teacher is asked about the same states, and the alignment network
takes gradient steps on pairs of logits drawn from all that were seen. The paper says neither how many states
nor when to stop: a run is as long as its environment steps, and ``fresh_loss`` shows when it no longer gains.
The policy of a run is the aligned teacher in the student's task; the method ``cdrl`` takes the network with
--alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, rollout, tree
from popjax.checks import check_choices, check_least, check_widths
from popjax.core import (
    Choice,
    Env,
    Ingredient,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    as_arrays,
    chain,
    number,
    stacked,
)
from popjax.distillation import Direction, alignment_loss
from popjax.methods.cdrl import teachers as teaching
from popjax.methods.cdrl.learning import Aligner
from popjax.methods.cdrl.teachers import Finished, Teacher, ask, finished, of_run
from popjax.nets.recurrent import AlignActivation, alignment
from popjax.optimize import adam, descend
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the alignment network, and of what it learns from."""

    lanes: int = 8  # environments
    steps: int = 20  # environment steps of each lane per iteration
    updates: int = 8  # gradient steps per iteration
    batch: int = 160  # pairs of logits per gradient step
    capacity: int = 100_000  # pairs that are kept
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)  # hidden layers, units
    align_act: AlignActivation = "elu"  # between them; "relu" in the paper's text
    align_kl: Direction = "code"  # KL(aligned || expert), or the other way about
    # teachers see observations with other channels or components padded with zeros or cropped
    pad_observations: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)
        check_least(self, 1, "lanes", "steps", "updates", "batch", "capacity")


@struct.dataclass
class Hyper:
    """Numbers of the alignment network's learning."""

    align_lr: Number = number(1e-4)  # Adam's rate
    max_grad_norm: Number = number(40.0)  # global norm to which the gradient is clipped


@struct.dataclass
class Metrics:
    """What an iteration shows.

    fitness:    float32 [1] return of the expert's last finished episode, mean over lanes.
    fresh_loss: []          alignment loss on this iteration's states, before anything was learned from them.
    align_loss: []          that of the last gradient step.
    expert:     [A]         mean probabilities of the expert's actions on this iteration's states.
    teacher:    [A']        of the teacher's.
    aligned:    [A]         of the aligned teacher's.
    """

    fitness: Array
    fresh_loss: Array
    align_loss: Array
    expert: Array
    teacher: Array
    aligned: Array


@struct.dataclass
class State:
    """Everything that training carries; the lanes carry the memories of expert and teacher."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 []
    generation: Array  # int32 []
    metrics: Metrics
    learner: Aligner
    frozen: tuple[Params, Params]  # of expert and teacher
    lanes: rollout.Lane  # [N]
    pairs: Ring  # (teacher's logits, expert's logits)
    returns: rollout.Returns = stacked()  # [1, N]


@recorded
def build(
    env: Env,
    config: Config = Config(),
    teachers: Sequence[Teacher | Finished] = (),
    experts: Sequence[Teacher | Finished] = (),
) -> Method:
    """Aligns the one of ``teachers`` with the one of ``experts``, who knows ``env``.

    Raises:
        ValueError: there is not one of each, the expert is of another task, or the teacher cannot read the
            task's observations.
    """
    if (len(teachers), len(experts)) != (1, 1):
        raise ValueError(
            f"align takes one teacher and one expert of the task, got {len(teachers)} and {len(experts)}:"
            " --teacher RUN_DIR --expert RUN_DIR"
        )
    teacher, expert = (x if isinstance(x, Teacher) else of_run(x) for x in (*teachers, *experts))
    _require_expert(env, expert)
    view = teaching.view(env.spec, teacher.spec, config.pad_observations)
    network = alignment(teacher.spec.action_dim, env.spec.action_dim, config.align_hidden, config.align_act)
    lanes_env, store, seen = rollout.autoreset(env), ring(config.capacity), config.lanes * config.steps
    memories = expert.memory, teacher.memory

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_network, key_lanes = jax.random.split(key, 3)
        params = network.init(key_network)
        pair = jnp.zeros(teacher.spec.action_dim), jnp.zeros(env.spec.action_dim)
        nothing = jnp.float32(0)
        start = jax.vmap(partial(rollout.start, lanes_env, memories))
        return State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(1), nothing, nothing, pair[1], pair[0], pair[1]),
            learner=Aligner(params, adam(hyper.align_lr, hyper.max_grad_norm).init(params)),
            frozen=jax.tree.map(jnp.asarray, (expert.params, teacher.params)),
            lanes=start(jax.random.split(key_lanes, config.lanes)),
            pairs=store.init(pair),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), config.lanes), 1),
        )

    def play(frozen: tuple[Params, Params], lane: rollout.Lane, key: Key) -> Any:
        """A lane's rollout by the expert: rows of (teacher's logits, expert's logits, reward, done)."""

        def one(lane: rollout.Lane, key: Key) -> tuple[rollout.Lane, Any]:
            after_expert, logits = ask(expert, frozen[0], lane.carry[0], lane.obs)
            after_teacher, teacher_logits = ask(teacher, frozen[1], lane.carry[1], view(lane.obs))
            action = distributions.categorical().sample(key, logits, 1.0)
            env_state, timestep = lanes_env.step(lane.env, action)
            carry = tree.where(timestep.done, memories, (after_expert, after_teacher))
            row = teacher_logits, logits, timestep.reward, timestep.done
            return rollout.Lane(env_state, timestep.obs, carry), row

        return jax.lax.scan(one, lane, jax.random.split(key, config.steps))

    def collect(s: State) -> State:
        """The expert plays, the teacher looks on."""
        key, key_play = jax.random.split(s.key)
        keys = jax.random.split(key_play, config.lanes)
        lanes, (teacher_logits, logits, reward, done) = jax.vmap(partial(play, s.frozen))(s.lanes, keys)
        returns = jax.vmap(jax.vmap(rollout.track))(s.returns, reward[None], done[None])
        aligned = network.apply(s.learner.params, teacher_logits)
        histograms = (jax.nn.softmax(x).mean((0, 1)) for x in (logits, teacher_logits, aligned))
        loss = alignment_loss(aligned, logits, config.align_kl)
        metrics = Metrics(returns.latest.mean(1), loss, s.metrics.align_loss, *histograms)
        pairs = store.add(s.pairs, tree.flatten((teacher_logits, logits)), jnp.ones(seen, jnp.bool_))
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + seen,
            generation=s.generation + 1,
            metrics=metrics,
            lanes=lanes,
            pairs=pairs,
            returns=returns,
        )

    def learn(s: State) -> State:
        """The alignment network learns from pairs of logits."""
        key, key_learn = jax.random.split(s.key)

        def one(learner: Aligner, key: Key) -> tuple[Aligner, Array]:
            teacher_logits, logits = store.sample(s.pairs, key, config.batch)

            def loss(params: Params) -> tuple[Array, None]:
                return alignment_loss(network.apply(params, teacher_logits), logits, config.align_kl), None

            optimizer = adam(s.hyper.align_lr, s.hyper.max_grad_norm)
            params, moments, value, _ = descend(optimizer, loss, learner.params, learner.optimizer)
            return Aligner(params, moments), value

        learner, losses = jax.lax.scan(one, s.learner, jax.random.split(key_learn, config.updates))
        return replace(s, key=key, learner=learner, metrics=replace(s.metrics, align_loss=losses[-1]))

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, logits = ask(teacher, params["teacher"], memory, view(obs))
        aligned = network.apply(params["alignment"], logits)
        return distributions.choose(distributions.categorical(), memory, aligned, key, scale)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: {"alignment": s.learner.params, "teacher": s.frozen[1]},
        act=act,
        hyper=Hyper(),
        steps_bound=seen,
        memory=teacher.memory,
    )


def _require_expert(env: Env, expert: Teacher) -> None:
    here, there = ((s.name, tuple(s.obs_shape), s.action_dim) for s in (env.spec, expert.spec))
    if here != there:
        raise ValueError(
            f"the expert is of {there[0]} with observations {there[1]} and {there[2]} actions, not of"
            f" {here[0]} with {here[1]} and {here[2]}: give --expert a run of that task"
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
            "A finished run of another task, RUN_DIR or RUN_DIR:SEED, whose actions are aligned.",
        ),
        "expert": Ingredient(
            "experts",
            lambda env, policies: finished(policies),
            Finished,
            "A finished run of this task, which plays.",
        ),
    },
)
