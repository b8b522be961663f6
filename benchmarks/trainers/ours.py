"""popjax's SAC and PPO."""

from __future__ import annotations

from collections.abc import Callable

import jax

import popjax
from benchmarks.trainers import Work, scanned
from popjax.agents import ppo, sac
from popjax.methods import independent, onpolicy


def build(work: Work) -> Callable[[], int]:
    """Return the chunk."""
    env = popjax.make("gymnax/Pendulum-v1")
    if work.algorithm == "ppo":
        agent = ppo.Config(
            hidden=work.hidden,
            policy_epochs=work.epochs,
            value_epochs=work.epochs,
            minibatches=work.minibatches,
        )
        config = onpolicy.Config(agent=agent, population=work.population, lanes=work.lanes, steps=work.steps)
        method = onpolicy.build(env, config)
    else:
        own = {"batch": work.batch, "capacity": work.capacity, "warmup": work.batch}
        config = independent.Config(agent=sac.Config(hidden=work.hidden), population=work.population, **own)
        method = independent.build(env, config)
    return scanned(lambda _: method.init(jax.random.key(0), method.hyper), method.step, work)
