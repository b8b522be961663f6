"""Agents of normalized observations: the same agent on observations that are normalized beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import agents, normalize
from popjax.agents import dqn, sac, sac2018, td3
from popjax.core import Spec, Transition, as_arrays
from popjax.envs import make
from popjax.methods import independent

PLAIN: dict[str, Any] = {
    "td3": td3.Config(hidden=(8,), policy_delay=1),
    "sac": sac.Config(hidden=(8,)),
    "sac2018": sac2018.Config(hidden=(8,)),
    "dqn": dqn.Config(hidden=(8,)),
}


def spec(name: str) -> Spec:
    return Spec("mine/task", (3,), 2, 10, discrete=name == "dqn")


def batch(name: str, key: jax.Array) -> Transition:
    """Observations far from 0, as of a task in degrees."""
    obs = 100 + 30 * jax.random.normal(key, (2, 16, 3))
    action = jnp.zeros(16, jnp.int32) if name == "dqn" else jnp.full((16, 2), 0.3)
    return Transition(obs[0], action, jnp.ones(16), jnp.full(16, 0.9), obs[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_it_is_the_agent_of_normalized_observations(name: str) -> None:
    key, rows = jax.random.key(0), batch(name, jax.random.key(1))
    plain = agents.build(spec(name), PLAIN[name])
    seeing = agents.build(spec(name), replace(PLAIN[name], normalize_obs=True))
    hyper = as_arrays(agents.default_hyper(PLAIN[name]))
    state = seeing.observe(seeing.init(key, hyper), rows.obs, jnp.ones(16, jnp.bool_))
    statistics = normalize.update(normalize.init((3,)), rows.obs)

    def seen(obs: jax.Array) -> jax.Array:
        return normalize.normalize(statistics, obs, clip=10.0)

    normal = replace(rows, obs=seen(rows.obs), next_obs=seen(rows.next_obs))
    assert abs(normal.obs).max() < 4 < rows.obs.min()
    learned, losses = seeing.learn(state, rows, hyper, key)
    expected, expected_losses = plain.learn(plain.init(key, hyper), normal, hyper, key)
    pairs = [
        (learned.agent, expected),
        (losses, expected_losses),
        (seeing.value(learned, rows.obs, rows.action), plain.value(expected, normal.obs, rows.action)),
        (
            seeing.act(seeing.policy(learned), (), rows.obs[0], key, 0.0).action,
            plain.act(plain.policy(expected), (), normal.obs[0], key, 0.0).action,
        ),
    ]
    if plain.td_error:
        pairs.append((seeing.td_error(learned, rows), plain.td_error(expected, normal)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *zip(*pairs, strict=True)
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_policy_is_handed_over_with_what_it_sees_by(name: str) -> None:
    agent = agents.build(spec(name), replace(PLAIN[name], normalize_obs=True))
    hyper = as_arrays(agents.default_hyper(PLAIN[name]))
    init = jax.jit(agent.init)
    one, other = (init(jax.random.key(seed), hyper) for seed in (0, 1))
    one = jax.jit(agent.observe)(one, batch(name, jax.random.key(2)).obs, jnp.ones(16, jnp.bool_))
    taken = agent.policy(agent.adopt(other, agent.policy(one)))
    jax.tree.map(np.testing.assert_array_equal, taken, agent.policy(one))


def test_a_population_normalizes_by_what_each_has_seen() -> None:
    config = independent.Config(agent=replace(PLAIN["td3"], normalize_obs=True), population=2, batch=4)
    method = independent.build(make("probe/context"), replace(config, capacity=50, warmup=4, steps=10))
    state = jax.jit(method.step)(jax.jit(method.init)(jax.random.key(0), method.hyper))
    assert state.agents.statistics.count.tolist() == [10, 10]
    np.testing.assert_allclose(state.agents.statistics.mean, state.replay.rows.obs[:, :10].mean(1), atol=1e-6)


def test_parts_of_a_learner_refuse_what_they_do_not_do() -> None:
    with pytest.raises(ValueError, match="normalize_obs is for a whole SAC learner"):
        sac.parts(spec("sac"), sac.Config(normalize_obs=True))
