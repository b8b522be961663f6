"""Rollouts of lanes, and whole episodes of given policies."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from popjax import distributions, rollout, tree
from popjax.envs import make
from popjax.population import lanes
from popjax.replay import packed
from tests.support import close, equal


def test_greedy_episodes_draw_no_noise(key):
    """A number 0.0 as the scale of all gives the episodes of an array of zeros."""
    env = make("probe/corridor")

    def act(params, memory, obs, key, scale):
        return distributions.choose(distributions.deterministic(), memory, params + 0 * obs, key, scale)

    def play(scale):
        params = jnp.array([[0.3], [-0.2]])
        return lanes.episodes(env, act, params, (), key, scale=scale, record=lambda obs, *_: obs)

    equal(jax.jit(lambda: play(0.0))(), jax.jit(play)(jnp.zeros(2)))
    assert "random_bits" not in str(jax.make_jaxpr(lambda: play(0.0))())
    assert "random_bits" in str(jax.make_jaxpr(play)(jnp.zeros(2)))


def test_trials_are_episodes_of_the_same_policy(key):
    """They read one copy of its parameters, here [2, 3], and play as several copies do."""
    env = make("gymnax/Pendulum-v1")

    def act(params, memory, obs, key, scale):
        return distributions.choose(distributions.deterministic(), memory, params @ obs, key, scale)

    def record(obs, action, timestep):
        return obs

    policy = jnp.array([[0.3, -0.2, 0.5]])
    together = lanes.trials(env, act, policy, key, 2, record=record)
    copies = lanes.episodes(env, act, tree.repeat(policy, 2), (), key, scale=0.0, record=record)
    close(together, copies, rtol=1e-4, atol=1e-4)
    assert together.total[0] != together.total[1]


def test_rollouts_are_the_same_on_every_device(key, monkeypatch):
    """An accelerator stores the narrow parts of a row together, and gives them back apart."""
    env = rollout.autoreset(make("probe/context"))
    state = lanes.start(env, key, (2, 3))

    def act(memory, obs, key):
        return distributions.choose(distributions.gaussian(), memory, (obs, 0 * obs), key, 1.0)

    def play():
        return lanes.play(env, act, state, key, 7, lanes.keep_trajectory(jnp.array([0.9, 0.8])))

    apart = play()
    monkeypatch.setattr(packed, "platform", lambda: "gpu")
    equal(play(), apart)
