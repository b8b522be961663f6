"""Advantages from consecutive steps of a policy, across the ends of episodes."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array


class Targets(NamedTuple):
    """Advantages of the actions in rows [T, ...], and targets for their values; float32 [T, ...] each."""

    advantages: Array
    returns: Array


def targets(
    rewards: Array,
    discounts: Array,
    values: Array,
    next_values: Array,
    done: Array,
    trace_decay: Array | float,
) -> Targets:
    """Return advantages, and returns that do not depend on lambda; arguments as in ``generalized``.

    A return is the discounted sum of rewards up to the end of the episode or of the rows, plus the discounted
    value of the next state there; that value counts as 0 if the task terminated.
    """
    advantages, errors = (
        generalized(rewards, discounts, values, next_values, done, trace) for trace in (trace_decay, 1.0)
    )
    return Targets(advantages, errors + values)


def generalized(
    rewards: Array,
    discounts: Array,
    values: Array,
    next_values: Array,
    done: Array,
    trace_decay: Array | float,
) -> Array:
    """Return generalized advantage estimates [T, ...]. Schulman et al., 2016, equations 11 to 16.

    rewards:     float32 [T, ...]
    discounts:   float32 [T, ...]  0 where the task terminated, else gamma.
    values:      float32 [T, ...]  V of the observation acted on.
    next_values: float32 [T, ...]  V of the true successor, even if the episode was truncated.
    done:        bool    [T, ...]  the next row belongs to another episode, for either reason.
    trace_decay: []                lambda in [0, 1].

    ``delta_t = r_t + discount_t V(s'_t) - V(s_t)`` and ``A_t = delta_t + discount_t lambda A_{t+1}``, where
    the second term is left out at the end of an episode: at a time limit, the value of the next state counts
    but the next episode does not. With lambda 1, ``A_t`` is the return of ``targets`` minus ``V(s_t)``; with
    lambda 0 it is ``delta_t``.
    """
    chex.assert_equal_shape([rewards, discounts, values, next_values, done])
    errors = rewards + discounts * next_values - values
    traces = jnp.where(done, 0.0, discounts * trace_decay)
    # Each iteration of a loop costs an accelerator several kernel launches, however few the lanes.
    return jax.lax.platform_dependent(errors, traces, cpu=in_turn, default=at_once)


def in_turn(errors: Array, traces: Array) -> Array:
    """Return ``A_t = errors_t + traces_t A_{t+1}`` [T, ...], computed row by row from the last."""

    def one(following: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        error, trace = row
        advantage = error + trace * following
        return advantage, advantage

    return jax.lax.scan(one, jnp.zeros_like(errors[0]), (errors, traces), reverse=True)[1]


def at_once(errors: Array, traces: Array) -> Array:
    """Return what ``in_turn`` returns, in a number of operations that grows with the logarithm of T: each row
    is a map ``x -> error + trace x``, and composing maps is associative."""

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(compose, (errors, traces), reverse=True)[0]
