"""PPO finds the probes' known answers, and its pieces have the numbers of a pencil."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popjax import advantage, distributions, tree
from popjax.agents import a2c, ppo
from popjax.core import Trajectory, as_arrays
from popjax.envs import make
from popjax.methods import onpolicy
from tests.agents import by_hand, probes


@lru_cache
def learned(discrete):
    config = ppo.Config(hidden=(16, 16), policy_epochs=8, value_epochs=8, minibatches=2, squash=not discrete)
    numbers = {"policy_lr": 5e-3, "value_lr": 5e-3, "target_kl": 0.03}
    return probes.learned(discrete, ppo, config, 8, 200, **numbers)


@pytest.mark.parametrize("probe", probes.ALL_ANSWERS)
def test_the_known_answers(probe):
    probes.assert_knows(learned(probe.endswith("discrete")), probe, value_error=0.2, action_error=0.15)


def test_a_rollout_is_spinning_ups_4000_steps_and_a_fresh_policy_has_its_deviation(key):
    env = make("probe/context")
    assert onpolicy.build(env, onpolicy.Config(agent=ppo.Config())).steps_bound == 4000
    assert onpolicy.build(env, onpolicy.Config(agent=a2c.Config())).steps_bound == 20
    policy = ppo.build(env.spec).actor
    np.testing.assert_array_equal(policy.apply(policy.init(key), jnp.ones(1))[1], -0.5)


def test_the_worked_example_of_the_advantages():
    values, rewards = jnp.array([0.5, 0.4, 0.3]), jnp.ones(3)
    following, discounts, done = jnp.array([0.4, 0.3, 0.2]), jnp.full(3, 0.99), jnp.zeros(3, bool)
    estimates = advantage.generalized(rewards, discounts, values, following, done, 0.97)
    np.testing.assert_allclose(estimates, [2.585503, 1.759349, 0.898], atol=1e-5)
    returns = advantage.generalized(rewards, discounts, values, following, done, 1.0) + values
    np.testing.assert_allclose(returns, [3.16416, 2.18602, 1.198], atol=1e-5)
    np.testing.assert_allclose(ppo.standardized(estimates), [1.216142, 0.017028, -1.23317], atol=1e-5)
    np.testing.assert_array_equal(ppo.standardized(jnp.ones(3)), 0)


def test_the_worked_example_of_the_surrogate():
    gains = ppo.surrogate(jnp.array([1.3, 0.7]), jnp.array([2.0, -1.0]), 0.2)
    np.testing.assert_allclose(gains, [2.4, -0.8], atol=1e-6)


def test_the_worked_example_of_the_squashed_policy():
    family, x = distributions.squashed(), jnp.array([0.3])
    log_probs = [family.log_prob((jnp.array([mean]), jnp.array([-0.5])), x) for mean in (0.1, 0.2)]
    assert float(log_probs[0]) == pytest.approx(-0.473304, abs=1e-5)
    correction = float(jnp.log1p(-(jnp.tanh(x[0]) ** 2)))
    assert float(log_probs[0]) - correction == pytest.approx(-0.384623, abs=1e-5)
    assert float(log_probs[1]) - correction == pytest.approx(-0.343848, abs=1e-5)
    assert float(jnp.exp(log_probs[1] - log_probs[0])) == pytest.approx(1.041617, abs=1e-5)
    assert float(family.bounded(x)[0]) == pytest.approx(0.291313, abs=1e-6)


def played(config, hyper, key, steps=8, lanes=4):
    """An agent, its state, and a rollout of random observations under it; rewards prefer large actions."""
    spec = make("probe/context").spec
    agent = ppo.build(spec, config)
    state = agent.init(key, hyper)
    obs = 3 + 2 * jax.random.normal(key, (steps, lanes, 1))
    act = jax.vmap(jax.vmap(lambda k, o: agent.act(k, agent.params(state), (), o, 1.0)))
    _, _, (action, log_prob) = act(jax.random.split(key, (steps, lanes)), obs)
    ended = jnp.ones((steps, lanes), bool)
    rows = Trajectory(obs, action, action[..., 0], 0.0 * action[..., 0], obs, ended, log_prob)
    return agent, state, rows


@pytest.mark.parametrize(("target", "stopped"), [(1e-6, True), (np.inf, False)])
def test_the_policy_stops_when_it_has_moved_too_far(target, stopped, key):
    config = ppo.Config(hidden=(8,), policy_epochs=20, value_epochs=1)
    hyper = as_arrays(ppo.Hyper(target_kl=target, policy_lr=1e-2))
    agent, state, rows = played(config, hyper, key)
    _, losses = jax.jit(agent.learn)(state, rows, hyper, key)
    assert (int(losses.policy_steps) < 20) == stopped
    assert int(losses.policy_steps) >= 1
    assert float(losses.kl) > 1.5 * 1e-6


def test_the_first_step_of_the_policy_follows_the_policy_gradient(key):
    """Where the ratio is 1, the surrogate's gradient is that of the log-probability times the advantage."""
    config = ppo.Config(hidden=(8,), policy_epochs=1, value_epochs=1)
    hyper = as_arrays(ppo.Hyper())
    agent, state, rows = played(config, hyper, key)
    after, _ = jax.jit(agent.learn)(state, rows, hyper, key)
    values = agent.critic.apply(state.value, rows.obs)
    advantages = ppo.standardized(rows.reward - values)
    family = distributions.gaussian()

    def gain(params):
        return (family.log_prob(agent.actor.apply(params, rows.obs), rows.action) * advantages).mean()

    moved = jax.tree.map(lambda a, b: a - b, after.actor, state.actor)
    for step, gradient in zip(*map(jax.tree.leaves, (moved, jax.grad(gain)(state.actor))), strict=True):
        clear = np.abs(gradient) > 1e-6
        np.testing.assert_array_equal(np.sign(step)[clear], np.sign(gradient)[clear])
        np.testing.assert_allclose(np.abs(step)[clear], 3e-4, rtol=1e-2)  # Adam's first step


