"""A gradient step of SAC with a state value is what a pencil says; and so are its networks at the start."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import tree
from popjax.agents import sac2018
from popjax.core import Spec, Transition, as_arrays
from tests.agents import by_hand
from tests.agents.by_hand import a_batch, blend, first_moment, forward, norm, relu, stepped
from tests.support import close, equal

SPEC = Spec(name="none", obs_shape=(3,), action_dim=2, episode_length=1)


def fresh(config=sac2018.Config(hidden=(16, 8)), spec=SPEC, **numbers):
    """agent, hyper, and a state whose target is not the value and whose policy has a log std of about -2."""
    agent = sac2018.build(spec, config)
    hyper = as_arrays(sac2018.Hyper(**numbers))
    state, other = (jax.jit(agent.init)(jax.random.key(seed), hyper) for seed in (5, 6))
    actor = jax.tree.map(lambda x: x, state.actor)
    actor["log_std"]["linear"]["bias"] += 0.7
    return agent, hyper, state.replace(actor=actor, target_value=other.target_value)


def constant(params, biases):
    """A network without hidden layers that ignores its input."""
    kernel, bias = by_hand.layers(params)[0]
    return {"Dense_0": {"linear": {"kernel": 0 * kernel, "bias": jnp.reshape(jnp.array(biases), bias.shape)}}}


def before_tanh(log_std):
    """Return the output of the log std's head where the log std is ``log_std``: (-20, 2) is tanh's (-1,
    1)."""
    return math.atanh((log_std + 9) / 11)


def known(config, *, mean, log_std, q=(0.0, 0.0), v=0.0, target=0.0, **numbers):
    """An agent of one observation and one action with constant networks: agent, hyper, state."""
    spec = SPEC._replace(obs_shape=(1,), action_dim=1)
    agent, hyper, state = fresh(replace(config, hidden=()), spec, **numbers)
    noise = constant({"Dense_0": state.actor["log_std"]}, [before_tanh(log_std)])["Dense_0"]
    return (
        agent,
        hyper,
        state.replace(
            actor={"mlp": constant(state.actor["mlp"], [mean]), "log_std": noise},
            critics={"mlp": constant(state.critics["mlp"], q)},
            value={"mlp": constant(state.value["mlp"], [v])},
            target_value={"mlp": constant(state.value["mlp"], [target])},
        ),
    )


def one_row(reward=0.0, discount=0.99):
    return Transition(
        obs=jnp.full((1, 1), 0.3),
        action=jnp.full((1, 1), -0.4),
        reward=jnp.full(1, reward),
        discount=jnp.full(1, discount),
        next_obs=jnp.full((1, 1), 0.8),
    )


def draw(monkeypatch, noise):
    """Every normal number is ``noise``."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), dtype=None: jnp.full(shape, noise))


def test_the_worked_example_of_the_log_probability(monkeypatch, key):
    """CHDRL's second: u 0.5 of N(0.2, exp(-0.3)^2)."""
    agent, hyper, state = known(sac2018.Config(), mean=0.2, log_std=-0.3, temperature=1.0)
    draw(monkeypatch, 0.3 * math.exp(0.3))
    _, losses = jax.jit(agent.learn)(state, one_row(), hyper, key)
    assert float(losses.entropy) == pytest.approx(0.460705, abs=2e-6)
    assert float(losses.actor_loss) == pytest.approx(-0.460705, abs=2e-6)
    action = agent.act(agent.policy(state), (), jnp.ones(1), key, 1.0).action
    assert float(action[0]) == pytest.approx(0.462117, abs=1e-6)
    assert float(agent.act(agent.policy(state), (), jnp.ones(1), key, 0.0).action[0]) == pytest.approx(
        math.tanh(0.2)
    )


@pytest.mark.parametrize(("actor_q", "actor_loss"), [("min", -8.7), ("first", -9.2)])
@pytest.mark.parametrize(("discount", "y_q"), [(0.99, 10.9), (0.0, 1.0)])
def test_the_worked_example_of_the_targets(actor_q, actor_loss, discount, y_q, monkeypatch, key):
    """CHDRL's third. Half a squared error has the error for its slope, which Adam's moments then tell."""
    values = {"q": (9.0, 8.5), "v": 8.0, "target": 10.0}
    log_std = 1 - 0.5 * math.log(2 * math.pi)  # with the mean drawn, the log-probability is -1
    config = sac2018.Config(actor_q=actor_q)
    agent, hyper, state = known(config, mean=0.0, log_std=log_std, **values, temperature=0.2)
    draw(monkeypatch, 0.0)
    after, losses = jax.jit(agent.learn)(state, one_row(1.0, discount), hyper, key)
    assert float(losses.entropy) == pytest.approx(1, abs=1e-5)
    assert float(losses.actor_loss) == pytest.approx(actor_loss, abs=1e-5)
    slopes = [10 * x["mlp"]["Dense_0"]["linear"]["bias"] for x in first_moment(after.critic_optimizer)]
    np.testing.assert_allclose(np.array([9.0, 8.5]) - slopes[0][:, 0], y_q, rtol=1e-5)
    np.testing.assert_allclose(8 - slopes[1], 8.7, rtol=1e-5)
    errors = np.array([9 - y_q, 8.5 - y_q, 8 - 8.7])
    assert float(losses.critic_loss) == pytest.approx(0.5 * (errors**2).sum(), rel=1e-5)


