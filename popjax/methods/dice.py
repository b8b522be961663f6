"""DiCE. Peng, Sun & Zhou, 2020, "Non-local Policy Optimization via Diversity-regularized Collaborative
Exploration"; in its SAC form.

Agents share a replay and learn from batches with as many transitions of each. Every actor climbs the bisector
of two gradients: that of the task, and that of a critic of acting unlike the others.

An iteration: act -> learn x updates. Differs from the paper: critics are clipped as Collaborative
Exploration's SAC does, with which it is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import counting, distributions, nets, rollout, tree
from popjax.agents import sac
from popjax.checks import check_least, check_shapes
from popjax.core import (
    Env,
    Key,
    Method,
    Params,
    PyTree,
    Transition,
    as_arrays,
    chain,
    continuous_dims,
    example_transition,
    stacked,
)
from popjax.intrinsic import dice
from popjax.optimize import adam, descend
from popjax.population import lanes, learning, policy
from popjax.population.lanes import Lanes
from popjax.recipe import Recipe, recorded
from popjax.replay import episodes
from popjax.replay.ring import Ring, ring

GRADIENT_LIMIT = 40.0
"""Norm of every tensor's gradient before the bisector, and of the bisector as a whole."""


@dataclass(frozen=True)
class Config:
    """Sizes of the population, its experience and its updates."""

    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics
    population: int = 4  # agents
    lanes: int = 1  # environments of each agent
    updates_per_step: float = 1.0  # gradient steps of each agent per environment step of any agent
    batch: int = 256  # transitions per gradient step, an equal share of each agent
    capacity: int = 1_000_000  # transitions that the replay holds, rounded down to whole vector steps
    warmup: int = 10_000  # environment steps of all agents that are uniformly random and before any update
    eval_agent: int = 0  # who is evaluated

    def __post_init__(self) -> None:
        check_least(self, 2, "population")
        check_least(self, 1, "lanes", "batch", "capacity")
        check_least(self, 0, "warmup")
        learning.whole_updates(self.updates_per_step, self.population * self.lanes)
        if not 0 <= self.eval_agent < self.population:
            raise ValueError(f"eval_agent {self.eval_agent} is none of {self.population} agents")
        if self.batch % self.population:
            raise ValueError(
                f"agents have equal shares of a batch: make batch {self.batch} a multiple of"
                f" population {self.population}"
            )
        if self.capacity < max(self.batch, self.population * self.lanes):
            raise ValueError(f"capacity {self.capacity} is less than a batch or a vector step; raise it")


@struct.dataclass
class Hyper:
    """Numbers of the method."""

    sac: sac.Hyper = field(default_factory=sac.Hyper)


