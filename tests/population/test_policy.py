"""Acting: what is done where a policy has diverged, and which policies are a network alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from popjax.agents import ddpg
from popjax.core import Choice, as_arrays
from popjax.envs import make
from popjax.population import policy

SPEC = make("probe/corridor").spec


def test_a_policy_that_has_diverged_acts_at_random(key):
    """The others act as they would."""
    action = jnp.array([[[0.5], [jnp.nan]], [[jnp.inf], [-0.5]]])  # [P, N, A]

    def act(memory, obs, key):
        return Choice(memory, action, action, jnp.zeros(action.shape[:2]))

    sane = jax.jit(policy.randomly(act, SPEC, jnp.bool_(False)))((), action, key).action
    assert (sane[0, 0], sane[1, 1]) == (0.5, -0.5)
    assert (jnp.abs(sane) <= 1).all()
    assert sane[0, 1] != sane[1, 0]


def test_a_policy_of_another_shape_than_the_actor_is_refused():
    """The message names the first parameter that differs, and both shapes."""
    agent = ddpg.build(SPEC, ddpg.Config(hidden=(8,)))
    policy.require_network(agent, ddpg.Hyper())
    wider = ddpg.build(SPEC, ddpg.Config(hidden=(9,)))
    with pytest.raises(
        ValueError, match=r"/bias is float32 \[9\] there, and float32 \[8\] in agent.policy: let"
    ):
        policy.require_network(agent._replace(actor=wider.actor), ddpg.Hyper())
    half = agent._replace(policy=lambda state: jax.tree.map(jnp.float16, agent.policy(state)))
    with pytest.raises(ValueError, match=r"is float32 \[8\] there, and float16 \[8\] in agent.policy"):
        policy.require_network(half, as_arrays(ddpg.Hyper()))
