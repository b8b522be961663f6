"""The alignment network of CDRL, trained in advance: it learns to translate the logits of a teacher of
another task into those of an expert of the student's task, in states that the expert visits. Lin, Wang &
Zhou, 2017, section 4.2 and experiment 5.3, offline.

A step: collect -> learn. The expert plays a rollout, the teacher gives its logits in the same states, and the
alignment network takes gradient steps on pairs of logits drawn from the newest ``capacity``. The policy of a
run is the aligned teacher, which acts in the student's task; ``cdrl`` takes the network with --alignment.

The paper says neither how many states to use nor when to stop. Here a run has a budget of environment steps,
and ``fresh_loss`` shows when the network no longer improves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, distributions, rollout, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Choice,
    Env,
    Ingredient,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    Timestep,
    as_arrays,
    chain,
    number,
    stacked,
)
from popjax.distillation import Direction, alignment_loss
from popjax.nets.recurrent import alignment
from popjax.optimize import adam
from popjax.population import imitation, lanes, policy, tutoring
from popjax.population.imitation import Aligned, Learner, Teacher, Told
from popjax.population.lanes import Lanes
from popjax.recipe import BUDGET, Preset, Recipe, recorded
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the alignment network and of its training data."""

    lanes: int = 8  # environments
    steps: int = 20  # environment steps of each lane per iteration
    updates: int = 8  # gradient steps per iteration
    batch: int = 160  # pairs of logits per gradient step
    capacity: int = 100_000  # newest pairs of logits that are kept
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)  # units of the hidden layers
    align_kl: Direction = "code"  # KL(aligned || expert), or the reverse, both at temperature 1
    # pad observations with zeros, or crop them, to as many channels or components as a teacher reads
    pad_observations: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "lanes", "steps", "updates", "batch", "capacity")
        check_widths(self)