def test_observations_are_whitened_by_what_was_seen_before(key):
    config = ppo.Config(hidden=(8,), policy_epochs=1, value_epochs=1, normalize_obs=True)
    hyper = as_arrays(ppo.Hyper())
    agent, state, rows = played(config, hyper, key)
    after, losses = jax.jit(agent.learn)(state, rows, hyper, key)
    assert float(losses.policy_steps) == 1
    np.testing.assert_allclose(after.observations.mean, rows.obs.mean((0, 1)), rtol=1e-5)
    still = replace(after, actor=state.actor)
    actions = [agent.act(key, agent.params(s), (), rows.obs[0, 0], 0.0)[1] for s in (state, still)]
    assert float(jnp.abs(actions[0] - actions[1]).max()) > 1e-6


def test_rates_fall_with_the_rollouts(key):
    """Adam's first step is the rate: half of it after two rollouts of four, and nothing after four."""
    config = ppo.Config(hidden=(8,), policy_epochs=1, value_epochs=1)
    hyper = as_arrays(ppo.Hyper(anneal_rollouts=4.0))
    agent, state, rows = played(config, hyper, key)
    learn = jax.jit(agent.learn)
    for rollouts, rate in ((0, 1.0), (2, 0.5), (4, 0.0), (5, 0.0)):
        before = replace(state, rollouts=jnp.int32(rollouts))
        after, _ = learn(before, rows, hyper, key)
        assert int(after.rollouts) == rollouts + 1
        for name, full in (("actor", 3e-4), ("value", 1e-3)):
            moved = jax.tree.map(
                lambda a, b: jnp.abs(a - b).max(), getattr(after, name), getattr(state, name)
            )
            assert max(map(float, jax.tree.leaves(moved))) == pytest.approx(rate * full, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize("kind", [ppo, a2c])
def test_rows_that_are_not_valid_leave_no_trace(kind, key):
    """An episode of six steps teaches the same in a rollout of ten, whatever the other four hold."""
    config, hyper = kind.Config(hidden=(8,)), kind.Hyper(entropy_weight=0.1)
    if kind is ppo:
        config = replace(config, policy_epochs=3, value_epochs=3, normalize_obs=True)
        hyper = replace(hyper, target_kl=np.inf, clip=10.0)
    spec = make("probe/context").spec
    agent, hyper = kind.build(spec, config), as_arrays(hyper)
    state = agent.init(key, hyper)
    keys = jax.random.split(key, 6)
    rows = Trajectory(
        obs=jax.random.normal(keys[0], (10, 1, *spec.obs_shape)),
        action=jax.random.normal(keys[1], (10, 1, spec.action_dim)),
        reward=jax.random.normal(keys[2], (10, 1)),
        discount=jnp.full((10, 1), 0.9),
        next_obs=jax.random.normal(keys[3], (10, 1, *spec.obs_shape)),
        done=(jnp.arange(10) == 5)[:, None],
        log_prob=-1 + 0.1 * jax.random.normal(keys[4], (10, 1)),
    )
    learn = jax.jit(agent.learn)
    short = learn(state, tree.take(rows, jnp.arange(6)), hyper, key)
    masked = learn(state, replace(rows, valid=(jnp.arange(10) < 6)[:, None]), hyper, key)
    for a, b in zip(*map(jax.tree.leaves, (short, masked)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    everything = learn(state, rows, hyper, key)[1]
    for name in ("policy_loss", "value_loss"):
        assert abs(getattr(everything, name) - getattr(short[1], name)) > 1e-4


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_uniform_weights_with_biases_in_the_last_layer_of_the_policy_alone(activation, key):
    spec = make("probe/context").spec._replace(obs_shape=(5,), action_dim=40)
    for discrete in (False, True):
        spec = spec._replace(discrete=discrete)
        agent = ppo.build(spec, ppo.Config(initializer="uniform", activation=activation))
        state = agent.init(key, as_arrays(ppo.Hyper()))
        policy = state.actor if discrete else state.actor["mlp"]
        assert [kernel.shape[0] for kernel, _ in by_hand.layers(policy)] == [5, 64, 64]
        by_hand.assert_spinning_up_initialises(policy, last_bias=True)
        by_hand.assert_spinning_up_initialises(state.value["mlp"], last_bias=False)

        function = by_hand.relu if activation == "relu" else jnp.tanh
        obs = jax.random.normal(key, (4, 5))
        outputs = agent.actor.apply(state.actor, obs)
        by_hand.close(outputs if discrete else outputs[0], by_hand.forward(policy, obs, function)[0])
        values = by_hand.forward(state.value["mlp"], obs, function)[0][:, 0]
        by_hand.close(agent.critic.apply(state.value, obs), values)
        if not discrete:
            np.testing.assert_array_equal(outputs[1], np.full((4, 40), -0.5))


def test_a_squashed_policy_plays_the_tanh_of_what_it_sampled(key):
    spec = make("probe/context").spec
    config = ppo.Config(hidden=(8,), activation="relu", initializer="uniform", squash=True)
    agent = ppo.build(spec, config)
    params = agent.params(agent.init(key, as_arrays(ppo.Hyper())))
    act = jax.vmap(lambda k, scale: agent.act(k, params, (), jnp.ones(1), scale), (0, None))
    _, action, (sampled, log_prob) = act(jax.random.split(key, 200), 1.0)
    outputs = agent.actor.apply(params[0], jnp.ones(1))
    np.testing.assert_allclose(action, np.tanh(sampled), rtol=1e-6)
    assert np.abs(sampled).max() > 1
    gaussian = stats.norm(outputs[0], np.exp(-0.5)).logpdf(sampled)[:, 0]
    np.testing.assert_allclose(log_prob, gaussian, atol=1e-5)
    greedy = act(jax.random.split(key, 1), 0.0)[1][0]
    np.testing.assert_allclose(greedy, np.tanh(outputs[0]), rtol=1e-6)


def test_minibatches_that_do_not_fit_are_refused_with_a_number_that_does():
    config = onpolicy.Config(agent=ppo.Config(minibatches=5), lanes=4, steps=8)
    with pytest.raises(ValueError, match="32 steps is not divided by minibatches 5; 4 would do"):
        onpolicy.build(make("probe/context"), config)
    with pytest.raises(ValueError, match="value_epochs must be at least 1, got 0"):
        ppo.Config(value_epochs=0)
