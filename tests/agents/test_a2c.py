"""A2C finds the probes' known answers, and a step of it is what a pencil says."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popjax import distributions, optimize
from popjax.agents import a2c, dqn, ppo
from popjax.core import Spec, Trajectory, as_arrays
from popjax.nets.recurrent import recurrent_actor_critic
from tests.agents import by_hand, probes
from tests.support import close

SPEC = Spec(name="none", obs_shape=(1,), action_dim=1, episode_length=1)
DISCRETE = SPEC._replace(action_dim=3, discrete=True)


@lru_cache
def learned(discrete):
    numbers = {"lr": 1e-2, "entropy_weight": 0.0, "anneal_updates": 1000.0}
    return probes.learned(discrete, a2c, a2c.Config(hidden=(16, 16)), 4, 1000, **numbers)


@pytest.mark.parametrize("probe", probes.ALL_ANSWERS)
def test_the_known_answers(probe):
    probes.assert_knows(learned(probe.endswith("discrete")), probe, value_error=0.15, action_error=0.12)


def linear(spec, discount=0.9, **numbers):
    """Agent without hidden layers, hyper, a state with round weights, and the names of its leaves."""
    agent = a2c.build(spec, a2c.Config(hidden=()))
    hyper = as_arrays(a2c.Hyper(discount=discount, **numbers))
    state = jax.jit(agent.init)(jax.random.key(0), hyper)
    value = jax.tree.map(lambda x: jnp.full_like(x, 0.5), state.value)  # V(s) = 0.5 s + 0.5
    policy = jax.tree.map(lambda x: jnp.linspace(-0.4, 0.6, x.size).reshape(x.shape), state.actor)
    return agent, hyper, state.replace(actor=policy, value=value)


def a_trajectory(action):
    """Three steps of two lanes: one is cut off in the middle, the other terminates there. [T, N, 1]"""
    obs = jnp.array([[0.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])[..., None]
    next_obs = jnp.array([[1.0, 2.0], [2.0, 3.0], [0.0, 1.5]])[..., None]
    reward = jnp.array([[1.0, 0.0], [0.5, -1.0], [2.0, 1.0]])
    discount = jnp.array([[0.9, 0.9], [0.9, 0.0], [0.9, 0.9]])
    done = jnp.array([[False, False], [True, True], [False, False]])
    return Trajectory(obs, action, reward, discount, next_obs, done, jnp.zeros((3, 2)))


# With V(s) = (s + 1) / 2 and gamma 0.9; the returns of the first lane, then of the second, in order of time.
# Lane 1: 1 + .9 * R_1 with R_1 = .5 + .9 * 1.5, cut off; 2 + .9 * .5. Lane 2: .9 * -1; -1; 1 + .9 * 1.25.
RETURNS = np.array([[1 + 0.9 * 1.85, -0.9], [1.85, -1.0], [2.45, 2.125]])
VALUES = np.array([[0.5, 1.0], [1.0, 1.5], [0.0, 0.75]])


def first_step(params, gradient, lr, clip):
    """RMSProp's first step from a mean square of 1, after clipping to a global norm; written out."""
    size = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient)))

    def one(p, g):
        g = np.asarray(g) * min(1.0, clip / size)
        return p - lr * g / np.sqrt(0.99 + 0.01 * g**2 + 1e-5)

    return jax.tree.map(one, params, gradient)


def value_gradient(rows, like):
    """Of ``0.5 * mean (V - R)^2``, with respect to the kernel and the bias of V."""
    error = (VALUES - RETURNS) / VALUES.size
    kernel, bias = (error * np.asarray(rows.obs)[..., 0]).sum(), error.sum()
    return jax.tree.map(lambda x: np.full(x.shape, kernel if x.ndim == 2 else bias), like)


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_a_step_on_discrete_actions(clip, key):
    agent, hyper, state = linear(DISCRETE, lr=0.1, entropy_weight=0.2, max_grad_norm=clip)
    action = np.array([[0, 1], [2, 2], [1, 0]])
    rows = a_trajectory(jnp.asarray(action, jnp.int32))
    weights = jax.tree.leaves(state.actor)
    kernel, bias = sorted((np.asarray(x, np.float64) for x in weights), key=lambda x: -x.ndim)
    logits = np.asarray(rows.obs) * kernel[0] + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    advantages = RETURNS - VALUES
    ascent = advantages[..., None] * (np.eye(3)[action] - p)
    ascent += 0.2 * -p * (np.log(p) + entropy[..., None])  # d entropy / d logits
    ascent /= 6
    slopes = -(np.asarray(rows.obs) * ascent).sum((0, 1)), -ascent.sum((0, 1))
    gradient = jax.tree.map(lambda x: slopes[0][None] if x.ndim == 2 else slopes[1], state.actor)
    gradient = gradient, value_gradient(rows, state.value)

    after, losses = jax.jit(agent.learn)(state, rows, hyper, key)
    close((after.actor, after.value), first_step((state.actor, state.value), gradient, 0.1, clip))
    picked = np.take_along_axis(np.log(p), action[..., None], -1)[..., 0]
    assert float(losses.policy_loss) == pytest.approx(-(picked * advantages).mean(), rel=1e-5)
    assert float(losses.value_loss) == pytest.approx((advantages**2).mean(), rel=1e-5)
    assert float(losses.entropy) == pytest.approx(entropy.mean(), rel=1e-5)