@pytest.mark.parametrize("clip", [np.inf, 0.1])
@pytest.mark.parametrize("actor_q", ["min", "first"])
def test_a_step(actor_q, clip, key):
    """All losses at the parameters before the step; twins and value are clipped together, the actor alone."""
    rates = {"actor_lr": 0.02, "critic_lr": 0.01, "polyak": 0.3}
    config = sac2018.Config(hidden=(16, 8), actor_q=actor_q)
    agent, hyper, state = fresh(config, **rates, temperature=0.3, max_grad_norm=clip)
    batch = a_batch()
    noise = jax.random.normal(key, (16, 2))

    def policy(params):
        mean, features = forward(params["mlp"], batch.obs, relu)
        head = params["log_std"]["linear"]
        log_std = 11 * jnp.tanh(features @ head["kernel"] + head["bias"]) - 9
        u = mean + jnp.exp(log_std) * noise
        gaussian = -0.5 * noise**2 - 0.5 * jnp.log(2 * jnp.pi) - log_std
        return jnp.tanh(u), (gaussian + 2 * jnp.log(jnp.cosh(u))).sum(-1)

    def q(params, which, action):
        inputs = jnp.concatenate([batch.obs, action], -1)
        return forward(tree.take(params, which)["mlp"], inputs, relu)[0][:, 0]

    def v(params, obs):
        return forward(params["mlp"], obs, relu)[0][:, 0]

    action, log_prob = policy(state.actor)
    lower = jnp.minimum(*(q(state.critics, i, action) for i in range(2)))
    y_q = batch.reward + batch.discount * v(state.target_value, batch.next_obs)
    y_v = lower - 0.3 * log_prob

    def actor_loss(params):
        action, log_prob = policy(params)
        first, second = (q(state.critics, i, action) for i in range(2))
        return (0.3 * log_prob - (first if actor_q == "first" else jnp.minimum(first, second))).mean()

    def critic_loss(params):
        twins, value = params
        losses = [0.5 * ((y_q - q(twins, i, batch.action)) ** 2).mean() for i in range(2)]
        return losses[0] + losses[1] + 0.5 * ((y_v - v(value, batch.obs)) ** 2).mean()

    critics = state.critics, state.value
    loss, gradient = jax.jit(jax.value_and_grad(actor_loss))(state.actor)
    error, slopes = jax.jit(jax.value_and_grad(critic_loss))(critics)
    assert min(norm(gradient), *map(norm, slopes)) > 0.1
    factors = [min(1.0, clip / norm(x)) for x in (gradient, slopes)]

    after, losses = jax.jit(agent.learn)(state, batch, hyper, key)
    close((losses.actor_loss, losses.critic_loss, losses.entropy), (loss, error, -log_prob.mean()))
    moments = first_moment(after.actor_optimizer), first_moment(after.critic_optimizer)
    for moment, slope, factor in zip(moments, (gradient, slopes), factors, strict=True):
        close(moment, jax.tree.map(lambda g: 0.1 * factor * g, slope), rtol=1e-3, atol=1e-6)
    close(after.actor, stepped(state.actor, gradient, 0.02, clip), atol=1e-4)
    close((after.critics, after.value), stepped(critics, slopes, 0.01, clip), atol=1e-4)
    close(after.target_value, blend(state.target_value, after.value, 0.3), atol=1e-6)
    assert optax.tree_utils.tree_get(after.critic_optimizer, "count") == 1


def test_neither_step_sees_the_other(key):
    """At a rate of 0 the one part stays, and the other moves as it would have."""
    agent, _, state = fresh()
    learn = jax.jit(agent.learn)

    def step(**rates):
        return learn(state, a_batch(), as_arrays(sac2018.Hyper(**{"polyak": 0.3} | rates)), key)

    both, still, blind = step(), step(actor_lr=0.0), step(critic_lr=0.0)
    equal(still[0].actor, state.actor)
    equal((blind[0].critics, blind[0].value), (state.critics, state.value))
    assert norm(jax.tree.map(lambda a, b: a - b, both[0].actor, state.actor)) > 0
    equal(blind[0].actor, both[0].actor)
    for field in ("critics", "value", "target_value"):
        equal(getattr(still[0], field), getattr(both[0], field))
    equal(still[1], both[1])
    equal(blind[1], both[1])


