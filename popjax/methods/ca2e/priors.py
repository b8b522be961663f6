"""Prior policies, and when the learner has surpassed them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import rollout
from popjax.core import Env, Key, Params, Pretrained, PyTree
from popjax.methods.ca2e.config import Config, Hyper


class Prior(NamedTuple):
    """A frozen policy for a prior actor, and its mean return over episodes played before the run."""

    policy: Pretrained
    mean_return: float


@struct.dataclass
class Retirement:
    """Where every prior actor [prior] stands.

    baseline:   float32  mean return of its policy.
    successes:  int32    comparisons in a row that the learner has won.
    retired_at: int32    environment steps when it became a nature actor; -1 while it has not.
    """

    baseline: Array
    successes: Array
    retired_at: Array

    @property
    def active(self) -> Array:
        """bool [prior]"""
        return self.retired_at < 0


def measure(env: Env, policies: Sequence[Pretrained], key: Key, episodes: int = 100) -> tuple[Prior, ...]:
    """Plays ``episodes`` greedy episodes with each policy, all in one program.

    Raises:
        ValueError: a policy is of another task, or for other observations or actions.
    """
    for policy in policies:
        check_fits(env, policy)
    act = chooser(env, policies)

    def mean_return(which: Array, key: Key) -> Array:
        def play(memories: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
            memories, actions = act([p.params for p in policies], memories, obs, key)
            return memories, actions[which]

        start = tuple(p.memory for p in policies)
        one = partial(rollout.episode, env, play, start, record=lambda *_: ())
        return jax.vmap(lambda k: one(k).total)(jax.random.split(key, episodes)).mean()

    count = len(policies)
    if not count:
        return ()
    means = jax.jit(jax.vmap(mean_return))(jnp.arange(count), jax.random.split(key, count))
    return tuple(Prior(policy, float(mean)) for policy, mean in zip(policies, means, strict=True))


def check_fits(env: Env, policy: Pretrained) -> None:
    """Raises a ValueError unless ``policy`` was trained for ``env``."""
    ours, theirs = env.spec, policy.spec
    if ours.name != theirs.name:
        raise ValueError(
            f"the prior policy of {policy.name} was trained on {theirs.name}, not on {ours.name}"
        )
    for field, here, there in zip(ours._fields, ours, theirs, strict=True):
        if here != there:
            raise ValueError(
                f"the prior policy of {policy.name} was trained where {field} of {ours.name} is {there},"
                f" not {here}"
            )


def remarks(
    env: Env, config: Config, hyper: Hyper, env_steps: int, priors: Sequence[Prior] = ()
) -> list[str]:
    """What somebody who starts a run should know of its prior policies, a line each."""
    if config.prior_actors and not priors:
        return ["no prior policies were given: the prior actors explore, as nature actors do"]
    highest, factor = env.spec.highest_return, float(np.max(hyper.replacement_factor))
    told = []
    for prior in priors:
        bar = float(threshold(jnp.float32(prior.mean_return), factor, config.rule))
        told.append(f"prior policy of {prior.policy.name}: mean return {prior.mean_return:g}")
        if highest is not None and highest < bar < math.inf:
            told[-1] += f"; it is replaced at {bar:g}, and {env.spec.name} returns at most {highest:g}"
    return told


def chooser(env: Env, policies: Sequence[Pretrained]) -> Any:
    """``(params of each, memory of each, obs, key) -> (memories, actions [prior, ...])``: what all of them
    would do, for one observation."""

    def act(params: Sequence[Params], memories: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
        keys = jax.random.split(key, len(policies))
        chosen = [
            policy.act(p, memory, obs, k, 0.0)[:2]
            for policy, p, memory, k in zip(policies, params, memories, keys, strict=True)
        ]
        actions = jnp.stack([action for _, action in chosen])
        return tuple(memory for memory, _ in chosen), actions if env.spec.discrete else jnp.clip(
            actions, -1, 1
        )

    return act


def threshold(baseline: Array, factor: Array | float, rule: str) -> Array:
    """The return at which the learner has surpassed a policy that returns ``baseline``, [...].

    "literal": ``factor * baseline``, Algorithm 1.1, which lies below a negative baseline; "signed":
    ``baseline + (factor - 1) |baseline|``, the same from 0 on.
    """
    bar = factor * baseline if rule == "literal" else baseline + (factor - 1) * jnp.abs(baseline)
    return jnp.where(jnp.isinf(factor), jnp.inf, bar)


def compare(state: Retirement, surpassed: Array, env_steps: Array, checks: int) -> Retirement:
    """After a comparison with every policy, in which those were ``surpassed``, bool [prior]."""
    successes = jnp.where(surpassed, state.successes + 1, 0)
    retires = state.active & (successes >= checks)
    return replace(
        state,
        successes=jnp.where(state.active, successes, state.successes),
        retired_at=jnp.where(retires, env_steps, state.retired_at),
    )


def initial_retirement(config: Config, priors: Sequence[Prior]) -> Retirement:
    """Before the first comparison. Prior actors without a policy are retired."""
    count = config.prior_actors
    given = [priors[j % len(priors)].mean_return for j in range(count)] if priors else [0.0] * count
    return Retirement(
        baseline=jnp.array(given, jnp.float32),
        successes=jnp.zeros(count, jnp.int32),
        retired_at=jnp.full(count, -1 if priors else 0, jnp.int32),
    )
