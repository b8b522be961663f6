"""Measures of how different the policies of a population are, and of the information in actions about states.

Sources: the Kullback-Leibler divergence of diagonal Gaussians in closed form; "Mutual Information Neural
Estimation" (Belghazi et al., 2018), the Donsker-Varadhan bound with the moving average that corrects the
gradient's bias. Everything is in nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import normalize
from popjax.core import Key, Network, Params, PyTree

SHIFTS = 32
"""Actions paired with each held-out state to make independent pairs."""


def gaussian_kl(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> Array:
    """Return KL(p || q) of diagonal Gaussians, all [..., A] -> [...], nats.

    Squashing both by the same tanh changes nothing: a bijection keeps the divergence.
    """
    log_ratio = log_std_p - log_std_q
    distance = (mean_p - mean_q) * jnp.exp(-log_std_q)
    return 0.5 * (jnp.expm1(2 * log_ratio) - 2 * log_ratio + jnp.square(distance)).sum(-1)


def pairwise_kl(means: Array, log_stds: Array) -> Array:
    """Return KL(policy i || policy j), mean over B states: means and log_stds [P, B, A] -> [P, P], nats."""

    def one(mean_p: Array, log_std_p: Array) -> Array:
        return gaussian_kl(mean_p, log_std_p, means, log_stds).mean(-1)

    return jax.vmap(one)(means, log_stds)


def mean_pairwise_kl(means: Array, log_stds: Array) -> Array:
    """Return the mean [] of ``pairwise_kl`` over the ordered pairs of different policies; 0 for a single
    one."""
    policies = means.shape[0]
    divergence = jnp.where(jnp.eye(policies, dtype=bool), 0.0, pairwise_kl(means, log_stds))
    return divergence.sum() / max(policies * (policies - 1), 1)


@struct.dataclass
class _Fit:
    """Parameters and Adam's moments of the network, and the log [] of the moving average of exp(T)."""

    params: Params
    optimizer: PyTree
    log_average: Array


def mutual_information(
    states: Array,
    actions: Array,
    key: Key,
    network: Network,
    *,
    steps: int = 3000,
    batch: int = 512,
    learning_rate: Array | float = 1e-3,
    average_rate: Array | float = 0.01,
    held_out: float = 0.25,
) -> Array:
    """Return a lower bound [] on I(state; action), nats, fitted on some of the pairs and measured on the
    others.

    states, actions: [B, D] and [B, A]  pairs; every component is normalized first. Neighbours in time are
                     not independent: take rows of many episodes, one episode after the other.
    network:         T(state, action) -> [...], such as ``nets.critic(D, A, (128, 128))``.
    steps, batch:    gradient steps of Adam, and pairs in each.
    average_rate:    share of a step's batch in the moving average that corrects the gradient.
    held_out:        share of the pairs, the last ones, on which the bound is measured.

    The bound is ``mean T(s, a) - log mean exp T(s, a')`` with a' drawn for another state. On finitely many
    pairs it is an estimate, which scatters, may be negative, and is at most about the log of their number.

    Raises:
        ValueError: there are too few pairs to hold any out.
    """
    rows = states.shape[0]
    tested = int(rows * held_out)
    if tested < 2 or rows - tested < 2:
        raise ValueError(f"{rows} pairs are too few to hold out a share of {held_out:g}")
    states, actions = _standard(states), _standard(actions)
    params = _fit(
        network,
        states[:-tested],
        actions[:-tested],
        key,
        steps=steps,
        batch=batch,
        optimizer=optax.adam(learning_rate),
        average_rate=average_rate,
    )
    return _bound(network, params, states[-tested:], actions[-tested:])


def _fit(
    network: Network,
    states: Array,
    actions: Array,
    key: Key,
    *,
    steps: int,
    batch: int,
    optimizer: optax.GradientTransformation,
    average_rate: Array | float,
) -> Params:
    """Return parameters of the network after ``steps`` gradient steps up the bound."""

    def step(fit: _Fit, key: Key) -> tuple[_Fit, None]:
        joint, other = jax.random.randint(key, (2, batch), 0, states.shape[0])

        def loss(params: Params) -> tuple[Array, Array]:
            together = network.apply(params, states[joint], actions[joint]).mean()
            apart = _log_mean_exp(network.apply(params, states[joint], actions[other]))
            average = jnp.logaddexp(jnp.log1p(-average_rate) + fit.log_average, jnp.log(average_rate) + apart)
            # Divide the gradient of E exp(T) by the moving average of exp(T); the gradient of log E exp(T)
            # would divide by the mean of the batch.
            return jnp.exp(apart - jax.lax.stop_gradient(average)) - together, average

        gradient, log_average = jax.grad(loss, has_aux=True)(fit.params)
        updates, moments = optimizer.update(gradient, fit.optimizer, fit.params)
        return _Fit(optax.apply_updates(fit.params, updates), moments, log_average), None

    key_init, key_steps = jax.random.split(key)
    params = network.init(key_init)
    first = _log_mean_exp(network.apply(params, states[:batch], jnp.roll(actions[:batch], 1, 0)))
    start = _Fit(params, optimizer.init(params), first)
    fit, _ = jax.lax.scan(step, start, jax.random.split(key_steps, steps))
    return fit.params


def _bound(network: Network, params: Params, states: Array, actions: Array) -> Array:
    """Return the Donsker-Varadhan bound []; independent pairs join each state with the actions 1, 2, ... rows
    before it."""
    shifts = jnp.arange(1, 1 + min(SHIFTS, states.shape[0] - 1))

    def apart(shift: Array) -> Array:
        return _log_mean_exp(network.apply(params, states, jnp.roll(actions, shift, 0)))

    together = network.apply(params, states, actions).mean()
    return together - _log_mean_exp(jax.lax.map(apart, shifts))


def _log_mean_exp(x: Array) -> Array:
    """Return the logarithm [] of the mean exponential of [B]."""
    return jax.nn.logsumexp(x) - jnp.log(x.shape[0])


def _standard(rows: Array) -> Array:
    """Return rows [B, D] with every component of mean 0 and deviation 1; one that never varies becomes 0."""
    return jax.vmap(normalize.standardized, 1, 1)(rows)
