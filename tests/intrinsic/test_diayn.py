"""DIAYN's discriminator: what it may see, what it learns, and what its reward is worth."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets, rollout, tree
from popjax.core import Env, Spec, Transition, as_arrays
from popjax.envs import make
from popjax.intrinsic.diayn import Config, Hyper, build, skilled, with_skill
from tests.support import equal

D, SKILLS = 2, 4
CONFIG = Config(skills=SKILLS, hidden=(32, 32))
SPEC = Spec("task", (D,), 1, 10)
MODULE = build(SPEC, CONFIG, (2,))
HYPER = as_arrays(Hyper(lr=3e-3))
init = jax.jit(MODULE.init)
learn = jax.jit(MODULE.learn)
reward = jax.jit(MODULE.reward)


def batch_of(states, next_states, skill):
    obs, next_obs = (with_skill(jnp.asarray(x, jnp.float32), skill, SKILLS) for x in (states, next_states))
    nothing = jnp.full(len(obs), jnp.nan)
    return Transition(obs, nothing[:, None], nothing, nothing, next_obs)


def draw(seed, rows=32):
    """Skill z visits the neighbourhood of (2 cos, 2 sin) of a quarter turn times z."""
    chance = np.random.default_rng(seed)
    skill = chance.integers(0, SKILLS, rows)
    angle = np.pi / 2 * skill
    centre = 2 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return centre + 0.2 * chance.normal(size=(rows, D)), jnp.asarray(skill)


def test_the_skill_is_appended_as_one_hot():
    obs = jnp.array([[0.5, -1.0], [2.0, 3.0]])
    expected = [[0.5, -1.0, 0, 0, 0, 1], [2.0, 3.0, 1, 0, 0, 0]]
    assert with_skill(obs, jnp.array([3, 0]), SKILLS).tolist() == expected
    assert with_skill(obs[0], jnp.int32(3), SKILLS).tolist() == expected[0]
    assert with_skill(obs, jnp.int32(1), SKILLS)[:, D:].tolist() == [[0, 1, 0, 0]] * 2


def test_the_skill_is_as_large_beside_bytes():
    obs = with_skill(jnp.uint8([0, 51, 255]), jnp.int32(1), 2)
    np.testing.assert_allclose(obs, [0, 0.2, 1, 0, 1], rtol=1e-6)
    spec = SPEC._replace(obs_dtype=jnp.uint8)
    env = skilled(Env(lambda key: ((), jnp.zeros(D, jnp.uint8)), None, spec), SKILLS)
    assert env.spec.obs_dtype == env.reset(jax.random.key(0))[1].dtype == jnp.float32


def test_the_reward_is_the_log_likelihood_of_the_skill_at_the_successor(key):
    state = init(key)
    (states, skill), (next_states, _) = draw(0), draw(1)
    logits = np.asarray(nets.mlp(D, CONFIG.hidden, SKILLS).apply(state.discriminator, next_states))
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.log(q[np.arange(len(skill)), skill]) - np.log(1 / SKILLS)
    np.testing.assert_allclose(reward(state, batch_of(states, next_states, skill)), expected, atol=1e-5)


def test_a_discriminator_that_knows_nothing_rewards_nothing(key):
    state = jax.tree.map(jnp.zeros_like, init(key))
    states, skill = draw(0)
    np.testing.assert_allclose(reward(state, batch_of(states, states, skill)), 0, atol=1e-6)


def test_separable_skills_are_learned_from_states_alone(key):
    state = init(key)
    for seed in range(150):
        states, skill = draw(seed)
        # Successors that tell nothing: training reads the state.
        batch = batch_of(states, 0 * states, skill)
        state, losses = learn(state, batch, jnp.ones(len(states)), HYPER, key)
    assert float(losses.accuracy) == 1
    states, skill = draw(1000)
    right = reward(state, batch_of(states, states, skill))
    wrong = reward(state, batch_of(states, states, (skill + 1) % SKILLS))
    assert float(right.min()) > 0.9 * np.log(SKILLS)
    assert float(right.max()) <= np.log(SKILLS) + 1e-6
    assert float(wrong.max()) < 0


def test_skills_that_do_not_show_cannot_be_learned(key):
    """A discriminator that saw the skill in the observation would be right here."""
    state, chance = init(key), np.random.default_rng(0)
    for _ in range(100):
        states, skill = chance.normal(size=(64, D)), jnp.asarray(chance.integers(0, SKILLS, 64))
        batch = batch_of(states, states, skill)
        state, losses = learn(state, batch, jnp.ones(64), HYPER, key)
    assert abs(float(losses.discriminator_loss) - np.log(SKILLS)) < 0.1
    assert float(losses.accuracy) < 0.5


def test_no_gradient_flows_into_the_reward(key):
    state, (states, skill) = init(key), draw(0)

    def total(params, next_states):
        return MODULE.reward(replace(state, discriminator=params), batch_of(states, next_states, skill)).sum()

    gradients = jax.jit(jax.grad(total, (0, 1)))(state.discriminator, jnp.asarray(states, jnp.float32))
    for gradient in jax.tree.leaves(gradients):
        assert not np.any(gradient)


@pytest.mark.parametrize("garbage", [5.0, np.nan])
def test_masked_rows_leave_no_trace(key, garbage):
    (states, skill), weight = draw(0), np.arange(32) % 3 > 0
    dirty = np.where(weight[:, None], states, garbage)
    state, _ = learn(init(key), batch_of(states, states, skill), jnp.ones(32), HYPER, key)
    masked = learn(state, batch_of(dirty, dirty, skill), jnp.asarray(weight, jnp.float32), HYPER, key)
    rows = tree.take(batch_of(states, states, skill), np.flatnonzero(weight))
    smaller = learn(state, rows, jnp.ones(weight.sum()), HYPER, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), masked, smaller)


def test_a_batch_without_weight_changes_nothing(key):
    states, skill = draw(0)
    batch = batch_of(states, states, skill)
    state, _ = learn(init(key), batch, jnp.ones(32), HYPER, key)
    same, _ = learn(state, batch, jnp.zeros(32), HYPER, key)
    equal(same, state)


def test_observations_without_a_skill_are_refused(key):
    state, (states, _) = init(key), draw(0)
    batch = Transition(*(jnp.asarray(states, jnp.float32) for _ in range(5)))
    with pytest.raises(ValueError, match=r"2 \+ 4 components, got 2"):
        MODULE.reward(state, batch)


def test_observations_with_a_skill_are_no_stack():
    """A replay would cut the newest frame out of them at the wrong place."""
    env = make("probe/delay", frame_stack=2)
    assert env.spec.stack == 2
    assert (skilled(env, 4).spec.stack, skilled(env, 4).spec.obs_shape) == (1, (6,))


def test_a_skilled_environment_keeps_a_skill_for_an_episode(key):
    """The skill stands behind the observation, also that of the end, and the next episode has another."""
    env = skilled(rollout.autoreset(make("probe/delay")), SKILLS)
    assert env.spec.obs_shape == (1 + SKILLS,)
    state, obs = jax.jit(env.reset)(key)
    step, shown = jax.jit(env.step), []
    for t in range(60):
        skill = int(state.skill)
        assert obs[1:].argmax() == skill
        assert obs[1:].sum() == 1
        state, timestep = step(state, jnp.zeros(1))
        assert timestep.next_obs[1:].argmax() == skill
        assert bool(timestep.done) == (t % 2 == 1)
        if not timestep.done:
            assert int(state.skill) == skill
        else:
            shown.append(skill)
        obs = timestep.obs
    assert set(shown) == set(range(SKILLS))


def test_the_best_skill_is_the_one_whose_latest_episode_returned_most(key):
    state = init(key)
    assert (state.returns == -jnp.inf).all()
    skill = jnp.array([[0, 2], [0, 2], [1, 2], [1, 3], [0, 3]])  # [T, lanes]
    done = jnp.array([[False, False], [True, False], [False, True], [True, False], [False, True]])
    reward = jnp.array([[1.0, 1], [2, 1], [5, 1], [-1, 7], [9, 7]])
    valid = jnp.ones((5, 2), bool).at[2, 0].set(False)
    obs = with_skill(jnp.zeros((5, 2, D)), skill, SKILLS)
    state = MODULE.observe(state, Transition(obs, reward, reward, reward, obs), done, valid, HYPER)
    assert state.returns.tolist() == [3, -1, 3, 14]
    assert state.running.tolist() == [9, 0]
    assert int(state.best) == 3


def test_of_episodes_of_a_skill_that_end_at_once_the_last_lane_counts(key):
    """On every device; scatters to one place happen to have this order on a CPU."""
    obs = with_skill(jnp.zeros((1, 4, D)), jnp.array([[1, 1, 1, 2]]), SKILLS)
    rewards, ends = jnp.array([[5.0, 7, 6, 8]]), jnp.array([[True, True, True, False]])
    state = MODULE.observe(
        build(SPEC, Config(skills=SKILLS), (4,)).init(key),
        Transition(obs, rewards, rewards, rewards, obs),
        ends,
        jnp.ones((1, 4), bool),
        HYPER,
    )
    assert state.returns.tolist() == [-jnp.inf, 6, -jnp.inf, -jnp.inf]


def test_images_are_refused():
    with pytest.raises(ValueError, match="diayn needs vector observations"):
        build(SPEC._replace(obs_shape=(10, 10, 4)))


def test_lifted_modules_are_single_modules(key):
    keys = jax.random.split(key, 3)
    batches = tree.stack([batch_of(s, s, z) for s, z in map(draw, range(3))])
    weight = jnp.asarray(np.random.default_rng(5).random((3, 32)) < 0.6, jnp.float32)
    states = jax.vmap(init)(keys)
    lifted, _ = jax.vmap(learn, (0, 0, 0, None, 0))(states, batches, weight, HYPER, keys)
    bonus = jax.vmap(reward)(lifted, batches)
    for i in range(3):
        batch = tree.take(batches, i)
        single, _ = learn(init(keys[i]), batch, weight[i], HYPER, keys[i])
        pair = (tree.take(lifted, i), bonus[i]), (single, reward(single, batch))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pair)
