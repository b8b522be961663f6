"""Running statistics of observations and returns, exact under masks and in float32.

Mean and variance are merged batch by batch (Chan, Golub & LeVeque, 1979). Samples are measured from the
running mean, which carries its rounding error along. Both therefore stay accurate over a million float32
samples around 10^4 with standard deviation 1, where sums of squares would lose the variance and a plain
running mean would stop moving. Beyond, old samples fade, as an update weighs at least 2^-20: the rounding of
smaller changes would add up, to a fifth of the variance over 10^7 updates by single rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.core import Agent, Choice, Key, Params, PyTree, Spec, Transition

COUNT_LIMIT = 2**30
"""Maximum of the count of samples."""

_LEAST = 2.0**-20  # share that new rows have at least
_NEAR = 2.0**-12  # range of numbers, as a share of the largest, that the rounding of their mean may exceed


@struct.dataclass
class RunningStatistics:
    """Statistics of the samples seen so far; those of a standard normal before the first.

    count:    int32 []          samples.
    mean:     float32 [*shape]  mean of the samples, rounded.
    low:      float32 [*shape]  rounding error of the mean: the exact mean is ``mean + low``.
    variance: float32 [*shape]  mean squared deviation (divided by ``count``).
    """

    count: Array
    mean: Array
    low: Array
    variance: Array


def init(shape: tuple[int, ...] = ()) -> RunningStatistics:
    """Return statistics of samples [*shape], with none seen."""
    return RunningStatistics(jnp.int32(0), jnp.zeros(shape), jnp.zeros(shape), jnp.ones(shape))


def update(state: RunningStatistics, batch: Array, valid: Array | None = None) -> RunningStatistics:
    """Return statistics updated by the rows of ``batch`` [..., *shape] that are ``valid`` bool [...], or by
    all rows without such a mask.

    Rows that are not valid leave no trace, whatever they hold. A call takes at most 2^30 rows.
    """
    rows = jnp.asarray(batch, jnp.float32).reshape(-1, *state.mean.shape)  # [B, *shape]
    valid = jnp.ones(rows.shape[0], jnp.bool_) if valid is None else jnp.asarray(valid, jnp.bool_).reshape(-1)
    mask = valid.reshape(-1, *(1,) * state.mean.ndim)
    new = valid.sum(dtype=jnp.int32)
    rows_seen = jnp.maximum(new, 1).astype(jnp.float32)

    def mean_of(x: Array) -> Array:
        return jnp.where(mask, x, 0.0).sum(0) / rows_seen

    deviation = (rows - state.mean) - state.low
    rough = mean_of(deviation)
    residual = deviation - rough
    rest = mean_of(residual)  # the rounding error of the sum above, for a first batch far from 0
    offset = rough + rest
    variance = mean_of(jnp.square(residual - rest))

    count = jnp.minimum(state.count, COUNT_LIMIT - new) + new
    share = new / jnp.maximum(count, 1).astype(jnp.float32)
    share = jnp.where(new > 0, jnp.maximum(share, _LEAST), 0.0)
    mean, lost = _two_sum(state.mean, rough * share)
    mean, low = _two_sum(mean, lost + (rest * share + state.low))
    merged = variance + (1 - share) * jnp.square(offset)
    changed = state.variance + share * (merged - state.variance)  # a weighted sum would lose more digits
    return RunningStatistics(count, mean, low, variance=jnp.where(share < 1, changed, merged))


def normalize(state: RunningStatistics, x: Array, *, clip: float | None = None) -> Array:
    """Return ``(x - mean) / sqrt(variance + 1e-8)``, cut to [-clip, clip] if ``clip`` is given.

    A component that has never varied becomes 0.
    """
    normal = ((x - state.mean) - state.low) / jnp.sqrt(state.variance + 1e-8)
    return normal if clip is None else jnp.clip(normal, -clip, clip)


def standardized(x: Array, valid: Array | None = None) -> Array:
    """Return ``(x - mean) / std`` over all valid entries, with the standard deviation that divides by their
    number; 0 if they are all equal."""
    low, high = x.min(where=valid, initial=jnp.inf), x.max(where=valid, initial=-jnp.inf)
    # The mean of equal numbers is rounded, and dividing by their deviation, which is rounded too, would turn
    # that into 1 or -1. Subtracting the lowest of nearly equal numbers is exact (Sterbenz).
    near = high - low <= _NEAR * jnp.maximum(jnp.abs(low), jnp.abs(high))
    x = x - jnp.where(near, low, 0.0)
    std = x.std(where=valid)
    return jnp.where(std > 0, (x - x.mean(where=valid)) / jnp.where(std > 0, std, 1.0), 0.0)


def update_returns(
    statistics: RunningStatistics,
    returns: Array,
    reward: Array,
    done: Array,
    discount: Array | float,
    valid: Array | None = None,
) -> tuple[RunningStatistics, Array]:
    """Return the ``statistics`` of discounted returns so far, by which rewards can be scaled, and these
    ``returns``, both updated by ``reward`` [T, *lanes], in order of time.

    returns:  float32 [*lanes]  discounted sum of rewards since each lane's reset.
    done:     bool [T, *lanes]  the episode ended with this reward.
    discount: []                gamma.
    valid:    bool [T, *lanes]  which steps happened; the others leave no trace.

    R <- gamma R + r; R joins the statistics; R <- 0 where done. As in VecNormalize of OpenAI Baselines and
    Stable-Baselines3.
    """
    valid = jnp.ones(jnp.shape(reward), jnp.bool_) if valid is None else jnp.asarray(valid, jnp.bool_)

    def one(returns: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        reward, done, valid = step
        grown = discount * returns + reward
        return jnp.where(valid, jnp.where(done, 0.0, grown), returns), grown

    returns, seen = jax.lax.scan(one, returns, (jnp.asarray(reward, jnp.float32), done, valid))
    return update(statistics, seen, valid), returns


@struct.dataclass
class Whitened:
    """An agent's state and the statistics of the observations that it has seen."""

    agent: PyTree
    statistics: RunningStatistics


