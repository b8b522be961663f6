"""Agents that learn side by side, each by its own rewards: with networks of their own, or on shared
torsos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from popjax import agents, distributions, tree
from popjax.agents import sac
from popjax.core import Act, Agent, Distribution, Key, Params, PyTree, Spec, Transition
from popjax.population import learning, policy
from popjax.population.lanes import ActAll
from popjax.replay.episodes import Episodic
from popjax.replay.ring import Ring

AgentHyper: TypeAlias = Callable[[Any], Any]
"""``Hyper of a method -> Hyper of its agents``."""


@dataclass(frozen=True)
class Multihead(sac.Config):
    """SAC agents that are heads of shared networks: one torso for the actors, and one for each of the twin
    critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden:
            raise ValueError(
                "multihead agents share hidden layers, but hidden is empty; give it at least one layer"
            )


class Learners(NamedTuple):
    """``P`` agents together. ``hyper`` is the method's.

    init:        (key, hyper) -> states
    learn:       (states, rows [P, B], hyper, key) -> (states, losses [P] each)
    observe:     (states, obs, valid) -> states that have seen these observations, each its own [P, B, ...],
                 or all the same [B, ...]
    policies:    states -> parameters [P] that ``act`` reads
    values:      (states, obs [..., *obs], actions [P, ...]) -> [P, K, ...] of each agent's K critics
    exploration: (hyper, env_steps) -> the ``scale`` of exploration after ``env_steps`` steps of an agent
    play:        (states, hyper, scale) -> the function by which all lanes act
    act, outputs, actions: as of an ``Agent``, for one of the policies
    draw:        (replay, key, B) -> slots [B] of a batch for all agents; None: each draws its own batch
    keep:        (Episodic rows, hyper, key) -> rows as the replay stores them; None: as they are if a drive
                 needs the number of the episode, else without it
    as_one:      all agents play the same lanes [1, N]
    eyes:        states -> parameters of the first agent's ``Agent.eyes``; None for agents without
    """

    init: Callable[[Key, PyTree], PyTree]
    learn: Callable[[PyTree, Transition, PyTree, Key], tuple[PyTree, PyTree]]
    observe: Callable[[PyTree, Array, Array], PyTree]
    policies: Callable[[PyTree], Params]
    values: Callable[[PyTree, Array, Array], Array]
    exploration: Callable[[PyTree, Array], Array]
    play: Callable[[PyTree, PyTree, Array], ActAll]
    act: Act
    outputs: Callable[[Params, Array], PyTree]
    actions: Distribution
    draw: Callable[[Ring, Key, int], Array] | None = None
    keep: Callable[[Episodic, PyTree, Key], Transition] | None = None
    as_one: bool = False
    eyes: Callable[[PyTree], Params] | None = None


def build(
    spec: Spec, config: agents.AnyConfig, population: int, agent_hyper: AgentHyper = lambda hyper: hyper
) -> Learners:
    """Return ``population`` agents of the kind of ``config``; those of ``Multihead`` share their torsos.

    ``agent_hyper`` selects the agents' Hyper from a method's.

    Raises:
        ValueError: agents of this kind cannot play the task.
    """
    if isinstance(config, Multihead):
        return multihead(spec, config, population, agent_hyper)
    return apart(agents.build(spec, config), population, agent_hyper)


def apart(agent: Agent, population: int, agent_hyper: AgentHyper = lambda hyper: hyper) -> Learners:
    """Return agents with networks of their own. A leaf of their Hyper is [] or [P]."""
    learn, eyes = learning.everyone(agent.learn), agent.eyes

    def init(key: Key, hyper: PyTree) -> PyTree:
        own = agent_hyper(hyper)
        return jax.vmap(agent.init, (0, tree.axes(own)))(jax.random.split(key, population), own)

    def observe(states: PyTree, obs: Array, valid: Array) -> PyTree:
        axis = None if valid.ndim == 1 else 0
        return jax.vmap(agent.observe, (0, axis, axis))(states, obs, valid)

    def play(states: PyTree, hyper: PyTree, scale: Array) -> ActAll:
        return policy.everyone(agent.act, jax.vmap(agent.policy)(states), scale)

    def values(states: PyTree, obs: Array, actions: Array) -> Array:
        if agent.values is None:
            return jax.vmap(agent.value, (0, None, 0))(states, obs, actions)[:, None]
        return jax.vmap(agent.values, (0, None, 0))(states, obs, actions)

    return Learners(
        init=init,
        learn=lambda states, rows, hyper, key: learn(states, rows, agent_hyper(hyper), key),
        observe=observe,
        policies=jax.vmap(agent.policy),
        values=values,
        exploration=lambda hyper, env_steps: agent.exploration(agent_hyper(hyper), env_steps),
        play=play,
        act=agent.act,
        outputs=agent.outputs,
        actions=agent.actions,
        eyes=None if eyes is None else lambda states: eyes.of(tree.take(states, 0)),
    )


def multihead(
    spec: Spec, config: sac.Config, population: int, agent_hyper: AgentHyper = lambda hyper: hyper
) -> Learners:
    """Return SAC agents that are heads of one learner; their state has a leading axis of 1.

    They share all hyperparameters, and learn from the same transitions by the sum of their losses.
    """
    agent = sac.parts(spec, config, heads=population).agent

    def learn(states: PyTree, rows: Transition, hyper: PyTree, key: Key) -> tuple[PyTree, sac.Losses]:
        common = replace(tree.take(rows, 0), reward=rows.reward)
        state, losses = agent.learn(tree.take(states, 0), common, agent_hyper(hyper), key)
        # The losses of critics and actors are sums over heads.
        mean = {name: getattr(losses, name) / population for name in ("critic_loss", "actor_loss")}
        losses = replace(losses, **jax.tree.map(lambda x: jnp.full(population, x), mean))
        return tree.repeat(state, 1), losses

    def outputs(policy: tuple[Params, Array], obs: Array) -> tuple[Array, Array]:
        params, head = policy
        return tree.take(agent.actor.apply(params, obs), head)

    act = distributions.acting(agent.actions, outputs)

    def policies(states: PyTree) -> tuple[Params, Array]:
        return tree.repeat(agent.policy(tree.take(states, 0)), population), jnp.arange(population)

    def values(states: PyTree, obs: Array, actions: Array) -> Array:
        return jnp.moveaxis(agent.critic.apply(tree.take(states.critics, 0), obs, actions), 0, 1)

    return Learners(
        init=lambda key, hyper: tree.repeat(agent.init(key, agent_hyper(hyper)), 1),
        learn=learn,
        observe=lambda states, obs, valid: states,
        policies=policies,
        values=values,
        exploration=lambda hyper, env_steps: agent.exploration(agent_hyper(hyper), env_steps),
        play=lambda states, hyper, scale: policy.everyone(act, policies(states), scale),
        act=act,
        outputs=outputs,
        actions=agent.actions,
    )
