"""Random network distillation: the bonus by hand, what it learns, and what leaves no trace in it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets, tree
from popjax.core import Spec, Transition, as_arrays
from popjax.intrinsic import rnd
from tests.support import close, equal

D = 3
CONFIG = rnd.Config(hidden=(32,), features=8)
RETURN = rnd.Config(hidden=(32,), features=8, scale="return")
SPEC = Spec("task", (D,), 1, 10)
NETWORK = nets.mlp(D, CONFIG.hidden, CONFIG.features)
MODULE = rnd.build(SPEC, CONFIG)
HYPER = as_arrays(rnd.Hyper(lr=1e-3))
init = jax.jit(MODULE.init)
learn = jax.jit(MODULE.learn)
reward = jax.jit(MODULE.reward)


def successors(next_obs):
    next_obs = jnp.asarray(next_obs, jnp.float32)
    zeros = jnp.zeros(len(next_obs))
    # Everything but the successor is no number: the bonus must not read it.
    return Transition(next_obs * jnp.nan, zeros[:, None] * jnp.nan, zeros * jnp.nan, zeros, next_obs)


def draw(seed, rows=16, mean=0.0, deviation=1.0):
    return np.random.default_rng(seed).normal(mean, deviation, (rows, D)).astype(np.float32)


def learned(state, key, *batches):
    for batch in batches:
        state, _ = learn(state, successors(batch), jnp.ones(len(batch)), HYPER, key)
    return state


def distance(state, white):
    error = NETWORK.apply(state.predictor, white) - NETWORK.apply(state.target, white)
    return np.square(np.asarray(error, np.float64)).sum(-1)


def test_the_bonus_is_the_squared_distance_over_the_deviation_of_all_bonuses_so_far(key):
    first, second, new = draw(0, mean=10, deviation=4), draw(1, mean=12), draw(2, mean=20, deviation=8)
    start = init(key)
    middle = learned(start, key, first)
    state = learned(middle, key, second)
    # A bonus is measured when its batch has been taken into the observations and not yet into the predictor.
    both = np.concatenate([first, second])
    seen = [
        distance(start, np.clip((first - first.mean(0)) / first.std(0), -5, 5)),
        distance(middle, np.clip((second - both.mean(0)) / both.std(0), -5, 5)),
    ]
    white = np.clip((new - both.mean(0)) / both.std(0), -5, 5)
    assert np.any(np.abs(white) == 5)
    assert np.any(np.abs(white) < 5)
    expected = distance(state, white) / np.concatenate(seen).std()
    np.testing.assert_allclose(reward(state, successors(new)), expected, rtol=1e-4)


def test_nothing_seen_gives_the_plain_distance(key):
    state, obs = init(key), draw(0)
    np.testing.assert_allclose(reward(state, successors(obs)), distance(state, obs), rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 20])
def test_states_that_never_vary_give_finite_rewards(key, rows):
    state = learned(init(key), key, np.full((rows, D), 7.0))
    bonus = reward(state, successors([[7.0] * D, [1e30] * D]))
    assert np.all(np.isfinite(bonus))
    assert float(bonus.max()) < 1e4


def test_training_lowers_the_bonus_of_what_repeats_and_not_of_what_is_new(key):
    known, novel = draw(0, 64), draw(1, 64) + 6
    start = learned(init(key), key, known)
    state = learned(start, key, *[known] * 300)
    # Before division: the divisor falls with the bonus.
    scale = float(rnd._deviation(state.magnitudes))
    before = reward(start, successors(known)).mean() * float(rnd._deviation(start.magnitudes))
    after, elsewhere = (reward(state, successors(x)).mean() * scale for x in (known, novel))
    assert after < 0.1 * before
    assert elsewhere > 10 * after


def test_the_target_never_learns(key):
    start = init(key)
    state = learned(start, key, draw(0))
    equal(state.target, start.target)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.predictor, start.predictor)
    assert all(jax.tree.leaves(changed))


def test_no_gradient_flows_into_the_bonus(key):
    state, obs = learned(init(key), key, draw(0)), jnp.asarray(draw(1))

    def total(predictor, target, obs):
        changed = replace(state, predictor=predictor, target=target)
        return MODULE.reward(changed, successors(obs)).sum()

    for gradient in jax.tree.leaves(jax.jit(jax.grad(total, (0, 1, 2)))(state.predictor, state.target, obs)):
        assert not np.any(gradient)


@pytest.mark.parametrize("garbage", [1e3, np.nan])
def test_masked_rows_leave_no_trace(key, garbage):
    state, obs = learned(init(key), key, draw(0)), draw(1)
    weight = np.arange(len(obs)) % 3 > 0
    dirty = np.where(weight[:, None], obs, np.float32(garbage))
    masked = learn(state, successors(dirty), jnp.asarray(weight, jnp.float32), HYPER, key)
    smaller = learn(state, successors(obs[weight]), jnp.ones(weight.sum()), HYPER, key)
    close(masked, smaller)


def test_a_batch_without_weight_changes_nothing(key):
    state = learned(init(key), key, draw(0))
    same, losses = learn(state, successors(draw(1)), jnp.zeros(16), HYPER, key)
    equal(same, state)
    assert float(losses.predictor_loss) == 0


def test_weights_are_relative(key):
    state, batch = init(key), successors(draw(0))
    weight = jnp.asarray(np.random.default_rng(3).random(16), jnp.float32)
    losses = learn(state, batch, weight, HYPER, key)[1]
    close(losses, learn(state, batch, 7 * weight, HYPER, key)[1])
    expected = np.average(distance(state, (draw(0) - draw(0).mean(0)) / draw(0).std(0)), weights=weight)
    np.testing.assert_allclose(losses.predictor_loss, expected, rtol=1e-4)


def test_the_return_scale_is_the_deviation_of_discounted_sums_along_the_stream(key):
    module = rnd.build(SPEC, RETURN, (2,))
    observe = jax.jit(module.observe)
    chance = np.random.default_rng(0)
    obs = chance.normal(size=(2, 7, 2, D)).astype(np.float32)  # two calls of [T, lanes]
    done, valid = chance.random((2, 2, 7, 2)) < 0.3
    hyper = as_arrays(rnd.Hyper(discount=0.9))
    seen = draw(0, 64)
    start, _ = jax.jit(module.learn)(jax.jit(module.init)(key), successors(seen), jnp.ones(64), HYPER, key)

    def white(x):
        return np.clip((x - seen.mean(0)) / seen.std(0), -5, 5)

    state = start
    for part in range(2):
        state = observe(state, successors(obs[part]), done[part], valid[part], hyper)
    sums, running = [], np.zeros(2)
    for x, end, happened in zip(
        obs.reshape(14, 2, D), done.reshape(14, 2), valid.reshape(14, 2), strict=True
    ):
        grown = 0.9 * running + distance(start, white(x))
        sums.extend(grown[happened])
        running = np.where(happened, np.where(end, 0, grown), running)
    assert len(sums) > 3
    bonus = jax.jit(module.reward)(state, successors(draw(1)))
    np.testing.assert_allclose(bonus, distance(start, white(draw(1))) / np.std(sums), rtol=1e-4)
    np.testing.assert_allclose(state.returns, running, rtol=1e-5)


def test_returns_are_measured_once_observations_are_whitened(key):
    """A shuffled batch says nothing about returns; before any, bonuses are of another scale."""
    module = rnd.build(SPEC, RETURN, (2,))
    observe = jax.jit(module.observe)
    start, stream, all_of_it = (
        jax.jit(module.init)(key),
        successors(draw(0, 8).reshape(4, 2, D)),
        jnp.ones((4, 2), bool),
    )
    assert int(observe(start, stream, ~all_of_it, all_of_it, HYPER).magnitudes.count) == 0
    state, _ = jax.jit(module.learn)(start, successors(draw(0)), jnp.ones(16), HYPER, key)
    equal(state.magnitudes, start.magnitudes)
    assert int(state.observations.count) == 16
    assert int(observe(state, stream, ~all_of_it, all_of_it, HYPER).magnitudes.count) == 8


def test_a_module_that_scales_by_the_bonus_observes_nothing(key):
    state, yes = init(key), jnp.ones((4, 1), bool)
    equal(MODULE.observe(state, successors(draw(0, 4)[:, None]), ~yes, yes, HYPER), state)


def test_images_are_whitened_by_pixel_and_seen_through_convolutions(key):
    grid = SPEC._replace(obs_shape=(10, 10, 4), obs_dtype=jnp.bool_)
    module = rnd.build(grid, CONFIG)
    batch = Transition(*[jnp.zeros(6)] * 4, jax.random.bernoulli(key, 0.2, (6, 10, 10, 4)))
    state, losses = jax.jit(module.learn)(jax.jit(module.init)(key), batch, jnp.ones(6), HYPER, key)
    np.testing.assert_allclose(state.observations.mean, batch.next_obs.mean(0), atol=1e-6)
    assert jax.eval_shape(module.reward, state, batch).shape == (6,)
    assert jnp.isfinite(losses.predictor_loss)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be"):
        rnd.Config(scale="none")


def test_lifted_modules_are_single_modules(key):
    keys = jax.random.split(key, 3)
    states = jax.vmap(init)(keys)
    batches = tree.stack([successors(draw(i)) for i in range(3)])
    weight = jnp.asarray(np.random.default_rng(5).random((3, 16)) < 0.6, jnp.float32)
    lifted, _ = jax.vmap(learn, (0, 0, 0, None, 0))(states, batches, weight, HYPER, keys)
    bonus = jax.vmap(reward)(lifted, batches)
    for i in range(3):
        batch = tree.take(batches, i)
        single, _ = learn(init(keys[i]), batch, weight[i], HYPER, keys[i])
        close(tree.take(lifted, i), single)
        close(bonus[i], reward(single, batch), rtol=1e-5)


def test_of_stacked_images_the_newest_frame_is_what_is_new(key):
    spec = Spec("frames", (5, 5, 6), 2, 10, discrete=True, obs_dtype=jnp.uint8, stack=3)
    module = rnd.build(spec, CONFIG)
    state, reward = jax.jit(module.init)(key), jax.jit(module.reward)
    assert state.observations.mean.shape == (5, 5, 2)
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 255, (4, 5, 5, 6)), jnp.uint8)
    none = jnp.zeros(4)
    state, _ = jax.jit(module.learn)(state, Transition(obs, none, none, none, obs), jnp.ones(4), HYPER, key)
    older = obs.at[..., :4].set(0)
    bonus = reward(state, Transition(obs, none, none, none, obs))
    equal(bonus, reward(state, Transition(obs, none, none, none, older)))
    newer = reward(state, Transition(obs, none, none, none, older.at[..., 5].set(0)))
    assert np.abs(bonus - newer).max() > 0