def test_a_step_on_continuous_actions(key):
    """For a normal: d log p / d mean = (a - m) / s^2, d log p / d log s = ((a - m) / s)^2 - 1."""
    agent, hyper, state = linear(SPEC, lr=0.1, entropy_weight=0.2, max_grad_norm=1e9)
    policy = jax.tree.map(lambda x: jnp.full_like(x, 0.3), state.actor)
    policy["log_std"] = jnp.log(jnp.array([2.0]))
    state = state.replace(actor=policy)
    action = np.array([[0.0, 1.0], [3.0, -2.0], [0.5, -0.5]])  # some beyond what an environment takes
    rows = a_trajectory(jnp.asarray(action)[..., None])
    obs, advantages = np.asarray(rows.obs)[..., 0], RETURNS - VALUES
    deviation = (action - 0.3 * obs - 0.3) / 2.0
    mean_slope = -(advantages * deviation / 2.0) / 6
    std_slope = -(advantages * (deviation**2 - 1)).mean() - 0.2  # entropy grows by log std itself
    gradient = jax.tree.map(
        lambda x: np.full(x.shape, (mean_slope * obs).sum() if x.ndim == 2 else mean_slope.sum()), policy
    )
    gradient["log_std"] = np.array([std_slope])
    gradient = gradient, value_gradient(rows, state.value)
    after, losses = jax.jit(agent.learn)(state, rows, hyper, key)
    close((after.actor, after.value), first_step((policy, state.value), gradient, 0.1, 1e9))
    expected = stats.norm(0.3 * obs + 0.3, 2.0)
    assert float(losses.policy_loss) == pytest.approx(
        -(expected.logpdf(action) * advantages).mean(), rel=1e-5
    )
    assert float(losses.entropy) == pytest.approx(stats.norm(0, 2).entropy(), rel=1e-5)


def test_the_moments_of_the_second_step(key):
    """The mean square decays by 0.99 a step, from 1."""
    agent, hyper, state = linear(SPEC, lr=0.0)
    rows = a_trajectory(jnp.zeros((3, 2, 1)))
    learn = jax.jit(agent.learn)
    once = learn(state, rows, hyper, key)[0]
    twice = learn(once, rows, hyper, key)[0]
    close((twice.actor, twice.value), (state.actor, state.value), atol=0)
    for first, second in zip(*map(jax.tree.leaves, (once.optimizer, twice.optimizer)), strict=True):
        np.testing.assert_allclose(second - 0.99 * first, first - 0.99, atol=1e-6)


def test_the_rate_falls_to_zero_and_stays_there(key):
    agent, hyper, state = linear(SPEC, lr=0.1, anneal_updates=4.0)
    rows, learn, moved = a_trajectory(jnp.zeros((3, 2, 1))), jax.jit(agent.learn), []
    for _ in range(6):
        after, _ = learn(state, rows, hyper, key)
        changes = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), after.value, state.value)
        moved.append(max(jax.tree.leaves(changes)))
        state = after
    assert int(state.updates) == 6
    assert all(np.diff(moved[:5]) < 0)
    assert moved[4:] == [0, 0]
    rates = [float(optimize.annealed(jnp.float32(8), jnp.int32(n), jnp.float32(4))) for n in range(6)]
    assert rates == [8, 6, 4, 2, 0, 0]
    assert float(optimize.annealed(jnp.float32(8), jnp.int32(10**6), jnp.float32(0))) == 8


def test_the_log_probability_of_behaviour_does_not_matter(key):
    """A2C takes a policy's own steps: what PPO will read is not read here."""
    agent, hyper, state = linear(SPEC)
    rows = a_trajectory(jnp.zeros((3, 2, 1)))
    other = rows.replace(log_prob=rows.log_prob - 3)
    learn = jax.jit(agent.learn)
    close(learn(state, rows, hyper, key), learn(state, other, hyper, key), atol=0)


