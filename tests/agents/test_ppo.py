"""PPO finds the probes' known answers, and its pieces have the numbers of a pencil."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from popjax import advantage, distributions, normalize, tree
from popjax.agents import a2c, ppo
from popjax.core import Trajectory, as_arrays
from popjax.envs import make
from popjax.envs.episodic import rescale
from popjax.methods import onpolicy
from tests.agents import by_hand, probes
from tests.support import close


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
    standard = normalize.standardized(estimates)
    np.testing.assert_allclose(standard, [1.216142, 0.017028, -1.23317], atol=1e-5)


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
    assert float(rescale(-0.4, 0.4)(family.bounded(x))[0]) == pytest.approx(0.116525, abs=1e-6)


def played(config, hyper, key, steps=8, lanes=4):
    """An agent, its state, and a rollout of random observations under it; rewards prefer large actions."""
    spec = make("probe/context").spec
    agent = ppo.build(spec, config)
    state = jax.jit(agent.init)(key, hyper)
    obs = 3 + 2 * jax.random.normal(key, (steps, lanes, 1))
    act = jax.jit(jax.vmap(jax.vmap(lambda k, o: agent.act(agent.policy(state), (), o, k, 1.0))))
    _, _, action, log_prob = act(jax.random.split(key, (steps, lanes)), obs)
    ended = jnp.ones((steps, lanes), bool)
    rows = Trajectory(obs, action, action[..., 0], 0.0 * action[..., 0], obs, ended, log_prob)
    return agent, state, rows


def test_the_policy_stops_after_the_step_that_moved_it_too_far(key):
    """Too far is 1.5 times the target: on either side of a step's divergence it goes on, or does not."""
    config = ppo.Config(hidden=(8,), policy_epochs=20, value_epochs=1)
    hyper = as_arrays(ppo.Hyper(policy_lr=1e-2))
    agent, state, rows = played(config, hyper, key)
    learn = jax.jit(agent.learn)

    def steps(target):
        """Gradient steps, and the divergence after the last."""
        after, losses = learn(state, rows, replace(hyper, target_kl=jnp.float32(target)), key)
        mean, log_std = agent.actor.apply(after.actor, rows.obs)
        now = stats.norm(mean, np.exp(log_std)).logpdf(rows.action)[..., 0]
        kl = float(losses.kl)
        assert kl == pytest.approx(float((rows.log_prob - now).mean()), abs=1e-5)
        return int(losses.policy_steps), kl

    count, first = steps(1e-9)
    assert count == 1
    count, second = steps(1.01 * first / 1.5)
    assert count == 2
    assert second > 1.1 * first > 1e-3
    assert steps(0.99 * first / 1.5)[0] == 1
    assert steps(0.99 * second / 1.5)[0] == 2
    assert steps(1.01 * second / 1.5)[0] == 3
    assert steps(np.inf)[0] == 20

    targets = jnp.array([1e-9, 1.01 * first / 1.5, np.inf])  # side by side, each agent stops on its own
    alone = [learn(state, rows, replace(hyper, target_kl=target), key) for target in targets]
    axes = replace(jax.tree.map(lambda _: None, hyper), target_kl=0)
    beside = jax.jit(jax.vmap(agent.learn, (None, None, axes, None)))
    together, losses = beside(state, rows, replace(hyper, target_kl=targets), key)
    assert losses.policy_steps.tolist() == [1, 2, 20]
    for place, (after, _) in enumerate(alone):
        close(jax.tree.map(lambda x, place=place: x[place], together), after, rtol=1e-4, atol=1e-5)


def test_the_policy_may_stop_between_minibatches(key):
    config = ppo.Config(hidden=(8,), policy_epochs=2, value_epochs=1, minibatches=4)
    hyper = as_arrays(ppo.Hyper(policy_lr=1e-2))
    agent, state, rows = played(config, hyper, key)
    learn = jax.jit(agent.learn)
    for target, steps in ((1e-9, 1), (np.inf, 8)):
        _, losses = learn(state, rows, replace(hyper, target_kl=jnp.float32(target)), key)
        assert losses.policy_steps == steps


