"""SUNRISE. Lee, Laskin, Srinivas & Abbeel, ICML 2021, "A Simple Unified Framework for Ensemble Learning".

An ensemble of SAC agents plays one environment, by the proposal that all critics together find most
promising. Every transition is for some of its members only, and counts less where the members' targets
disagree.

An iteration: act -> learn x updates. Evaluation takes the mean of the members' deterministic actions.

Differs from the paper: the twins and losses are those of Collaborative Exploration's SAC, which it is
compared with, and there are 4 members. A member without a transition in a batch stands still.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, distributions, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least, check_shapes
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    Transition,
    as_arrays,
    chain,
    example_transition,
    number,
    stacked,
)
from popjax.optimize import adam, descend
from popjax.population import acting, lanes, learners, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the ensemble, its experience and its updates."""

    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics
    population: int = 4  # members
    lanes: int = 1  # environments, which all members play together
    updates_per_step: float = 1.0  # gradient steps of each member per environment step
    batch: int = 256  # transitions per gradient step, common to all members
    capacity: int = 1_000_000  # transitions that the replay holds
    warmup: int = 10_000  # environment steps that are uniformly random and before any update

    def __post_init__(self) -> None:
        check_least(self, 1, "population", "lanes", "batch", "capacity")
        check_least(self, 0, "warmup")
        learning.whole_updates(self.updates_per_step, self.lanes)
        if self.batch > self.capacity:
            raise ValueError(f"batch {self.batch} exceeds the replay's capacity {self.capacity}; raise it")


@struct.dataclass
class Hyper:
    """Numbers of the method."""

    sac: sac.Hyper = field(default_factory=sac.Hyper)
    ucb_weight: Number = number(1.0)  # standard deviations that a proposal's score adds to the mean
    member_share: Number = number(0.5, high=1.0)  # probability that a member learns from a transition
    trust_temperature: Number = number(20.0)  # T in the weight of a target


