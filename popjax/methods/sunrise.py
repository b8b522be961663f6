"""SUNRISE: an ensemble of SAC agents that acts by its most optimistic proposal and learns less from
transitions about whose value it disagrees. Lee, Laskin, Srinivas & Abbeel, ICML 2021, "A Simple Unified
Framework for Ensemble Learning".

An iteration: collect -> learn x updates. Every agent proposes an action, and the one with the highest upper
confidence bound over all critics is played. Each transition trains only some of the agents, and counts less
if the agents' targets disagree. Evaluation takes the mean of the agents' deterministic actions.

Differs from the paper: the twin critics and losses are those of Collaborative Exploration's SAC, with which
SUNRISE is compared, and there are 4 agents. In the authors' code the temperature steps before critics and
actor, and actors ascend the minimum of the twins as they were before their step; here critics, actor and
temperature step in this order, and actors ascend the mean of the new twins (``agent.actor_q``). The
temperature's loss is the mean over an agent's transitions; the losses of critics and actor divide by one more
than the number of transitions, as in the paper. An agent without a transition in a batch is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import distributions, tree
from popjax.agents import drq, sac
from popjax.checks import check_shapes
from popjax.core import Choice, Env, Key, Method, Number, Params, PyTree, Transition, chain, number
from popjax.population import acting, offpolicy, parts
from popjax.population.lanes import Lanes
from popjax.population.learners import Learners
from popjax.recipe import Recipe, recorded
from popjax.replay import ring
from popjax.replay.episodes import Episodic


@dataclass(frozen=True)
class Config(offpolicy.Common):
    """The agents; sizes are those of ``offpolicy.Common``, and all agents play in the same lanes."""

    agent: sac.Config | drq.Config = field(default_factory=sac.Config)  # the kind of agents

    @property
    def players(self) -> int:
        """1: the ensemble plays as one agent."""
        return 1


@struct.dataclass
class Hyper:
    """Hyperparameters of the method."""

    agent: Any = field(default_factory=sac.Hyper)  # hyperparameters of every agent
    ucb_weight: Number = number(1.0)  # number of standard deviations added to the mean in a proposal's score
    mask_probability: Number = number(0.5, high=1.0)  # probability that an agent learns from a transition
    trust_temperature: Number = number(20.0)  # T in the weight of a target


@struct.dataclass
class Masked(Transition):
    """Transitions that count in the losses of some agents.

    mask: bool [..., P]  whether an agent learns from a transition.
    """

    mask: Array


@struct.dataclass
class State(offpolicy.State):
    """``offpolicy.State`` with lanes [1, N] that all agents share."""

    lanes: Lanes  # type: ignore[misc]


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return an ensemble that plays ``env``."""
    population, module = config.population, drq if isinstance(config.agent, drq.Config) else sac
    learner = module.parts(env.spec, config.agent)
    agent = learner.agent

    def ensemble(crew: Learners) -> Learners:
        """Return the agents, playing as one and each learning from its own transitions."""

        def keep(rows: Episodic, hyper: Hyper, key: Key) -> Masked:
            mask = draw_mask(key, hyper.mask_probability, (*rows.reward.shape, population))
            return Masked(**vars(rows.plain), mask=mask)

        return crew._replace(
            play=lambda states, hyper, scale: acting.by_upper_confidence(
                crew, states, scale, hyper.ucb_weight
            ),
            learn=learn_all,
            observe=lambda states, obs, valid: states,
            draw=ring.uniform,
            keep=keep,
            as_one=True,
        )

    def spread(states: sac.State, next_obs: Array, keys: Array) -> Array:
        """Return the standard deviation [B] over all 2P target values, each agent with its own next
        action."""

        def one(state: sac.State, key: Key) -> Array:
            action, _ = distributions.squashed_sample(key, *agent.actor.apply(state.actor, next_obs))
            return agent.critic.apply(state.target_critics, next_obs, action)

        return tree.flatten(jax.vmap(one)(states, keys)).std(0)

    def learn_one(
        state: sac.State, mask: Array, trust: Array, rows: Transition, hyper: sac.Hyper, key: Key
    ) -> tuple[sac.State, sac.Losses]:
        """Take a gradient step of SAC on the transitions that ``mask`` bool [B] marks as the agent's."""
        counted = mask * (len(mask) / (mask.sum() + 1))  # the mean becomes sum / (count + 1)
        after, losses = learner.step(state, rows, hyper, key, counted * trust, counted)
        # Keep an agent without a transition as it was; Adam would move it by its momentum.
        state = tree.where(mask.any(), after, state)
        return state, replace(losses, temperature=jnp.exp(state.log_temperature))

    def learn_all(states: sac.State, everybodys: Any, hyper: Hyper, key: Key) -> tuple[sac.State, sac.Losses]:
        """Take a gradient step of every agent on a common batch, weighted by the trust in each target."""
        batch = tree.take(everybodys, 0)
        key_spread, key_learn = jax.random.split(key)
        std = spread(states, batch.next_obs, jax.random.split(key_spread, population))
        trust, mask = target_weight(std, hyper.trust_temperature), jnp.float32(batch.mask.T)  # [P, B]
        return jax.vmap(learn_one, (0, 0, None, None, None, 0))(
            states, mask, trust, batch, hyper.agent, jax.random.split(key_learn, population)
        )

    base = offpolicy.build(env, config.sizes(config.agent), lambda hyper: hyper.agent, adapt=ensemble)

    def init(key: Key, hyper: Hyper) -> State:
        check_shapes(hyper, (), population)
        return State(**base.fields(key, hyper))

    def mean_action(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        keys = jax.random.split(key, population)
        choices = jax.vmap(agent.act, (0, None, None, 0, None))(params, memory, obs, keys, scale)
        action = choices.action.mean(0)
        return Choice(memory, action, action, jnp.float32(0))

    method = parts.whole(base, default_hyper(config), init, chain(base.collect, base.learn))
    return method._replace(policy=base.individuals, act=mean_action, individuals=None)


def target_weight(std: Array, temperature: Array | float) -> Array:
    """Return the weight of a target whose values have standard deviation ``std``: 1 at 0, falling towards
    0.5."""
    return jax.nn.sigmoid(-std * temperature) + 0.5


def draw_mask(key: Key, probability: Array | float, shape: tuple[int, ...]) -> Array:
    """Return bool ``shape`` = [..., P], each true with ``probability``; a row that chance left empty
    gets one at random."""
    key_drawn, key_one = jax.random.split(key)
    drawn = jax.random.bernoulli(key_drawn, probability, shape)
    one = jax.nn.one_hot(jax.random.randint(key_one, shape[:-1], 0, shape[-1]), shape[-1], dtype=jnp.bool_)
    return jnp.where(drawn.any(-1, keepdims=True), drawn, one)


def default_config(agent: sac.Config | drq.Config = sac.Config()) -> Config:
    """Return the constants of Collaborative Exploration's comparison; for DrQ, those of its experiments from
    pixels."""
    return Config(agent=agent, **(offpolicy.FROM_PIXELS if isinstance(agent, drq.Config) else {}))


def default_hyper(config: Config) -> Hyper:
    """Return the hyperparameters of the kind of agents."""
    return Hyper(drq.CLIPPED if isinstance(config.agent, drq.Config) else sac.Hyper())


METHOD = Recipe(
    build,
    default_config,
    default_hyper,
    agents={"agent": {"sac": sac.Config(), "drq": drq.Config()}},
    preset=partial(offpolicy.from_pixels, default_config, default_hyper),
)
