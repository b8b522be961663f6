"""Recurrent actor-critics: A3C in lanes, with gradients from rewards and from a teacher's logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from popjax import advantage, distributions, rollout, tree
from popjax.advantage import Targets
from popjax.agents import a2c
from popjax.core import Env, Key, Number, Params, PyTree, Recurrent, Spec, Timestep, Trajectory
from popjax.distillation import softened_kl
from popjax.nets import recurrent
from popjax.nets.recurrent import Heads
from popjax.population import lanes, policy
from popjax.population.imitation import Told
from popjax.population.lanes import Lanes

_ACTIONS = distributions.categorical()


class Played(NamedTuple):
    """Rollouts [..., T, N] with ``Heads`` as outputs, targets from the values predicted while acting, and the
    return of the episode up to each row."""

    trajectory: Trajectory
    targets: Targets
    returns: Array


class Reading(NamedTuple):
    """Outputs of a network along rollouts [T, n], and the function that pulls a gradient of the outputs back
    to the parameters."""

    heads: Heads
    pull: Callable[[Heads], tuple[Params]]


Play: TypeAlias = Callable[[Lanes, Params, Number, Number, Key], tuple[Lanes, Played]]
"""``(lanes [P, N], params [P], discount, trace decay, key) -> (lanes, Played [P, T, N])``."""


def network(spec: Spec, config: recurrent.Config) -> Recurrent:
    """Return the network for a task.

    Raises:
        ValueError: actions are continuous, or the network cannot read the task's observations.
    """
    if not spec.discrete:
        raise ValueError(
            f"this actor-critic needs discrete actions; {spec.name} has {spec.action_dim} continuous ones"
        )
    return recurrent.recurrent_actor_critic(spec.obs_shape, spec.action_dim, config)


def side_by_side(
    envs: Sequence[Env], networks: Sequence[Recurrent], length: int
) -> Callable[..., list[tuple[Lanes, Played]]]:
    """Return a function that plays rollouts in several tasks, with lanes and parameters for each.

    Its signature is ``(lanes [1, N], params, discount, trace decay, key) -> [(lanes, Played [T, N])]``. Tasks
    with the same environment play in one loop, so that its physics is compiled once.
    """
    crews = [[i for i, each in enumerate(envs) if each == world] for world in dict.fromkeys(envs)]
    players = [_player(envs[crew[0]], networks[crew[0]], length) for crew in crews]

    def play(
        before: Sequence[Lanes], params: Sequence[Params], discount: Number, trace_decay: Number, key: Key
    ) -> list[tuple[Lanes, Played]]:
        found = {}
        for player, crew, key_crew in zip(players, crews, jax.random.split(key, len(crews)), strict=True):
            joined = tree.concat([before[i] for i in crew])
            networks_of_crew = tree.stack([params[i] for i in crew])
            after, played = player(joined, networks_of_crew, discount, trace_decay, key_crew)
            for place, i in enumerate(crew):
                found[i] = tree.take(after, jnp.array([place])), tree.take(played, place)
        return [found[i] for i in range(len(envs))]

    return play


def read(network: Recurrent, params: Params, played: Trajectory) -> Reading:
    """Return the outputs of ``network`` along rollouts; gradients stop at the memory before the first row."""

    def say(params: Params) -> Heads:
        return network.unroll(params, tree.take(played.memory, 0), played.obs, played.done)[1]

    return Reading(*jax.vjp(say, params))


def reward_gradient(
    reading: Reading, played: Trajectory, targets: Targets, value_coef: Number, entropy: Number
) -> tuple[Params, a2c.Losses]:
    """Return the gradient of A3C's loss, and A2C's losses.

    A3C sums over the rows of a lane and halves the squared error of the values. Averaged over lanes,
    that is ``T`` times A2C's loss with half the ``value_coef``.
    """

    def loss(heads: Heads) -> tuple[Array, a2c.Losses]:
        losses = a2c.losses_of(_ACTIONS, heads.policy, heads.value, played, targets)
        return len(played.reward) * a2c.total(losses, value_coef / 2, entropy), losses

    direction, losses = jax.grad(loss, has_aux=True)(reading.heads)
    return reading.pull(direction)[0], losses


def distil_gradient(
    reading: Reading, aligned: Array, head: Literal["distil", "policy"], temperature: Number
) -> tuple[Params, Array]:
    """Return the gradient of the divergence of a ``head`` from a teacher's ``aligned`` logits [T, n, A], and
    the divergence."""

    def loss(heads: Heads) -> Array:
        return softened_kl(aligned, heads.distil if head == "distil" else heads.policy, temperature)

    value, direction = jax.value_and_grad(loss)(reading.heads)
    return reading.pull(direction)[0], value


def _player(env: Env, network: Recurrent, length: int) -> Play:
    """Return the function that plays rollouts, across the ends of episodes, with networks that have ``Heads``
    over discrete actions.

    A time limit counts as termination, as in CDRL's code.
    """
    env = rollout.autoreset(env)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Told:
        memory, heads = network.step(params, memory, obs)
        return Told(*distributions.choose(_ACTIONS, memory, heads.policy, key, scale), said=heads)

    def value(params: Params, memory: PyTree, obs: Array) -> Array:
        return jax.vmap(jax.vmap(network.step, (None, 0, 0)))(params, memory, obs)[1].value

    def play(
        before: Lanes, params: Params, discount: Number, trace_decay: Number, key: Key
    ) -> tuple[Lanes, Played]:
        keep = lanes.keep_trajectory(discount, timeout_is_terminal=True)

        def record(now: Lanes, told: Told, timestep: Timestep) -> tuple[Trajectory, Array]:
            row = replace(keep(now, told, timestep), outputs=told.said)
            return row, now.account.running + timestep.reward

        everyone = policy.everyone(act, params, 1.0)
        played = lanes.play(env, everyone, before, key, length, record, network.memory)
        after, (rows, returns) = played
        values, last = rows.outputs.value, value(params, after.memory, after.obs)
        following = jnp.concatenate([values[1:], last[None]])
        worth = rows.reward, rows.discount, values, following, rows.done
        targets = advantage.targets(*worth, trace_decay)
        each = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), (targets, returns))
        return after, Played(lanes.trajectories(rows, before.memory), *each)

    return play