@struct.dataclass
class Agents:
    """SAC learners; the critics of diversity, their targets and Adam's moments; the slow copies of the actors
    that the others measure their distance from."""

    sac: sac.State
    critic: Params
    target_critic: Params
    optimizer: PyTree
    slow_actor: Params


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:  float32 [P] return of the last finished episode of the agent's lanes, the mean.
    episodes: int32 []    finished episodes.
    losses:   [P] each    SAC's losses in the last update.
    """

    fitness: Array
    episodes: Array
    losses: sac.Losses


@struct.dataclass
class State:
    """Everything that training carries; one replay whatever the population."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] summed over lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    replay: Ring
    agents: Agents = stacked()
    lanes: Lanes = stacked()  # [P, N]


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return agents that learn ``env`` and to be unlike each other."""
    population, shape = config.population, (config.population, config.lanes)
    stride = population * config.lanes
    updates = learning.whole_updates(config.updates_per_step, stride)
    lanes_env, parts = rollout.autoreset(env), sac.parts(env.spec, config.sac)
    agent = parts.agent
    network = nets.critic(*continuous_dims(env.spec, "dice"), config.sac.hidden, initializer="orthogonal")
    replay = ring(config.capacity // stride * stride)

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        check_shapes(hyper, (), population)
        key, key_agents, key_lanes = jax.random.split(key, 3)
        each = jax.vmap(init_one, (0, None))
        states, row = each(jax.random.split(key_agents, population), hyper.sac), example_transition(env.spec)
        batch = tree.repeat(row, config.batch)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=jnp.int32(0),
            metrics=Metrics(
                fitness=jnp.zeros(population),
                episodes=jnp.int32(0),
                losses=learning.no_losses(learn_all, states, batch, hyper.sac, key),
            ),
            replay=replay.init(row),
            agents=states,
            lanes=lanes.start(lanes_env, key_lanes, shape),
        )

    def init_one(key: Key, hyper: sac.Hyper) -> Agents:
        key_sac, key_critic = jax.random.split(key)
        state, critic = agent.init(key_sac, hyper), network.init(key_critic)
        optimizer = adam(hyper.critic_lr, hyper.max_grad_norm).init(critic)
        return Agents(state, critic, critic, optimizer, state.actor)

    def act(s: State) -> State:
        """Play every agent in its lanes, uniformly at random during the warm-up."""
        key, key_play = jax.random.split(s.key)
        chosen = policy.everyone(agent.act, jax.vmap(agent.policy)(s.agents.sac), s.hyper.sac.exploration)
        chosen = policy.randomly(chosen, env.spec, s.env_steps < config.warmup)
        keep = lanes.keep_transitions(s.hyper.sac.discount)
        played, rows = lanes.play(lanes_env, chosen, s.lanes, key_play, 1, keep)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + stride,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=played.fitness, episodes=played.episodes.sum()),
            replay=replay.add(s.replay, tree.flatten(rows, 3), jnp.ones(stride, jnp.bool_)),
            lanes=played,
        )

    def learn_diversity(state: Agents, rows: Transition, bonus: Array, hyper: sac.Hyper, key: Key) -> Agents:
        """Take a step of the critic of diversity on its own soft TD target."""
        outputs = agent.actor.apply(state.sac.actor, rows.next_obs)
        action, log_prob = distributions.squashed_sample(key, *outputs)
        value = network.apply(state.target_critic, rows.next_obs, action)
        soft = value - jnp.exp(state.sac.log_temperature) * log_prob
        target = bonus + rows.discount * soft

        def loss(params: Params) -> tuple[Array, None]:
            return jnp.mean((network.apply(params, rows.obs, rows.action) - target) ** 2), None

        optimizer = adam(hyper.critic_lr, hyper.max_grad_norm)
        critic, moments, _, _ = descend(optimizer, loss, state.critic, state.optimizer)
        target_critic = tree.polyak(state.target_critic, critic, hyper.polyak)
        return replace(state, critic=critic, target_critic=target_critic, optimizer=moments)

    def learn_actor(state: Agents, obs: Array, hyper: sac.Hyper, key: Key) -> tuple[Agents, Array, Array]:
        """Take a step of the actor along the bisector; return its loss and entropy, too."""
        inner = state.sac

        def climb(value: Callable[[Array, Array], Array] | None) -> Any:
            loss = partial(parts.actor_loss, state=inner, obs=obs, key=key, value=value)
            return jax.value_and_grad(loss, has_aux=True)(inner.actor)

        (loss, entropy), task = climb(None)
        _, diversity = climb(partial(network.apply, state.critic))
        limited = [dice.clip_each(gradient, GRADIENT_LIMIT) for gradient in (task, diversity)]
        optimizer = adam(hyper.actor_lr, GRADIENT_LIMIT)
        changes, moments = optimizer.update(dice.bisector(*limited), inner.actor_optimizer, inner.actor)
        actor = jax.tree.map(jnp.add, inner.actor, changes)
        inner = parts.learn_temperature(replace(inner, actor=actor, actor_optimizer=moments), hyper, entropy)
        slow = tree.polyak(state.slow_actor, actor, hyper.polyak)
        return replace(state, sac=inner, slow_actor=slow), loss, entropy

    def learn_one(
        state: Agents, bonus: Array, rows: Transition, hyper: sac.Hyper, key: Key
    ) -> tuple[Agents, sac.Losses]:
        key_critic, key_diversity, key_actor = jax.random.split(key, 3)
        inner, loss = parts.learn_critics(state.sac, rows, hyper, key_critic)
        state = learn_diversity(replace(state, sac=inner), rows, bonus, hyper, key_diversity)
        state, actor_loss, entropy = learn_actor(state, rows.obs, hyper, key_actor)
        return state, sac.Losses(loss, actor_loss, jnp.exp(state.sac.log_temperature), entropy)

    def learn_all(states: Agents, rows: Transition, hyper: sac.Hyper, key: Key) -> tuple[Agents, sac.Losses]:
        """Take a gradient step of every agent on a common batch."""
        at = jax.vmap(agent.actor.apply, (0, None))
        means, slow = (jnp.tanh(at(x, rows.obs)[0]) for x in (states.sac.actor, states.slow_actor))
        bonuses = jax.vmap(dice.diversity_reward, (0, None, 0))(means, slow, jnp.arange(population))  # [P, B]
        keys = jax.random.split(key, population)
        return jax.vmap(learn_one, (0, 0, None, None, 0))(states, bonuses, rows, hyper, keys)

    def update(s: State, states: Agents, key: Key) -> tuple[Agents, sac.Losses]:
        key_batch, key_learn = jax.random.split(key)
        slots = equal_shares(s.replay, key_batch, config.batch, shape)
        return learn_all(states, tree.take(s.replay.rows, slots), s.hyper.sac, key_learn)

    def learn(s: State) -> State:
        """Take the gradient steps that the step owes, once the warm-up is over."""
        key, key_learn = jax.random.split(s.key)
        count = learning.due(s.env_steps >= config.warmup, updates)
        states, losses = learning.steps(partial(update, s), s.agents, count, key_learn, s.metrics.losses)
        return replace(s, key=key, agents=states, metrics=replace(s.metrics, losses=losses))

    def individuals(s: State) -> Params:
        return jax.vmap(agent.policy)(s.agents.sac)

    return Method(
        init=init,
        step=chain(act, learn),
        policy=lambda s: tree.take(individuals(s), config.eval_agent),
        act=agent.act,
        hyper=Hyper(),
        steps_bound=stride,
        learning_starts=config.warmup,
        individuals=individuals,
        exploration=lambda s: s.hyper.sac.exploration,
    )


def equal_shares(store: Ring, key: Key, batch: int, shape: tuple[int, int]) -> Array:
    """Return int32 [batch] slots of a ring that lanes ``shape`` = (P, N) fill in turn, as many of every
    agent, in the order of the agents."""
    key_slot, key_lane = jax.random.split(key)
    population, count = shape
    slots = episodes.slots(store, key_slot, batch)
    owner = jnp.arange(batch) * population // batch
    lane = jax.random.randint(key_lane, (batch,), 0, count)
    return slots // (population * count) * (population * count) + owner * count + lane


METHOD = Recipe(build, Config, lambda config: Hyper())
