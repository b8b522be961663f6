"""Divergences against their closed form, and mutual information where it is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets
from popjax.diversity import gaussian_kl, mean_pairwise_kl, mutual_information, pairwise_kl

MEANS, LOG_STDS = (jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(0, 0.5, (2, 3, 5, 2)))


def by_hand(mean_p, log_std_p, mean_q, log_std_q):
    p, q = np.exp(np.asarray(log_std_p, np.float64)), np.exp(np.asarray(log_std_q, np.float64))
    gap = np.asarray(mean_p, np.float64) - np.asarray(mean_q, np.float64)
    return (np.log(q / p) + (p**2 + gap**2) / (2 * q**2) - 0.5).sum(-1)


def test_equal_policies_do_not_diverge():
    assert not np.any(gaussian_kl(MEANS, LOG_STDS, MEANS, LOG_STDS))


@pytest.mark.parametrize(
    ("p", "q", "divergence"),
    [
        ((1.0, 0.0), (0.0, 0.0), 0.5),
        ((0.0, 0.0), (0.0, np.log(2)), np.log(2) + 1 / 8 - 1 / 2),
        ((0.0, np.log(2)), (0.0, 0.0), -np.log(2) + 4 / 2 - 1 / 2),
        ((3.0, -1.0), (1.0, -1.0), 2 * np.e**2),
    ],
)
def test_divergence_of_one_component(p, q, divergence):
    components = [jnp.array([x]) for x in (*p, *q)]
    assert float(gaussian_kl(*components)) == pytest.approx(divergence, rel=1e-6)


def test_small_divergences_keep_their_sign_and_digits():
    """The terms cancel: their sum is below what float32 resolves next to 1."""
    log_std = jnp.array([3e-4])
    divergence = float(gaussian_kl(jnp.zeros(1), log_std, jnp.zeros(1), jnp.zeros(1)))
    assert divergence == pytest.approx(9e-8, rel=1e-2)


def test_squashing_keeps_the_divergence():
    """KL of the densities of tanh(u), integrated over actions."""
    (p, q), u = ((0.3, -0.5), (-0.2, 0.1)), np.linspace(-6, 6, 20001)

    def density(mean, log_std):
        std = np.exp(log_std)
        return np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi)) / (1 - np.tanh(u) ** 2)

    squashed = np.trapezoid(density(*p) * np.log(density(*p) / density(*q)), np.tanh(u))
    assert float(gaussian_kl(*(jnp.array([x]) for x in (*p, *q)))) == pytest.approx(squashed, rel=1e-4)


def test_pairs_of_policies():
    pairs = pairwise_kl(MEANS, LOG_STDS)
    expected = np.array(
        [[by_hand(MEANS[i], LOG_STDS[i], MEANS[j], LOG_STDS[j]).mean() for j in range(3)] for i in range(3)]
    )
    np.testing.assert_allclose(pairs, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(expected, expected.T, rtol=0.1)
    np.testing.assert_allclose(mean_pairwise_kl(MEANS, LOG_STDS), expected.sum() / 6, rtol=1e-5)
    assert float(mean_pairwise_kl(MEANS[:1], LOG_STDS[:1])) == 0


def correlated(rho, dims, rows):
    """Pairs with a mutual information of -log(1 - rho^2)/2 nats per dimension, in odd units."""
    x, noise = np.random.default_rng(1).normal(size=(2, rows, dims))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    constant = np.full((rows, 1), 5.0)
    return jnp.asarray(np.hstack([100 + 3 * x, constant]), jnp.float32), jnp.asarray(1e-3 * y, jnp.float32)


def estimate(states, actions, key, steps=800):
    network = nets.critic(states.shape[1], actions.shape[1], (64, 64))
    return float(
        jax.jit(lambda s, a, k: mutual_information(s, a, k, network, steps=steps, batch=256))(
            states, actions, key
        )
    )


@pytest.mark.parametrize(("rho", "dims"), [(0.8, 1), (0.8, 2), (0.95, 2)])
def test_mutual_information_of_correlated_gaussians(key, rho, dims):
    truth = -dims / 2 * np.log(1 - rho**2)
    assert estimate(*correlated(rho, dims, 8000), key) == pytest.approx(truth, rel=0.15)


def test_independent_pairs_share_no_information(key):
    assert abs(estimate(*correlated(0.0, 2, 8000), key)) < 0.05


def test_a_bound_on_pairs_that_were_not_seen_does_not_reward_memory(key):
    """Thirty pairs can be learned by heart; measured on themselves they would show information."""
    assert estimate(*correlated(0.0, 2, 40), key) < 0.05


def test_dependence_without_correlation_is_found(key):
    x = np.random.default_rng(2).normal(size=(8000, 1)).astype(np.float32)
    noise = np.random.default_rng(3).normal(size=(8000, 1)).astype(np.float32)
    y = np.abs(x) + 0.3 * noise
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.05
    assert estimate(jnp.asarray(x), jnp.asarray(y), key) > 0.4


def test_a_component_that_never_varies_adds_nothing(key):
    """The float32 mean of thousands of equal numbers is not their value."""
    states = jax.random.normal(key, (4000, 2))
    constants = (jnp.full((4000, 1), value) for value in (0.0, 0.1))
    found = [estimate(jnp.hstack([states, extra]), states[:, :1], key, steps=3) for extra in constants]
    assert found[0] == found[1]


def test_pairs_too_few_to_hold_any_out_are_refused(key):
    with pytest.raises(ValueError, match="4 pairs are too few"):
        mutual_information(jnp.zeros((4, 1)), jnp.zeros((4, 1)), key, nets.critic(1, 1, (8,)))
