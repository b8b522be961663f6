"""Promises that only an accelerator can break: run with ``JAX_PLATFORMS=cuda pytest -m gpu``."""

from __future__ import annotations

from functools import lru_cache

import jax
import pytest

from popjax.agents import ddpg, sac
from popjax.envs import make
from popjax.evolution.crossover import Distillation
from popjax.host.training import train
from popjax.methods import independent, onpolicy, pderl
from tests.support import close, equal

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


def trained(name, steps, **options):
    """Return the result of so many iterations, in two chunks."""
    env = make("gymnax/Pendulum-v1")
    method = BUILD[name](env)
    every = steps // 2 * method.steps_bound
    intervals = {"eval_every": every, "log_every": every, "checkpoint_every": every, "eval_episodes": 1}
    return train(method, env, env_steps=steps * method.steps_bound, quiet=True, **intervals, **options)


@pytest.mark.parametrize("name", BUILD)
def test_a_run_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    steps = compiled(name)[2]
    whole = trained(name, steps, run_dir=tmp_path / "whole")
    assert trained(name, steps, run_dir=tmp_path / "parts", sinks=[lambda index, _: index > 0]).state
    parts = trained(name, steps, run_dir=tmp_path / "parts", resume=True)
    assert parts.summary["generations"] == whole.summary["generations"]
    assert parts.summary["state_sha256"] == whole.summary["state_sha256"]


@pytest.mark.parametrize(("name", "steps"), [("sac", 20), ("ppo", 2)])
def test_members_are_the_same_on_one_device_and_on_all(name, steps):
    """But for rounding: kernels for other numbers of members sum in another order."""
    count = len(jax.devices())
    if count == 1:
        pytest.skip("needs several devices")
    one, spread = (trained(name, steps, seeds=count, devices=n).state for n in (1, "all"))
    assert len(spread.generation.sharding.device_set) == count
    close(one.agents, spread.agents, rtol=0.01, atol=0.001)
