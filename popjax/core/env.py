"""The contract of environments: what they return, facts about them, and the call that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core.types import Key, PyTree


@struct.dataclass
class Timestep:
    """The answer of an environment to one action, in Gymnasium's terms.

    obs:        [*obs]  observation to act on next: ``next_obs``, except after an automatic reset or a cut.
    next_obs:   [*obs]  true successor of the action.
    reward:     []      float32.
    terminated: []      bool: the task ended; nothing follows.
    truncated:  []      bool: the time limit was reached; the value of ``next_obs`` still counts.
    cut:        []      bool: the value of ``next_obs`` does not count although the episode goes on, as when a
                        lost life is treated as an end (Mnih et al., 2015).
    """

    obs: Array
    next_obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    cut: Array | bool = False

    @property
    def done(self) -> Array:
        """[] bool: the episode is over, for either reason."""
        return self.terminated | self.truncated

    @property
    def anew(self) -> Array:
        """[] bool: the observation to act on next does not follow this one."""
        return self.done | self.cut

    @property
    def final(self) -> Array:
        """[] bool: the value of ``next_obs`` does not count."""
        return self.terminated | self.cut


class Spec(NamedTuple):
    """Facts about an environment that a learner needs before it starts.

    ``action_dim`` is the number of action components in [-1, 1], or of discrete actions. ``episode_length``
    is the time limit in environment steps. An observation holds the latest ``stack`` frames along
    its last axis, oldest first; at the beginning of an episode and after a cut, one frame is repeated. ``dt``
    is the duration of an environment step in seconds, ``None`` if the task has no clock. ``highest_return``
    is an upper bound on the return of any policy, ``None`` if unknown. Networks divide observations of dtype
    uint8 by 255.
    """

    name: str
    obs_shape: tuple[int, ...]
    action_dim: int
    episode_length: int
    discrete: bool = False
    obs_dtype: Any = jnp.float32
    dt: float | None = None
    highest_return: float | None = None
    stack: int = 1


class Unfit(ValueError):
    """The error of a learner that cannot play a task; agents of the kind ``played_by`` can."""

    def __init__(self, problem: str, played_by: str) -> None:
        super().__init__(f"{problem}: learn with {played_by}")
        self.problem, self.played_by = problem, played_by


def continuous_dims(spec: Spec, who: str) -> tuple[int, int]:
    """Return (observation size, action size) for a learner, named ``who`` in errors, that needs vector
    observations and continuous actions.

    Raises:
        Unfit: the task has discrete actions, or images as observations.
        ValueError: the observations have another shape.
    """
    if spec.discrete:
        raise needs_continuous(spec, who)
    if len(spec.obs_shape) == 3:
        problem = f"{who} needs vector observations; those of {spec.name} have shape {spec.obs_shape}"
        raise Unfit(problem, "drq")
    return vector_size(spec, who), spec.action_dim


def needs_continuous(spec: Spec, who: str) -> Unfit:
    """Return the error for a task with discrete actions and a learner, named ``who``, of continuous ones."""
    problem = f"{who} needs continuous actions; {spec.name} has {spec.action_dim} discrete ones"
    return Unfit(problem, "dqn")


def vector_size(spec: Spec, who: str) -> int:
    """Return the observation size; raise a ValueError naming the learner ``who`` unless observations are
    vectors."""
    if len(spec.obs_shape) != 1:
        raise ValueError(f"{who} needs vector observations; those of {spec.name} have shape {spec.obs_shape}")
    return spec.obs_shape[0]


class Origin(NamedTuple):
    """The call of ``envs.make`` that made an environment: its name and its options as JSON.

    ``returned`` is the environment as ``make`` returned it, but without its origin. The origin no longer
    holds for an environment that differs from it in any field.
    """

    name: str
    options: str
    returned: Any


class Env(NamedTuple):
    """One environment, no batch axis. ``step`` does not reset; see ``rollout.autoreset``.

    reset:  key -> (state, obs)
    step:   (state, action) -> (state, Timestep)
    scored: the same environment with the rewards that evaluations count; None: with its own rewards
    origin: the call that made it; None if it was made by hand
    reproducible: whether equal states and actions give equal bits every time
    """

    reset: Callable[[Key], tuple[PyTree, Array]]
    step: Callable[[PyTree, Array], tuple[PyTree, Timestep]]
    spec: Spec
    scored: Any = None
    origin: Origin | None = None
    reproducible: bool = True