@struct.dataclass
class Hyper:
    """Hyperparameters of the alignment network's learning."""

    align_lr: Number = number(1e-4)  # Adam's rate
    max_grad_norm: Number = number(40.0, high=math.inf)  # global norm to which the gradient is clipped


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:    float32 [1] return of the expert's last finished episode, mean over lanes.
    fresh_loss: []          alignment loss on this iteration's states, before learning from them.
    align_loss: []          alignment loss of the last gradient step.
    expert:     [A]         mean probabilities of the expert's actions on this iteration's states.
    teacher:    [A']        mean probabilities of the teacher's actions there.
    aligned:    [A]         mean probabilities of the aligned teacher's actions there.
    """

    fitness: Array
    fresh_loss: Array
    align_loss: Array
    expert: Array
    teacher: Array
    aligned: Array


@struct.dataclass
class Frozen:
    """Parameters of the expert's and the teacher's policies, which do not change."""

    expert: Params
    teacher: Params


@struct.dataclass
class Pairs:
    """Logits of teacher [..., A'] and expert [..., A] for the same observations."""

    teacher: Array
    expert: Array


@struct.dataclass
class State:
    """Everything that training carries; the lanes [1, N] carry the memories of expert and teacher."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # []
    generation: Array  # int32 []
    metrics: Metrics
    learner: Learner
    frozen: Frozen
    pairs: Ring  # rows of Pairs
    lanes: Lanes = stacked()


@recorded
def build(
    env: Env, config: Config = Config(), teachers: Sequence[Teacher] = (), experts: Sequence[Teacher] = ()
) -> Method:
    """Return the method that aligns a teacher with an expert of ``env``.

    Raises:
        ValueError: there is not exactly one teacher and one expert, either has no logits, the expert was
            trained on another task, or the teacher cannot read the task's observations.
    """
    if (len(teachers), len(experts)) != (1, 1):
        raise ValueError(
            f"align takes one teacher and one expert of the task, got {len(teachers)} and {len(experts)}:"
            " --teacher RUN_DIR --expert RUN_DIR"
        )
    expert, teacher = experts[0].policy, teachers[0].policy
    imitation.require_task(env.spec, expert, "--expert")
    teacher = imitation.reading(teacher, env.spec, config.pad_observations)
    lead, look_on = imitation.telling(expert, "logits"), imitation.telling(teacher, "logits")
    sizes = teacher.spec.action_dim, env.spec.action_dim
    network = alignment(*sizes, config.align_hidden)
    lanes_env, store, taken = rollout.autoreset(env), ring(config.capacity), config.lanes * config.steps
    memories = expert.memory, teacher.memory

    def loss(params: Params, pairs: Pairs) -> Array:
        return alignment_loss(network.apply(params, pairs.teacher), pairs.expert, config.align_kl)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key = imitation.own_key(key, (expert, teacher))
        key, key_network, key_lanes = jax.random.split(key, 3)
        optimizer = adam(hyper.align_lr, hyper.max_grad_norm)
        pair = Pairs(*map(jnp.zeros, sizes))
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                jnp.zeros(1), jnp.float32(0), jnp.float32(0), pair.expert, pair.teacher, pair.expert
            ),
            learner=imitation.beginner(network.init(key_network), optimizer),
            frozen=Frozen(*jax.tree.map(jnp.asarray, (expert.params, teacher.params))),
            pairs=store.init(pair),
            lanes=lanes.start(lanes_env, key_lanes, (1, config.lanes), memories),
        )

    def collect(s: State) -> State:
        """Play the expert's rollout and ask the teacher for its logits in the same states."""
        key, key_play = jax.random.split(s.key)
        frozen = tree.repeat(s.frozen, 1)

        def act(memory: PyTree, obs: Array, key: Key) -> Told:
            its = policy.everyone(look_on, frozen.teacher, 1.0)(memory[1], obs, key)
            told = policy.everyone(lead, frozen.expert, 1.0)(memory[0], obs, key)
            return told._replace(memory=(told.memory, its.memory), said=Pairs(its.said, told.said))

        def record(before: Lanes, told: Told, timestep: Timestep) -> Pairs:
            return told.said

        played, rows = lanes.play(lanes_env, act, s.lanes, key_play, config.steps, record, memories)
        pairs = tree.flatten(rows, 3)  # [T * N]
        aligned = network.apply(s.learner.params, pairs.teacher)
        said = (jax.nn.softmax(x).mean(0) for x in (pairs.expert, pairs.teacher, aligned))
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=Metrics(played.fitness, loss(s.learner.params, pairs), s.metrics.align_loss, *said),
            pairs=store.add(s.pairs, pairs, jnp.ones(taken, jnp.bool_)),
            lanes=played,
        )

    def learn(s: State) -> State:
        """Train the alignment network on pairs of logits."""
        key, key_learn = jax.random.split(s.key)
        learner, last = imitation.study(
            adam(s.hyper.align_lr, s.hyper.max_grad_norm),
            loss,
            lambda key: store.sample(s.pairs, key, config.batch),
            s.learner,
            config.updates,
            key_learn,
        )
        return replace(s, key=key, learner=learner, metrics=replace(s.metrics, align_loss=last))

    def unroll(params: Aligned, memory: PyTree, obs: Array, done: Array) -> tuple[PyTree, Array]:
        assert teacher.unroll is not None
        memory, logits = teacher.unroll(params.teacher, memory, obs, done)
        return memory, network.apply(params.alignment, logits)

    def act(params: Aligned, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, logits = imitation.ask(teacher, params.teacher, memory, obs)
        aligned = network.apply(params.alignment, logits)
        return distributions.choose(distributions.categorical(), memory, aligned, key, scale)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: Aligned(s.frozen.teacher, s.learner.params),
        act=act,
        hyper=Hyper(),
        steps_bound=taken,
        memory=teacher.memory,
        unroll=unroll,
    )


def preset(task: str) -> Preset | None:
    """Return the constants for a game such as "atari/bowling", with the game's options as in ``cdrl``; None
    for other tasks."""
    return Preset(Config(), Hyper(), BUDGET, tutoring.UNIVERSE) if task.startswith("atari/") else None


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            imitation.of_runs,
            Teacher,
            "A finished run of another task, RUN_DIR or RUN_DIR:SEED, whose actions are aligned.",
        ),
        "expert": Ingredient(
            "experts", imitation.of_runs, Teacher, "A finished run of this task, which plays."
        ),
    },
    preset=preset,
)
