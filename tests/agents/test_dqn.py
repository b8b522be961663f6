"""DQN: the numbers of CA2E's specification, its networks, and what it learns of the probes."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import agents
from popjax.agents import dqn
from popjax.core import Spec, Transition, Weighted, as_arrays
from popjax.envs import make
from popjax.methods import independent
from popjax.nets import images
from tests.agents.by_hand import norm, stepped
from tests.support import close, equal

SPEC = Spec(name="none", obs_shape=(3,), action_dim=4, episode_length=1, discrete=True)
SMALL = dqn.Config(hidden=(8,))


def batch(size=6, seed=0):
    """Transitions [size] of three observations and four actions, some of which terminate."""
    chance = np.random.default_rng(seed)
    obs, next_obs = (jnp.asarray(chance.normal(size=(size, 3)), jnp.float32) for _ in range(2))
    action = jnp.asarray(chance.integers(0, 4, size), jnp.int32)
    reward = jnp.asarray(chance.normal(size=size), jnp.float32)
    return Transition(
        obs, action, reward, jnp.asarray(0.99 * (np.arange(size) % 3 > 0), jnp.float32), next_obs
    )


def fresh(config=SMALL, **numbers):
    """agent, hyper, and a state whose target differs from the online network."""
    agent, hyper = dqn.build(SPEC, config), as_arrays(dqn.Hyper(**numbers))
    agent = agent._replace(learn=jax.jit(agent.learn), init=jax.jit(agent.init))
    state = agent.init(jax.random.key(5), hyper)
    return agent, hyper, state.replace(target=agent.init(jax.random.key(6), hyper).online)


def table(values):
    """A Q-network that is linear in a one-hot observation: ``values`` [states, actions] are its weights."""
    config = dqn.Config(norm="none", torso="dense")
    spec = SPEC._replace(obs_shape=(len(values),), action_dim=len(values[0]))
    return dqn.build(spec, config), {
        "Dense_0": {"linear": {"kernel": jnp.array(values), "bias": jnp.zeros(len(values[0]))}}
    }


def test_worked_example_1_double_q_over_three_steps(monkeypatch):
    monkeypatch.setitem(images.TORSOS, "dense", ((), ()))
    agent, online = table([[0.0, 5.5, 0.0], [1.0, 3.0, 2.0]])
    _, target = table([[0.0, 0.0, 0.0], [5.0, 4.0, 6.0]])
    hyper = as_arrays(dqn.Hyper())
    state = agent.init(jax.random.key(0), hyper).replace(online=online, target=target)
    three = 1.0 + 0.99 * 0.0 + 0.99**2 * 2.0
    row = Transition(
        jnp.array([[1.0, 0.0]]),
        jnp.array([1]),
        jnp.array([three]),
        jnp.array([0.99**3]),
        jnp.array([[0.0, 1.0]]),
    )
    np.testing.assert_allclose(three, 2.9602, atol=1e-6)
    np.testing.assert_allclose(agent.td_error(state, row), [1.341396], atol=2e-6)
    np.testing.assert_allclose(
        jax.jit(agent.learn)(state, row, hyper, jax.random.key(0))[1].loss, 0.899672, atol=2e-6
    )


def test_worked_example_4_exploration():
    hyper = as_arrays(dqn.Hyper(exploration_start=0.6, exploration=0.1, exploration_steps=1e6))
    for steps, chance in ((0, 0.6), (250_000, 0.475), (1_000_000, 0.1), (3_000_000, 0.1)):
        np.testing.assert_allclose(dqn.annealed(hyper, jnp.int32(steps)), chance, rtol=1e-6)


def test_the_share_of_random_actions():
    agent, _, state = fresh()
    obs = jnp.ones(3)
    keys = jax.random.split(jax.random.key(1), 20_000)
    play = jax.jit(
        jax.vmap(lambda key, scale: agent.act(state.online, (), obs, key, scale).action, (0, None))
    )
    best = int(play(keys[:1], 0.0)[0])
    assert (play(keys, 0.0) == best).all()
    share = np.bincount(play(keys, 0.4), minlength=4) / len(keys)
    expected = np.where(np.arange(4) == best, 0.7, 0.1)
    np.testing.assert_allclose(share, expected, atol=0.015)  # four standard errors


@pytest.mark.parametrize("options", [{}, {"double": False}, {"huber": True}, {"dueling": True}], ids=str)
def test_a_gradient_step(options, key):
    """Against the formulas written out, with weights; half of the errors are beyond Huber's threshold."""
    agent, hyper, state = fresh(dqn.Config(hidden=(8,), **options))
    rows = batch()
    weight = jnp.linspace(0.2, 1.0, 6)
    q = agent.critic.apply
    after = q(state.target, rows.next_obs)
    chooser = q(state.online, rows.next_obs) if options.get("double", True) else after
    target = rows.reward + rows.discount * after[jnp.arange(6), jnp.argmax(chooser, -1)]

    def loss(params):
        delta = target - q(params, rows.obs)[jnp.arange(6), rows.action]
        half = delta**2 / 2
        if options.get("huber"):
            half = jnp.where(jnp.abs(delta) > 1, jnp.abs(delta) - 0.5, half)
        return (weight * half).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.online)
    stepped_state, losses = agent.learn(state, Weighted(**vars(rows), weight=weight), hyper, key)
    close(losses.loss, value)
    close(stepped_state.online, stepped(state.online, gradient, 1e-4, 10), atol=2e-5)
    equal(stepped_state.target, state.target)
    close(agent.td_error(state, rows), target - q(state.online, rows.obs)[jnp.arange(6), rows.action])
    assert norm(gradient) > 0


