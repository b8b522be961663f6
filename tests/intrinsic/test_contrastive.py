"""Novelty between embeddings, the collaborative reward, the contrastive loss and the banks."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.core import Spec, Transition, as_arrays
from popjax.intrinsic import contrastive
from popjax.intrinsic.contrastive import Config, Hyper, build, collaborative, cosine, info_nce, novelty
from tests.support import equal, same

KEYS = jnp.array(
    [[[1.0, 0], [1, 1], [0, 1], [-1, 0]], [[0, 1], [1, 2], [2, 1], [0, -1]]]
)  # [2 agents, 4 states, 2]
FULL = jnp.array([4, 4])


def config(**options):
    return Config(**{"neighbours": 2, "bank_size": 4} | options)


def test_the_worked_example_of_the_reward():
    one = jnp.array([[1.0, 0.0]])
    r = jax.vmap(lambda keys, count: novelty(one, keys, count, 2))(KEYS, FULL).T
    np.testing.assert_allclose(r, [[-0.707107, -0.447214]], atol=1e-5)
    np.testing.assert_allclose(collaborative(r, 0.5), [[-0.577160, -0.577160]], atol=1e-5)


def test_the_worked_example_of_three_agents():
    reward = collaborative(jnp.array([-0.9, -0.6, -0.2]), 0.5)
    np.testing.assert_allclose(reward, [-0.65, -0.575, -0.475], atol=1e-6)
    assert 0.3 + 0.2 * reward[0] == pytest.approx(0.17, abs=1e-6)


def test_the_most_and_the_least_novel_to_another_agent_may_count():
    r = jnp.array([[-0.9, -0.6, -0.2], [0.5, 0.5, 0.1]])
    theirs = {
        "max": jnp.array([[-0.2, -0.2, -0.6], [0.5, 0.5, 0.5]]),
        "min": jnp.array([[-0.6, -0.9, -0.9], [0.1, 0.1, 0.5]]),
    }
    for others, counts in theirs.items():
        np.testing.assert_allclose(collaborative(r, 0.5, others), 0.5 * (r + counts), rtol=1e-6)


def test_ego_weight_one_and_a_single_agent_leave_the_own_novelty():
    r = jnp.array([[-0.9, -0.6, -0.2]])
    np.testing.assert_array_equal(collaborative(r, 1.0), r)
    np.testing.assert_array_equal(collaborative(r[:, :1], 0.5), r[:, :1])


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (1, -1.0), (3, -0.707107)])
def test_a_bank_with_few_states_uses_what_it_has(count, expected):
    """The state itself is the first key, so one key gives similarity 1."""
    r = novelty(jnp.array([[1.0, 0.0]]), KEYS[0], jnp.int32(count), 2)
    assert float(r[0]) == pytest.approx(expected, abs=1e-5)


def test_more_neighbours_are_less_alike():
    embedded, keys = (
        jax.random.normal(jax.random.key(0), (16, 3)),
        jax.random.normal(jax.random.key(1), (40, 3)),
    )
    found = [novelty(embedded, keys, jnp.int32(40), k) for k in (1, 5, 20)]
    assert (found[0] < found[1]).all()
    assert (found[1] < found[2]).all()


def test_the_worked_example_of_the_loss():
    anchors = jnp.array([[1.0, 0], [0, 1], [1, 1]])
    positives = jnp.array([[1, 0.2], [0.1, 1], [1, 0.8]])
    expected = [
        [0.980581, 0.099504, 0.780869],
        [0.196116, 0.995037, 0.624695],
        [0.832050, 0.773957, 0.993884],
    ]
    np.testing.assert_allclose(cosine(anchors, positives), expected, atol=1e-5)
    valid = jnp.ones(3, bool)
    assert float(info_nce(anchors, positives, valid, 0.07)) == pytest.approx(0.064711, abs=1e-5)
    assert float(info_nce(anchors, positives, valid, 1.0)) == pytest.approx(0.846728, abs=1e-5)


def test_rows_that_are_not_valid_take_no_part():
    anchors, positives = jax.random.normal(jax.random.key(0), (2, 5, 3))
    valid = jnp.array([True, False, True, True, False])
    without = info_nce(anchors[valid], positives[valid], jnp.ones(3, bool), 0.07)
    assert float(info_nce(anchors, positives, valid, 0.07)) == pytest.approx(float(without), rel=1e-5)


def test_the_loss_has_a_gradient_where_nothing_is_valid_or_embeddings_are_zero():
    zeros = jnp.zeros((3, 2))
    both = jax.jit(jax.value_and_grad(info_nce))
    for valid in (jnp.zeros(3, bool), jnp.ones(3, bool)):
        loss, gradient = both(zeros, zeros + 1, valid, 0.07)
        assert jnp.isfinite(loss)
        assert jnp.isfinite(gradient).all()
    assert float(info_nce(zeros, zeros, jnp.zeros(3, bool), 0.07)) == 0.0


def stream(states, lanes):
    """Rows [T, lanes] whose successors are the ``states`` in the order of time."""
    next_obs = jnp.asarray(states, jnp.float32).reshape(-1, lanes, 1)
    none = jnp.zeros(next_obs.shape[:2])
    return Transition(next_obs * jnp.nan, none, none, none, next_obs)


def observed(module, state, rows, valid=True):
    true = jnp.ones(rows.reward.shape, bool)
    return jax.jit(module.observe)(state, rows, ~true, true & valid, as_arrays(Hyper()))


def held(state):
    return sorted(np.ravel(state.bank.rows)[: int(state.bank.size)].tolist())


LINE = Spec("line", (1,), 1, 10)


@pytest.mark.parametrize("parts", [1, 5, 25])
def test_the_worked_example_of_a_bank(parts):
    """Every fifth of the states 1 to 25 and three places: 15, 20, 25, however many are seen at a time."""
    module = build(LINE, config(bank_size=3, bank_every=5))
    state = module.init(jax.random.key(0))
    for states in np.split(np.arange(1.0, 26.0), parts):
        state = observed(module, state, stream(states, 1))
    assert held(state) == [15, 20, 25]


def test_states_of_several_lanes_enter_a_bank_in_turn():
    module = build(LINE, config(bank_size=3, bank_every=1), (2,))
    state = observed(module, module.init(jax.random.key(0)), stream([1, 2, 3, 4], 2))
    assert held(state) == [2, 3, 4]
    module = build(LINE, config(bank_size=3, bank_every=1), (7,))
    state = observed(module, module.init(jax.random.key(0)), stream(np.arange(10.0, 17.0), 7))
    assert held(state) == [14, 15, 16]  # more lanes than places


def test_steps_that_did_not_happen_leave_no_trace_in_a_bank():
    module = build(LINE, config(bank_size=9, bank_every=2), (2,))
    valid = jnp.array([[True, True], [True, False], [True, True], [True, True]])
    state = observed(module, module.init(jax.random.key(0)), stream(np.arange(8.0), 2), valid)
    assert held(state) == [2, 5, 6]  # second and fourth step of lane 0, second that happened of lane 1
    assert state.clock.tolist() == [0, 1]


def test_the_module_rewards_distance_from_its_bank_and_learns_from_near_pairs(key):
    module = build(LINE._replace(obs_shape=(2,)), config(encoder="identity", neighbours=1, bank_every=1))
    state = module.init(key)
    rows = Transition(*[jnp.zeros((1, 1))] * 4, jnp.array([[[1.0, 0.0]]]))
    state = observed(module, state, replace(rows, reward=jnp.zeros((1, 1))))
    batch = Transition(*[jnp.zeros(2)] * 4, jnp.array([[2.0, 0.0], [0.0, 3.0]]))
    np.testing.assert_allclose(module.reward(state, batch), [-1, 0], atol=1e-6)

    module, hyper = build(LINE, config(hidden=(8,), features=4)), as_arrays(Hyper())
    learn, state = jax.jit(module.learn), jax.jit(module.init)(key)
    anchors, near = jax.random.normal(key, (2, 6, 1))
    pairs = Transition(anchors, anchors, near[:, 0], near[:, 0], near)
    network = contrastive.encoder(LINE, config(hidden=(8,), features=4))
    weight = jnp.array([1.0, 1, 1, 0, 1, 1])
    after, losses = learn(state, pairs, weight, hyper, key)
    expected = info_nce(*(network.apply(state.encoder, x) for x in (anchors, near)), weight > 0, 0.07)
    np.testing.assert_allclose(losses.encoder_loss, expected, rtol=1e-6)
    assert not same(after.encoder, state.encoder)
    equal(learn(state, pairs, 0 * weight, hyper, key)[0], state)


def test_images_are_seen_through_convolutions_and_not_by_the_identity(key):
    grid = LINE._replace(obs_shape=(10, 10, 4), obs_dtype=jnp.bool_)
    module = build(grid, config())
    state = jax.jit(module.init)(key)
    assert state.bank.rows.dtype == jnp.bool_
    rows = jax.random.bernoulli(key, 0.2, (3, 10, 10, 4))
    bonus = jax.jit(module.reward)(state, Transition(*[jnp.zeros(3)] * 4, rows))
    assert bonus.shape == (3,)
    with pytest.raises(ValueError, match="identity encoder needs vector observations"):
        build(grid, config(encoder="identity"))


def test_no_gradient_of_the_reward_reaches_the_encoder(key):
    module = build(LINE._replace(obs_shape=(3,)), config(hidden=(8,), features=4, bank_size=6))
    states, banks = jax.random.normal(key, (2, 6, 3))
    state = jax.jit(module.init)(key)
    state = replace(state, bank=replace(state.bank, rows=banks, size=jnp.int32(6)))

    def total(params):
        return module.reward(replace(state, encoder=params), Transition(*[None] * 4, states)).sum()

    assert float(jnp.abs(jax.jit(total)(state.encoder))) > 0
    assert all((x == 0).all() for x in jax.tree.leaves(jax.jit(jax.grad(total))(state.encoder)))


def test_training_brings_neighbours_together(key):
    """Points on a circle: an anchor's positive is a small turn away, and embeddings come to tell angles."""
    from popjax.optimize import adam, descend

    network = contrastive.encoder(LINE._replace(obs_shape=(2,)), Config(hidden=(32,), features=8))
    params = network.init(key)

    def draw(key):
        key_angle, key_turn = jax.random.split(key)
        angle = jax.random.uniform(key_angle, (64,), maxval=2 * jnp.pi)
        near = angle + 0.1 * jax.random.normal(key_turn, (64,))
        return (jnp.stack([jnp.sin(x), jnp.cos(x)], -1) for x in (angle, near))

    def loss(params, key):
        one, other = (network.apply(params, x) for x in draw(key))
        return info_nce(one, other, jnp.ones(64, bool), 0.07), None

    def step(carry, key):
        params, moments, value, _ = descend(adam(3e-3, jnp.inf), lambda p: loss(p, key), *carry)
        return (params, moments), value

    keys = jax.random.split(key, 200)
    _, losses = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, adam(0.0, jnp.inf).init(params)))
    assert losses[-10:].mean() < losses[:3].mean() - 0.3


def test_the_identity_embeds_nothing(key):
    network = contrastive.encoder(LINE._replace(obs_shape=(3,)), Config(encoder="identity"))
    obs = jnp.arange(3.0)
    np.testing.assert_array_equal(network.apply(network.init(key), obs), obs)
    whose_squares_exceed_a_byte = jnp.uint8([[20, 40, 200], [200, 40, 20]])
    seen = network.apply(network.init(key), whose_squares_exceed_a_byte)
    np.testing.assert_allclose(cosine(seen, seen), [[1, 0.2288], [0.2288, 1]], atol=1e-3)


def test_a_bank_smaller_than_its_neighbours_is_refused():
    with pytest.raises(ValueError, match="a bank of 10 states has no 20 nearest neighbours"):
        Config(bank_size=10)
