"""Networks with a memory: sizes of the paper, beginnings of episodes, heads that do not meet."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.nets import recurrent
from tests.support import close

ACTIONS = 3


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def initial(obs_shape, actions, **options):
    network = recurrent.recurrent_actor_critic(obs_shape, actions, recurrent.Config(**options))
    return jax.eval_shape(network.init, jax.random.key(0))


def test_the_papers_network_has_the_papers_parameters():
    params = initial((42, 42, 1), 6)
    assert count(params["torso"]) == 28_064
    assert params["core"]["kernel"].shape == (288 + 256, 1024)
    assert count(params["core"]) == 558_080
    assert sum(count(params[head]) for head in ("policy", "distil", "value")) == 3_341
    assert count(jax.eval_shape(recurrent.alignment(6, 6).init, jax.random.key(0))) == 794_630


@pytest.mark.parametrize(
    ("shape", "filters", "features"),
    [((10, 10, 4), 4 * 9 * 16 + 16 + (8 * 8 * 16 + 1) * 128, 128), ((5,), 6 * 64, 64)],
)
def test_counterparts_for_grids_and_vectors(shape, filters, features):
    params = initial(shape, 6)
    assert count(params["torso"]) == filters
    assert params["core"]["kernel"].shape == (features + 256, 1024)
    assert initial(shape, 6, recurrent=False)["core"]["kernel"].shape == (features, 256)


@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_a_number_or_a_matrix_is_seen_as_a_vector(shape):
    obs, going_on = jax.random.normal(jax.random.key(1), (5, *shape)), jnp.zeros(5, jnp.bool_)
    network, plain = (recurrent.recurrent_actor_critic(s, 6) for s in (shape, (math.prod(shape),)))
    params = network.init(jax.random.key(0))
    expected = plain.unroll(params, plain.memory, obs.reshape(5, -1), going_on)
    close(network.unroll(params, network.memory, obs, going_on), expected)


def test_bytes_are_seen_from_0_to_1():
    obs, going_on = jnp.uint8([[0, 51, 102], [153, 204, 255]]), jnp.zeros(2, jnp.bool_)
    network = recurrent.recurrent_actor_critic((3,), ACTIONS, recurrent.Config(recurrent=False, units=2))
    params = network.init(jax.random.key(0))
    close(*(network.unroll(params, network.memory, x, going_on) for x in (obs, jnp.float32(obs) / 255)))


def test_what_a_torso_cannot_read_is_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"'vector' reads vectors.*\(10, 10, 4\)"):
        initial((10, 10, 4), 2, torso="vector")
    with pytest.raises(ValueError, match=r"'grid' reads images.*\(4, 4\)"):
        initial((4, 4), 2, torso="grid")
    with pytest.raises(ValueError, match="'sheet'"):
        recurrent.Config(torso="sheet")
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        recurrent.Config(units=0)


def test_layers_begin_as_in_the_paper():
    network = recurrent.recurrent_actor_critic((42, 42, 1), 6)
    params = network.init(jax.random.key(0))
    for head, norm in (("policy", 0.01), ("distil", 0.01), ("value", 1.0)):
        np.testing.assert_allclose(jnp.linalg.norm(params[head]["kernel"], axis=0), norm, rtol=1e-5)
    bounds = {"core": (3 / 544) ** 0.5}
    assert 0.99 * bounds["core"] < jnp.abs(params["core"]["kernel"]).max() <= bounds["core"]
    kernels = [x for x in jax.tree.leaves(params["torso"]) if x.ndim > 1]
    first, others = (6 / (9 * 33)) ** 0.5, (6 / (9 * 64)) ** 0.5
    largest = sorted(float(jnp.abs(x).max()) for x in kernels)
    np.testing.assert_allclose(largest, [others] * 3 + [first], rtol=0.05)
    assert max(largest[:3]) <= others
    biases = [x for x in jax.tree.leaves(params) if x.ndim == 1]
    assert not any(map(np.any, biases))


@lru_cache
def small(**options):
    network = recurrent.recurrent_actor_critic(
        (2,), ACTIONS, recurrent.Config(hidden=(5,), units=4, **options)
    )
    params = network.init(jax.random.key(1))
    noise = jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    params = jax.tree.map(jnp.add, params, noise)  # no head and no bias is small
    return network, params, jax.jit(network.unroll), jax.jit(network.step)


OBS = jax.random.normal(jax.random.key(2), (6, 2))
DONE = jnp.array([False, False, True, False, False, False])


def by_hand(params, obs, done):
    """The LSTM in NumPy, one gate after the other."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    elu = lambda x: np.where(x > 0, x, np.expm1(x))  # noqa: E731
    p = jax.tree.map(np.asarray, params)
    c, h, outputs = np.zeros(4), np.zeros(4), []
    for x, ended in zip(np.asarray(obs), np.asarray(done), strict=True):
        dense = p["torso"]["Dense_0"]["linear"]
        x = elu(x @ dense["kernel"] + dense["bias"])
        i, g, f, o = np.split(np.concatenate([x, h]) @ p["core"]["kernel"] + p["core"]["bias"], 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
        if ended:
            c, h = np.zeros(4), np.zeros(4)
    outputs = np.stack(outputs)
    heads = {name: outputs @ p[name]["kernel"] + p[name]["bias"] for name in ("policy", "distil", "value")}
    return (c, h), heads


def test_the_lstm_is_the_textbooks():
    network, params, unroll, _ = small()
    memories, heads = unroll(params, network.memory, OBS, DONE)
    memory = recurrent.behind(network, memories, DONE)
    expected_memory, expected = by_hand(params, OBS, DONE)
    np.testing.assert_allclose(memory, expected_memory, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads.policy, expected["policy"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads.distil, expected["distil"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(heads.value, expected["value"][:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("remembers", [True, False])
def test_steps_one_by_one_are_an_unroll(remembers):
    network, params, unroll, step = small(recurrent=remembers)
    memory, together = network.memory, unroll(params, network.memory, OBS, DONE)[1]
    for t in range(len(OBS)):
        memory, heads = step(params, memory, OBS[t])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[t], rtol=1e-5, atol=1e-6), heads, together)
        if DONE[t]:
            memory = network.memory


def test_nothing_passes_the_end_of_an_episode():
    """Observations before it change what is said before it, and not a bit of what is said after it."""
    network, params, unroll, _ = small()
    plain = unroll(params, network.memory, OBS, DONE)
    other = unroll(params, network.memory, OBS.at[:3].add(1.0), DONE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3:], b[3:]), plain[1], other[1])
    assert (plain[1].policy[:3] != other[1].policy[:3]).all()
    without = unroll(params, network.memory, OBS.at[:3].add(1.0), jnp.zeros(6, bool))[1]
    assert (without.policy[3:] != plain[1].policy[3:]).all()


def test_an_episode_that_ends_with_the_rows_leaves_no_memory():
    network, params, unroll, _ = small()
    done = jnp.zeros(6, bool).at[-1].set(True)
    memories, _ = unroll(params, network.memory, OBS, done)
    assert not any(map(np.any, recurrent.behind(network, memories, done)))


def test_alignment_networks_map_any_number_of_actions():
    network = recurrent.alignment(3, 5, (4, 4))
    params = network.init(jax.random.key(0))
    x = jnp.array([1.0, -2.0, 3.0])
    expected = np.asarray(x)
    for i in range(3):
        layer = jax.tree.map(np.asarray, params[f"layer_{i}"])
        expected = expected @ layer["kernel"] + layer["bias"]
        if i < 2:
            expected = np.where(expected > 0, expected, np.expm1(expected))
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-4, atol=1e-6)