def test_the_target_is_copied_every_so_many_steps(key):
    agent, hyper, state = fresh(target_period=3)
    first = state.target
    for count in range(1, 7):
        state = agent.learn(state, batch(), hyper, key)[0]
        if count in (3, 6):
            equal(state.target, state.online)
            first = state.target
        else:
            equal(state.target, first)
            assert (state.online["Dense_1"]["linear"]["kernel"] != first["Dense_1"]["linear"]["kernel"]).any()
        assert int(state.age) == count % 3  # nothing here grows for ever


def sizes(spec, config=dqn.Config()):
    agent = dqn.build(spec, config)
    return [
        x.shape
        for x in jax.tree.leaves(jax.eval_shape(agent.actor.init, jax.random.key(0)))
        if len(x.shape) == 2
    ]


def test_the_torso_follows_from_the_observations():
    atari = SPEC._replace(obs_shape=(84, 84, 4))
    assert sizes(atari) == [(8 * 8 * 4, 32), (4 * 4 * 32, 64), (3 * 3 * 64, 64), (3136, 512), (512, 4)]
    assert sizes(make("gymnax/Breakout-MinAtar").spec) == [(3 * 3 * 4, 16), (8 * 8 * 16, 128), (128, 3)]
    assert sizes(SPEC) == [(3, 64), (64, 64), (64, 4)]
    assert sizes(SPEC._replace(obs_shape=(2, 9, 1)))[0] == (18, 64)
    assert sizes(SPEC._replace(obs_shape=(10, 5))) == [(50, 64), (64, 64), (64, 4)]
    assert sizes(SPEC, dqn.Config(hidden=(5,), dueling=True)) == [(3, 5), (5, 4), (3, 5), (5, 1)]


def test_bytes_are_scaled_and_truth_values_are_not():
    agent = dqn.build(SPEC._replace(obs_shape=(10, 10, 2)), dqn.Config(hidden=(4,)))
    params = agent.actor.init(jax.random.key(0))
    image = jax.random.bernoulli(jax.random.key(1), 0.5, (10, 10, 2))
    close(agent.actor.apply(params, image), agent.actor.apply(params, image.astype(jnp.float32)))
    close(agent.actor.apply(params, image), agent.actor.apply(params, 255 * image.astype(jnp.uint8)))


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ValueError, match="dqn needs discrete actions; probe/action has 1 continuous"):
        dqn.build(make("probe/action").spec)
    with pytest.raises(ValueError, match=r"too small for the convolutions, which need at least 36 x 36"):
        dqn.build(SPEC._replace(obs_shape=(40, 35, 4)), dqn.Config(torso="atari"))
    dqn.build(SPEC._replace(obs_shape=(36, 36, 4)), dqn.Config(torso="atari"))
    with pytest.raises(ValueError, match=r"convolutions need images \[H, W, C\], got .* \(3,\)"):
        dqn.build(SPEC, dqn.Config(torso="minatar"))


@lru_cache
def trained(probe):
    """Values [3, 2] at observations -1, 0, 1 of one DQN after 1,500 gradient steps on ``probe``."""
    config = independent.Config(
        agent=dqn.Config(hidden=(32,)), lanes=16, batch=64, capacity=4_000, warmup=100, updates=2
    )
    method = independent.build(make(probe), config)
    hyper = method.hyper.replace(
        discount=0.5, lr=5e-3, target_period=25, exploration=0.5, exploration_steps=1_000
    )
    step = lambda state, _: (method.step(state), None)  # noqa: E731
    state = jax.jit(lambda key: jax.lax.scan(step, method.init(key, hyper), length=750)[0])(jax.random.key(0))
    agent = agents.build(make(probe).spec, config.agent)
    return agent.critic.apply(
        jax.tree.map(lambda x: x[0], state.agents.online), jnp.array([[-1.0], [0.0], [1.0]])
    )


def test_it_learns_the_values_of_actions():
    """Reward 1 - (a - 0.5)^2 with actions -0.5 and 0.5; 1 - (a - obs/2)^2 with the observation's sign."""
    np.testing.assert_allclose(trained("probe/action-discrete")[1], [0, 1], atol=0.1)
    np.testing.assert_allclose(trained("probe/context-discrete")[0], [1, 0], atol=0.1)
    np.testing.assert_allclose(trained("probe/context-discrete")[2], [0, 1], atol=0.1)


def test_it_sees_through_time():
    """The corridor: every step towards 1 earns 0.5 at once, and so does the next one, halved."""
    values = trained("probe/corridor-discrete")[1]
    assert values[1] > values[0] + 0.5


def test_evaluations_explore_as_the_config_says_and_training_as_its_scale_says():
    agent = dqn.build(SPEC, dqn.Config(hidden=(8,), eval_exploration=0.25))
    params = agent.init(jax.random.key(0), as_arrays(dqn.Hyper())).online
    keys = jax.random.split(jax.random.key(1), 4_000)
    greedy = jnp.argmax(agent.outputs(params, jnp.ones(3)))
    act = jax.jit(
        jax.vmap(lambda key, scale: agent.act(params, (), jnp.ones(3), key, scale).action, (0, None))
    )
    for scale, chance in ((0.0, 0.25), (0.1, 0.1), (0.5, 0.5)):
        actions = act(keys, scale)
        assert (actions != greedy).mean() == pytest.approx(chance * 3 / 4, abs=0.02)
    with pytest.raises(ValueError, match=r"eval_exploration must be in \[0, 1\], got 1.5"):
        dqn.Config(eval_exploration=1.5)
