"""Any finished run, whatever its population and its networks, as one policy that can be deployed.

A student plays, a teacher says of every state what it would do, and the student learns from all that was seen
so far: DAgger (Ross, Gordon & Bagnell, 2011). A student with a memory learns from whole rollouts, each from
the memory that it began with when it was played. Lanes are played by the teacher at first and by the student
later, so that the student learns where it goes itself. The teacher is the individual of the population that
returns most in episodes before the run or, where a method deploys all of them together with what chooses
among them, all of them. Of several runs the one is distilled that returns most.

Continuous actions are imitated in the mean square, discrete ones by the cross-entropy of the teacher's
action or, from a teacher with logits, by the KL from its softened policy (CDRL, equation 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, rollout, tree
from popjax.checks import check_choices, check_least
from popjax.core import (
    Choice,
    Env,
    Ingredient,
    Key,
    Method,
    Number,
    Params,
    Pretrained,
    PyTree,
    as_arrays,
    chain,
    number,
    stacked,
)
from popjax.distillation import softened_kl
from popjax.methods.cdrl.teachers import Finished, ask, of_run
from popjax.nets import recurrent
from popjax.optimize import adam, descend
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


class Graded(NamedTuple):
    """A finished run, the individual in it that returned most over episodes played before this run (-1: the
    policy that the run would deploy), and the mean of its returns."""

    policy: Pretrained
    individual: int
    mean_return: float

    @property
    def teacher(self) -> Pretrained:
        """The policy of that individual."""
        if self.individual < 0:
            return self.policy
        return self.policy._replace(params=tree.take(self.policy.individuals, self.individual))


@dataclass(frozen=True)
class Config:
    """The student's network, and how much it sees."""

    network: recurrent.Config = field(default_factory=partial(recurrent.Config, recurrent=False))  # student's
    lanes: int = 32  # environments
    steps: int = 20  # environment steps of each lane in a rollout
    capacity: int = 5_000  # rollouts of a lane that are kept; the oldest are overwritten
    batch: int = 32  # of them in a gradient step
    updates: int = 32  # gradient steps after each rollout of all lanes
    labels: Literal["actions", "logits"] = "actions"  # what a teacher of discrete actions says

    def __post_init__(self) -> None:
        check_choices(self)
        check_least(self, 1, "lanes", "steps", "capacity", "batch", "updates")


@struct.dataclass
class Hyper:
    """Numbers of the student's learning."""

    lr: Number = number(1e-3)  # Adam's rate
    max_grad_norm: Number = number(10.0)  # global norm to which the gradient is clipped
    # by which a teacher's logits are divided; without effect on labels "actions" and continuous actions
    temperature: Number = number(1.0, low=1e-6)
    # DAgger's beta, the probability with which the teacher plays a lane's rollout, at the start
    teacher_share: Number = number(1.0, high=1.0)
    teacher_steps: Number = number(20_000.0)  # environment steps over which that falls linearly to 0


@struct.dataclass
class Metrics:
    """What an iteration shows.

    fitness:     float32 [1] return of the last finished episode, mean over lanes, whoever played.
    fresh_loss:  []          how far the student is from the teacher on this iteration's states, before it
                             learns from them.
    distil_loss: []          how far it is on the batch of the last gradient step, before that.
    """

    fitness: Array
    fresh_loss: Array
    distil_loss: Array


@struct.dataclass
class Learner:
    """The student's network and Adam's moments."""

    params: Params
    optimizer: PyTree


@struct.dataclass
class Seen:
    """A lane's rollout [T]: the student's memory before it, observations, what the teacher said of them."""

    memory: PyTree
    obs: Array
    label: Array
    reward: Array
    done: Array


