"""popjax's SAC, TD3, PPO and ES."""

from __future__ import annotations

import math
from typing import Any

import jax

import popjax
from benchmarks.trainers import ACTION, MADE_UP, OBS, Cannot, Training, Work, made_up, scanned, task_class
from popjax.agents import ppo, sac, td3
from popjax.core import Spec, Transition
from popjax.envs import gymnax
from popjax.methods import es, independent, onpolicy
from popjax.population import learners

ALGORITHMS = ("sac", "td3", "ppo", "es")


def build(work: Work) -> Training:
    """Return the trainer."""
    if work.task == MADE_UP:
        return _updates(work)
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
        own |= {"lanes": work.lanes, "updates": work.lanes}
        agent = (sac if work.algorithm == "sac" else td3).Config(hidden=work.hidden)
        method = independent.build(env, independent.Config(agent=agent, population=work.population, **own))
    hyper = method.hyper
    if work.algorithm == "ppo":
        rates = dict.fromkeys(("policy_lr", "value_lr"), work.learning_rate)
        hyper = hyper.replace(**rates, discount=work.discount, trace_decay=work.trace_decay)
        hyper = hyper.replace(entropy_weight=work.entropy_weight)
        hyper = hyper.replace(target_kl=math.inf)  # all epochs, like the others
    elif work.algorithm != "es":
        hyper = _numbers(hyper, work)

    def act(state: Any, obs: Any) -> Any:
        actions = _greedy(method.act, method.memory, method.individuals(state), obs)
        return work.action_scale * actions

    key = jax.random.key(work.seed)
    return scanned(lambda _: method.init(key, hyper), method.step, work, act)


def _updates(work: Work) -> Training:
    """Return a trainer that takes the gradient steps of a population as its methods do, on made-up
    batches."""
    agent = sac if work.algorithm == "sac" else td3
    spec = Spec(work.task, (OBS,), ACTION, episode_length=1_000)
    crew = learners.build(spec, agent.Config(hidden=work.hidden), work.population)
    hyper = _numbers(agent.Hyper(), work)

    def init(key: Any) -> Any:
        return crew.init(key, hyper), key

    def step(state: Any, batch: Transition) -> Any:
        states, key = state
        key, own = jax.random.split(key)
        return crew.learn(states, batch, hyper, own)[0], key

    rows = made_up(work)
    discount = work.discount * (1 - rows.pop("done"))

    def act(state: Any, obs: Any) -> Any:
        return _greedy(crew.act, (), crew.policies(state[0]), obs)

    return scanned(init, step, work, act, batches=(Transition(**rows, discount=discount),))


def _greedy(act: Any, memory: Any, policies: Any, obs: Any) -> Any:
    """Return the most likely actions [P, B, ...] of policies [P] on observations [P, B, ...]."""

    def choose(policy: Any, seen: Any) -> Any:
        return act(policy, memory, seen, jax.random.key(0), 0.0).action

    return jax.vmap(jax.vmap(choose, (None, 0)))(policies, obs)


def _numbers(hyper: Any, work: Work) -> Any:
    """Return ``hyper`` with the hyperparameters of SAC or TD3 that all trainers share."""
    names = ("actor_lr", "critic_lr", *(("temperature_lr",) if work.algorithm == "sac" else ()))
    rates = dict.fromkeys(names, work.learning_rate)
    return hyper.replace(**rates, discount=work.discount, polyak=work.polyak)
