"""Layers that other tests do not reach through an agent."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from popjax import nets
from popjax.agents import a2c, dqn, ppo
from popjax.core import Spec
from popjax.nets.layers import Conv, Dense, patches, product


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 1, "valid"), (4, 2, "valid"), (3, 2, "same"), (8, 4, "same")]
)
@pytest.mark.parametrize("height", [9, 12])
def test_a_convolution_is_the_one_of_xla(side, stride, padding, height):
    conv = Conv(5, side, stride, padding)
    x = jax.random.normal(jax.random.key(0), (2, height, 11, 3))
    params = conv.init(jax.random.key(1), x)
    kernel = params["params"]["Dense_0"]["linear"]["kernel"]
    assert kernel.shape == (side * side * 3, 5)
    expected = lax.conv_general_dilated(
        x,
        kernel.reshape(side, side, 3, 5),
        (stride, stride),
        padding.upper(),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(conv.apply(params, x), expected, atol=1e-5)
    np.testing.assert_allclose(conv.apply(params, x[0]), expected[0], atol=1e-5)


def test_patches_are_ordered_by_row_column_channel():
    x = jnp.arange(3 * 3 * 2.0).reshape(3, 3, 2)
    np.testing.assert_array_equal(patches(x, 2, 1)[0, 0], [0, 1, 2, 3, 6, 7, 8, 9])


def test_on_policy_agents_have_the_dense_layers_of_their_convolutions():
    for agent in (a2c, ppo):
        for shape, last in (((84, 84, 4), (512, 6)), ((10, 10, 4), (64, 6)), ((3,), (64, 6))):
            built = agent.build(Spec("none", shape, 6, 1, discrete=True, obs_dtype=jnp.uint8))
            params = jax.eval_shape(built.actor.init, jax.random.key(0))
            assert last in [x.shape for x in jax.tree.leaves(params)]
        linear = agent.build(Spec("none", (3,), 6, 1, discrete=True), agent.Config(hidden=()))
        assert len(jax.tree.leaves(jax.eval_shape(linear.actor.init, jax.random.key(0)))) == 2


@pytest.mark.parametrize(
    ("agent", "config"), [(ppo, ppo.Config(normalize_obs=True)), (dqn, dqn.Config(normalize_obs=True))]
)
def test_bytes_are_not_whitened(agent, config):
    spec = Spec("frames", (84, 84, 4), 6, 1, discrete=True, obs_dtype=jnp.uint8)
    with pytest.raises(ValueError, match=r"observations of frames are bytes.*unset normalize_obs"):
        agent.build(spec, config)


def test_glorot_counts_the_places_of_a_kernel():
    """fan in 3 * 3 * 4, fan out 3 * 3 * 16; a linear layer has the plain ones."""
    kernel = Conv(16, 3).init(jax.random.key(0), jnp.zeros((10, 10, 4)))["params"]["Dense_0"]["linear"][
        "kernel"
    ]
    bound = (6 / (9 * 4 + 9 * 16)) ** 0.5
    assert 0.97 * bound < float(jnp.abs(kernel).max()) <= bound
    linear = Dense(50, "glorot").init(jax.random.key(0), jnp.zeros(30))["params"]["linear"]
    assert 0.97 * (6 / 80) ** 0.5 < float(jnp.abs(linear["kernel"]).max()) <= (6 / 80) ** 0.5
    assert not linear["bias"].any()
    small = Dense(50, "small").init(jax.random.key(0), jnp.zeros(30))["params"]["linear"]["kernel"]
    assert 2.9e-3 < float(jnp.abs(small).max()) <= 3e-3


@pytest.mark.parametrize("layer", [0, 1])
def test_where_the_action_joins_a_critic(layer):
    critic = nets.late_action_critic(3, 2, (8, 6), layer)
    params = critic.init(jax.random.key(0))
    kernels = [params[f"Dense_{i}"]["linear"]["kernel"].shape for i in range(3)]
    assert kernels == [(3 + 2 * (layer == 0), 8), (8 + 2 * (layer == 1), 6), (6, 1)]
    assert critic.apply(params, jnp.ones((4, 3)), jnp.ones((4, 2))).shape == (4,)


def test_the_penalty_sees_hidden_matrices_alone():
    """CA2E, worked example 9: 1e-2 of half of 9."""
    params = {
        "hidden": {"kernel": jnp.array([[1.0, 2.0], [0.0, 2.0]]), "bias": jnp.array([7.0, 7.0])},
        "output": {"kernel": jnp.array([[7.0], [7.0]]), "bias": jnp.array([7.0])},
    }
    assert 1e-2 * nets.hidden_squares(params) / 2 == pytest.approx(0.045)


@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 5, 3)])
def test_a_linear_layer_has_the_gradient_that_jax_derives(shape):
    x, kernel = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (3, 4))
    weight = jax.random.normal(jax.random.key(2), (*shape[:-1], 4))

    def gradient(multiply):
        return jax.jit(jax.grad(lambda x, kernel: (weight * multiply(x, kernel)).sum(), (0, 1)))(x, kernel)

    ours, expected = gradient(product), gradient(jnp.matmul)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)


@pytest.mark.parametrize("agents", [1, 4])
def test_gradients_of_weights_are_products_and_not_their_transposes(agents):
    """The operations of a gradient in the order of the program: none comes after the products of kernels."""
    net = nets.mlp(3, (8, 8), 2)
    params = jax.eval_shape(jax.vmap(net.init), jax.random.split(jax.random.key(0), agents))
    x = jax.ShapeDtypeStruct((agents, 16, 3), jnp.float32)
    text = jax.jit(jax.vmap(jax.grad(lambda p, x: net.apply(p, x).sum()))).lower(params, x).as_text()
    kernels = {f"tensor<{agents}x{a}x{b}xf32>" for a, b in ((3, 8), (8, 8), (8, 2))}
    operations = [line for line in text.splitlines() if line.rpartition("-> ")[2].strip() in kernels]
    assert len([line for line in operations if "dot_general" in line]) == 3
    assert not [line for line in operations if "transpose" in line]
