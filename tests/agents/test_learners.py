"""Every agent finds the probes' known answers, and a gradient step is what its paper says."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import agents, distributions, rollout, tree
from popjax.agents import ddpg, sac, sac2018, td3
from popjax.core import Spec, Weighted, as_arrays, transition
from popjax.envs import make
from popjax.nets import layers
from tests.agents.by_hand import a_batch, blend, first_moment, norm, stepped
from tests.agents.probes import ANSWERS, GAMMA
from tests.support import close, equal, slow_except

SPEC = Spec(name="none", obs_shape=(3,), action_dim=2, episode_length=1)
CONFIGS = {
    "ddpg": ddpg.Config(hidden=(32, 32), critic_branch=32, critic_hidden=32),
    "td3": td3.Config(hidden=(32, 32)),
    "sac": sac.Config(hidden=(32, 32)),
    "sac2018": sac2018.Config(hidden=(32, 32)),
}
FAST = {
    "ddpg": ddpg.Hyper(polyak=0.05, actor_lr=2e-3, critic_lr=5e-3),
    "td3": td3.Hyper(polyak=0.05, actor_lr=3e-3, critic_lr=3e-3),
    "sac": sac.Hyper(polyak=0.05, actor_lr=3e-3, critic_lr=3e-3, init_temperature=0.01, temperature_lr=0.0),
    "sac2018": sac2018.Hyper(polyak=0.05, actor_lr=3e-3, critic_lr=3e-3, temperature=0.01),
}


@lru_cache
def played_at_random(probe, steps=2000):
    """Transitions [steps] of uniformly random actions."""
    env = rollout.autoreset(make(f"probe/{probe}"))

    def policy(carry, obs, key):
        return carry, jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)

    def record(obs, action, timestep):
        return transition(obs, action, timestep, GAMMA)

    lane = rollout.start(env, (), jax.random.key(0))
    return jax.jit(partial(rollout.collect, env, policy, length=steps, record=record))(
        lane, jax.random.key(1)
    )[1]


@lru_cache
def learner(name):
    """The agent, and a compiled ``(transitions, key) -> state`` that serves all probes."""
    agent = agents.build(make("probe/action").spec, CONFIGS[name])
    hyper = as_arrays(FAST[name])

    @jax.jit
    def train(rows, key):
        def update(state, key):
            key_batch, key_learn = jax.random.split(key)
            index = jax.random.randint(key_batch, (64,), 0, rows.reward.shape[0])
            return agent.learn(state, tree.take(rows, index), hyper, key_learn)

        return jax.lax.scan(update, agent.init(key, hyper), jax.random.split(key, 1500))

    return agent, train


FEW = ("delay", "context", "endless")
"""Later rewards, actions that depend on the observation, and values beyond a time limit; the other probes are
simpler."""


@pytest.mark.parametrize("probe", slow_except(FEW, ANSWERS))
@pytest.mark.parametrize("name", CONFIGS)
def test_an_agent_learns_the_known_answer(name, probe, key):
    agent, train = learner(name)
    state, losses = train(played_at_random(probe), key)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(losses))
    critic = state.critic if name == "ddpg" else state.critics
    act, value_of = jax.jit(agent.act), jax.jit(agent.critic.apply)
    for obs, value, best in ANSWERS[probe]:
        obs = jnp.array([obs], jnp.float32)
        action = act(agent.policy(state), (), obs, key, 0.0).action
        np.testing.assert_allclose(value_of(critic, obs, action), value, atol=0.15)
        if best is not None:
            np.testing.assert_allclose(action, [best], atol=0.12)


def fresh(name, config=None, **numbers):
    """agent, hyper, and a state whose targets differ from the online networks."""
    module = agents.AGENTS[name]
    agent = agents.build(SPEC, config or CONFIGS[name])
    hyper = as_arrays(module.Hyper(**numbers))
    init = jax.jit(agent.init)
    state, other = init(jax.random.key(5), hyper), init(jax.random.key(6), hyper)
    targets = {field: getattr(other, field) for field in vars(state) if field.startswith("target")}
    return agent, hyper, state.replace(**targets)


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_step_of_ddpg(scale, key):
    """Scale 300 makes the critic's gradient larger than the norm 10 to which it is clipped."""
    agent, hyper, state = fresh("ddpg")
    batch = a_batch(scale=scale)
    mu, q = agent.actor.apply, agent.critic.apply
    y = batch.reward + batch.discount * q(
        state.target_critic, batch.next_obs, mu(state.target_actor, batch.next_obs)
    )
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: ((q(p, batch.obs, batch.action) - y) ** 2).mean()))(
        state.critic
    )
    after, losses = jax.jit(agent.learn)(state, batch, hyper, key)
    assert (norm(gradient) > 10) == (scale > 1)
    close(losses.critic_loss, loss)
    close(after.critic, stepped(state.critic, gradient, 5e-4, 10), atol=2e-5)
    assert norm(first_moment(after.critic_optimizer)) == pytest.approx(
        0.1 * min(10, norm(gradient)), rel=1e-3
    )

    def ascent(critic):
        return jax.jit(jax.value_and_grad(lambda p: -q(critic, batch.obs, mu(p, batch.obs)).mean()))(
            state.actor
        )

    loss, gradient = ascent(after.critic)  # the critic of this very step
    close(losses.actor_loss, loss)
    assert float(ascent(state.critic)[0]) != pytest.approx(float(loss), rel=1e-3)
    close(first_moment(after.actor_optimizer), jax.tree.map(lambda g: 0.1 * g, gradient), atol=1e-7)
    close(after.target_actor, blend(state.target_actor, after.actor, 0.001), atol=1e-7)
    close(after.target_critic, blend(state.target_critic, after.critic, 0.001), atol=1e-7)