@struct.dataclass
class State:
    """Everything that training carries; the lanes carry the memories of student and teacher."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 []
    generation: Array  # int32 []
    metrics: Metrics
    learner: Learner
    frozen: Params  # of the teacher
    lanes: rollout.Lane  # [N]
    seen: Ring  # of Seen
    returns: rollout.Returns = stacked()  # [1, N]


def grade(env: Env, policies: Sequence[Pretrained], episodes: int = 20) -> tuple[Graded, ...]:
    """Plays ``episodes`` greedy episodes with every individual of each run, the same for all.

    Raises:
        ValueError: a policy is of another task.
    """
    graded = []
    for policy in policies:
        _require_fit(env, policy)

        def play(params: Params, key: Key, policy: Pretrained = policy) -> Array:
            def choose(memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
                return policy.act(params, memory, obs, key, 0.0)[:2]

            return rollout.episode(env, choose, policy.memory, key, record=lambda *_: ()).total

        over_episodes = jax.vmap(play, (None, 0))
        keys = jax.random.split(jax.random.key(0), episodes)
        if policy.individuals is None:
            graded.append(Graded(policy, -1, float(jax.jit(over_episodes)(policy.params, keys).mean())))
            continue
        returns = jax.jit(jax.vmap(over_episodes, (0, None)))(policy.individuals, keys).mean(1)
        graded.append(Graded(policy, int(returns.argmax()), float(returns.max())))
    return tuple(graded)


@recorded
def build(env: Env, config: Config = Config(), teachers: Sequence[Graded] = ()) -> Method:
    """A student of the best of ``teachers``, which ``grade`` makes of finished runs.

    Raises:
        ValueError: there is no teacher, it is of another task, or it has no logits where they are asked for.
    """
    if not teachers:
        raise ValueError("distil needs a finished run of the task to distil: --teacher RUN_DIR")
    teacher = max(teachers, key=lambda t: t.mean_return).teacher
    _require_fit(env, teacher)
    network = recurrent.recurrent_actor_critic(env.spec.obs_shape, env.spec.action_dim, config.network)
    adviser, loss_of = _adviser(env, teacher, config), partial(_loss, env.spec.discrete)
    lanes_env, store, taken = rollout.autoreset(env), ring(config.capacity), config.lanes * config.steps
    memories = network.memory, adviser.memory

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_network, key_lanes = jax.random.split(key, 3)
        params = network.init(key_network)
        start = jax.vmap(partial(rollout.start, lanes_env, memories))
        lanes = start(jax.random.split(key_lanes, config.lanes))
        frozen = jax.tree.map(jnp.asarray, adviser.params)
        seen = jax.eval_shape(play_all, params, frozen, lanes, jnp.float32(0), key)[1]
        return State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(1), jnp.float32(0), jnp.float32(0)),
            learner=Learner(params, adam(hyper.lr, hyper.max_grad_norm).init(params)),
            frozen=frozen,
            lanes=lanes,
            seen=store.init(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), seen)),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), config.lanes), 1),
        )

    def play(params: Params, frozen: Params, lane: rollout.Lane, share: Array, key: Key) -> Any:
        """One lane's rollout, which the teacher plays with probability ``share`` and the student else."""
        key_who, key_steps = jax.random.split(key)
        guided = jax.random.bernoulli(key_who, share)

        def one(lane: rollout.Lane, key: Key) -> tuple[rollout.Lane, Any]:
            mine, action = act(params, lane.carry[0], lane.obs, key, 0.0)[:2]
            its, label, played = adviser.advise(frozen, lane.carry[1], lane.obs, key)
            env_state, timestep = lanes_env.step(lane.env, jnp.where(guided, played, action))
            carry = tree.where(timestep.done, memories, (mine, its))
            row = lane.obs, label, timestep.reward, timestep.done
            return rollout.Lane(env_state, timestep.obs, carry), row

        after, rows = jax.lax.scan(one, lane, jax.random.split(key_steps, config.steps))
        return after, Seen(lane.carry[0], *rows)

    def play_all(params: Params, frozen: Params, lanes: rollout.Lane, share: Array, key: Key) -> Any:
        keys = jax.random.split(key, config.lanes)
        return jax.vmap(play, (None, None, 0, None, 0))(params, frozen, lanes, share, keys)

    def distance(params: Params, seen: Seen, hyper: Hyper) -> Array:
        """Of the student from what the teacher said in rollouts ``seen`` [B, T]."""
        heads = jax.vmap(network.unroll, (None, 0, 0, 0))(params, seen.memory, seen.obs, seen.done)[1]
        return loss_of(heads.policy, seen.label, hyper.temperature)

    def collect(s: State) -> State:
        """Student or teacher play, the teacher says what it would do."""
        key, key_play = jax.random.split(s.key)
        left = 1 - s.env_steps / jnp.maximum(s.hyper.teacher_steps, 1)
        share = s.hyper.teacher_share * jnp.maximum(left, 0)
        lanes, seen = play_all(s.learner.params, s.frozen, s.lanes, share, key_play)
        fresh = distance(s.learner.params, seen, s.hyper)
        returns = jax.vmap(jax.vmap(rollout.track))(s.returns, seen.reward[None], seen.done[None])
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + taken,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=returns.latest.mean(1), fresh_loss=fresh),
            lanes=lanes,
            seen=store.add(s.seen, seen, jnp.ones(config.lanes, jnp.bool_)),
            returns=returns,
        )

    def learn(s: State) -> State:
        """The student takes ``updates`` gradient steps towards what the teacher said."""
        key, key_learn = jax.random.split(s.key)

        def one(learner: Learner, key: Key) -> tuple[Learner, Array]:
            seen = store.sample(s.seen, key, config.batch)

            def loss(params: Params) -> tuple[Array, None]:
                return distance(params, seen, s.hyper), None

            optimizer = adam(s.hyper.lr, s.hyper.max_grad_norm)
            params, moments, value, _ = descend(optimizer, loss, learner.params, learner.optimizer)
            return Learner(params, moments), value

        learner, losses = jax.lax.scan(one, s.learner, jax.random.split(key_learn, config.updates))
        return replace(s, key=key, learner=learner, metrics=replace(s.metrics, distil_loss=losses[-1]))

    actions = distributions.categorical() if env.spec.discrete else distributions.squashed_mean()

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, heads = network.step(params, memory, obs)
        return distributions.choose(actions, memory, heads.policy, key, scale)

    return Method(
        init=init,
        step=chain(collect, learn),
        policy=lambda s: s.learner.params,
        act=act,
        hyper=Hyper(),
        steps_bound=taken,
        memory=network.memory,
    )


