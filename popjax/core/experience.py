"""Experience as learners see it: transitions, and the trajectories of one policy."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core.env import Spec, Timestep
from popjax.core.types import PyTree


@struct.dataclass
class Transition:
    """Experience, with any leading axes before those given here.

    obs:      [..., *obs]  observation acted on.
    action:   [..., A]     float in [-1, 1], or int32 [...] if actions are discrete.
    reward:   [...]        task reward.
    discount: [...]        factor of the bootstrap value: 0 where the task ended or was cut, else gamma.
                           A time limit is not termination.
    next_obs: [..., *obs]  true successor, never the observation after an automatic reset.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    next_obs: Array


@struct.dataclass
class Weighted(Transition):
    """Transitions that count differently in a loss.

    weight: float32 [...]  multiplies a transition's error, such as an importance weight.
    """

    weight: Array


def importance(batch: Transition) -> Array | float:
    """Return the weights [...] of ``Weighted`` transitions, 1 for others."""
    return batch.weight if isinstance(batch, Weighted) else 1.0


@struct.dataclass
class Trajectory(Transition):
    """Consecutive steps of one policy, [T, N, ...], from which an on-policy agent learns.

    ``action`` is the one that was sampled: a continuous one may lie beyond [-1, 1].

    done:     bool [T, N]     the episode ended here, for either reason; the next row starts another.
    log_prob: float32 [T, N]  of the action under the policy that sampled it, nats.
    valid:    bool [T, N]     rows that were played; the others must leave no trace. None: all were played.
    memory:   [1, N, ...]     of the policy before the first row; () without memory.
    outputs:  [T, N, ...]     of the network that acted; () if no learner reads them.
    """

    done: Array
    log_prob: Array
    valid: Array | None = None
    memory: PyTree = ()
    outputs: PyTree = ()


def example_transition(spec: Spec) -> Transition:
    """Return a transition of zeros in an environment's shapes and dtypes, from which a replay is made."""
    obs = jnp.zeros(spec.obs_shape, spec.obs_dtype)
    action = jnp.zeros((), jnp.int32) if spec.discrete else jnp.zeros(spec.action_dim)
    return Transition(obs, action, jnp.float32(0), jnp.float32(0), obs)


def transition(
    obs: Array, action: Array, timestep: Timestep, discount: Array | float, timeout_is_terminal: bool = False
) -> Transition:
    """Return a Timestep as a learner sees it.

    ``discount`` [] is gamma. ``timeout_is_terminal`` treats the time limit as the end of the task, as many
    published implementations do; the value of the last state is then taken to be 0.
    """
    ended = timestep.final | timestep.truncated if timeout_is_terminal else timestep.final
    return Transition(
        obs=obs,
        action=action,
        reward=timestep.reward,
        discount=jnp.where(ended, 0.0, discount),
        next_obs=timestep.next_obs,
    )