def test_a_step_of_baselines_ddpg(key):
    """Weighted errors, penalized hidden matrices of the critic, observations normalized and cut at 5."""
    hyper = as_arrays(ddpg.baselines_hyper())
    agent = agents.build(SPEC, replace(ddpg.BASELINES, hidden=(8, 8), critic_layers=(8, 8)))
    init = jax.jit(agent.init)
    state, other = init(jax.random.key(5), hyper), init(jax.random.key(6), hyper)
    targets = {"target_actor": other.agent.actor, "target_critic": other.agent.critic}
    state = state.replace(agent=state.agent.replace(**targets))
    batch, weight = a_batch(), jnp.linspace(0.1, 1.0, 16)
    state = agent.observe(state, 3 + 0.1 * batch.obs, jnp.arange(16) < 12)
    seen, own = np.asarray(3 + 0.1 * batch.obs)[:12], state.agent

    def normal(obs):
        return jnp.clip((obs - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8), -5, 5)

    mu, q = agent.actor.apply, agent.critic.apply
    after = normal(batch.next_obs)
    y = batch.reward + batch.discount * q(own.target_critic, after, mu(own.target_actor, after))

    def loss(p):
        kernels = [p[f"Dense_{i}"]["linear"]["kernel"] for i in range(2)]
        half = (weight * (q(p, normal(batch.obs), batch.action) - y) ** 2).mean() / 2
        return half + 1e-2 * sum((k**2).sum() for k in kernels) / 2

    value, gradient = jax.jit(jax.value_and_grad(loss))(own.critic)
    weighted = Weighted(**vars(batch), weight=weight)
    learned, losses = jax.jit(agent.learn)(state, weighted, hyper, key)
    close(losses.critic_loss, 2 * value, rtol=1e-3)
    moment = first_moment(learned.agent.critic_optimizer)
    close(moment, jax.tree.map(lambda g: 0.2 * g, gradient), atol=1e-4)
    error = y - q(own.critic, normal(batch.obs), batch.action)
    close(agent.td_error(state, batch), error, rtol=1e-3, atol=1e-4)
    action = agent.act(agent.policy(state), (), batch.obs[0], key, 0.0).action
    close(action, mu(own.actor, normal(batch.obs[0])), rtol=1e-3, atol=1e-5)
    assert (jnp.abs(normal(batch.obs)) == 5).any()


