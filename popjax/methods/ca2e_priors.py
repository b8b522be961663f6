"""Prior policies of CA2E, and their retirement once the learner has surpassed them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax import numerics, tree
from popjax.agents import dqn
from popjax.arguments import typed
from popjax.core import Act, Env, Ingredient, Key, Params, Pretrained, PyTree
from popjax.counting import Count
from popjax.methods.ca2e_config import Config, Hyper, check_learner
from popjax.population import clocks, scoring
from popjax.population.policy import several


class Prior(NamedTuple):
    """A frozen policy for a prior actor, and its mean return over episodes played before the run."""

    policy: Pretrained
    mean_return: float


@struct.dataclass
class Retirement:
    """Progress of every prior actor [prior] towards retirement.

    baseline:   float32  mean return of the actor's policy.
    successes:  int32    comparisons in a row that the learner has won.
    retired_at: float32  environment steps when the actor retired; -1 until then.
    """

    baseline: Array
    successes: Array
    retired_at: Array

    @property
    def active(self) -> Array:
        """bool [prior]: which prior actors have not retired."""
        return self.retired_at < 0


@typed()
@numerics.standardized
def measure(env: Env, policies: Sequence[Pretrained], key: Key, episodes: int = 100) -> tuple[Prior, ...]:
    """Return the policies with their mean returns over ``episodes`` greedy episodes of each, which one
    program plays.

    Raises:
        ValueError: a policy was trained on another task, or for other observations or actions.
    """
    for policy in policies:
        check_fits(env, policy)
    if not policies:
        return ()
    act, memory = acting(env, policies, [p.params for p in policies])
    play = partial(scoring.returns, env, act, jnp.arange(len(policies)), memory, episodes=episodes)
    means = jax.jit(play)(key=key).mean(1)
    return tuple(Prior(policy, float(mean)) for policy, mean in zip(policies, means, strict=True))


PRIOR = Ingredient(
    "priors",
    lambda env, policies: measure(env, policies, jax.random.key(0)),
    Prior,
    "Policy of a finished run on the same task, RUN_DIR or RUN_DIR:SEED, for a prior actor. May be repeated.",
)
"""The finished runs that CA2E takes, for its prior policies."""


def acting(env: Env, policies: Sequence[Pretrained], params: Sequence[Params]) -> tuple[Act, PyTree]:
    """Return one Act for all policies, whose parameter is the index of a policy, and the policies' memories
    at the start of an episode. ``params`` are the parameters of each policy."""
    act = several([policy.act for policy in policies], params, env.spec)
    return act, tuple(policy.memory for policy in policies)


def check_fits(env: Env, policy: Pretrained) -> None:
    """Check that ``policy`` was trained for ``env``, possibly with clipped or scaled rewards.

    Raises:
        ValueError: ``policy`` was trained for another task; the message names the field that differs.
    """
    ours, theirs = env.spec, policy.spec
    if ours.name != theirs.name:
        raise ValueError(
            f"the prior policy of {policy.name} was trained on {theirs.name}, not on {ours.name}"
        )
    for field, here, there in zip(ours._fields, ours, theirs, strict=True):
        if here != there and field != "highest_return":  # None for clipped or scaled rewards
            raise ValueError(
                f"the prior policy of {policy.name} was trained where {field} of {ours.name} is {there},"
                f" not {here}"
            )


def remarks(
    env: Env, config: Config, hyper: Hyper, env_steps: int, priors: Sequence[Prior] = ()
) -> list[str]:
    """Return remarks on exploration and the prior policies for the start of a run, one line each."""
    told = []
    if isinstance(config.agent, dqn.Config) and config.schedule == "anneal":
        starts = config.exploration[: config.nature_actors]
        others = [float(np.max(hyper.agent.exploration_start))] * (config.actors - len(starts))
        told = clocks.exploration(hyper.agent, env_steps, field="agent", start=max((*starts, *others)))
    if config.prior_actors and not priors:
        return [*told, "no prior policies were given: the prior actors explore, as nature actors do"]
    highest, factor = (env.scored or env).spec.highest_return, float(np.max(hyper.replacement_factor))
    for prior in priors:
        bar = float(threshold(jnp.float32(prior.mean_return), factor))
        told.append(f"prior policy of {prior.policy.name}: mean return {prior.mean_return:g}")
        if highest is not None and highest < bar < math.inf:
            told[-1] += f"; it is replaced at {bar:g}, but returns of {env.spec.name} are at most {highest:g}"
    return told


def threshold(baseline: Array, factor: Array | float) -> Array:
    """Return the mean return at which the learner has surpassed a policy with mean return ``baseline``,
    [...].

    It is ``baseline + (factor - 1) |baseline|``. For a baseline of at least 0 this is Algorithm 1.1's
    ``factor * baseline``, which would lie below a negative baseline.
    """
    bar = baseline + (factor - 1) * jnp.abs(baseline)
    return jnp.where(jnp.isinf(factor), jnp.inf, bar)


def check(env: Env, config: Config, priors: Sequence[Prior]) -> None:
    """Check that CA2E supports the learner, that every prior policy fits the task and has an actor, and that
    both are compared in the same rewards.

    Raises:
        ValueError: the learner, a prior policy or the source of returns does not fit; the message says which.
    """
    check_learner(config)
    if len(priors) > config.prior_actors:
        raise ValueError(
            f"{len(priors)} prior policies for {config.prior_actors} prior actors; raise prior_actors to"
            f" {len(priors)}"
        )
    for prior in priors:
        check_fits(env, prior.policy)
    if priors and env.scored is not None and config.return_source == "nature":
        raise ValueError(
            "return_source nature compares returns in training with those of the prior policies, which"
            " reward_scale and reward_clip do not change; set return_source greedy or leave these options out"
        )


def after_check(
    state: Retirement,
    config: Config,
    hyper: Hyper,
    average: Array,
    known: Array,
    due: Array,
    env_steps: Count,
) -> Retirement:
    """Return the state after a comparison of the learner's mean return ``average`` [] with the baselines, if
    one is ``due``; a return that is not ``known`` yet surpasses none.

    Algorithm 1.1: a prior actor retires once the learner has surpassed its policy ``checks`` times in a row.
    After ``prior_until`` environment steps, all have retired.
    """
    bar = threshold(state.baseline, hyper.replacement_factor)
    compared = compare(state, known & (average >= bar), env_steps / 1, config.checks)
    state = tree.where(due, compared, state)
    if not config.prior_until:
        return state
    over = state.active & (env_steps >= config.prior_until)
    return replace(state, retired_at=jnp.where(over, env_steps / 1, state.retired_at))


def compare(state: Retirement, surpassed: Array, env_steps: Array, checks: int) -> Retirement:
    """Return the state after a comparison with every policy; ``surpassed`` bool [prior] marks those that the
    learner surpassed."""
    successes = jnp.where(surpassed, state.successes + 1, 0)
    retires = state.active & (successes >= checks)
    return replace(
        state,
        successes=jnp.where(state.active, successes, state.successes),
        retired_at=jnp.where(retires, env_steps, state.retired_at),
    )


def initial_retirement(config: Config, priors: Sequence[Prior]) -> Retirement:
    """Return the state before the first comparison. Prior actors without a policy are retired."""
    count = config.prior_actors
    given = [priors[j % len(priors)].mean_return for j in range(count)] if priors else [0.0] * count
    return Retirement(
        baseline=jnp.array(given, jnp.float32),
        successes=jnp.zeros(count, jnp.int32),
        retired_at=jnp.full(count, -1.0 if priors else 0.0, jnp.float32),
    )
