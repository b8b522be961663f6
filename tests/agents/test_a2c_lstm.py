"""A2C with an LSTM learns from what it remembered while it acted, and no episode hears of another."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import distributions, tree
from popjax.agents import a2c
from popjax.core import Recurrent, Spec, Trajectory, as_arrays
from popjax.envs import make
from popjax.host.training import evaluation
from popjax.methods import onpolicy
from tests.agents import probes
from tests.support import close, equal, slow_except

SPEC = Spec(name="none", obs_shape=(2,), action_dim=2, episode_length=9)
DISCRETE = SPEC._replace(action_dim=3, discrete=True)
CONFIG = a2c.Config(hidden=(5,), lstm=4)
both = pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])


def noisy(params):
    """Weights with which no head and no bias is small."""
    noise = tree.normal_like(jax.random.key(3), params)
    return jax.tree.map(lambda x, more: x + 0.4 * more, params, noise)


def written_out(params, memory, obs):
    """Observations [N, D] through the hidden layers, the LSTM and the head: memory, outputs."""
    (c, h), x = memory, obs
    for layer in params["torso"].values():
        x = jnp.tanh(x @ layer["linear"]["kernel"] + layer["linear"]["bias"])
    gates = jnp.concatenate([x, h], -1) @ params["lstm"]["kernel"] + params["lstm"]["bias"]
    i, g, f, o = (gates[..., 4 * k : 4 * k + 4] for k in range(4))
    sigmoid = lambda x: 1 / (1 + jnp.exp(-x))  # noqa: E731
    c = sigmoid(f + 1) * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    head = params["head"]
    last = head.get("mlp", head)["Dense_0"]["linear"]
    out = h @ last["kernel"] + last["bias"]
    return (c, h), (out, head["log_std"]) if "log_std" in head else out


def behind(memory, done):
    """The memory of lanes of which some are ``done`` [N]."""
    return jax.tree.map(lambda x: jnp.where(done[:, None], 0.0, x), memory)


@lru_cache
def histories(probe):
    """States before and after three iterations of seven steps, and the agent."""
    env = make(f"probe/{probe}")
    method = onpolicy.build(env, onpolicy.Config(agent=CONFIG, population=2, lanes=3, steps=7))
    state, step = (
        jax.jit(method.init)(jax.random.key(1), replace(method.hyper, lr=0.05)),
        jax.jit(method.step),
    )
    agents = state.agents.replace(actor=noisy(state.agents.actor), value=noisy(state.agents.value))
    states = [state.replace(agents=agents)]
    for _ in range(3):
        states.append(step(states[-1]))
    return a2c.build(env.spec, CONFIG), distributions.of(env.spec), states


@pytest.mark.parametrize(
    "probe", slow_except(["delay", "corridor-discrete"], ["delay", "corridor", "corridor-discrete"])
)
def test_what_is_learned_from_is_what_acted(probe):
    """Log-probabilities, unrolled from what was remembered and one by one from each beginning on."""
    agent, actions, states = histories(probe)
    unroll, one = jax.jit(agent.actor.unroll), jax.jit(written_out)
    for before, after in pairwise(states):
        rows, lanes = (tree.take(x, 1) for x in (after.trajectory, before.lanes))
        params = tree.take(before.agents.actor, 1)
        equal(tree.take(rows.memory, 0), lanes.memory)
        remembered = tree.take(rows.memory, 0)[0]
        outputs = unroll(params, remembered, rows.obs, rows.done)[1]
        close(actions.log_prob(outputs, rows.action), rows.log_prob, atol=1e-5)
        memory = remembered
        for t in range(7):
            memory, out = one(params, memory, rows.obs[t])
            close(actions.log_prob(out, rows.action[t]), rows.log_prob[t], atol=1e-5)
            memory = behind(memory, rows.done[t])
        close(tree.take(after.lanes.memory, 1)[0], memory, atol=1e-5)
    done = np.stack([s.trajectory.done[1] for s in states[1:]])
    assert done[:, :-1].any()  # inside of a rollout
    if probe == "delay":  # an episode of two steps ends with every second rollout, and goes on over the other
        assert done[:, -1].any(1).tolist() == [False, True, False]


def test_the_value_remembers_along():
    """Its memory is that of the episode, too."""
    _, _, states = histories("corridor")
    before, after = states[:2]
    params, rows = tree.take(before.agents.value, 0), tree.take(after.trajectory, 0)
    one, memory = jax.jit(written_out), (jnp.zeros((3, 4)), jnp.zeros((3, 4)))
    for t in range(7):
        memory = behind(one(params, memory, rows.obs[t])[0], rows.done[t])
    close(tree.take(after.lanes.memory, 0)[1], memory, atol=1e-5)


def a_rollout(spec):
    """Five steps of two lanes, both with a memory: one is cut off in the middle, the other terminates."""
    keys = jax.random.split(jax.random.key(1), 6)
    action = jax.random.normal(keys[0], (5, 2, 2))
    if spec.discrete:
        action = jnp.array([[0, 1], [2, 2], [1, 0], [0, 0], [2, 1]], jnp.int32)
    done = jnp.zeros((5, 2), bool).at[1, 0].set(True).at[2, 1].set(True)
    memory = 0.5 * jax.random.normal(keys[4], (4, 1, 2, 4))
    return Trajectory(
        obs=jax.random.normal(keys[1], (5, 2, 2)),
        action=action,
        reward=jax.random.normal(keys[2], (5, 2)),
        discount=jnp.full((5, 2), 0.9).at[2, 1].set(0.0),
        next_obs=jax.random.normal(keys[3], (5, 2, 2)),
        done=done,
        log_prob=jnp.zeros((5, 2)),
        memory=((memory[0], memory[1]), (memory[2], memory[3])),
    )


def along(params, memory, rows):
    """Return a network's outputs for each row's observations and for their true successors."""
    memory, here, beyond = tree.take(memory, 0), [], []
    for obs, next_obs, done in zip(rows.obs, rows.next_obs, rows.done, strict=True):
        memory, out = written_out(params, memory, obs)
        here.append(out)
        beyond.append(written_out(params, memory, next_obs)[1])
        memory = behind(memory, done)
    return here, beyond


def advantages_by_hand(rows, values, next_values, decay):
    """[T, N]"""
    reward, discount, done = (np.asarray(x) for x in (rows.reward, rows.discount, rows.done))
    found = np.zeros((5, 2))
    for n in range(2):
        following = 0.0
        for t in reversed(range(5)):
            error = reward[t, n] + discount[t, n] * next_values[t, n] - values[t, n]
            following = error + (0.0 if done[t, n] else discount[t, n] * decay * following)
            found[t, n] = following
    return found


@pytest.mark.parametrize(
    "spec", [pytest.param(SPEC, marks=pytest.mark.slow), DISCRETE], ids=["continuous", "discrete"]
)
def test_a_gradient_step_is_that_of_a_plain_unroll(spec, key):
    agent, actions = a2c.build(spec, CONFIG), distributions.of(spec)
    hyper = as_arrays(a2c.Hyper(lr=0.1, trace_decay=0.8, entropy_weight=0.2, max_grad_norm=1e9))
    state = jax.jit(agent.init)(key, hyper)
    state = state.replace(actor=noisy(state.actor), value=noisy(state.value))
    rows = a_rollout(spec)
    values, beyond = (
        np.stack([v[:, 0] for v in x]) for x in jax.jit(along)(state.value, rows.memory[1], rows)
    )
    advantages = advantages_by_hand(rows, values, beyond, 0.8)

    def losses(params):
        policy, value, entropy = 0.0, 0.0, 0.0
        outputs, now = along(params[0], rows.memory[0], rows)[0], along(params[1], rows.memory[1], rows)[0]
        for t in range(5):
            policy -= (actions.log_prob(outputs[t], rows.action[t]) * advantages[t]).sum() / 10
            value += ((now[t][:, 0] - advantages[t] - values[t]) ** 2).sum() / 10
            entropy += actions.entropy(outputs[t]).mean() / 5
        return policy + 0.5 * value - 0.2 * entropy, (policy, value, entropy)

    params = state.actor, state.value
    gradient, expected = jax.jit(jax.grad(losses, has_aux=True))(params)
    updates, _ = a2c.rmsprop(0.1, 1e9).update(gradient, state.optimizer, params)
    after, got = jax.jit(agent.learn)(state, rows, hyper, key)
    close((got.policy_loss, got.value_loss, got.entropy), expected, rtol=1e-4, atol=1e-5)
    close((after.actor, after.value), optax.apply_updates(params, updates), rtol=1e-3, atol=1e-5)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(gradient))


@both
def test_what_came_before_an_episode_teaches_nothing_about_it(spec, key):
    """Other observations and memories before its beginning: all that is said in it is the same bit by bit."""
    agent, rows = a2c.build(spec, CONFIG), a_rollout(spec)
    other = rows.replace(
        obs=rows.obs.at[:2, 0].add(1.0), memory=jax.tree.map(lambda x: x.at[:, 0].add(1.0), rows.memory)
    )
    for network, which in ((agent.actor, 0), (agent.critic, 1)):
        params, unroll = noisy(network.init(key)), jax.jit(network.unroll)
        said, again = (
            tree.take(unroll(params, tree.take(x.memory[which], 0), x.obs, x.done), slice(0, 5))
            for x in (rows, other)
        )
        equal(*(jax.tree.map(lambda x: x[2:], y) for y in (said, again)))
        equal(*(jax.tree.map(lambda x: x[:, 1], y) for y in (said, again)))
        assert (said[0][1][:2, 0] != again[0][1][:2, 0]).all()


def test_heads_are_those_without_an_lstm(key):
    """Small orthogonal ones; a spread of its own, the same for all that is seen; discrete or squashed."""
    obs = jax.random.normal(key, (7, 2))
    for spec in (SPEC, DISCRETE):
        agent = a2c.build(spec, a2c.Config(hidden=(8,), lstm=6, squash=True))
        state = jax.jit(agent.init)(key, as_arrays(a2c.Hyper()))
        params, memory = agent.policy(state), tree.repeat(agent.memory, 7)
        assert isinstance(agent.actor, Recurrent)
        act = jax.jit(jax.vmap(agent.act, (None, 0, 0, 0, None)))
        _, played, sampled, log_prob = act(params, memory, obs, jax.random.split(key, 7), 1.0)
        memories, outputs = jax.jit(agent.actor.step)(state.actor, memory[0], obs)
        close(distributions.of(spec).log_prob(outputs, sampled), log_prob)
        head = state.actor["head"]
        kernel = head.get("mlp", head)["Dense_0"]["linear"]["kernel"]
        np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(spec.action_dim), atol=1e-8)
        assert state.actor["lstm"]["kernel"].shape == (8 + 6, 4 * 6)
        if spec.discrete:
            equal(played, sampled)
        else:
            close(played, np.tanh(sampled))
            equal(outputs[1], np.zeros((7, 2)))
        memory, greedy = act(params, memory, obs, jax.random.split(key, 7), 0.0)[:2]
        family = distributions.of(spec, squash=True)
        close(greedy, family.bounded(family.mode(outputs)))
        close(memory[0], memories)


@pytest.mark.parametrize(("hidden", "features"), [((5,), 5), ((), 16 * 4 * 4)])
def test_images_pass_convolutions_first(hidden, features):
    """3 x 3 x 2 -> 16 features at 4 x 4 places -> the dense layers, if any -> the LSTM."""
    agent = a2c.build(SPEC._replace(obs_shape=(6, 6, 2)), a2c.Config(hidden=hidden, lstm=3))
    params = jax.eval_shape(agent.critic.init, jax.random.key(0))
    assert params["lstm"]["kernel"].shape == (features + 3, 12)
    images, done = jnp.zeros((7, 2, 6, 6, 2), jnp.uint8), jnp.zeros((7, 2), bool)
    memory = tree.repeat(agent.critic.memory, 2)
    memories, values = jax.eval_shape(agent.critic.unroll, params, memory, images, done)
    assert values.shape == (7, 2)
    assert [x.shape for x in memories] == [(7, 2, 3)] * 2


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="lstm must be at least 0, got -1"):
        a2c.Config(lstm=-1)


@pytest.mark.parametrize(
    "discrete", [pytest.param(False, marks=pytest.mark.slow), True], ids=["continuous", "discrete"]
)
def test_who_remembers_recalls_and_nobody_else(discrete):
    """The observation of two steps ago decides on the reward: 1 for the best action, for a constant one on
    average 0.75 (continuous) or 0.5 (discrete)."""
    env, blind = probes.recall(discrete), 0.5 if discrete else 0.75

    def returns(lstm):
        config = onpolicy.Config(agent=a2c.Config(hidden=(8,), lstm=lstm), lanes=16, steps=6)
        method = onpolicy.build(env, config)
        hyper = replace(method.hyper, lr=0.05, entropy_weight=0.0, anneal_updates=800.0)

        def trained(key):
            start = method.init(key, hyper)
            state = jax.lax.scan(lambda s, _: (method.step(s), None), start, length=800)[0]
            return evaluation.play(env, method, method.policy(state), key, 64)[0].mean()

        return float(jax.jit(trained)(jax.random.key(0)))

    assert returns(8) > 0.95
    assert returns(0) < blind + 0.15