def test_the_networks_of_baselines_ddpg():
    agent = agents.build(SPEC, ddpg.BASELINES)
    state = jax.jit(agent.init)(jax.random.key(0), ddpg.baselines_hyper()).agent
    assert [x.shape for x in jax.tree.leaves(state.critic) if x.ndim == 2] == [(3, 64), (66, 64), (64, 1)]
    assert state.actor["mlp"]["LayerNorm_1"]["bias"].shape == (64,)
    for network in (state.actor["mlp"], state.critic):
        assert float(jnp.abs(network["Dense_2"]["linear"]["kernel"]).max()) <= 3e-3
        assert float(jnp.abs(network["Dense_1"]["linear"]["kernel"]).max()) > 0.1
    with pytest.raises(ValueError, match="below 2, the number of critic_layers, got 2"):
        ddpg.Config(critic="layers", action_layer=2)


def test_targets_start_as_copies():
    for name, config in CONFIGS.items():
        state = jax.jit(agents.build(SPEC, config).init)(jax.random.key(0), agents.default_hyper(config))
        for field in vars(state):
            if field.startswith("target_"):
                equal(getattr(state, field), getattr(state, field.removeprefix("target_")))
        assert name in agents.AGENTS


def test_a_step_of_td3(key):
    """Smoothed target actions, the lesser of both critics, and everything else every second step."""
    agent, hyper, state = fresh("td3")
    batch = a_batch()
    noise = jnp.clip(0.2 * jax.random.normal(key, (16, 2)), -0.5, 0.5)
    action = jnp.clip(agent.actor.apply(state.target_actor, batch.next_obs) + noise, -1, 1)
    twins = agent.critic.apply(state.target_critics, batch.next_obs, action)
    y = batch.reward + batch.discount * jnp.minimum(twins[0], twins[1])

    def critic_loss(params):
        return ((agent.critic.apply(params, batch.obs, batch.action) - y) ** 2).mean()

    loss, gradient = jax.jit(jax.value_and_grad(critic_loss))(state.critics)
    learn = jax.jit(agent.learn)
    one, losses = learn(state, batch, hyper, key)
    close(losses.critic_loss, loss)
    close(one.critics, stepped(state.critics, gradient, 3e-4), atol=2e-5)
    for field in ("actor", "actor_optimizer", "target_actor", "target_critics"):
        equal(getattr(one, field), getattr(state, field))
    assert float(losses.actor_loss) == 0

    two, losses = learn(one, batch, hyper, key)

    def actor_loss(params):
        return -agent.critic.apply(two.critics, batch.obs, agent.actor.apply(params, batch.obs))[0].mean()

    loss, gradient = jax.jit(jax.value_and_grad(actor_loss))(state.actor)
    close(losses.actor_loss, loss)
    close(two.actor, stepped(state.actor, gradient, 3e-4), atol=2e-5)
    close(two.target_actor, blend(state.target_actor, two.actor, 0.005), atol=1e-7)
    close(two.target_critics, blend(state.target_critics, two.critics, 0.005), atol=1e-7)


@pytest.mark.parametrize("delay", [1, 3])
def test_the_actor_of_td3_waits(delay, key):
    agent, hyper, state = fresh("td3", td3.Config(hidden=(8,), policy_delay=delay))
    learn, moved = jax.jit(agent.learn), []
    for _ in range(6):
        after, _ = learn(state, a_batch(), hyper, key)
        moved.append(norm(jax.tree.map(lambda a, b: a - b, after.actor, state.actor)) > 0)
        state = after
    assert moved == [t % delay == 0 for t in range(1, 7)]


def log_density(mean, log_std, noise):
    """log p of tanh(mean + std noise), in double precision and another form of the determinant."""
    mean, log_std, noise = (np.asarray(x, np.float64) for x in (mean, log_std, noise))
    u = np.abs(mean + np.exp(log_std) * noise)
    gaussian = -0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - log_std
    log_cosh = u + np.log1p(np.exp(-2 * u)) - np.log(2)
    return (gaussian + 2 * log_cosh).sum(-1)


