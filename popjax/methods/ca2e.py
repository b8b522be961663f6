"""Compound Asynchronous Exploration and Exploitation: one DQN or DDPG learner with prioritized replay, fed by
actors that explore and by actors that play the policies of finished runs until the learner surpasses them.
Bai, Liu, Wang, Zhang & Li, 2020.

Actors that explore are called nature actors, the others prior actors. Details that the paper leaves open are
taken from Ape-X (Horgan et al., ICLR 2018) and Plappert et al. (ICLR 2018).

A step is one environment step in every actor's lanes and the gradient steps due for it: act -> refresh ->
flush -> learn -> retire. Two effects of asynchrony remain: actors use a copy of the learner's policy that is
up to ``sync_every`` steps old, and transitions get their priorities only when local buffers are flushed.
With prior policies and ``return_source`` "greedy" the environment stands in the program twice, once for the
episodes that are compared with them.

Differs from the paper:

- The actors step together, so they copy the policy at the same time and share one copy.
- Importance weights multiply the losses of DQN and of DDPG's critic, as in Ape-X; the paper prints none.
- Critics have a linear output; the softmax that the paper names cannot represent values.
- Constants that the paper does not state are options of ``Config`` or hyperparameters of ``Hyper``.
- The replay drops its oldest rows when it adds new ones; Ape-X trims it periodically.
- Rewards are clipped to [-1, 1] only with ``clip_rewards``, which the preset for Atari sets.
- DDPG's critic loss and penalty lack a factor of 1/2, which makes no difference under Adam.
- The environment steps of greedy episodes are not counted.
- The learner surpasses a prior policy of mean return r once it returns ``r + (factor - 1) |r|``; the paper's
  ``factor * r`` would be less than r if r is negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, rollout, tree
from popjax.agents import ddpg, dqn
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Params,
    PyTree,
    Timestep,
    Weighted,
    as_arrays,
    chain,
    stacked,
)
from popjax.methods.ca2e_config import Config, Hyper, Metrics, default_config, default_hyper, preset, scales
from popjax.methods.ca2e_priors import (
    PRIOR,
    Prior,
    Retirement,
    acting,
    after_check,
    check,
    initial_retirement,
    measure,
    remarks,
)
from popjax.population import imitation, lanes, learning, policy, scoring
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import frames, ring
from popjax.replay.local import Local, contents, emptied, empty, remember
from popjax.replay.prioritized import Prioritized, importance_weights, prioritized, without_oldest

__all__ = ["METHOD", "Config", "Hyper", "Metrics", "Prior", "State", "build", "measure", "remarks"]

Held: TypeAlias = tuple[PyTree, Prioritized]  # what a gradient step changes: the learner and priorities


@struct.dataclass
class State:
    """Everything that training carries. Nature actors come first among the P actors."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] summed over actors and lanes
    generation: Array  # int32 [] environment steps of each lane
    metrics: Metrics
    learner: PyTree
    copy: Params  # the actors' copy of the learner's policy
    copy_age: Array  # int32 [] environment steps of an actor since the copy was made
    replay: Prioritized
    frames: frames.Frames | None  # None unless observations are stacks of frames
    recent: ring.Ring  # returns of nature actors' finished episodes
    retirement: Retirement
    prior_params: tuple[Params, ...]
    prior_memories: tuple[PyTree, ...]  # memories of each prior policy, [prior actors, N]
    guided: Array = stacked()  # bool [P, N] whether a prior policy plays the episode under way
    lanes: Lanes = stacked()  # [P, N]
    locals: Local = stacked()  # [P, N]


