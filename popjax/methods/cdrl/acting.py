"""Rollouts with a memory, and what they are worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import advantage, distributions, rollout, tree
from popjax.core import Env, Key, Params, PyTree, Timestep
from popjax.methods.cdrl.config import Config, Hyper
from popjax.nets.recurrent import Heads, RecurrentNetwork

_CATEGORICAL = distributions.categorical()


@struct.dataclass
class Rollout:
    """Consecutive steps of one lane, across the ends of episodes.

    memory:     of the network before the first of them.
    obs:        [T, *obs]
    action:     int32 [T]
    reward:     float32 [T]
    done:       bool [T]     the episode ended here, for either reason.
    logits:     [T, A]       of the policy that acted.
    advantages: float32 [T]  generalized, from the values recorded while acting.
    returns:    float32 [T]  discounted rewards up to the end of the episode, or of the rows with the value of
                             what follows.
    """

    memory: PyTree
    obs: Array
    action: Array
    reward: Array
    done: Array
    logits: Array
    advantages: Array
    returns: Array


def play(
    env: Env,
    network: RecurrentNetwork,
    params: Params,
    lane: rollout.Lane,
    key: Key,
    hyper: Hyper,
    config: Config,
) -> tuple[rollout.Lane, Rollout]:
    """``config.steps`` steps of an ``autoreset`` environment; the lane's carry is the network's memory."""

    def one(lane: rollout.Lane, key: Key) -> tuple[rollout.Lane, Any]:
        memory, heads = network.step(params, lane.carry, lane.obs)
        action = _CATEGORICAL.sample(key, heads.policy, 1.0)
        env_state, timestep = env.step(lane.env, action)
        beyond = _beyond(memory, timestep) if config.timeout_bootstrap else jnp.float32(0)
        flags = timestep.final, timestep.truncated, timestep.done
        kept = (lane.obs, action, heads, timestep.reward, *flags, beyond)
        memory = tree.where(timestep.done, network.memory, memory)
        return rollout.Lane(env_state, timestep.obs, memory), kept

    def _beyond(memory: PyTree, timestep: Timestep) -> Array:
        """The value of the true successor where a time limit cuts the episode."""
        return jax.lax.cond(
            tree.any_lane(timestep.truncated),
            lambda: network.step(params, memory, timestep.next_obs)[1].value,
            lambda: jnp.float32(0),
        )

    after, rows = jax.lax.scan(one, lane, jax.random.split(key, config.steps))
    obs, action, heads, reward, final, truncated, done, beyond = rows
    last = network.step(params, after.carry, after.obs)[1].value
    following = jnp.append(heads.value[1:], last)
    following = jnp.where(truncated, beyond, following)
    ended = final if config.timeout_bootstrap else final | truncated
    advantages, returns = targets(reward, ended, done, heads.value, following, hyper)
    return after, Rollout(lane.carry, obs, action, reward, done, heads.policy, advantages, returns)


def targets(
    reward: Array, ended: Array, done: Array, values: Array, following: Array, hyper: Hyper
) -> tuple[Array, Array]:
    """Advantages and returns, float32 [T] each.

    ``values`` [T] are those recorded while acting and ``following`` [T] of what came next, which does not
    count where the task ``ended`` bool [T]; ``done`` bool [T] where the next row is of another episode.
    """
    discounts = jnp.where(ended, 0.0, hyper.discount)
    advantages, errors = (
        advantage.generalized(reward, discounts, values, following, done, trace)
        for trace in (hyper.trace_decay, 1.0)
    )
    return advantages, errors + values


def actor_critic_loss(
    heads: Heads, played: Rollout, hyper: Hyper
) -> tuple[Array, tuple[Array, Array, Array]]:
    """The loss of A3C for the rows [..., T] of lanes: its sum over all of them, and the three sums in it:
    ``-log pi A``, half the squared error of the values, and the policy's entropy in nats."""
    policy = -(_CATEGORICAL.log_prob(heads.policy, played.action) * played.advantages).sum()
    value = 0.5 * jnp.square(heads.value - played.returns).sum()
    entropy = _CATEGORICAL.entropy(heads.policy).sum()
    return policy + hyper.value_coef * value - hyper.entropy * entropy, (policy, value, entropy)
