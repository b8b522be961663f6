"""Collaborative Exploration. ICLR 2024 submission, "A Collaborative Perspective on Exploration".

Agents act in environments of their own, fill one replay and learn from the same batches, each with its own
reward: the task's plus a novelty that counts what all of them have visited lately.

A synchronous step: act -> remember -> (relabel -> learn -> contrast) x updates. Three switches say where the
agents collaborate: ``col_training`` (the reward), ``col_unroll`` (acting), ``col_eval`` (evaluation). The
paper's headline is the first alone.

| method of the paper | configuration |
|---|---|
| CE; All | the default; ``col_unroll=True, col_eval=True`` |
| Replica | ``col_training=False`` |
| SAC; SAC (UPS k) | ``population=1, col_training=False``; and ``updates_per_step=k`` |
| RND | ``intrinsic="rnd", population=1`` |
| RND+Replica; RND+CE | ``intrinsic="rnd_replica"``; ``"rnd_ce"`` or ``"rnd_each"`` |
| DiCE | ``learner="dice", col_training=False`` |
| SUNRISE | ``learner="sunrise", col_training=False`` |
| DIAYN | ``intrinsic="diayn", population=1``, temperature 0.1 at rate 0; a budget counts pretraining |
| multihead CE | ``learner="multihead"`` |

The paper evaluates every 5,000 environment steps for 10 episodes.

Several lanes per agent: a vector step adds ``population * lanes`` transitions and owes as many updates, so
replay and learner see the same ratio. A bank then receives every fifth state of each lane and covers
``1500 / lanes`` steps of a lane: it is fresher and wider, and results with different ``lanes`` are not equal.

Differs from the paper: a replay row does not store agent and place in the episode, which follow from its slot
and the rows beside it. Alone, an agent is rewarded for its own novelty, whatever ``ego_weight``. Not given
there and chosen here: RND's output width and weight; DIAYN's best skill, whose latest episode returned most;
DiCE clips the critics as SAC does. One number clips the gradients of actor and critics.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, rollout, tree
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Params,
    PyTree,
    as_arrays,
    chain,
    continuous_dims,
    example_transition,
    stacked,
    transition,
)
from popjax.intrinsic import diayn
from popjax.methods.ce import acting, drives, experience, learners
from popjax.methods.ce.config import Config, Hyper, check_shapes
from popjax.methods.ce.experience import Row
from popjax.optimize import adam, descend
from popjax.recipe import Recipe, recorded
from popjax.replay import ring as rings


@struct.dataclass
class Metrics:
    """What a synchronous step shows.

    fitness:        float32 [P] return of the last finished episode of the agent's lanes, the mean;
                    [1] of SUNRISE, whose agents share them.
    episodes:       int32 []    finished episodes.
    gradient_steps: int32 []    of each agent, so far.
    losses:         [P] each    SAC's losses in the last update.
    bonus:          [P]         mean intrinsic reward of the last batch, before its weight.
    drive:          [] each     losses of the intrinsic reward's networks in the last update, or ().
    """

    fitness: Array
    episodes: Array
    gradient_steps: Array
    losses: PyTree
    bonus: Array
    drive: PyTree


@struct.dataclass
class State:
    """Everything that training carries; one replay whatever the population.

    skills, skill_returns: of DIAYN, int32 [P, N] and the latest return of each skill float32 [skills], -inf
                           of one that has not been played to an end; or ().
    classifier:            Q-classifier's parameters and Adam's moments, or ().
    """

    key: Key
    hyper: PyTree
    env_steps: Array  # int32 [] summed over lanes
    generation: Array  # int32 [] synchronous steps
    metrics: Metrics
    replay: rings.Ring
    drive: PyTree
    classifier: PyTree
    skill_returns: Any
    # One network for all (multihead) or one environment (SUNRISE) leads with 1.
    agents: PyTree = stacked()
    lanes: rollout.Lane = stacked()  # [P, N]
    returns: rollout.Returns = stacked()  # [P, N]
    skills: Any = stacked()


__all__ = ["METHOD", "Config", "Hyper", "Metrics", "State", "build"]


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Agents that explore ``env`` together."""
    obs_dim, action_dim = continuous_dims(env.spec, "ce")
    population, lanes, actors = config.population, config.lanes, config.actors
    stride, skilled = actors * lanes, config.drive == "diayn"
    seen = env.spec._replace(obs_shape=(obs_dim + (config.skills if skilled else 0),))  # what agents see
    learner = learners.build(seen, config.learner, config.sac, population)
    drive = _drive(obs_dim, config)
    classifier = nets.mlp(obs_dim, config.sac.hidden, population)
    classifies = config.evaluation == "q"
    lanes_env = rollout.autoreset(env)
    order = experience.Lanes(actors, lanes)
    choose = acting.actor(learner, config.unroll, config.candidates, population)
    replay = rings.ring(config.capacity // stride * stride)

    def init(key: Key, hyper: PyTree) -> State:
        hyper = as_arrays(hyper)
        check_shapes(hyper, config)
        key, key_agents, key_lanes, key_drive, key_classifier, key_skills = jax.random.split(key, 6)
        members = jnp.zeros(population, jnp.bool_) if config.learner == "sunrise" else ()
        start = partial(rollout.start, lanes_env, ())
        opinion = classifier.init(key_classifier) if classifies else ()
        moments = adam(0.0, jnp.inf).init(opinion) if classifies else ()
        shape = (actors, lanes)
        state = State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(jnp.zeros(actors), jnp.int32(0), jnp.int32(0), (), jnp.zeros(population), ()),
            replay=replay.init(Row(example_transition(seen), jnp.int32(0), members)),
            drive=drive.init(key_drive),
            classifier=(opinion, moments) if classifies else (),
            skill_returns=jnp.full(config.skills, -jnp.inf) if skilled else (),
            agents=learner.init(key_agents, hyper),
            lanes=jax.vmap(jax.vmap(start))(jax.random.split(key_lanes, shape)),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), lanes), actors),
            skills=jax.random.randint(key_skills, shape, 0, config.skills) if skilled else (),
        )
        losses = jax.eval_shape(lambda s: update_once(s, s.replay, key)[1], state)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses)
        return replace(state, metrics=replace(state.metrics, losses=blank[0], bonus=blank[1], drive=blank[2]))

    def view(obs: Array, skills: Any) -> Array:
        """What the agents see of obs [P, N, D]: with DIAYN, the lane's skill too."""
        return diayn.with_skill(obs, skills, config.skills) if skilled else obs

    def act(s: State) -> State:
        """Every agent takes a step in each of its lanes, uniformly at random during the warm-up."""
        key, key_uniform, key_act, key_members, key_skills = jax.random.split(s.key, 5)
        shape = (actors, lanes, action_dim)
        uniform = jax.random.uniform(key_uniform, shape, minval=-1.0, maxval=1.0)
        obs = view(s.lanes.obs, s.skills)
        # The warm-up ends for all seeds in the same step, so this stays one branch.
        action = jax.lax.cond(
            tree.any_lane(s.env_steps >= config.warmup),
            lambda: choose(s.agents, obs, uniform, s.hyper, key_act),
            lambda: uniform,
        )
        env_state, timestep = jax.vmap(jax.vmap(lanes_env.step))(s.lanes.env, action)
        seen_step = replace(timestep, next_obs=view(timestep.next_obs, s.skills))
        rows = transition(obs, action, seen_step, s.hyper.sac.discount)
        members = (
            _members(key_members, s.hyper.member_share, (actors, lanes, population))
            if config.learner == "sunrise"
            else ()
        )
        flat = tree.flatten(Row(rows, s.returns.episodes, members))
        returns = jax.vmap(jax.vmap(rollout.track))(
            s.returns, timestep.reward[..., None], timestep.done[..., None]
        )
        s = replace(
            s,
            key=key,
            env_steps=s.env_steps + stride,
            generation=s.generation + 1,
            replay=replay.add(s.replay, flat, jnp.ones(stride, jnp.bool_)),
            drive=drive.remember(s.drive, timestep.next_obs, timestep.done, s.generation + 1, s.hyper),
            lanes=rollout.Lane(env_state, timestep.obs, ()),
            returns=returns,
            metrics=replace(
                s.metrics, fitness=returns.latest.mean(1), episodes=returns.episodes.sum(dtype=jnp.int32)
            ),
        )
        return draw_skills(s, timestep.done, key_skills) if skilled else s

    def draw_skills(s: State, done: Array, key: Key) -> State:
        """A skill for every new episode: any of them, and after the pretraining the best."""
        known = pretrained(s)
        slot = jnp.where(done & ~known, s.skills, config.skills).ravel()
        skill_returns = s.skill_returns.at[slot].set(s.returns.latest.ravel(), mode="drop")
        drawn = jax.random.randint(key, s.skills.shape, 0, config.skills)
        new = jnp.where(known, jnp.argmax(skill_returns), drawn)
        return replace(s, skill_returns=skill_returns, skills=jnp.where(done, new, s.skills))

    def pretrained(s: State) -> Array:
        return s.env_steps >= config.pretraining

    def near(store: rings.Ring, key: Key) -> tuple[Array, Array, Array]:
        return experience.pairs(store, key, config.batch, order, config.contrastive.horizon)

    def learn_classifier(held: PyTree, store: rings.Ring, hyper: PyTree, key: Key) -> PyTree:
        slots = experience.slots_of(store, key, config.batch)
        states, owner = store.rows.transition.obs[slots, :obs_dim], order.owner(slots)
        returns, complete = experience.following(store, slots, order, config.q_horizon)

        def loss(params: Params) -> tuple[Array, None]:
            guess = jnp.take_along_axis(classifier.apply(params, states), owner[:, None], 1)[:, 0]
            return jnp.where(complete, (guess - returns) ** 2, 0.0).sum() / jnp.maximum(
                complete.sum(), 1
            ), None

        params, moments = held
        params, moments, _, _ = descend(adam(hyper.classifier_lr, jnp.inf), loss, params, moments)
        return params, moments

    def update_once(s: State, store: rings.Ring, key: Key) -> tuple[State, tuple[PyTree, Array, PyTree]]:
        """One gradient step of every agent on a common batch, relabelled for each; then of the drive."""
        key_batch, key_learn, key_drive, key_classifier = jax.random.split(key, 4)
        batch = experience.batch(store, key_batch, config.batch, order, config.learner == "dice")
        task = batch.transition.reward
        bonus = drive.reward(s.drive, batch, s.hyper)  # [P, B]
        rewards = task + s.hyper.intrinsic_weight[..., None] * bonus
        if skilled:
            rewards = jnp.where(pretrained(s), task, bonus)
        agents, losses = learner.learn(s.agents, batch, rewards, s.hyper, key_learn)
        drive_state, drive_losses = drive.learn(s.drive, batch, partial(near, store), s.hyper, key_drive)
        held = learn_classifier(s.classifier, store, s.hyper, key_classifier) if classifies else ()
        return replace(s, agents=agents, drive=drive_state, classifier=held), (
            losses,
            bonus.mean(1),
            drive_losses,
        )

    def learn(s: State) -> State:
        """The updates that the step owes, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        store = s.replay  # read by every update, carried by none

        def update(carry: Any, key: Key) -> tuple[Any, Any]:
            agents, drive_state, held = carry
            after, losses = update_once(
                replace(s, agents=agents, drive=drive_state, classifier=held), store, key
            )
            return (after.agents, after.drive, after.classifier), losses

        def owed() -> Any:
            keys = jax.random.split(key_learn, config.updates)
            carry, losses = jax.lax.scan(update, (s.agents, s.drive, s.classifier), keys)
            return carry, tree.take(losses, -1), s.metrics.gradient_steps + config.updates

        (agents, drive_state, held), losses, steps = jax.lax.cond(
            tree.any_lane(s.env_steps >= config.warmup),
            owed,
            lambda: (
                (s.agents, s.drive, s.classifier),
                (s.metrics.losses, s.metrics.bonus, s.metrics.drive),
                s.metrics.gradient_steps,
            ),
        )
        losses, bonus, drive_losses = losses
        metrics = replace(s.metrics, losses=losses, bonus=bonus, drive=drive_losses, gradient_steps=steps)
        return replace(s, key=key, agents=agents, drive=drive_state, classifier=held, metrics=metrics)

    def alone(s: State, index: Array | int) -> Params:
        """One agent, and the skill that it shows."""
        index = jnp.asarray(index, jnp.int32)
        return learner.deploy(s.agents, index), index, jnp.argmax(s.skill_returns) if skilled else ()

    def individuals(s: State) -> Params:
        return jax.vmap(partial(alone, s))(jnp.arange(population))

    def policy(s: State) -> Params:
        """One agent, or all with what chooses among them."""
        if config.evaluation is None:
            return alone(s, config.eval_agent)
        numbers = (s.hyper.eval_softmax_inv_temp, s.hyper.eval_softmax_eps)
        return s.agents, s.classifier[0] if classifies else (), numbers

    def act_greedily(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        memory, action = greedy(params, memory, obs, key)
        return Choice(memory, action, action, jnp.float32(0))

    def greedy(params: Params, memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
        if config.evaluation is None:
            params, index, best = params
            return memory, learner.greedy(params, index, view(obs, best))
        agents, opinion, (inverse, explore) = params
        actions = jnp.tanh(learner.policies(agents, obs)[0])  # [P, A]
        if config.evaluation == "mean":
            return memory, actions.mean(0)
        if classifies:
            chosen, clock = memory
            chosen = jnp.where(
                clock % config.q_horizon == 0, jnp.argmax(classifier.apply(opinion, obs)), chosen
            )
            return (chosen, clock + 1), actions[chosen]
        return memory, actions[
            acting.boltzmann(key, acting.greedy_values(learner, agents, obs), inverse, explore)
        ]

    return Method(
        init=init,
        step=chain(act, learn),
        policy=policy,
        act=act_greedily,
        hyper=Hyper(),
        steps_bound=stride,
        memory=(jnp.int32(0), jnp.int32(0)) if classifies else (),
        individuals=individuals if config.evaluation is None else None,
    )


def _drive(obs_dim: int, config: Config) -> drives.Drive:
    match config.drive:
        case None:
            return drives.none(config.population)
        case "collab":
            return drives.collab(obs_dim, config.contrastive, config.population, config.encoder_steps)
        case "diayn":
            return drives.skills(obs_dim, config.skills, config.diayn, config.population)
        case kind:
            return drives.distillation(obs_dim, kind, config.rnd, config.population, config.lanes)


def _members(key: Key, share: Array | float, shape: tuple[int, ...]) -> Array:
    """bool [..., P], at least one of each row; a row that chance left empty gets one at random."""
    key_drawn, key_one = jax.random.split(key)
    drawn = jax.random.bernoulli(key_drawn, share, shape)
    one = jax.nn.one_hot(jax.random.randint(key_one, shape[:-1], 0, shape[-1]), shape[-1], dtype=jnp.bool_)
    return jnp.where(drawn.any(-1, keepdims=True), drawn, one)


METHOD = Recipe(build, Config, lambda config: Hyper())
