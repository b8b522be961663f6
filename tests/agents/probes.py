"""Known values of the probes, and on-policy agents that are to find them."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from popjax import tree
from popjax.core import Env, Spec
from popjax.envs import make
from popjax.envs.episodic import episodic
from popjax.methods import onpolicy

GAMMA = 0.5
OBSERVATIONS = (-1, 0, 1)
# probe -> (observation, value of the best action, that action or None) for every observation.
ANSWERS = {
    "constant": [(0, 1, None)],
    "observation": [(-1, -1, None), (1, 1, None)],
    "delay": [(0, GAMMA, None), (1, 1, None)],
    "action": [(0, 1, 0.5)],
    "context": [(-1, 1, -0.5), (1, 1, 0.5)],
    "endless": [(1, 1 / (1 - GAMMA), None)],
}
DISCRETE_ANSWERS = {"action-discrete": [(0, 1, 1)], "context-discrete": [(-1, 1, 0), (1, 1, 1)]}
ALL_ANSWERS = ANSWERS | DISCRETE_ANSWERS


def learned(discrete, module, config, steps, iterations, **numbers):
    """For every probe of a kind: losses [iterations, 1]; values and greedy actions at OBSERVATIONS.

    Agents of ``module`` with 16 lanes; one program learns all probes side by side.
    """
    names = DISCRETE_ANSWERS if discrete else ANSWERS
    envs = [make(f"probe/{name}") for name in names]
    resets, plays = ([getattr(env, part) for env in envs] for part in ("reset", "step"))
    spec = envs[0].spec._replace(episode_length=max(env.spec.episode_length for env in envs))
    agent = module.build(spec, config)

    def one(which):
        env = Env(
            reset=lambda key: jax.lax.switch(which, resets, key),
            step=lambda state, action: jax.lax.switch(which, plays, state, action),
            spec=spec,
        )
        method = onpolicy.build(env, onpolicy.Config(agent=config, lanes=16, steps=steps))
        hyper = replace(method.hyper, discount=GAMMA, **numbers)
        state, losses = jax.lax.scan(
            lambda s, _: (method.step(s), s.metrics.losses),
            method.init(jax.random.key(0), hyper),
            length=iterations,
        )
        obs = jnp.array(OBSERVATIONS, jnp.float32)[:, None]
        values = agent.critic.apply(tree.take(state.agents.value, 0), obs)
        actions = jax.vmap(lambda x: method.act(method.policy(state), (), x, jax.random.key(0), 0.0)[1])(obs)
        return losses, values, actions.reshape(len(OBSERVATIONS))

    found = jax.jit(jax.vmap(one))(jnp.arange(len(envs)))
    return {name: tree.take(found, i) for i, name in enumerate(names)}


def assert_knows(found, probe, value_error, action_error):
    """The answers to ``probe``, from what ``learned`` returned."""
    losses, values, actions = found[probe]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(losses))
    for obs, value, best in ALL_ANSWERS[probe]:
        at = OBSERVATIONS.index(obs)
        np.testing.assert_allclose(values[at], value, atol=value_error)
        if best is not None:
            np.testing.assert_allclose(actions[at], best, atol=action_error)


def recall(discrete):
    """Shows -1 or 1, then 0 twice; the third action alone has a reward, by what was shown first.

    ``1 - (a - shown / 2)^2`` or, where actions are discrete, 1 for action 0 after -1 and action 1 after 1.
    """
    name, size = ("recall-discrete", 2) if discrete else ("recall", 1)
    spec = Spec(name=name, obs_shape=(1,), action_dim=size, episode_length=3, discrete=discrete)

    def reset(key):
        shown = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        return (shown, jnp.int32(0)), shown[None]

    def step(state, action):
        shown, steps = state
        reward = (action == (shown > 0)) if discrete else 1 - (action[0] - shown / 2) ** 2
        return (shown, steps + 1), jnp.zeros(1), jnp.where(steps == 2, reward, 0.0), steps == 2

    return episodic(spec, reset, step)
