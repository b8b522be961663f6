"""DiCE: agents that learn from the experience of all, each rewarded by the task and for acting unlike the
others. Peng, Sun & Zhou, 2020, "Non-local Policy Optimization via Diversity-regularized Collaborative
Exploration"; in its SAC form.

An iteration: collect -> learn x updates. Agents share a replay and learn from batches with equal shares of
all agents' transitions. Every actor ascends along the bisector of two gradients: that of the task's value,
and that of a second critic, which values acting unlike the others. The first agent is evaluated.

Differs from the paper: losses and constants are those of Collaborative Exploration's SAC, with which DiCE is
compared. In the authors' code all losses are of the parameters before the step, actors ascend the minimum of
the twins and the target entropy is -dim(A); here the twins and the critic of diversity step first, with
clipped gradients, actors ascend the mean of the new twins (``sac.actor_q``) and the target entropy is
-dim(A) / 2.
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

from popjax import distributions, nets, optimize, tree
from popjax.agents import sac
from popjax.checks import check_least, check_shapes
from popjax.core import Env, Key, Method, Params, PyTree, Transition, chain, continuous_dims
from popjax.intrinsic import dice
from popjax.optimize import adam, descend
from popjax.population import offpolicy, parts
from popjax.population.learners import Learners
from popjax.population.offpolicy import State
from popjax.recipe import Recipe, recorded
from popjax.replay import ring
from popjax.replay.ring import Ring

GRADIENT_LIMIT = 40.0
"""Largest norm of every tensor's gradient before the bisector is taken, and of the whole bisector."""


@dataclass(frozen=True)
class Config(offpolicy.Common):
    """The agents; sizes are those of ``offpolicy.Common``, and a batch has equal shares of all agents."""

    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 2, "population")
        if self.batch % self.population:
            raise ValueError(
                f"agents have equal shares of a batch: make batch {self.batch} a multiple of"
                f" population {self.population}"
            )


@struct.dataclass
class Hyper:
    """Hyperparameters of the method."""

    sac: sac.Hyper = field(default_factory=sac.Hyper)


@struct.dataclass
class Agents:
    """SAC learners; the critics of diversity, their targets and Adam's moments; slow copies of the actors,
    from which the others measure their distance."""

    sac: sac.State
    critic: Params
    target_critic: Params
    optimizer: PyTree
    slow_actor: Params


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return agents that learn ``env`` and are rewarded for acting unlike each other."""
    population, shape = config.population, (config.population, config.lanes)
    learner = sac.parts(env.spec, config.sac)
    agent = learner.agent
    sizes = *continuous_dims(env.spec, "dice"), config.sac.hidden
    network = nets.critic(*sizes, initializer="orthogonal", precision=config.sac.precision)

    def apart(crew: Learners) -> Learners:
        """Return the agents, learning to act unlike each other from equal shares of all agents'
        transitions."""
        return crew._replace(
            init=lambda key, hyper: jax.vmap(init_one, (0, None))(
                jax.random.split(key, population), hyper.sac
            ),
            learn=learn_all,
            observe=lambda states, obs, valid: states,
            policies=lambda states: crew.policies(states.sac),
            play=lambda states, *how: crew.play(states.sac, *how),
            draw=partial(equal_shares, shape=shape),
        )

    def init_one(key: Key, hyper: sac.Hyper) -> Agents:
        key_sac, key_critic = jax.random.split(key)
        state, critic = agent.init(key_sac, hyper), network.init(key_critic)
        optimizer = adam(hyper.critic_lr, hyper.max_grad_norm).init(critic)
        return Agents(state, critic, critic, optimizer, state.actor)

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
        """Take a step of the actor along the bisector; also return its loss and entropy."""
        inner = state.sac

        def climb(value: Callable[[Array, Array], Array] | None) -> Any:
            loss = partial(learner.actor_loss, state=inner, obs=obs, key=key, value=value)
            return jax.value_and_grad(loss, has_aux=True)(inner.actor)

        (loss, entropy), task = climb(None)
        _, diversity = climb(partial(network.apply, state.critic))
        limited = [dice.clip_each(gradient, GRADIENT_LIMIT) for gradient in (task, diversity)]
        optimizer = adam(hyper.actor_lr, GRADIENT_LIMIT)
        actor, moments = optimize.step(optimizer, dice.bisector(*limited), inner.actor, inner.actor_optimizer)
        inner = learner.learn_temperature(
            replace(inner, actor=actor, actor_optimizer=moments), hyper, entropy
        )
        slow = tree.polyak(state.slow_actor, actor, hyper.polyak)
        return replace(state, sac=inner, slow_actor=slow), loss, entropy

    def learn_one(
        state: Agents, bonus: Array, rows: Transition, hyper: sac.Hyper, key: Key
    ) -> tuple[Agents, sac.Losses]:
        key_critic, key_diversity, key_actor = jax.random.split(key, 3)
        inner, loss = learner.learn_critics(state.sac, rows, hyper, key_critic)
        state = learn_diversity(replace(state, sac=inner), rows, bonus, hyper, key_diversity)
        state, actor_loss, entropy = learn_actor(state, rows.obs, hyper, key_actor)
        return state, sac.Losses(loss, actor_loss, jnp.exp(state.sac.log_temperature), entropy)

    def learn_all(
        states: Agents, everybodys: Transition, hyper: Hyper, key: Key
    ) -> tuple[Agents, sac.Losses]:
        """Take a gradient step of every agent on a common batch."""
        rows = tree.take(everybodys, 0)
        at = jax.vmap(agent.actor.apply, (0, None))
        means, slow = (jnp.tanh(at(x, rows.obs)[0]) for x in (states.sac.actor, states.slow_actor))
        bonuses = jax.vmap(dice.diversity_reward, (0, None, 0))(means, slow, jnp.arange(population))  # [P, B]
        keys = jax.random.split(key, population)
        return jax.vmap(learn_one, (0, 0, None, None, 0))(states, bonuses, rows, hyper.sac, keys)

    base = offpolicy.build(env, config.sizes(config.sac), lambda hyper: hyper.sac, adapt=apart)

    def init(key: Key, hyper: Hyper) -> State:
        check_shapes(hyper, (), population)
        return State(**base.fields(key, hyper))

    method = parts.whole(base, Hyper(), init, chain(base.collect, base.learn))
    return method._replace(policy=lambda s: tree.take(base.individuals(s), 0))


def equal_shares(store: Ring, key: Key, batch: int, *, shape: tuple[int, int]) -> Array:
    """Return int32 [batch] slots of a ring that lanes ``shape`` = (P, N) fill in turn: equally many of each
    agent, in the order of agents."""
    key_slot, key_lane = jax.random.split(key)
    population, count = shape
    slots = ring.uniform(store, key_slot, batch)
    owner = jnp.arange(batch) * population // batch
    lane = jax.random.randint(key_lane, (batch,), 0, count)
    return slots // (population * count) * (population * count) + owner * count + lane


METHOD = Recipe(build, Config, lambda config: Hyper())
