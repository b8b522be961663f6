"""Gradient steps of a population: how often they are traced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from popjax import agents
from popjax.agents import a2c, ddpg, dqn, sac, td3
from popjax.envs import make
from popjax.methods import ca2e, ce, cspc, independent, onpolicy, pderl
from popjax.population import learning

SMALL: dict[str, Any] = {"batch": 8, "capacity": 200}
DDPG = ddpg.Config(hidden=(7,), critic_branch=4, critic_hidden=4)
ON_DQN = ca2e.default_config(dqn.Config(hidden=(7,)))


@pytest.mark.parametrize(
    ("method", "task", "config", "learners"),
    [
        (independent, "context", independent.Config(td3.Config(hidden=(7,)), population=2, **SMALL), 1),
        (ce, "context", ce.Config(learner=sac.Config(hidden=(7,)), **SMALL), 1),
        (pderl, "context", pderl.Config(population=4, memory=9, agent=DDPG, **SMALL), 1),
        (onpolicy, "context", onpolicy.Config(a2c.Config(hidden=(7,)), population=2), 1),
        (ca2e, "corridor-discrete", replace(ON_DQN, nature_actors=2, prior_actors=0, **SMALL), 1),
        (cspc, "context", cspc.Config(batch=7, capacity=20_000), 2),
    ],
    ids=["independent", "ce", "pderl", "onpolicy", "ca2e", "cspc"],
)
def test_a_gradient_step_is_traced_once_for_init_and_step(
    method: Any, task: str, config: Any, learners: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, traces, built = make(f"probe/{task}"), [], agents._built

    def counting(*args: Any) -> Any:
        agent = built(*args)
        return agent._replace(learn=lambda *given: (traces.append(method), agent.learn(*given))[1])

    monkeypatch.setattr(agents, "_built", counting)
    ours = method.build(env, config)
    state = jax.eval_shape(ours.init, jax.random.key(0), ours.hyper)
    jax.jit(ours.step).lower(state)
    assert len(traces) == learners


def test_a_step_that_is_traced_once_leaves_no_call_in_a_program() -> None:
    update = learning.traced_once(lambda x, key: (x + jax.random.normal(key), x))

    def program(x: jax.Array, key: jax.Array) -> Any:
        return learning.steps(update, x, 3, key, learning.no_losses(update, x, key))

    plain = jax.make_jaxpr(lambda x, key: learning.steps(update.__wrapped__, x, 3, key, jnp.float32(0)))
    given = jnp.float32(1), jax.random.key(0)
    calls = [str(jax.make_jaxpr(program)(*given)).count("jit["), str(plain(*given)).count("jit[")]
    assert calls[0] == calls[1] > 0  # those of jax.random
