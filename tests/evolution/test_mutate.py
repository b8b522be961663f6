"""Mutation: the worked examples, what must not change, and the odds of ERL's operator."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets
from popjax.evolution.mutate import floored, gaussian, is_weight, proximal, sensitivity
from tests.support import equal

ACTOR = nets.tanh_actor(3, 2, (6, 6), activation="tanh", norm="erl")

GAUSSIANS = jax.jit(jax.vmap(gaussian, (None, 0)))
SENSITIVITY = jax.jit(partial(sensitivity, ACTOR.apply))
INIT = jax.jit(ACTOR.init)


def linear(params, obs):
    return obs @ params["kernel"]


def actor_and_states(key, states=20):
    key_actor, key_obs = jax.random.split(key)
    return INIT(key_actor), 2 * jax.random.normal(key_obs, (states, 3))


def leaves(params):
    """name -> array."""
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}


def test_worked_example_3_the_sensitivity_of_a_linear_policy():
    """Kernels are [in, out]: W00, W01, W10, W11 of the example are the transpose."""
    params, obs = {"kernel": jnp.ones((2, 2))}, jnp.array([[1.0, 2.0], [3.0, -1.0]])
    scale = sensitivity(linear, params, obs, jnp.ones(2, bool))["kernel"]
    np.testing.assert_allclose(scale.T, [[4, 1], [4, 1]], rtol=1e-6)
    step = jnp.array([[0.1, -0.1], [0.05, 0.0]]) / floored(scale.T, 0.01)
    np.testing.assert_allclose(step, [[0.025, -0.1], [0.0125, 0.0]], rtol=1e-6)


def test_worked_example_4_the_floor():
    np.testing.assert_allclose(floored(jnp.array([0.0, 0.004, 0.5]), 0.01), [1.0, 0.01, 0.5])


def test_sensitivity_against_finite_differences(key):
    params, obs = actor_and_states(key)
    found = SENSITIVITY(params, obs, jnp.ones(len(obs), bool))["mlp"]["Dense_1"]["linear"]["kernel"]

    apply = jax.jit(ACTOR.apply)

    def summed(kernel):
        mlp = params["mlp"] | {"Dense_1": {"linear": params["mlp"]["Dense_1"]["linear"] | {"kernel": kernel}}}
        return np.asarray(apply({"mlp": mlp}, obs), np.float64).sum(0)

    kernel = params["mlp"]["Dense_1"]["linear"]["kernel"]
    for i, j in [(0, 0), (1, 3), (3, 2)]:
        h = 1e-2
        slope = (summed(kernel.at[i, j].add(h)) - summed(kernel.at[i, j].add(-h))) / (2 * h)
        assert float(found[i, j]) == pytest.approx(np.sqrt((slope**2).sum()), rel=2e-2, abs=2e-3)


def test_padding_leaves_the_sensitivity_as_it_is(key):
    params, obs = actor_and_states(key)
    alone = SENSITIVITY(params, obs, jnp.ones(20, bool))
    padded = SENSITIVITY(params, jnp.concatenate([obs, 100 * jnp.ones((7, 3))]), jnp.arange(27) < 20)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alone, padded)


def mutants(kind, params, obs, key, std=0.1):
    if kind == "gaussian":
        return gaussian(params, key)
    return proximal(ACTOR.apply, params, obs, jnp.ones(len(obs), bool), key, std)


@pytest.mark.parametrize("kind", ["proximal", "gaussian"])
def test_worked_example_10_only_weight_matrices_change(kind, key):
    params, obs = actor_and_states(key)
    before = leaves(params)
    keys = jax.random.split(key, 40)
    after = leaves(jax.jit(jax.vmap(lambda k: mutants(kind, params, obs, k)))(keys))
    assert sum(is_weight(x) for x in before.values()) == 3
    assert len(before) == 3 + 3 + 2 * 2  # matrices, biases, scale and bias of two layer norms
    for name, x in before.items():
        same = (after[name] == x).all(axis=tuple(range(1, x.ndim + 1)))
        if x.ndim == 2:
            assert not same.all(), name
            assert not same.any() or kind == "gaussian", name
        else:
            assert same.all(), name


def test_no_magnitude_no_change(key):
    params, obs = actor_and_states(key)
    same = jax.jit(partial(mutants, "proximal", std=0.0))(params, obs, key)
    equal(same, params)


def test_layers_of_equal_shape_get_noise_of_their_own(key):
    """So do individuals; and the noise is standard normal times std over the sensitivity."""
    actor = nets.tanh_actor(4, 4, (4, 4))
    params, obs = jax.jit(actor.init)(key), jax.random.normal(key, (10, 4))
    valid = jnp.ones(10, bool)
    keys = jax.random.split(key, 500)
    after = jax.jit(jax.vmap(lambda k: proximal(actor.apply, params, obs, valid, k, 0.1)))(keys)
    scale = jax.jit(partial(sensitivity, actor.apply))(params, obs, valid)
    scaled = jax.jit(lambda a, p, s: (a - p) * floored(s, 0.01) / 0.1)
    noise = jax.tree.map(scaled, after, params, scale)
    noise = np.stack([x.reshape(500, 16) for x in jax.tree.leaves(noise) if x.ndim == 3])  # [3, 500, 16]
    assert noise.shape == (3, 500, 16)
    flat = noise.transpose(0, 2, 1).reshape(48, 500)
    correlation = np.corrcoef(flat) - np.eye(48)
    assert np.abs(correlation).max() < 0.25
    np.testing.assert_allclose(noise.std((1, 2)), 1.0, atol=0.05)
    np.testing.assert_allclose(noise.mean((1, 2)), 0.0, atol=0.05)


def test_gaussian_hits_the_expected_share_of_entries(key):
    """n ~ U{0 .. 9} of 100 entries with probability 3/4; kinds 5% strong, 5% redrawn, 90% weak."""
    params = {"w": jnp.full((10, 10), 100.0), "b": jnp.full(10, 100.0)}
    after = GAUSSIANS(params, jax.random.split(key, 8000))
    change = np.asarray(after["w"]) - 100.0
    hits = (change != 0).sum((1, 2))
    # Entries are drawn with replacement: n hits reach 100 (1 - 0.99^n) different ones.
    mean = 0.75 * np.mean([100 * (1 - 0.99**n) for n in range(10)])
    assert hits.mean() == pytest.approx(mean, rel=0.03)
    assert hits.max() <= 9
    assert (hits == 0).mean() == pytest.approx(0.25 + 0.75 / 10, abs=0.02)
    changed = change[change != 0]
    redrawn = (changed < -90) & (changed > -110)
    strong = ~redrawn & (np.abs(changed) > 60)
    assert redrawn.mean() == pytest.approx(0.05 + 0.05 * 0.008, abs=0.01)
    assert strong.mean() == pytest.approx(0.05 * 0.952, abs=0.01)
    assert changed[~redrawn & ~strong].std() == pytest.approx(10, rel=0.1)
    assert (np.asarray(after["b"]) == 100).all()


def test_gaussian_clamps_what_it_hits(key):
    params = {"w": jnp.full((10, 10), 9.9e5)}
    after = np.asarray(GAUSSIANS(params, jax.random.split(key, 2000))["w"])
    assert np.abs(after).max() == 1e6


def test_gaussian_mutates_each_matrix_with_a_chance_of_its_own(key):
    params = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 10))}
    after = GAUSSIANS(params, jax.random.split(key, 4000))
    hit_a, hit_b = ((np.asarray(after[name]) != 1).any((1, 2)) for name in "ab")
    assert (hit_a & hit_b).mean() == pytest.approx(hit_a.mean() * hit_b.mean(), abs=0.02)
    assert (np.asarray(after["a"]) != np.asarray(after["b"])).any()


def test_gaussian_leaves_tiny_matrices_alone(key):
    """n ~ U{0 .. ceil(size / 10) - 1} is 0 for up to 10 entries."""
    params = {"w": jnp.ones((2, 5))}
    after = GAUSSIANS(params, jax.random.split(key, 50))
    assert (np.asarray(after["w"]) == 1).all()
