"""Compound Asynchronous Exploration and Exploitation: prior and nature actors around one prioritized learner.

Bai, Liu, Wang, Zhang & Li, 2020; what the paper leaves open is taken from Ape-X (Horgan et al., ICLR 2018)
and Plappert et al. (ICLR 2018).

A step is one environment step of every actor and the gradient steps that it owes:
act -> refresh -> flush -> learn -> retire. Asynchrony is what the copies of the learner's policy, as old as
``sync_every`` steps, and the local buffers, whose priorities are computed when they are flushed, make of it.

Differs from the paper: the actors step together, so that they copy the policy together and one copy serves
all; a critic that ends in a softmax is impossible and has a linear output; what it prints no constant for is
an option of ``Config`` or a number of ``Hyper``. A replay drops its oldest rows when it adds new ones, where
Ape-X trims it now and then. Rewards are learned from as they are unless ``clip_rewards``, since tasks on the
device stand in for Atari. DDPG's critic loss, penalty included, is twice the specification's, which Adam does
not see. The environment steps of greedy episodes are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, rollout, tree
from popjax.agents import ddpg, dqn
from popjax.core import (
    Env,
    Ingredient,
    Key,
    Method,
    Params,
    PyTree,
    Weighted,
    as_arrays,
    chain,
    example_transition,
    stacked,
)
from popjax.methods.ca2e.actors import check_learner, first_memories, guide, scales
from popjax.methods.ca2e.config import Config, Hyper, default_config, default_hyper
from popjax.methods.ca2e.experience import Local, contents, emptied, empty, remember
from popjax.methods.ca2e.priors import (
    Prior,
    Retirement,
    check_fits,
    compare,
    initial_retirement,
    measure,
    remarks,
    threshold,
)
from popjax.recipe import Recipe, recorded
from popjax.replay import ring
from popjax.replay.prioritized import importance_weights, largest_weight, prioritized

__all__ = [
    "METHOD",
    "Config",
    "Hyper",
    "Metrics",
    "Prior",
    "State",
    "build",
    "default_config",
    "default_hyper",
    "measure",
    "remarks",
]


@struct.dataclass
class Metrics:
    """What a step shows.

    fitness:        float32 [P] return of each actor's last finished episode, mean over lanes.
    episodes:       int32 [P]   finished episodes.
    average_return: float32 []  of the last ``return_window`` episodes of nature actors, 0 before the first.
    compared:       float32 []  what was compared with the prior policies last, 0 before that.
    losses:         [] each     the learner's in the last gradient step, 0 before the first.
    updates:        int32 []    gradient steps.
    exploration:    float32 [P] scale of each actor's exploration; that of prior actors is for later.
    retired_at:     int32 [prior] environment steps when a prior actor retired, -1 while it has not.
    baseline:       float32 [prior] mean return of its policy.
    stored:         int32 []    transitions in the replay.
    """

    fitness: Array
    episodes: Array
    average_return: Array
    compared: Array
    losses: PyTree
    updates: Array
    exploration: Array
    retired_at: Array
    baseline: Array
    stored: Array


@struct.dataclass
class State:
    """Everything that training carries. Of the P actors the nature actors come first."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] summed over actors and lanes
    generation: Array  # int32 [] environment steps of each lane
    metrics: Metrics
    learner: PyTree
    copy: Params  # the learner's policy as the actors have it
    copy_age: Array  # int32 [] environment steps of an actor since it was made
    replay: PyTree
    recent: ring.Ring  # returns of nature actors' finished episodes
    retirement: Retirement
    prior_params: tuple[Params, ...]
    prior_memories: PyTree  # of each prior policy, [prior, N]
    guided: Array = stacked()  # bool [P, N] a prior policy plays the episode under way
    lanes: rollout.Lane = stacked()  # [P, N]
    locals: Local = stacked()  # [P, N]
    returns: rollout.Returns = stacked()  # [P, N]