def test_a_categorical_policy(chance, key):
    """CDRL's second worked example."""
    family = distributions.of(DISCRETE)
    logits, action = jnp.array([[0.0, 0, 0], [1, 0, -1]]), jnp.array([0, 2])
    log_prob = family.log_prob(logits, action)
    assert float(-(log_prob * jnp.array([0.5, -0.2])).sum()) == pytest.approx(0.067785, abs=1e-6)
    assert float(family.entropy(logits).sum()) == pytest.approx(1.931008, abs=1e-6)
    drawn = jax.vmap(lambda k: family.sample(k, logits[1], 1.0))(jax.random.split(key, 4000))
    assert drawn.dtype == jnp.int32
    assert chance(np.bincount(drawn, minlength=3), np.asarray(jax.nn.softmax(logits[1]))) > 0.001
    cold = jax.vmap(lambda k: family.sample(k, logits[1], 0.0))(jax.random.split(key, 50))
    assert (cold == family.mode(logits[1])).all()


def test_a_gaussian_policy_is_clipped_only_for_the_environment(key):
    agent = a2c.build(SPEC, a2c.Config(hidden=(8,)))
    state = jax.jit(agent.init)(key, as_arrays(a2c.Hyper()))
    obs = jnp.ones(1)
    _, played, sampled, log_prob = jax.vmap(lambda k: agent.act(state.actor, (), obs, k, 1.0))(
        jax.random.split(key, 2000)
    )
    mean, log_std = agent.actor.apply(state.actor, obs)
    np.testing.assert_array_equal(log_std, [0.0])
    assert stats.kstest(np.asarray(sampled)[:, 0], stats.norm(float(mean[0]), 1).cdf).pvalue > 0.001
    np.testing.assert_array_equal(played, np.clip(sampled, -1, 1))
    assert (played != sampled).mean() > 0.2
    np.testing.assert_allclose(log_prob, stats.norm(mean[0], 1).logpdf(sampled[:, 0]), atol=1e-5)
    np.testing.assert_array_equal(agent.act(state.actor, (), obs, key, 0.0).action, mean)


def test_initial_weights_are_orthogonal_with_the_usual_gains(key):
    for spec in (SPEC, DISCRETE):
        spec = spec._replace(obs_shape=(5,))
        state = jax.jit(a2c.build(spec, a2c.Config()).init)(key, as_arrays(a2c.Hyper()))
        for params, gain in ((state.actor, 0.01), (state.value, 1.0)):
            kernels = [x for x in jax.tree.leaves(params) if x.ndim == 2]
            assert [x.shape[0] for x in kernels] == [5, 64, 64]
            for kernel, size in zip(kernels, (2**0.5, 2**0.5, gain), strict=True):
                small = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
                np.testing.assert_allclose(small @ small.T, size**2 * np.eye(len(small)), atol=1e-5)
            assert all((x == 0).all() for x in jax.tree.leaves(params) if x.ndim == 1)


def test_hidden_layers_are_tanh():
    agent = a2c.build(SPEC, a2c.Config(hidden=(4,)))
    params = agent.critic.init(jax.random.key(0))
    first, last = (x for x in jax.tree.leaves(params) if x.ndim == 2)
    obs = jnp.array([[0.3], [-2.0]])
    np.testing.assert_allclose(
        agent.critic.apply(params, obs), (np.tanh(obs @ first) @ last)[:, 0], atol=1e-6
    )


@pytest.mark.parametrize("initializer", ["orthogonal", "uniform"])
def test_hidden_layers_are_relu_where_asked(initializer, key):
    for spec in (SPEC, DISCRETE):
        agent = a2c.build(spec, a2c.Config(hidden=(8, 4), activation="relu", initializer=initializer))
        state = jax.jit(agent.init)(key, as_arrays(a2c.Hyper()))
        obs = jnp.linspace(-3, 3, 7)[:, None]
        policy = state.actor if spec.discrete else state.actor["mlp"]
        outputs = agent.actor.apply(state.actor, obs)
        close(outputs if spec.discrete else outputs[0], by_hand.forward(policy, obs, by_hand.relu)[0])
        values = by_hand.forward(state.value["mlp"], obs, by_hand.relu)[0][:, 0]
        close(agent.critic.apply(state.value, obs), values)


def test_uniform_weights_with_biases_in_the_last_layer_of_the_policy_alone(key):
    for spec in (SPEC, DISCRETE):
        spec = spec._replace(obs_shape=(5,), action_dim=40)
        config = a2c.Config(initializer="uniform", activation="relu")
        state = jax.jit(a2c.build(spec, config).init)(key, as_arrays(a2c.Hyper()))
        policy = state.actor if spec.discrete else state.actor["mlp"]
        assert [kernel.shape[0] for kernel, _ in by_hand.layers(policy)] == [5, 64, 64]
        by_hand.assert_spinning_up_initialises(policy, last_bias=True)
        by_hand.assert_spinning_up_initialises(state.value["mlp"], last_bias=False)
        if not spec.discrete:
            np.testing.assert_array_equal(state.actor["log_std"], np.zeros(40))