@pytest.mark.parametrize("mean", [0.0, 3.0, -8.0, 40.0])
@pytest.mark.parametrize("log_std", [-20.0, -1.0, 2.0])
def test_the_log_density_of_a_squashed_gaussian(mean, log_std, key):
    mean, log_std = jnp.full((50, 2), mean), jnp.full((50, 2), log_std)
    action, log_prob = distributions.squashed_sample(key, mean, log_std)
    noise = jax.random.normal(key, (50, 2))
    np.testing.assert_allclose(log_prob, log_density(mean, log_std, noise), rtol=1e-5, atol=1e-4)
    assert np.abs(action).max() <= 1
    gradient = jax.jit(jax.grad(lambda m, s: distributions.squashed_sample(key, m, s)[1].sum(), (0, 1)))(
        mean, log_std
    )
    assert all(np.isfinite(g).all() for g in gradient)


def test_the_density_integrates_to_the_share_of_samples(key):
    """exp(log_prob) is a density of actions: over (-0.6, 0.6) it integrates to the frequency."""
    mean, log_std = jnp.full((40_000, 1), 0.3), jnp.full((40_000, 1), -0.5)
    action, log_prob = distributions.squashed_sample(key, mean, log_std)
    order = np.argsort(action[:, 0])
    a, p = np.asarray(action)[order, 0], np.exp(np.asarray(log_prob)[order])
    inside = np.abs(a) < 0.6
    assert np.trapezoid(p[inside], a[inside]) == pytest.approx(inside.mean(), abs=0.01)