@recorded
def build(env: Env, config: Config | None = None, priors: Sequence[Prior] = ()) -> Method:
    """Return a learner of the kind ``config.agent`` with its actors; without ``config``, the learner is DQN
    if actions are discrete, else DDPG.

    ``priors``, from ``measure``, are assigned to the prior actors in turn. Without priors, these actors are
    retired from the start: that is Ape-X with the paper's learner.
    """
    if config is None:
        config = default_config(dqn.Config() if env.spec.discrete else ddpg.BASELINES)
    check(env, config, priors)
    agent: Any = agents.build(env.spec, config.agent)
    policies = [prior.policy for prior in priors]
    lanes_env = rollout.autoreset(env)
    store = prioritized(config.capacity)
    recent = ring.ring(config.return_window)
    nature, shape = config.nature_actors, (config.actors, config.lanes)
    per_step = config.actors * config.lanes  # environment steps
    sight = frames.sight(env.spec, config.capacity, per_step, config.local_buffer + config.n_step)

    def in_lanes(x: Any, actors: int) -> Any:
        return tree.repeat(tree.repeat(x, config.lanes), actors)

    first_memories = in_lanes(tuple(each.memory for each in policies), config.prior_actors)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key = imitation.own_key(key, policies)
        key, key_learner, key_lanes = jax.random.split(key, 3)
        learner, start = agent.init(key_learner, hyper.agent), lanes.start(lanes_env, key_lanes, shape)
        replay = store.init(sight.example, hyper.priority_exponent)
        seen, retirement = sight.start(tree.flatten(start.obs)), initial_retirement(config, priors)
        losses = learning.no_losses(update, (learner, replay), seen, hyper, key, jnp.bool_(True))
        zero, none, actors = jnp.float32(0), jnp.int32(0), jnp.zeros(config.actors)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=none,
            metrics=Metrics(
                fitness=actors,
                episodes=actors.astype(jnp.int32),
                average_return=zero,
                compared=zero,
                losses=losses,
                gradient_steps=none,
                exploration=actors,
                retired_at=retirement.retired_at,
                baseline=retirement.baseline,
                stored=none,
            ),
            learner=learner,
            copy=agent.policy(learner),
            copy_age=none,
            replay=replay,
            frames=seen,
            recent=recent.init(zero),
            retirement=retirement,
            prior_params=tuple(each.params for each in policies),
            prior_memories=first_memories,
            guided=jnp.broadcast_to(guides(retirement)[:, None], shape),
            lanes=start,
            locals=in_lanes(empty(sight.example, config.n_step, config.local_buffer), config.actors),
        )

    def guides(state: Retirement) -> Array:
        """Return bool [P]: whether a prior policy plays an actor's next episode."""
        return jnp.pad(state.active, (nature, 0))

    def choose(s: State, scale: Array, key: Key) -> tuple[Choice, PyTree]:
        """Return the actions of all lanes [P, N, ...] and the prior policies' memories after them."""
        key_nature, key_prior = jax.random.split(key)
        everyone = policy.everyone(agent.act, s.copy, scale, shared=True)
        choice = everyone((), s.lanes.obs, key_nature)
        if not priors:
            return choice, s.prior_memories
        act, _ = acting(env, policies, s.prior_params)
        prior_actors = policy.everyone(act, jnp.arange(config.prior_actors) % len(priors), 0.0)
        guide = prior_actors(s.prior_memories, s.lanes.obs[nature:], key_prior)
        played = tree.where(s.guided[nature:], guide.action, choice.action[nature:])
        return choice._replace(action=choice.action.at[nature:].set(played)), guide.memory

    def act(s: State) -> State:
        """Play one step in every actor's lanes; completed transitions join the local buffers."""
        key, key_act = jax.random.split(s.key)
        scale = scales(agent, config, s.hyper, s.env_steps / 1)
        choice, memories = choose(s, scale, key_act)
        played, timestep = lanes.step(lanes_env, s.lanes, choice)
        done, total = timestep.done, s.lanes.account.running + timestep.reward  # [P, N]
        seen, obs, next_obs = see(s, played, timestep)
        learned = replace(timestep, next_obs=next_obs)
        if config.clip_rewards:
            learned = replace(learned, reward=jnp.clip(timestep.reward, -1.0, 1.0))
        into_local = jax.vmap(jax.vmap(partial(remember, discount=s.hyper.agent.discount)))
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + per_step,
            generation=s.generation + 1,
            copy_age=s.copy_age + 1,
            lanes=played,
            locals=into_local(s.locals, obs, choice.action, learned),
            frames=seen,
            recent=recent.add(s.recent, total.reshape(-1), (done & ~s.guided).reshape(-1)),
            prior_memories=tree.where(done[nature:], first_memories, memories),
            guided=jnp.where(done, guides(s.retirement)[:, None], s.guided),
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes, exploration=scale),
        )

    def see(s: State, played: Lanes, timestep: Timestep) -> tuple[PyTree, Array, Array]:
        """Return the frames after a step, and its observations and successors [P, N, ...] as rows store
        them."""
        views = s.lanes.obs, timestep.next_obs, played.obs, timestep.anew
        obs, next_obs, after, anew = tree.flatten(views)
        seen, *kept = sight.see(s.frames, obs[None], next_obs[None], after, anew[None])
        obs, next_obs = (x.reshape(*shape, *x.shape[2:]) for x in kept)
        return seen, obs, next_obs

    def refresh(s: State) -> State:
        """Copy the learner's policy to the actors if their copy is ``sync_every`` steps old."""
        due = s.copy_age >= config.sync_every
        copy, _ = learning.once(lambda _: (agent.policy(s.learner), ()), s.copy, due, ())
        return replace(s, copy=copy, copy_age=jnp.where(due, 0, s.copy_age))

    def flush(s: State) -> State:
        """Move full local buffers to the replay, one after the other, and give them initial priorities; drop
        rows that have lost a frame."""
        locals_, order, full = emptied(s.locals, config.local_buffer)

        def one(loop: tuple[Array, PyTree, Prioritized]) -> tuple[Array, PyTree, Prioritized]:
            done, learner, replay = loop
            rows, valid = contents(s.locals, order[done], done < full)
            looked = frames.looked(sight, s.frames, rows)
            learner = agent.observe(learner, looked.obs, valid)
            error = agent.td_error(learner, looked)
            replay = store.add(replay, rows, valid, jnp.abs(error) + s.hyper.priority_offset)
            return done + 1, learner, replay

        loop = (jnp.int32(0), s.learner, s.replay)
        _, learner, replay = jax.lax.while_loop(lambda loop: tree.any_lane(loop[0] < full), one, loop)
        if sight.lost is not None:
            replay = without_oldest(replay, sight.lost(s.frames, replay.ring))
        metrics = replace(s.metrics, stored=replay.size)
        return replace(s, learner=learner, replay=replay, locals=locals_, metrics=metrics)

    @learning.traced_once
    def update(held: Held, seen: PyTree, hyper: Hyper, key: Key, own: Array) -> tuple[Held, PyTree]:
        """Take one gradient step on transitions drawn by priority, and set their new priorities from the
        errors before the step. Schaul et al., ICLR 2016, algorithm 1, lines 9 to 14.

        If ``own`` is false, nothing is learned. The priorities are written in place, so a loop that some
        members leave early must not select between two replays.
        """
        learner, replay = held
        key_sample, key_learn = jax.random.split(key)
        kept, draw = store.sample(replay, key_sample, config.batch)
        rows = frames.looked(sight, seen, kept)
        weight = importance_weights(draw.probability, replay.size, hyper.importance_exponent)
        priority = jnp.abs(agent.td_error(learner, rows)) + hyper.priority_offset
        after, losses = agent.learn(learner, Weighted(**vars(rows), weight=weight), hyper.agent, key_learn)
        replay = store.update(replay, jnp.where(own, draw.slots, -1), priority)
        return (tree.where(own, after, learner), replay), losses

    def passed(env_steps: counting.Count, period: int) -> Array:
        """Return whether the actors' last step reached a multiple of ``period`` environment steps."""
        return env_steps % period < per_step

    def owed(env_steps: counting.Count) -> counting.Count:
        """Return how many gradient steps are due in all after ``env_steps`` of all actors."""
        steps = (env_steps - config.learning_starts) // config.env_steps_per_update
        return tree.where(env_steps >= config.learning_starts, steps, counting.none())

    def learn(s: State) -> State:
        """Take the gradient steps due for this step of the actors."""
        key, key_learn = jax.random.split(s.key)
        due = (owed(s.env_steps) - owed(s.env_steps - per_step)).low.astype(jnp.int32)

        def one(i: Array, carry: tuple[PyTree, Array, PyTree]) -> tuple[PyTree, Array, PyTree]:
            learner, nodes, before = carry
            own = tree.in_company(i < due)  # fewer may be due for a member that joined the sweep later
            held = learner, replace(s.replay, nodes=nodes)
            (learner, replay), told = update(held, s.frames, s.hyper, jax.random.fold_in(key_learn, i), own)
            return learner, replay.nodes, tree.where(own, told, before)

        start = s.learner, s.replay.nodes, s.metrics.losses
        learner, nodes, losses = jax.lax.fori_loop(0, tree.largest(due), one, start)
        if isinstance(config.agent, dqn.Config):
            copy = passed(s.env_steps, config.target_every)
            learner = tree.where(copy, agent.adopt(learner, agent.policy(learner)), learner)
        metrics = replace(s.metrics, losses=losses, gradient_steps=due)
        replay = replace(s.replay, nodes=nodes)
        return replace(s, key=key, learner=learner, replay=replay, metrics=metrics)

    def retire(s: State) -> State:
        """Compare the learner with the prior policies, and retire those that it has surpassed often
        enough."""
        key, key_play = jax.random.split(s.key)
        average = scoring.recent(s.recent)
        known = s.recent.size >= config.return_window
        metrics = replace(s.metrics, average_return=average)
        if not priors:
            return replace(s, key=key, metrics=metrics)
        due = passed(s.env_steps, config.check_every) & s.retirement.active.any()
        if config.return_source == "greedy":
            learned = jax.tree.map(lambda x: x[None], agent.policy(s.learner))
            play = partial(scoring.returns, env, agent.act, learned, (), key_play)
            average = scoring.when(due, lambda: play(10).mean())
            known = jnp.bool_(True)
        retirement = after_check(s.retirement, config, s.hyper, average, known, due, s.env_steps)
        last = jnp.where(due & known, average, metrics.compared)
        metrics = replace(metrics, retired_at=retirement.retired_at, compared=last)
        return replace(s, key=key, retirement=retirement, metrics=metrics)

    return Method(
        init=init,
        step=chain(act, refresh, flush, learn, retire),
        policy=lambda s: agent.policy(s.learner),
        act=agent.act,
        hyper=default_hyper(config),
        steps_bound=per_step,
        learning_starts=config.learning_starts,
        exploration=lambda s: agent.exploration(s.hyper.agent, s.env_steps / 1),
    )


METHOD = Recipe(
    build,
    default_config,
    default_hyper,
    agents={"agent": {"dqn": dqn.Config(), "ddpg": ddpg.BASELINES}},
    kinds=lambda spec: {"agent": "dqn" if spec.discrete else "ddpg"},
    runs={"prior": PRIOR},
    preset=preset,
    remarks=remarks,
)
