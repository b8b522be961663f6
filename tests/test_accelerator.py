"""Promises that only an accelerator can break: run with ``JAX_PLATFORMS=cuda pytest -m gpu``."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import pytest

from popjax.agents import ddpg, sac
from popjax.envs import make
from popjax.evolution.crossover import Distillation
from popjax.methods import independent, onpolicy, pderl
from tests.support import equal

pytestmark = pytest.mark.gpu
BUILD = {
    "sac": lambda env: independent.build(
        env,
        independent.Config(
            agent=sac.Config(hidden=(64, 64)), population=8, capacity=2_000, warmup=64, batch=64
        ),
    ),
    "ppo": lambda env: onpolicy.build(env, onpolicy.Config(population=8, lanes=8)),
    "pderl": lambda env: pderl.build(
        env,
        pderl.Config(
            agent=ddpg.Config(hidden=(32, 32)),
            population=4,
            capacity=4_000,
            distillation=Distillation(epochs=1),
        ),
    ),
}


@lru_cache
def compiled(name):
    method = BUILD[name](make("gymnax/Pendulum-v1"))
    steps = 2 if name == "pderl" else 100

    def chunk(state, count):
        return jax.lax.fori_loop(0, count, lambda _, s: method.step(s), state)

    return jax.jit(lambda key: method.init(key, method.hyper)), jax.jit(chunk), steps


@pytest.mark.parametrize("name", BUILD)
def test_the_same_seed_gives_the_same_numbers_on_an_accelerator(name):
    init, chunk, steps = compiled(name)
    assert jax.default_backend() != "cpu"
    equal(*(chunk(init(jax.random.key(3)), steps) for _ in range(2)))


@pytest.mark.parametrize("name", BUILD)
def test_a_run_goes_on_as_if_it_had_not_stopped(name):
    """Through the host: what a checkpoint would hold."""
    init, chunk, steps = compiled(name)
    half = chunk(init(jax.random.key(3)), steps // 2)
    bare = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, half
    )
    saved = jax.device_get(bare)
    restored = jax.tree.map(
        lambda x, like: (
            jax.random.wrap_key_data(jnp.asarray(x))
            if jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
            else jnp.asarray(x)
        ),
        saved,
        half,
    )
    equal(chunk(init(jax.random.key(3)), steps), chunk(restored, steps - steps // 2))