def test_what_follows_the_end_of_the_task_does_not_matter(key):
    agent, hyper, state = fresh()
    batch, learn = a_batch(), jax.jit(agent.learn)
    ended = batch.discount == 0
    assert 0 < ended.sum() < 16
    after = learn(state, batch, hyper, key)
    for rows, matters in ((ended, False), (~ended, True)):
        next_obs = jnp.where(rows[:, None], batch.next_obs + 3, batch.next_obs)
        other = learn(state, batch.replace(next_obs=next_obs), hyper, key)
        assert (float(other[1].critic_loss) != float(after[1].critic_loss)) == matters
        if not matters:
            equal(other, after)


@pytest.mark.parametrize(
    ("output", "log_std"), [(0, -9), (0.549306, -3.5), (-0.549306, -14.5), (30, 2), (-30, -20)]
)
def test_the_log_std_is_scaled_into_its_range_by_a_tanh(output, log_std):
    """tanh(0.549306) is a half; beyond, the slope vanishes with tanh's and is not cut off."""
    agent, _, state = known(sac2018.Config(), mean=0.4, log_std=0.0)

    def found(output):
        bias = jnp.array([output], jnp.float32)
        head = {"linear": state.actor["log_std"]["linear"] | {"bias": bias}}
        return [x[0] for x in agent.actor.apply(state.actor | {"log_std": head}, jnp.ones(1))]

    mean, at = found(output)
    assert float(mean) == pytest.approx(0.4)
    assert float(at) == pytest.approx(log_std, abs=1e-4)
    slope = jax.jit(jax.grad(lambda x: found(x)[1]))(jnp.float32(output))
    assert float(slope) == pytest.approx(11 * (1 - math.tanh(output) ** 2), abs=1e-3)


def test_initial_weights_are_uniform_and_only_the_policys_heads_have_biases(key):
    """400 and 300 units; all by their fan-in."""
    agent = sac2018.build(SPEC._replace(obs_shape=(5,), action_dim=40))
    state = jax.jit(agent.init)(key, as_arrays(sac2018.Hyper()))
    assert [x.shape for x, _ in by_hand.layers(state.actor["mlp"])] == [(5, 400), (400, 300), (300, 40)]
    by_hand.assert_spinning_up_initialises(state.actor["mlp"], last_bias=True)
    for leaf in state.actor["log_std"]["linear"].values():
        by_hand.assert_uniform(leaf, 300)
    assert (state.actor["log_std"]["linear"]["bias"] != state.actor["mlp"]["Dense_2"]["linear"]["bias"]).all()
    assert [x.shape for x, _ in by_hand.layers(state.value["mlp"])] == [(5, 400), (400, 300), (300, 1)]
    by_hand.assert_spinning_up_initialises(state.value["mlp"], last_bias=False)
    first, second = (tree.take(state.critics, i)["mlp"] for i in range(2))
    for critic in (first, second):
        assert [x.shape for x, _ in by_hand.layers(critic)] == [(45, 400), (400, 300), (300, 1)]
        by_hand.assert_spinning_up_initialises(critic, last_bias=False)
    for (a, _), (b, _) in zip(by_hand.layers(first), by_hand.layers(second), strict=True):
        assert (a != b).mean() > 0.99


def test_the_networks_of_policy_and_critics_by_hand():
    """The actor's trunk bears both heads; a critic is given observation and action side by side."""
    agent, _, state = fresh()
    obs, action = a_batch().obs, a_batch().action
    mean, features = forward(state.actor["mlp"], obs, relu)
    head = state.actor["log_std"]["linear"]
    log_std = -20 + 0.5 * 22 * (np.tanh(features @ head["kernel"] + head["bias"]) + 1)
    close(agent.actor.apply(state.actor, obs), (mean, log_std), atol=1e-5)
    values = forward(tree.take(state.critics, 1)["mlp"], jnp.concatenate([obs, action], -1), relu)[0][:, 0]
    close(agent.critic.apply(state.critics, obs, action)[1], values, atol=1e-5)


def test_the_defaults_are_those_of_the_heterogeneous_teams():
    assert sac2018.Config() == sac2018.Config(hidden=(400, 300), actor_q="min")
    hyper = sac2018.Hyper()
    assert (hyper.discount, hyper.polyak, hyper.temperature) == (0.99, 0.005, 0.2)
    assert (hyper.actor_lr, hyper.critic_lr, hyper.max_grad_norm) == (1e-3, 1e-3, np.inf)


def test_another_choice_for_the_actor_is_refused():
    with pytest.raises(ValueError, match="actor_q must be one of 'min', 'first', got 'mean'"):
        sac2018.Config(actor_q="mean")