class _Adviser(NamedTuple):
    """A teacher as its student asks it.

    params: what ``advise`` reads
    memory: what it remembers at the start of an episode
    advise: (params, memory, obs, key) -> memory, what the student is told, the teacher's action. It is told a
            continuous action, or logits [A]; a greedy action as logits of 0 and minus infinity
    """

    params: Params
    memory: PyTree
    advise: Callable[[Params, PyTree, Array, Key], tuple[PyTree, Array, Array]]


def _adviser(env: Env, teacher: Pretrained, config: Config) -> _Adviser:
    if config.labels == "logits":
        if not env.spec.discrete:
            raise ValueError(f"labels logits is for discrete actions, which {env.spec.name} has not")
        asked = of_run(Finished(teacher))

        def with_logits(params: Params, memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array, Array]:
            memory, logits = ask(asked, params, memory, obs)
            return memory, logits, jnp.argmax(logits).astype(jnp.int32)

        return _Adviser(asked.params, asked.memory, with_logits)

    def with_action(params: Params, memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array, Array]:
        memory, action = teacher.act(params, memory, obs, key, 0.0)[:2]
        if not env.spec.discrete:
            return memory, action, action
        chosen = jnp.arange(env.spec.action_dim) == action
        return memory, jnp.where(chosen, 0.0, -jnp.inf), action

    return _Adviser(teacher.params, teacher.memory, with_action)


def _loss(discrete: bool, outputs: Array, label: Array, temperature: Number) -> Array:
    """How far the student's ``outputs`` [..., A] are from what it was told, [..., A]."""
    if discrete:
        return softened_kl(label, outputs, temperature)
    return jnp.square(jnp.tanh(outputs) - label).mean()


def _require_fit(env: Env, policy: Pretrained) -> None:
    here, there = ((s.name, tuple(s.obs_shape), s.action_dim, s.discrete) for s in (env.spec, policy.spec))
    if here != there:
        kind = {True: "discrete", False: "continuous"}
        raise ValueError(
            f"{policy.name} is a run of {there[0]} with observations {there[1]} and {there[2]}"
            f" {kind[there[3]]} actions; {here[0]} has {here[1]} and {here[2]} {kind[here[3]]}: distil a run"
            " of the same task"
        )


METHOD = Recipe(
    build,
    Config,
    lambda config: Hyper(),
    runs={
        "teacher": Ingredient(
            "teachers",
            lambda env, policies: grade(env, policies),
            Graded,
            "A finished run of this task, RUN_DIR or RUN_DIR:SEED, to be distilled; the best of several.",
        )
    },
)