@recorded
def build(env: Env, config: Config | None = None, priors: Sequence[Prior] = ()) -> Method:
    """A learner of the kind ``config.agent``, by default the one that fits ``env``, and its actors.

    ``priors``, from ``measure``, are dealt to the prior actors in turn. Without any, prior actors are retired
    from the initial_retirement, which is Ape-X with the paper's learner.
    """
    config = config or default_config(dqn.Config() if env.spec.discrete else ddpg.BASELINES)
    check_learner(config)
    agent: Any = agents.build(env.spec, config.agent)
    if len(priors) > config.prior_actors:
        raise ValueError(
            f"{len(priors)} prior policies for {config.prior_actors} prior actors; raise prior_actors to"
            f" {len(priors)}"
        )
    for prior in priors:
        check_fits(env, prior.policy)
    lanes_env = rollout.autoreset(env)
    store = prioritized(config.capacity, stratified=config.stratified)
    recent = ring.ring(config.return_window)
    shape = (config.actors, config.lanes)
    per_step = config.actors * config.lanes  # environment steps

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_learner, key_lanes = jax.random.split(key, 3)
        learner = agent.init(key_learner, hyper.agent)
        example = example_transition(env.spec)
        replay = store.init(example, hyper.priority_exponent)
        retirement = initial_retirement(config, priors)
        losses = jax.eval_shape(update, learner, replay, hyper, key)[2]
        return State(
            key=key,
            hyper=hyper,
            env_steps=jnp.int32(0),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(config.actors),
                episodes=jnp.zeros(config.actors, jnp.int32),
                average_return=jnp.float32(0),
                compared=jnp.float32(0),
                losses=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses),
                updates=jnp.int32(0),
                exploration=jnp.zeros(config.actors),
                retired_at=retirement.retired_at,
                baseline=retirement.baseline,
                stored=jnp.int32(0),
            ),
            learner=learner,
            copy=agent.policy(learner),
            copy_age=jnp.int32(0),
            replay=replay,
            recent=recent.init(jnp.float32(0)),
            retirement=retirement,
            prior_params=tuple(prior.policy.params for prior in priors),
            prior_memories=first_memories(priors, config),
            guided=jnp.broadcast_to(_by_actor(retirement.active)[:, None], shape),
            lanes=jax.vmap(jax.vmap(partial(rollout.start, lanes_env, ())))(
                jax.random.split(key_lanes, shape)
            ),
            locals=tree.repeat(tree.repeat(empty(example, config), config.lanes), config.actors),
            returns=tree.repeat(tree.repeat(rollout.no_returns(), config.lanes), config.actors),
        )

    def _by_actor(of_priors: Array) -> Array:
        """[P] from [prior], False for nature actors."""
        return jnp.concatenate([jnp.zeros(config.nature_actors, of_priors.dtype), of_priors])

    def choose(s: State, key: Key) -> tuple[Array, PyTree]:
        """The actions of all lanes [P, N, ...], and what the prior policies remember then."""
        key_nature, key_prior = jax.random.split(key)
        scale = scales(agent, config, s.hyper, s.env_steps)
        over_lanes = jax.vmap(agent.act, (None, None, 0, 0, None))
        over_actors = jax.vmap(over_lanes, (None, None, 0, 0, 0))
        actions = over_actors(s.copy, (), s.lanes.obs, jax.random.split(key_nature, shape), scale).action
        if not priors:
            return actions, s.prior_memories
        obs, guided = s.lanes.obs[config.nature_actors :], s.guided[config.nature_actors :]
        memories, played = guide(env, priors, s.prior_params, s.prior_memories, obs, key_prior)
        played = tree.where(guided, played, actions[config.nature_actors :])
        return actions.at[config.nature_actors :].set(played), memories

    def act(s: State) -> State:
        """Every actor plays one step in its lanes, and what is complete joins the local buffers."""
        key, key_act = jax.random.split(s.key)
        actions, memories = choose(s, key_act)
        env_states, timestep = jax.vmap(jax.vmap(lanes_env.step))(s.lanes.env, actions)
        into_local = partial(remember, discount=s.hyper.agent.discount, clip_rewards=config.clip_rewards)
        done, total = timestep.done, s.returns.running + timestep.reward  # [P, N]
        track = jax.vmap(jax.vmap(lambda r, reward, done: rollout.track(r, reward[None], done[None])))
        returns = track(s.returns, timestep.reward, done)
        own = done & ~s.guided  # the end of an episode of a nature actor
        fresh = first_memories(priors, config)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + per_step,
            generation=s.generation + 1,
            copy_age=s.copy_age + 1,
            lanes=rollout.Lane(env_states, timestep.obs, ()),
            locals=jax.vmap(jax.vmap(into_local))(s.locals, s.lanes.obs, actions, timestep),
            returns=returns,
            recent=recent.add(s.recent, total.reshape(-1), own.reshape(-1)),
            prior_memories=tree.where(done[config.nature_actors :], fresh, memories),
            guided=jnp.where(done, _by_actor(s.retirement.active)[:, None], s.guided),
            metrics=replace(
                s.metrics,
                fitness=returns.latest.mean(1),
                episodes=returns.episodes.sum(1),
                exploration=scales(agent, config, s.hyper, s.env_steps),
            ),
        )

    def refresh(s: State) -> State:
        """The actors copy the learner's policy when theirs is ``sync_every`` steps old."""
        due = s.copy_age >= config.sync_every
        # All seeds copy in the same step, so this stays one branch.
        copy = jax.lax.cond(tree.any_lane(due), lambda: agent.policy(s.learner), lambda: s.copy)
        return replace(s, copy=copy, copy_age=jnp.where(due, 0, s.copy_age))

    def flush(s: State) -> State:
        """Full local buffers get their first priorities and go to the replay, one after the other."""
        locals_, order, full = emptied(s.locals, config)

        def one(loop: Any) -> Any:
            done, learner, replay = loop
            rows, valid = contents(s.locals, order[done], done < full)
            learner = agent.observe(learner, rows.obs, valid)
            error = agent.td_error(learner, rows, online=config.initial_target == "online")
            replay = store.add(replay, rows, valid, jnp.abs(error) + s.hyper.priority_offset)
            return done + 1, learner, replay

        loop = (jnp.int32(0), s.learner, s.replay)
        _, learner, replay = jax.lax.while_loop(lambda loop: tree.any_lane(loop[0] < full), one, loop)
        metrics = replace(s.metrics, stored=replay.size)
        return replace(s, learner=learner, replay=replay, locals=locals_, metrics=metrics)

    def update(learner: PyTree, replay: PyTree, hyper: Hyper, key: Key) -> tuple[PyTree, PyTree, PyTree]:
        """One gradient step, and the new priorities of what it learned from: learner, replay, losses."""
        key_sample, key_learn = jax.random.split(key)
        rows, draw = store.sample(replay, key_sample, config.batch)
        exponent = hyper.importance_exponent
        largest = largest_weight(replay, exponent) if config.largest_weight == "buffer" else None
        weight = importance_weights(draw.probability, replay.size, exponent, largest)
        error = agent.td_error(learner, rows)
        rows = Weighted(**vars(rows), weight=weight)
        learner, losses = agent.learn(learner, rows, hyper.agent, key_learn)
        return learner, store.update(replay, draw.slots, jnp.abs(error) + hyper.priority_offset), losses

    def passed(env_steps: Array, period: int) -> Array:
        """Whether the actors' last step reached or passed a multiple of ``period`` environment steps."""
        return env_steps // period > (env_steps - per_step) // period

    def owed(env_steps: Array) -> Array:
        """Gradient steps that belong to the first ``env_steps`` of all actors."""
        return jnp.maximum(env_steps - config.learning_starts, 0) // config.env_steps_per_update

    def learn(s: State) -> State:
        """The learner takes the gradient steps that this step of the actors owes."""
        key, key_learn = jax.random.split(s.key)
        due = owed(s.env_steps) - owed(s.env_steps - per_step)  # the same for all seeds

        def one(loop: Any) -> Any:
            done, learner, replay, _ = loop
            learner, replay, losses = update(learner, replay, s.hyper, jax.random.fold_in(key_learn, done))
            return done + 1, learner, replay, losses

        loop = (jnp.int32(0), s.learner, s.replay, s.metrics.losses)
        _, learner, replay, losses = jax.lax.while_loop(lambda loop: tree.any_lane(loop[0] < due), one, loop)
        if isinstance(config.agent, dqn.Config):
            copy = passed(s.env_steps, config.target_every)
            learner = replace(learner, target=tree.where(copy, learner.online, learner.target))
        metrics = replace(s.metrics, losses=losses, updates=s.metrics.updates + due)
        return replace(s, key=key, learner=learner, replay=replay, metrics=metrics)

    def greedy_return(learner: PyTree, key: Key) -> Array:
        """Mean return of the learner's policy without exploration."""

        def play(carry: tuple[()], obs: Array, key: Key) -> tuple[tuple[()], Array]:
            return agent.act(agent.policy(learner), carry, obs, key, 0.0)[:2]

        one = partial(rollout.episode, env, play, (), record=lambda *_: ())
        return jax.vmap(lambda k: one(k).total)(jax.random.split(key, config.greedy_episodes)).mean()

    def retire(s: State) -> State:
        """Now and then the learner is compared with the prior policies; who is surpassed again and again
        gives way."""
        key, key_play = jax.random.split(s.key)
        average, known = (
            s.recent.rows.sum() / jnp.maximum(s.recent.size, 1),
            s.recent.size >= config.return_window,
        )
        metrics = replace(s.metrics, average_return=average)
        if not priors:
            return replace(s, key=key, metrics=metrics)
        due = passed(s.env_steps, config.check_every)
        if config.return_source == "greedy":
            here = tree.any_lane(due)
            average = jax.lax.cond(here, lambda: greedy_return(s.learner, key_play), lambda: jnp.float32(0))
            known = jnp.bool_(True)
        bar = threshold(s.retirement.baseline, s.hyper.replacement_factor, config.rule)
        compared = compare(s.retirement, known & (average >= bar), s.env_steps, config.checks)
        retirement = tree.where(due, compared, s.retirement)
        if config.prior_until:
            over = retirement.active & (s.env_steps >= config.prior_until)
            retired_at = jnp.where(over, s.env_steps, retirement.retired_at)
            retirement = replace(retirement, retired_at=retired_at)
        last = jnp.where(due, average, metrics.compared)
        metrics = replace(metrics, retired_at=retirement.retired_at, compared=last)
        return replace(s, key=key, retirement=retirement, metrics=metrics)

    return Method(
        init=init,
        step=chain(act, refresh, flush, learn, retire),
        policy=lambda s: agent.policy(s.learner),
        act=agent.act,
        hyper=default_hyper(config),
        steps_bound=per_step,
    )


METHOD = Recipe(
    build,
    default_config,
    default_hyper,
    agents={"agent": {"dqn": dqn.Config(), "ddpg": ddpg.BASELINES}},
    kinds=lambda spec: {"agent": "dqn" if spec.discrete else "ddpg"},
    runs={
        "prior": Ingredient(
            "priors",
            lambda env, policies: measure(env, policies, jax.random.key(0)),
            Prior,
            "Policy of a finished run on the same task, RUN_DIR or RUN_DIR:SEED, for a prior actor.",
        )
    },
    remarks=remarks,
)
