"""Pieces of a learner written out, for its own to be compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from popjax.core import Transition


def a_batch(size=16, scale=1.0):
    """Transitions [size] of three observations and two actions, about a third of which terminate."""
    chance = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(scale * chance.normal(size=shape), jnp.float32)

    action = jnp.tanh(normal(size, 2))
    discount = jnp.asarray(0.99 * (chance.random(size) < 0.7), jnp.float32)
    return Transition(normal(size, 3), action, normal(size), discount, normal(size, 3))


def norm(gradient):
    return np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient)))


def stepped(params, gradient, lr, clip=np.inf, optimizer=None):
    """Adam's step, written out, after clipping to a global norm: the first, or that which follows on the
    state ``optimizer``."""
    factor = min(1.0, clip / norm(gradient))
    if optimizer is None:
        count, *moments = 0, *[jax.tree.map(np.zeros_like, gradient)] * 2
    else:
        count, *moments = (optax.tree_utils.tree_get(optimizer, name) for name in ("count", "mu", "nu"))
    unbiased = [1 - decay ** (count + 1) for decay in (0.9, 0.999)]

    def step(p, g, m, v):
        m, v = 0.9 * m + 0.1 * g * factor, 0.999 * v + 0.001 * (g * factor) ** 2
        return p - lr * (m / unbiased[0]) / (np.sqrt(v / unbiased[1]) + 1e-8)

    return jax.tree.map(step, *jax.tree.map(np.asarray, (params, gradient, *moments)))


def blend(target, online, rate):
    return jax.tree.map(lambda t, o: (1 - rate) * np.asarray(t) + rate * np.asarray(o), target, online)


def first_moment(optimizer):
    return optax.tree_utils.tree_get(optimizer, "mu")


def layers(mlp):
    """(kernel, bias) of every linear layer, in order."""
    return [tuple(mlp[f"Dense_{i}"]["linear"][x] for x in ("kernel", "bias")) for i in range(len(mlp))]


def forward(mlp, x, activation):
    """Output of an MLP with ``activation`` between its layers, and what its last layer was given."""
    *hidden, (kernel, bias) = layers(mlp)
    for weights, biases in hidden:
        x = activation(x @ weights + biases)
    return x @ kernel + bias, x


def relu(x):
    return jnp.maximum(x, 0)


def assert_uniform(weights, fan_in):
    """All of U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    assert stats.kstest(np.ravel(weights), stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.001
    assert np.abs(weights).max() <= bound * (1 + 1e-6)


def assert_spinning_up_initialises(mlp, *, last_bias):
    """Uniform weights and no biases, but for the last layer's if ``last_bias``."""
    *hidden, (kernel, bias) = layers(mlp)
    for weights, biases in [*hidden, (kernel, bias)]:
        assert_uniform(weights, weights.shape[-2])
        if biases is bias and last_bias:
            assert_uniform(bias, kernel.shape[-2])
        else:
            assert (biases == 0).all()
