"""Hidden layers in bfloat16: what is carried and what acts stay float32, and a step stays nearly the same."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import sac, td3
from popjax.core import Spec, Transition, as_arrays
from tests.support import equal, slow_except

SPEC = Spec("test", (5,), 2, 100)
AGENTS = {"sac": sac, "td3": td3}


def batch(size=64):
    draw = np.random.default_rng(0)
    obs, next_obs = draw.normal(size=(2, size, 5))
    action, reward = draw.uniform(-1, 1, (size, 2)), draw.normal(size=size)
    arrays = (jnp.asarray(x, jnp.float32) for x in (obs, action, reward, np.full(size, 0.9), next_obs))
    return Transition(*arrays)


def leaf_types(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


@pytest.mark.parametrize("name", slow_except(["sac"], AGENTS))
def test_learning_in_bfloat16(name):
    module, key = AGENTS[name], jax.random.key(0)
    config, hyper = module.Config(hidden=(32, 32)), as_arrays(module.Hyper())
    exact, coarse = (module.build(SPEC, replace(config, precision=p)) for p in ("float32", "bfloat16"))
    start = exact.init(key, hyper)
    equal(coarse.init(key, hyper), start)
    (_, losses), (found, coarse_losses) = (
        jax.jit(agent.learn)(start, batch(), hyper, key) for agent in (exact, coarse)
    )
    assert leaf_types((found, coarse_losses)) == leaf_types((start, losses))
    assert float(coarse_losses.critic_loss) != float(losses.critic_loss)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.05, atol=0.02), coarse_losses, losses)
    programs = [str(jax.make_jaxpr(agent.learn)(start, batch(), hyper, key)) for agent in (exact, coarse)]
    assert ["bf16" in program for program in programs] == [False, True]
    chosen = [agent.act(agent.policy(start), (), jnp.ones(5), key, 1.0) for agent in (exact, coarse)]
    equal(*chosen)
