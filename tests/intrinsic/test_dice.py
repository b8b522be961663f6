"""DiCE's bisector in the worked examples and at its edges, the clip of each tensor, the diversity reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.intrinsic.dice import bisector, clip_each, diversity_reward
from tests.support import equal


# CE, worked example 8. A true projection would give the second a length of 2.121320.
@pytest.mark.parametrize(
    ("task", "diversity", "result"), [([3, 0], [0, 1], [1, 1]), ([1, 2], [2, 1], [1.118034, 1.118034])]
)
def test_the_bisector_of_the_worked_example(task, diversity, result):
    vectors = jnp.array(task, jnp.float32), jnp.array(diversity, jnp.float32)
    np.testing.assert_allclose(bisector(*vectors), result, atol=1e-6)


def test_trees_are_one_vector():
    """Normalised leaf by leaf, as trees must not be, these would have other directions."""
    task = {"a": jnp.array([[1.0]]), "b": jnp.array([2.0])}
    diversity = {"a": jnp.array([[2.0]]), "b": jnp.array([1.0])}
    result = bisector(task, diversity)
    assert jax.tree.map(jnp.shape, result) == {"a": (1, 1), "b": (1,)}
    np.testing.assert_allclose([result["a"][0, 0], result["b"][0]], 1.118034, atol=1e-6)


def test_diversity_adds_no_more_than_the_task():
    """The length |d*u| is cut at |g*u|: however long the gradient of diversity is, the step is the same."""
    task = jnp.array([3.0, 1.0])
    long, longer = (bisector(task, jnp.array([0.0, scale])) for scale in (1e3, 1e6))
    np.testing.assert_allclose(long, longer, rtol=1e-5)
    assert float(jnp.abs(bisector(task, jnp.array([0.0, 1e-3])) - long).max()) > 0.1


def test_gradients_of_zero():
    zero, gradient = jnp.zeros(2), jnp.array([3.0, 4.0])
    assert bisector(zero, gradient).tolist() == [0, 0]
    assert bisector(zero, zero).tolist() == [0, 0]
    assert bisector(gradient, -gradient).tolist() == [0, 0]
    unit = gradient / 5
    expected = unit * jnp.linalg.norm(gradient * unit) / 2
    np.testing.assert_allclose(bisector(gradient, zero), expected, rtol=1e-6)


def test_every_leaf_is_clipped_on_its_own():
    leaves = {"long": jnp.array([[30.0], [40.0]]), "short": jnp.array([3.0, 4.0]), "none": jnp.zeros(3)}
    clipped = clip_each(leaves, 10.0)
    np.testing.assert_allclose(clipped["long"], [[6], [8]], rtol=1e-6)
    assert clipped["short"].tolist() == [3, 4]
    assert clipped["none"].tolist() == [0, 0, 0]
    equal(clip_each(leaves, jnp.inf), leaves)
    assert not np.any(clip_each(leaves, 0.0)["long"])


def test_the_reward_is_the_mean_squared_distance_to_the_other_agents():
    means = jnp.array([[0.5, -0.5], [0.0, 1.0]])
    targets = jnp.array([[[0.5, 0.5], [0, 0]], [[jnp.nan] * 2] * 2, [[-0.5, -0.5], [1, 1]]])
    # By hand, for agent 1: state 0, ((0 + 1)/2 + (1 + 0)/2)/2; state 1, ((0 + 1)/2 + (1 + 0)/2)/2.
    assert diversity_reward(means, targets, 1).tolist() == [0.5, 0.5]
    targets = targets.at[1].set(0.0)
    # For agent 2: state 0, ((0 + 1)/2 + (.25 + .25)/2)/2; state 1, ((0 + 1)/2 + (0 + 1)/2)/2.
    assert diversity_reward(means, targets, jnp.int32(2)).tolist() == [0.375, 0.5]


def test_alone_there_is_no_diversity():
    means = jnp.ones((4, 2))
    assert diversity_reward(means, -means[None], 0).tolist() == [0, 0, 0, 0]


def test_no_gradient_flows_into_the_reward():
    means, targets = jnp.ones((4, 2)), jnp.zeros((3, 4, 2))
    for gradient in jax.grad(lambda m, t: diversity_reward(m, t, 0).sum(), (0, 1))(means, targets):
        assert not np.any(gradient)


def test_lifted_agents_are_single_agents():
    chance = np.random.default_rng(0)
    means, targets = jnp.asarray(chance.normal(size=(2, 3, 5, 2)), jnp.float32)
    rewards = jax.vmap(diversity_reward, (0, None, 0))(means, targets, jnp.arange(3))
    steps = jax.vmap(lambda g, d: bisector(clip_each(g, 2.0), d))(means, targets)
    for i in range(3):
        np.testing.assert_allclose(rewards[i], diversity_reward(means[i], targets, i), rtol=1e-5)
        np.testing.assert_allclose(steps[i], bisector(clip_each(means[i], 2.0), targets[i]), rtol=1e-5)