@struct.dataclass
class Masked(Transition):
    """Transitions that count in the losses of some members.

    members: bool [..., P]  whose.
    """

    members: Array


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:  float32 [P] return of the last episode, mean over lanes; members play them together.
    episodes: int32 []    finished episodes.
    losses:   [P] each    SAC's losses in the last update.
    """

    fitness: Array
    episodes: Array
    losses: sac.Losses


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] summed over lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    lanes: Lanes  # [1, N]
    agents: sac.State = stacked()


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return an ensemble that plays ``env``."""
    population, updates = config.population, learning.whole_updates(config.updates_per_step, config.lanes)
    lanes_env, parts = rollout.autoreset(env), sac.parts(env.spec, config.sac)
    agent, ensemble = parts.agent, learners.apart(parts.agent, population)
    replay = ring(config.capacity)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        check_shapes(hyper, (), population)
        key, key_agents, key_lanes = jax.random.split(key, 3)
        states = ensemble.init(key_agents, hyper.sac)
        row = Masked(**vars(example_transition(env.spec)), members=jnp.zeros(population, jnp.bool_))
        batch = tree.repeat(row, config.batch)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.int32(0),
                losses=learning.no_losses(learn_all, states, batch, hyper, key),
            ),
            replay=replay.init(row),
            lanes=lanes.start(lanes_env, key_lanes, (1, config.lanes)),
            agents=states,
        )

    def act(s: State) -> State:
        """Play the most promising proposal in each lane, uniformly random actions during the warm-up."""
        key, key_play, key_members = jax.random.split(s.key, 3)
        scale, weight = s.hyper.sac.exploration, s.hyper.ucb_weight
        chosen = acting.by_upper_confidence(ensemble, s.agents, scale, weight)
        chosen = policy.randomly(chosen, env.spec, s.env_steps < config.warmup)
        keep = lanes.keep_transitions(s.hyper.sac.discount)
        played, rows = lanes.play(lanes_env, chosen, s.lanes, key_play, 1, keep)
        rows = tree.flatten(rows, 3)
        members = draw_members(key_members, s.hyper.member_share, (config.lanes, population))
        fitness, valid = jnp.broadcast_to(played.fitness, (population,)), jnp.ones(config.lanes, jnp.bool_)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + config.lanes,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=fitness, episodes=played.episodes.sum()),
            replay=replay.add(s.replay, Masked(**vars(rows), members=members), valid),
            lanes=played,
        )

    def spread(states: sac.State, next_obs: Array, keys: Array) -> Array:
        """Return the standard deviation [B] over all 2P target values, each member with its own next
        action."""

        def one(state: sac.State, key: Key) -> Array:
            action, _ = distributions.squashed_sample(key, *agent.actor.apply(state.actor, next_obs))
            return agent.critic.apply(state.target_critics, next_obs, action)

        return tree.flatten(jax.vmap(one)(states, keys)).std(0)

    def learn_one(
        state: sac.State, member: Array, trust: Array, rows: Transition, hyper: sac.Hyper, key: Key
    ) -> tuple[sac.State, sac.Losses]:
        """Take a gradient step of SAC on the transitions of a ``member`` [B]."""
        key_critic, key_actor = jax.random.split(key)
        before = state
        counted = member * (len(member) / (member.sum() + 1))  # the mean becomes sum / (count + 1)
        state, critic_loss = parts.learn_critics(state, rows, hyper, key_critic, counted * trust)
        actor, optimizer, loss, entropy = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm),
            lambda params: parts.actor_loss(params, state, rows.obs, key_actor, counted),
            state.actor,
            state.actor_optimizer,
        )
        state = replace(state, actor=actor, actor_optimizer=optimizer)
        state = parts.learn_temperature(state, hyper, entropy)
        # Nothing is learned from nothing, where Adam would move on by its momentum.
        state = tree.where(member.any(), state, before)
        return state, sac.Losses(critic_loss, loss, jnp.exp(state.log_temperature), entropy)

    def learn_all(states: sac.State, batch: Masked, hyper: Hyper, key: Key) -> tuple[sac.State, sac.Losses]:
        """Take a gradient step of every member on a common batch, weighted by the trust in each target."""
        key_spread, key_learn = jax.random.split(key)
        std = spread(states, batch.next_obs, jax.random.split(key_spread, population))
        trust, members = target_weight(std, hyper.trust_temperature), jnp.float32(batch.members.T)  # [P, B]
        return jax.vmap(learn_one, (0, 0, None, None, None, 0))(
            states, members, trust, batch, hyper.sac, jax.random.split(key_learn, population)
        )

    def update(s: State, states: sac.State, key: Key) -> tuple[sac.State, sac.Losses]:
        key_batch, key_learn = jax.random.split(key)
        return learn_all(states, replay.sample(s.replay, key_batch, config.batch), s.hyper, key_learn)

    def learn(s: State) -> State:
        """Take the gradient steps that the step owes, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        count = learning.due(s.env_steps >= config.warmup, updates)
        states, losses = learning.steps(partial(update, s), s.agents, count, key_learn, s.metrics.losses)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def mean_action(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        keys = jax.random.split(key, population)
        choices = jax.vmap(agent.act, (0, None, None, 0, None))(params, memory, obs, keys, scale)
        action = choices.action.mean(0)
        return Choice(memory, action, action, jnp.float32(0))

    return Method(
        init=init,
        step=chain(act, learn),
        policy=lambda s: ensemble.policies(s.agents),
        act=mean_action,
        hyper=Hyper(),
        steps_bound=config.lanes,
        learning_starts=config.warmup,
        exploration=lambda s: s.hyper.sac.exploration,
    )


def target_weight(std: Array, temperature: Array | float) -> Array:
    """Return the trust in a target whose values have standard deviation ``std``: 1 at 0, towards 0.5."""
    return jax.nn.sigmoid(-std * temperature) + 0.5


def draw_members(key: Key, share: Array | float, shape: tuple[int, ...]) -> Array:
    """Return bool ``shape`` = [..., P], each true with probability ``share``; a row that chance left empty
    gets one at random."""
    key_drawn, key_one = jax.random.split(key)
    drawn = jax.random.bernoulli(key_drawn, share, shape)
    one = jax.nn.one_hot(jax.random.randint(key_one, shape[:-1], 0, shape[-1]), shape[-1], dtype=jnp.bool_)
    return jnp.where(drawn.any(-1, keepdims=True), drawn, one)


METHOD = Recipe(build, Config, lambda config: Hyper())
