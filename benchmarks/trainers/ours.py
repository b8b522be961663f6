"""popjax's SAC and PPO."""

from __future__ import annotations

import math
from typing import Any

import jax

import popjax
from benchmarks.trainers import Training, Work, scanned, task_class
from popjax.agents import ppo, sac
from popjax.envs import gymnax
from popjax.methods import independent, onpolicy


def build(work: Work) -> Training:
    """Return the trainer."""
    if work.task == "brax/hopper":
        env = popjax.make(work.task, backend="positional")
    else:
        task = task_class(work.task)()
        env = gymnax.adapt(f"gymnax/{work.task}", task, task.default_params)
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
    hyper = method.hyper
    if work.algorithm == "ppo":
        rates = dict.fromkeys(("policy_lr", "value_lr"), work.learning_rate)
        hyper = hyper.replace(**rates, discount=work.discount, trace_decay=work.trace_decay)
        hyper = hyper.replace(entropy_weight=work.entropy_weight)
        hyper = hyper.replace(target_kl=math.inf)  # all epochs, like the others
    else:
        rates = dict.fromkeys(("actor_lr", "critic_lr", "temperature_lr"), work.learning_rate)
        hyper = hyper.replace(**rates, discount=work.discount, polyak=work.polyak)

    def act(state: Any, obs: Any) -> Any:
        def choose(policy: Any, seen: Any) -> Any:
            return method.act(policy, method.memory, seen, jax.random.key(0), 0.0).action

        actions = jax.vmap(jax.vmap(choose, (None, 0)))(method.individuals(state), obs)
        return work.action_scale * actions

    key = jax.random.key(work.seed)
    return scanned(lambda _: method.init(key, hyper), method.step, work, act)
