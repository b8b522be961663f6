"""Layers that other tests do not reach through an agent."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from popjax import nets
from popjax.agents import a2c, ddpg, dqn, ppo, sac, sac2018, td3
from popjax.core import Spec
from popjax.nets.layers import Conv, Dense, patches
from tests.support import close, slow_except


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 1, "valid"), (4, 2, "valid"), (3, 2, "same"), (8, 4, "same")]
)
@pytest.mark.parametrize("height", slow_except([9], [9, 12]))
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


def test_on_policy_agents_rectify_behind_the_convolutions_of_atari(key):
    for agent in (a2c, ppo):
        for shape, chosen in (((36, 36, 4), "relu"), ((10, 10, 4), "tanh"), ((3,), "tanh")):
            spec, obs = Spec("none", shape, 6, 1, discrete=True), jax.random.normal(key, (5, *shape))
            found, wanted = (
                agent.build(spec, agent.Config(hidden=(8,), activation=activation)).critic
                for activation in (None, chosen)
            )
            params = found.init(key)
            np.testing.assert_array_equal(found.apply(params, obs), wanted.apply(params, obs))
        other = agent.build(spec, agent.Config(hidden=(8,), activation="relu")).critic
        assert (found.apply(params, obs) != other.apply(params, obs)).any()


@pytest.mark.parametrize(
    ("agent", "config"), [(ppo, ppo.Config(normalize_obs=True)), (dqn, dqn.Config(normalize_obs=True))]
)
def test_bytes_are_not_whitened(agent, config):
    spec = Spec("frames", (84, 84, 4), 6, 1, discrete=True, obs_dtype=jnp.uint8)
    with pytest.raises(ValueError, match=r"observations of frames are bytes.*unset normalize_obs"):
        agent.build(spec, config)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        *((module.Config(hidden=(4,)), (5,)) for module in (td3, sac, sac2018, dqn)),
        (ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4), (5,)),
        *((a2c.Config(hidden=(4,)), shape) for shape in ((5,), (2, 3), (2, 2, 3))),
        (ppo.Config(hidden=(4,)), (5,)),
        (a2c.Config(hidden=(4,), lstm=2), (5,)),
    ],
)
def test_bytes_are_divided_by_255_whatever_their_shape(config, shape, key):
    """Also those that are no images, by policies and by values."""
    module = sys.modules[type(config).__module__]
    spec = Spec("bytes", shape, 2, 9, discrete=module in (dqn, a2c), obs_dtype=jnp.uint8)
    agent = module.build(spec, config)
    state, obs = agent.init(key, module.Hyper()), jax.random.randint(key, shape, 0, 256).astype(jnp.uint8)
    action = jnp.int32(1) if spec.discrete else jnp.zeros(2)

    def said(obs):
        return agent.act(agent.policy(state), agent.memory, obs, key, 0.0), agent.value(state, obs, action)

    close(said(obs), said(obs / jnp.float32(255)))


@pytest.mark.parametrize("initializer", ["orthogonal", "uniform"])
def test_convolutions_begin_as_the_layers_behind_them(initializer):
    """Orthogonal with a gain of sqrt(2), or uniform within 1 / sqrt(3 * 3 * 4)."""
    options = {"discrete": True, "activation": "relu", "initializer": initializer}
    plain = nets.policy_and_value((10, 10, 4), 3, (8,), **options)
    for network in (*plain, *nets.recurrent_policy_and_value((10, 10, 4), 3, (8,), 4, **options)):
        params = network.init(jax.random.key(0))
        kernels = [x for x in jax.tree.leaves(params) if x.shape == (36, 16)]
        assert len(kernels) == 1
        if initializer == "orthogonal":
            np.testing.assert_allclose(kernels[0].T @ kernels[0], 2 * np.eye(16), atol=1e-5)
        else:
            assert 0.97 / 6 < float(jnp.abs(kernels[0]).max()) <= 1 / 6


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (7, 3), (2, 5, 3)])
def test_a_linear_layer_has_the_gradient_that_jax_derives(shape, precision):
    layer, x = Dense(4, precision=precision), jax.random.normal(jax.random.key(0), shape)
    params = layer.init(jax.random.key(1), x)
    weight = jax.random.normal(jax.random.key(2), (*shape[:-1], 4))

    def theirs(params, x):
        linear = jax.tree.map(lambda leaf: leaf.astype(precision), params["params"]["linear"])
        return x.astype(precision) @ linear["kernel"] + linear["bias"]

    ours, expected = (
        jax.jit(jax.grad(lambda params, x, f=f: (weight * f(params, x)).sum(), (0, 1)))(params, x)
        for f in (layer.apply, theirs)
    )
    tolerance = 1e-6 if precision == "float32" else 0.02
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, expected
    )


def gradients(net, shape, platform, agents=None):
    """The operations, as text, whose result has the shape of a kernel in the gradient of a network."""
    gradient = jax.grad(lambda params, x: net.apply(params, x).sum())
    params = jax.eval_shape(net.init, jax.random.key(0))
    if agents:
        gradient, shape = jax.vmap(gradient), (agents, *shape)
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((agents, *leaf.shape), leaf.dtype), params)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    text = jax.jit(gradient).trace(params, x).lower(lowering_platforms=(platform,)).as_text()
    kernels = [
        "x".join(map(str, leaf.shape)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1 + bool(agents)
    ]
    results = {f"tensor<{kernel}xf32>" for kernel in kernels}
    return [line for line in text.splitlines() if line.rpartition("-> ")[2].strip() in results]


@pytest.mark.parametrize("agents", [None, 4])
def test_the_gradient_of_weights_is_a_product_without_a_transpose_behind_it(agents):
    net = nets.mlp(3, (8, 8), 2)
    on_cpu, on_gpu = (gradients(net, (16, 3), platform, agents) for platform in ("cpu", "cuda"))
    assert sum("dot_general" in line for line in on_cpu) == 3
    assert not any("transpose" in line for line in on_cpu)
    assert sum("transpose" in line for line in on_gpu) == 3


def test_examples_that_a_loss_maps_over_are_summed_in_the_product():
    """Not afterwards: no array holds a gradient for each of them."""
    net = nets.mlp(3, (8, 8), 2)
    gradient = jax.grad(lambda params, x: jax.vmap(net.apply, (None, 0))(params, x).sum())
    text = jax.jit(gradient).lower(net.init(jax.random.key(0)), jnp.zeros((16, 3))).as_text()
    assert "tensor<16x8xf32>" in text
    assert "tensor<16x8x8xf32>" not in text