@pytest.mark.parametrize("actor_q", ["mean", "min"])
def test_a_step_of_sac(actor_q, key):
    agent, hyper, state = fresh("sac", sac.Config(hidden=(16, 16), actor_q=actor_q), init_temperature=0.3)
    batch, (key_critic, key_actor) = a_batch(), jax.random.split(key)

    def sampled(params, obs, key):
        mean, log_std = agent.actor.apply(params, obs)
        noise = jax.random.normal(key, mean.shape)
        u = mean + jnp.exp(log_std) * noise
        gaussian = -0.5 * noise**2 - 0.5 * jnp.log(2 * jnp.pi) - log_std
        return jnp.tanh(u), (gaussian + 2 * jnp.log(jnp.cosh(u))).sum(-1)

    action, log_prob = sampled(state.actor, batch.next_obs, key_critic)
    next_value = agent.critic.apply(state.target_critics, batch.next_obs, action).min(0) - 0.3 * log_prob
    y = batch.reward + batch.discount * next_value

    def critic_loss(params):
        return ((agent.critic.apply(params, batch.obs, batch.action) - y) ** 2).mean()

    loss, gradient = jax.jit(jax.value_and_grad(critic_loss))(state.critics)
    after, losses = jax.jit(agent.learn)(state, batch, hyper, key)
    close(losses.critic_loss, loss, rtol=1e-3)
    close(after.critics, stepped(state.critics, gradient, 3e-4, 20), atol=2e-5)
    close(after.target_critics, blend(state.target_critics, after.critics, 0.005), atol=1e-6)

    def actor_loss(params):
        action, log_prob = sampled(params, batch.obs, key_actor)
        values = agent.critic.apply(after.critics, batch.obs, action)
        return (0.3 * log_prob - getattr(values, actor_q)(0)).mean(), -log_prob.mean()

    (loss, entropy), gradient = jax.jit(jax.value_and_grad(actor_loss, has_aux=True))(state.actor)
    close(losses.actor_loss, loss, rtol=1e-3, atol=1e-4)
    close(losses.entropy, entropy, rtol=1e-3, atol=1e-4)
    moments = jax.tree.map(lambda g: 0.1 * g * min(1, 20 / norm(gradient)), gradient)
    close(first_moment(after.actor_optimizer), moments, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("clip", [0.01, 1e9])
def test_sac_clips_both_critics_together(clip, key):
    agent, hyper, state = fresh("sac", max_grad_norm=clip)
    after, _ = jax.jit(agent.learn)(state, a_batch(), hyper, key)
    sizes = [norm(first_moment(o)) for o in (after.critic_optimizer, after.actor_optimizer)]
    assert sizes == pytest.approx([0.001] * 2, rel=1e-3) if clip < 1 else min(sizes) > 0.01


@pytest.mark.parametrize(("target", "direction"), [(100.0, 1), (-100.0, -1)])
def test_the_temperature_rises_where_entropy_is_short(target, direction, key):
    """One Adam step of 3e-4 on alpha (entropy - target), through alpha = exp(log alpha); no clipping."""
    agent, hyper, state = fresh("sac", target_entropy=target, init_temperature=2.0)
    after, losses = jax.jit(agent.learn)(state, a_batch(), hyper, key)
    assert float(after.log_temperature - state.log_temperature) == pytest.approx(3e-4 * direction, rel=1e-3)
    gradient = 2.0 * (float(losses.entropy) - 2 * target)  # the target is per component, of which there are 2
    assert float(first_moment(after.temperature_optimizer)) == pytest.approx(0.1 * gradient, rel=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_without_exploration_acting_is_deterministic_and_bounded(name, key):
    agent, _, state = fresh(name)
    obs, other = jax.random.normal(key, (3,)), jax.random.key(9)
    params = agent.policy(state)
    np.testing.assert_array_equal(*(agent.act(params, (), obs, k, 0.0).action for k in (key, other)))
    # A fresh policy of the 2018 form has a standard deviation of about exp(-9).
    scale = 5e4 if name == "sac2018" else 5.0
    wild = jax.vmap(lambda k: agent.act(params, (), obs, k, scale).action)(jax.random.split(key, 50))
    assert np.abs(wild).max() <= 1
    assert wild.std(0).min() > 0.1


def test_worked_example_5_layer_norm():
    norm_layer = layers.LayerNorm()
    x = jnp.arange(1.0, 5.0)
    out = norm_layer.apply(norm_layer.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(out, [-1.161894, -0.387298, 0.387298, 1.161894], rtol=1e-5)


def spread(leaf):
    return float(np.abs(leaf).max())


def test_ddpg_initialises_its_own_output_layers_small_and_the_population_at_full_scale():
    agent = ddpg.build(SPEC, ddpg.Config())
    state = jax.jit(agent.init)(jax.random.key(0), ddpg.Hyper())
    member = jax.jit(agent.actor.init)(jax.random.key(1))
    for params, scale in ((state.actor, 0.1), (member, 1.0)):
        for layer, fan_in, factor in (("Dense_0", 3, 1), ("Dense_1", 128, 1), ("Dense_2", 128, scale)):
            for name, leaf in params["mlp"][layer]["linear"].items():
                bound = factor * fan_in**-0.5
                assert spread(leaf) <= bound, (layer, name)
                assert spread(leaf) > 0.9 * bound or leaf.size < 10, (layer, name)
    layers = {"Dense_0": (3, 1), "Dense_1": (2, 1), "Dense_2": (400, 1), "Dense_3": (300, 0.1)}
    for layer, (fan_in, factor) in layers.items():
        linear = state.critic[layer]["linear"]
        assert linear["kernel"].shape[0] == fan_in
        assert 0.9 * factor * fan_in**-0.5 < spread(linear["kernel"]) <= factor * fan_in**-0.5
        assert spread(linear["bias"]) <= factor * fan_in**-0.5


def test_the_networks_of_ddpg_by_hand():
    """Linear, layer norm, tanh; the critic's two branches meet after an ELU, and norm before the second."""
    agent = ddpg.build(SPEC, CONFIGS["ddpg"])
    actor, critic = agent.actor.init(jax.random.key(0)), agent.critic.init(jax.random.key(1))
    obs, action = a_batch().obs, a_batch().action

    def linear(p, x):
        return x @ p["linear"]["kernel"] + p["linear"]["bias"]

    def normed(x):
        x = np.asarray(x, np.float64)
        return (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6)

    def elu(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

    p, x = actor["mlp"], obs
    for layer in ("Dense_0", "Dense_1"):
        x = np.tanh(normed(linear(p[layer], x)))
    np.testing.assert_allclose(agent.actor.apply(actor, obs), np.tanh(linear(p["Dense_2"], x)), atol=1e-5)
    x = np.concatenate([elu(linear(critic["Dense_0"], obs)), elu(linear(critic["Dense_1"], action))], -1)
    x = elu(normed(linear(critic["Dense_2"], x)))
    np.testing.assert_allclose(
        agent.critic.apply(critic, obs, action), linear(critic["Dense_3"], x)[:, 0], atol=1e-5
    )


def test_sac_is_orthogonal_with_gain_sqrt_2_and_no_bias():
    agent = sac.build(SPEC, sac.Config())
    state = jax.jit(agent.init)(jax.random.key(0), sac.Hyper())
    kernels = jax.tree.leaves(state.actor) + [x[0] for x in jax.tree.leaves(state.critics)]
    for leaf in kernels:
        if leaf.ndim == 2:
            small = leaf if leaf.shape[0] <= leaf.shape[1] else leaf.T
            np.testing.assert_allclose(small @ small.T, 2 * np.eye(len(small)), atol=1e-4)
        else:
            assert (leaf == 0).all()
    first, second = (jax.tree.leaves(tree.take(state.critics, i)) for i in range(2))
    assert any((a != b).any() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("heads", [None, 2])
def test_sac_may_begin_as_pytorch_does(heads):
    """Weights and biases of a layer are uniform within one over the root of its inputs."""
    parts = sac.parts(SPEC, sac.Config(hidden=(128, 64), initializer="uniform"), heads)
    state = jax.jit(parts.agent.init)(jax.random.key(0), sac.Hyper())
    obs_dim, action_dim = SPEC.obs_shape[0], SPEC.action_dim
    leaves = jax.tree.leaves(state.actor) + jax.tree.leaves(state.critics)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in leaves)  # biases, too
    for leaf in leaves:
        inputs = {(128,): (obs_dim, obs_dim + action_dim), (64,): (128,)}.get(leaf.shape[-1:])
        if inputs and max(leaf.shape) in (64, 128):
            assert float(jnp.abs(leaf).max()) <= max(n**-0.5 for n in inputs)
            assert float(jnp.abs(leaf).max()) > 0.8 * min(n**-0.5 for n in inputs)


def test_the_log_std_of_sac_stays_in_range(key):
    agent = sac.build(SPEC, CONFIGS["sac"])
    _, log_std = agent.actor.apply(agent.actor.init(key), 1e4 * a_batch().obs)
    assert log_std.min() == -20
    assert log_std.max() == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_agents_refuse_discrete_actions_and_images(name):
    with pytest.raises(ValueError, match=r"continuous actions; probe/action-discrete has 2"):
        agents.build(make("probe/action-discrete").spec, CONFIGS[name])
    with pytest.raises(ValueError, match="vector"):
        agents.build(SPEC._replace(obs_shape=(8, 8)), CONFIGS[name])


def test_an_environment_for_its_spec_is_refused():
    with pytest.raises(ValueError, match=r"spec must be a Spec, such as env.spec, got a value of type .*Env"):
        agents.build(make("probe/context"), td3.Config())


def test_senseless_configs_are_refused():
    with pytest.raises(ValueError, match="policy_delay must be at least 1, got 0"):
        agents.build(SPEC, td3.Config(policy_delay=0))
    with pytest.raises(ValueError, match="one of 'mean', 'min', got 'max'"):
        agents.build(SPEC, sac.Config(actor_q="max"))
    with pytest.raises(ValueError, match="ddpg, td3, sac, sac2018"):
        agents.build(SPEC, object())