@pytest.mark.parametrize("scope", ["rollout", "minibatch", "none"])
def test_the_first_steps_of_the_policy_by_hand(scope, key):
    """Rows whose ratio was clipped have no gradient; the others that of their log-probability, times ratio
    and advantage; and Adam averages what is clipped to the norm."""
    config = ppo.Config(
        hidden=(8,), policy_epochs=1, value_epochs=1, minibatches=2, normalize_advantage=scope
    )
    plain = as_arrays(ppo.Hyper(target_kl=np.inf))
    agent, state, rows = played(config, plain, key)
    rows = replace(rows, log_prob=rows.log_prob + 0.3 * jax.random.normal(key, rows.log_prob.shape))
    learn = jax.jit(agent.learn)

    def normalized(x):
        return (x - x.mean()) / x.std()

    advantages = rows.reward - agent.critic.apply(state.value, rows.obs)
    if scope == "rollout":
        advantages = normalized(advantages)
    keys = jax.random.fold_in(jax.random.split(key)[0], 0)[None]
    order = ppo._orders(keys, advantages.size, 2)[0]
    parts = ppo._parts(tree.flatten((rows, advantages)), order, 2)

    @jax.jit
    def by_hand_gradient(params, part, hyper):
        rows, advantages = part
        advantages = normalized(advantages) if scope == "minibatch" else advantages

        def objective(params):
            mean, log_std = agent.actor.apply(params, rows.obs)
            log_prob = jax.scipy.stats.norm.logpdf(rows.action, mean, jnp.exp(log_std)).sum(-1)
            ratio = jnp.exp(jax.lax.stop_gradient(log_prob) - rows.log_prob)
            counts = jnp.where(advantages > 0, ratio < 1 + hyper.clip, ratio > 1 - hyper.clip)
            return (counts * ratio * advantages * log_prob + hyper.entropy_weight * log_std.sum(-1)).mean()

        gradient = jax.tree.map(jnp.negative, jax.grad(objective)(params))
        norm = jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(gradient)))
        return jax.tree.map(lambda x: x * jnp.minimum(1, hyper.max_grad_norm / norm), gradient)

    found = []
    for name, value in (("clip", 0.2), ("clip", 0.05), ("entropy_weight", 0.5), ("max_grad_norm", 1e-3)):
        hyper = replace(plain, **{name: jnp.float32(value)})
        after, _ = learn(state, rows, hyper, key)
        params, adam = state.actor, optax.adam(3e-4)
        moments = adam.init(params)
        for i in range(2):
            updates, moments = adam.update(by_hand_gradient(params, tree.take(parts, i), hyper), moments)
            params = optax.apply_updates(params, updates)
        for a, b in zip(*map(jax.tree.leaves, (after.actor, params)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        averaged = after.actor_optimizer[1][0].mu
        for a, b in zip(*map(jax.tree.leaves, (averaged, moments[0].mu)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(averaged)]))
    for other in found[1:]:  # every number tells
        assert np.abs(other - found[0]).max() > 0.01 * np.abs(found[0]).max()


def test_observations_are_whitened_by_what_was_seen_before(key):
    """Actions and gradient steps are those of an agent that is shown observations so whitened."""
    config = ppo.Config(hidden=(8,), policy_epochs=2, value_epochs=2, normalize_obs=True)
    hyper = as_arrays(ppo.Hyper())
    agent, state, rows = played(config, hyper, key)
    learn = jax.jit(agent.learn)
    after, _ = learn(state, rows, hyper, key)
    np.testing.assert_allclose(after.observations.mean, rows.obs.mean((0, 1)), rtol=1e-5)

    more = replace(rows, obs=rows.obs + 1, next_obs=rows.next_obs + 1)
    twice, _ = learn(after, more, hyper, key)
    seen = [normalize.normalize(s.observations, more.obs, clip=ppo.CLIP_OBS) for s in (after, twice)]
    assert np.abs(seen[0] - seen[1]).max() > 0.1
    blind = ppo.build(make("probe/context").spec, replace(config, normalize_obs=False))
    alike = []
    for obs in seen:
        other, _ = jax.jit(blind.learn)(
            replace(after, observations=None), replace(more, obs=obs, next_obs=obs), hyper, key
        )
        pairs = zip(
            *map(jax.tree.leaves, ((other.actor, other.value), (twice.actor, twice.value))), strict=True
        )
        alike.append(all(np.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs))
    assert alike == [True, False]
    action = agent.act(agent.policy(after), (), more.obs[0, 0], key, 0.0).action
    expected = blind.act(after.actor, (), seen[0][0, 0], key, 0.0).action
    np.testing.assert_allclose(action, expected, atol=1e-6)


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
        close(outputs if discrete else outputs[0], by_hand.forward(policy, obs, function)[0])
        values = by_hand.forward(state.value["mlp"], obs, function)[0][:, 0]
        close(agent.critic.apply(state.value, obs), values)
        if not discrete:
            np.testing.assert_array_equal(outputs[1], np.full((4, 40), -0.5))


def test_a_squashed_policy_plays_the_tanh_of_what_it_sampled(key):
    spec = make("probe/context").spec
    config = ppo.Config(hidden=(8,), activation="relu", initializer="uniform", squash=True)
    agent = ppo.build(spec, config)
    params = agent.policy(agent.init(key, as_arrays(ppo.Hyper())))
    act = jax.vmap(lambda k, scale: agent.act(params, (), jnp.ones(1), k, scale), (0, None))
    _, action, sampled, log_prob = act(jax.random.split(key, 200), 1.0)
    outputs = agent.actor.apply(params, jnp.ones(1))
    np.testing.assert_allclose(action, np.tanh(sampled), rtol=1e-6)
    assert np.abs(sampled).max() > 1
    gaussian = stats.norm(outputs[0], np.exp(-0.5)).logpdf(sampled)[:, 0]
    np.testing.assert_allclose(log_prob, gaussian, atol=1e-5)
    greedy = act(jax.random.split(key, 1), 0.0)[1][0]
    np.testing.assert_allclose(greedy, np.tanh(outputs[0]), rtol=1e-6)


def test_minibatches_that_do_not_fit_are_refused_with_a_number_that_does():
    config = onpolicy.Config(agent=ppo.Config(minibatches=5), lanes=4, steps=8)
    with pytest.raises(ValueError, match="32 steps is not divisible by minibatches 5; use 4"):
        onpolicy.build(make("probe/context"), config)
    with pytest.raises(ValueError, match="value_epochs must be at least 1, got 0"):
        ppo.Config(value_epochs=0)


def test_rewards_are_divided_by_the_deviation_of_their_discounted_sums(key):
    config = ppo.Config(hidden=(8,), policy_epochs=2, value_epochs=2)
    hyper = as_arrays(ppo.Hyper(discount=0.9))
    plain, state, rows = played(config, hyper, key)
    ended = jnp.zeros_like(rows.done).at[4].set(True)
    rows = replace(rows, reward=7 * rows.reward, done=ended)
    sums, reward = np.zeros(rows.reward.shape), np.asarray(rows.reward)
    for t in range(len(reward)):  # an episode ends behind the fifth step
        sums[t] = reward[t] + (0.9 * sums[t - 1] if t not in (0, 5) else 0)
    by_hand = replace(rows, reward=jnp.clip(rows.reward / sums.std(), -10, 10))
    scaling = ppo.build(make("probe/context").spec, replace(config, normalize_reward=True))
    scaled_state = scaling.init(key, hyper)
    after, losses = jax.jit(scaling.learn)(scaled_state, rows, hyper, key)
    wanted, told = jax.jit(plain.learn)(state, by_hand, hyper, key)
    close((after.actor, after.value, losses), (wanted.actor, wanted.value, told), rtol=1e-3, atol=1e-5)
    assert float(after.rewards.variance) == pytest.approx(sums.var(), rel=1e-4)


def test_the_first_step_of_a_clipped_value_by_hand(key):
    """Every row's target is the lambda-return; a value that has gone further than the clip, to where that
    tells against it, has no gradient. The gradient of a quarter of the square is clipped; Adam's moments
    show its scale."""
    config = ppo.Config(hidden=(8,), policy_epochs=1, value_epochs=2, value_target="clipped")
    hyper = as_arrays(ppo.Hyper(trace_decay=0.5, value_lr=0.05, clip=0.01, max_grad_norm=0.2))
    agent, state, rows = played(config, hyper, key)
    rows = replace(rows, discount=0.9 + rows.discount, done=jnp.zeros_like(rows.done))
    after, losses = jax.jit(agent.learn)(state, rows, hyper, key)
    before, following = (agent.critic.apply(state.value, obs) for obs in (rows.obs, rows.next_obs))
    advantages = advantage.targets(rows.reward, rows.discount, before, following, rows.done, 0.5).advantages

    def loss(params):
        now = agent.critic.apply(params, rows.obs)
        cut = jnp.clip(now, before - 0.01, before + 0.01)
        return 0.25 * jnp.maximum((now - before - advantages) ** 2, (cut - before - advantages) ** 2).mean()

    adam, params, norms = optax.adam(0.05), state.value, []
    moments = adam.init(params)
    for _ in range(2):
        last, gradient = jax.value_and_grad(loss)(params)
        norms.append(float(optax.global_norm(gradient)))
        gradient = jax.tree.map(lambda g: g * min(1.0, 0.2 / norms[-1]), gradient)
        updates, moments = adam.update(gradient, moments)
        params = optax.apply_updates(params, updates)
    assert min(norms) > 0.2, "clipped"
    close(after.value, params, rtol=1e-3, atol=1e-5)
    for name in ("mu", "nu"):
        found, wanted = (optax.tree_utils.tree_get(x, name) for x in (after.value_optimizer, moments))
        close(found, wanted, rtol=1e-3, atol=1e-7)
    assert float(losses.value_loss) == pytest.approx(float(last), rel=1e-4)


def test_a_fresh_policy_has_the_spread_that_is_asked_for(key):
    for log_std in (-0.5, 0.0):
        agent = ppo.build(make("probe/context").spec, ppo.Config(hidden=(8,), log_std=log_std))
        _, found = agent.outputs(agent.policy(agent.init(key, as_arrays(ppo.Hyper()))), jnp.ones(1))
        np.testing.assert_array_equal(found, log_std)