def test_a_squashed_policy_plays_the_tanh_and_learns_from_what_it_sampled(key):
    plain, hyper, state = linear(SPEC)
    agent = a2c.build(SPEC, a2c.Config(hidden=(), squash=True))
    obs = jnp.ones(1)
    _, played, sampled, log_prob = jax.vmap(lambda k: agent.act(state.actor, (), obs, k, 1.0))(
        jax.random.split(key, 200)
    )
    mean, log_std = (float(x[0]) for x in agent.actor.apply(state.actor, obs))
    np.testing.assert_allclose(played, np.tanh(sampled), rtol=1e-6)
    assert np.abs(sampled).max() > 1.5
    expected = stats.norm(mean, np.exp(log_std)).logpdf(sampled[:, 0])
    np.testing.assert_allclose(log_prob, expected, atol=1e-5)
    np.testing.assert_allclose(agent.act(state.actor, (), obs, key, 0.0).action, np.tanh([mean]), rtol=1e-6)
    rows = a_trajectory(jnp.array([[0.0, 1.0], [3.0, -2.0], [0.5, -0.5]])[..., None])
    squashed, clipped = (jax.jit(x.learn)(state, rows, hyper, key) for x in (agent, plain))
    close(squashed, clipped, atol=0)


def test_discrete_actions_are_not_squashed(key):
    _, _, state = linear(DISCRETE)
    agent = a2c.build(DISCRETE, a2c.Config(hidden=(), squash=True))
    _, played, sampled, _ = jax.vmap(lambda k: agent.act(state.actor, (), jnp.ones(1), k, 1.0))(
        jax.random.split(key, 50)
    )
    assert played.dtype == jnp.int32
    assert set(np.unique(played)) == {0, 1, 2}
    np.testing.assert_array_equal(played, sampled)


@pytest.mark.parametrize("module", [a2c, ppo])
def test_images_pass_convolutions_first(module):
    """3 x 3 x 2 -> 16 features at 4 x 4 places -> the dense layers, for policy and value alike."""
    agent = module.build(SPEC._replace(obs_shape=(6, 6, 2)), module.Config(hidden=(5,)))
    state = agent.init(jax.random.key(0), module.Hyper())
    image = jax.random.bernoulli(jax.random.key(1), 0.5, (7, 6, 6, 2))
    for network, params in ((agent.actor, state.actor), (agent.critic, state.value)):
        shapes = sorted(x.shape for x in jax.tree.leaves(params) if x.ndim == 2)
        assert shapes[1:] == [(18, 16), (16 * 4 * 4, 5)]
        out, single = network.apply(params, image), network.apply(params, image[3])
        close(jax.tree.map(lambda x: x[3], out), single)
    assert agent.critic.apply(state.value, image).shape == (7,)


@pytest.mark.parametrize("module", [a2c, ppo])
@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_a_number_or_a_matrix_is_seen_as_a_vector(module, shape):
    """With the parameters of the network of a vector, and the same outputs."""
    size = math.prod(shape)
    obs = jax.random.normal(jax.random.key(1), (5, *shape))
    agent, plain = (
        module.build(SPEC._replace(obs_shape=s), module.Config(hidden=(5,))) for s in (shape, (size,))
    )
    state = agent.init(jax.random.key(0), module.Hyper())
    close(agent.actor.apply(state.actor, obs), plain.actor.apply(state.actor, obs.reshape(5, -1)))
    values = agent.critic.apply(state.value, obs)
    close(values, plain.critic.apply(state.value, obs.reshape(5, -1)))
    assert values.shape == (5,)


@pytest.mark.parametrize("shape", [(3, 84, 84), (4, 10, 10), (3, 210, 160)])
def test_images_with_channels_first_are_refused(shape):
    for build in (a2c.build, ppo.build, dqn.build):
        with pytest.raises(ValueError, match=r"look like images \[C, H, W\].*jnp.moveaxis\(obs, 0, -1\)"):
            build(SPEC._replace(obs_shape=shape, discrete=True))
    with pytest.raises(ValueError, match="look like images"):
        recurrent_actor_critic(shape, 2)


@pytest.mark.parametrize("shape", [(84, 84, 4), (10, 10, 16), (13, 13, 2), (30, 40, 3), (2, 2, 3), (5, 5, 5)])
def test_images_with_channels_last_are_read(shape):
    a2c.build(SPEC._replace(obs_shape=shape))
