"""popjax's SAC, TD3, PPO and ES."""

from __future__ import annotations

import math
from typing import Any

import jax

import popjax
from benchmarks.trainers import Cannot, Training, Work, scanned, task_class
from popjax.agents import ppo, sac, td3
from popjax.envs import gymnax
from popjax.methods import es, independent, onpolicy

ALGORITHMS = ("sac", "td3", "ppo", "es")


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
    elif work.algorithm == "es":
        if work.population % 2:
            raise Cannot("draws individuals in pairs")
        method = es.build(env, es.Config(population=work.population, hidden=work.hidden))
    else:
        own = {"batch": work.batch, "capacity": work.capacity, "warmup": work.batch}
        agent = (sac if work.algorithm == "sac" else td3).Config(hidden=work.hidden)
        method = independent.build(env, independent.Config(agent=agent, population=work.population, **own))
    hyper = method.hyper
    if work.algorithm == "ppo":
        rates = dict.fromkeys(("policy_lr", "value_lr"), work.learning_rate)
        hyper = hyper.replace(**rates, discount=work.discount, trace_decay=work.trace_decay)
        hyper = hyper.replace(entropy_weight=work.entropy_weight)
        hyper = hyper.replace(target_kl=math.inf)  # all epochs, like the others
    elif work.algorithm != "es":
        names = ("actor_lr", "critic_lr", *(("temperature_lr",) if work.algorithm == "sac" else ()))
        rates = dict.fromkeys(names, work.learning_rate)
        hyper = hyper.replace(**rates, discount=work.discount, polyak=work.polyak)

    def act(state: Any, obs: Any) -> Any:
        def choose(policy: Any, seen: Any) -> Any:
            return method.act(policy, method.memory, seen, jax.random.key(0), 0.0).action

        actions = jax.vmap(jax.vmap(choose, (None, 0)))(method.individuals(state), obs)
        return work.action_scale * actions

    key = jax.random.key(work.seed)
    return scanned(lambda _: method.init(key, hyper), method.step, work, act)
