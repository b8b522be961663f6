"""What the actors do: how far each explores, and what the prior policies play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.agents import ddpg, dqn
from popjax.core import Agent, Env, Key, Params, PyTree
from popjax.methods.ca2e.config import Config, Hyper
from popjax.methods.ca2e.priors import Prior, chooser


def scales(agent: Agent, config: Config, hyper: Hyper, env_steps: Array) -> Array:
    """[P] the scale of each actor's exploration after ``env_steps`` of all.

    That of prior actors, and of nature actors beyond ``config.exploration``, is what retired actors explore
    with: what the numbers of the agent say, at the beginning of time unless the schedule is to anneal.
    """
    count, annealing = config.nature_actors, config.schedule == "anneal"
    retired = agent.exploration(hyper.agent, env_steps if annealing else jnp.int32(0))
    if config.schedule == "apex":
        places = jnp.concatenate([jnp.arange(count), jnp.arange(config.prior_actors)])
        return ladder(places, count)
    given = jnp.array(config.exploration[:count], jnp.float32)
    if annealing:
        at = jax.vmap(
            lambda start: agent.exploration(replace(hyper.agent, exploration_start=start), env_steps)
        )
        given = at(given)
    rest = jnp.broadcast_to(retired, (config.actors - given.shape[0],))
    return jnp.concatenate([given, rest])


def ladder(place: Array, count: int) -> Array:
    """Ape-X's constant probabilities of a random action, ``0.4^(1 + 7 i / (N - 1))`` for i = ``place``."""
    return jnp.asarray(0.4 ** (1 + 7 * place / max(count - 1, 1)), jnp.float32)


def check_learner(config: Config) -> None:
    """Raises a ValueError where the learner cannot be had, or has no numbers for the schedule."""
    if not isinstance(config.agent, dqn.Config | ddpg.Config):
        raise ValueError(f"the learner of CA2E is dqn or ddpg, not {type(config.agent).__module__}")
    if config.schedule != "constant" and not isinstance(config.agent, dqn.Config):
        raise ValueError(f"schedule {config.schedule} is for dqn's probabilities; ddpg's noise is constant")


def first_memories(priors: Sequence[Prior], config: Config) -> PyTree:
    """What the prior policies remember at the beginning of an episode, in every lane [prior, N]."""
    start = tuple(prior.policy.memory for prior in priors)
    return tree.repeat(tree.repeat(start, config.lanes), config.prior_actors)


def guide(
    env: Env, priors: Sequence[Prior], params: Sequence[Params], memories: PyTree, obs: Array, key: Key
) -> tuple[PyTree, Array]:
    """What the prior policies play in the lanes [prior, N, ...] of prior actors: memories, actions."""
    everyone = chooser(env, [prior.policy for prior in priors])

    def one(which: Array, memories: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
        memories, actions = everyone(params, memories, obs, key)
        return memories, actions[which]

    actors, lanes = obs.shape[:2]
    over = jax.vmap(jax.vmap(one, (None, 0, 0, 0)))
    return over(jnp.arange(actors) % len(priors), memories, obs, jax.random.split(key, (actors, lanes)))