def check_no_bytes(spec: Spec) -> None:
    """Check that observations can be whitened by statistics.

    Raises:
        ValueError: the observations are bytes, which networks divide by 255.
    """
    if jnp.dtype(spec.obs_dtype) == jnp.uint8:
        raise ValueError(
            f"observations of {spec.name} are bytes, which are scaled already; unset normalize_obs"
        )


def whitened(agent: Agent, obs_shape: tuple[int, ...], clip: float = 10.0) -> Agent:
    """Return ``agent`` with observations normalized by running statistics and cut to [-clip, clip].

    Its state is ``Whitened``. Its policy parameters are those of ``agent``, paired with the statistics, so
    that acting sees the same inputs as learning. ``actor`` and ``critic`` still read normalized observations.
    """

    def seen(statistics: RunningStatistics, obs: Array) -> Array:
        return normalize(statistics, obs, clip=clip)

    def seen_batch(state: Whitened, batch: Transition) -> Transition:
        obs, next_obs = (seen(state.statistics, x) for x in (batch.obs, batch.next_obs))
        return replace(batch, obs=obs, next_obs=next_obs)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        return agent.act(params[0], memory, seen(params[1], obs), key, scale)

    def learn(state: Whitened, batch: Transition, hyper: PyTree, key: Key) -> tuple[Whitened, PyTree]:
        inner, losses = agent.learn(state.agent, seen_batch(state, batch), hyper, key)
        return replace(state, agent=inner), losses

    def adopt(state: Whitened, policy: Params, value: Params = None) -> Whitened:
        return Whitened(agent.adopt(state.agent, policy[0], value), policy[1])

    td_error, values = agent.td_error, agent.values

    return agent._replace(
        init=lambda key, hyper: Whitened(agent.init(key, hyper), init(obs_shape)),
        eyes=None,  # they need whitened images, which only this agent has
        act=act,
        learn=learn,
        policy=lambda state: (agent.policy(state.agent), state.statistics),
        adopt=adopt,
        inherit=lambda state, other: Whitened(agent.inherit(state.agent, other.agent), other.statistics),
        value=lambda state, obs, action: agent.value(state.agent, seen(state.statistics, obs), action),
        outputs=lambda params, obs: agent.outputs(params[0], seen(params[1], obs)),
        state_value=_of_agent(agent.state_value),
        td_error=None
        if td_error is None
        else lambda state, batch: td_error(state.agent, seen_batch(state, batch)),
        values=None
        if values is None
        else lambda state, obs, action: values(state.agent, seen(state.statistics, obs), action),
        observe=lambda state, obs, valid: Whitened(
            agent.observe(state.agent, obs, valid), update(state.statistics, obs, valid)
        ),
    )


def _of_agent(function: Callable[[PyTree], Params] | None) -> Callable[[Whitened], Params] | None:
    return None if function is None else lambda state: function(state.agent)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return ``a + b`` rounded, and its exact rounding error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
