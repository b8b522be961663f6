"""The agents of a team: how each plays a phase, learns, is tested, and takes over what another knows.

Three kinds, of which each keeps its own schedule: learning from a replay in every step, from a batch of its
own play, or by the fitness of whole individuals. A phase ends at the first boundary of that schedule at or
after its length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax import rollout, tree
from popjax.core import Key, Params, PyTree, Timestep, Transition, as_arrays, transition
from popjax.methods.cspc import memory as store
from popjax.methods.cspc.config import Config, Hyper
from popjax.methods.cspc.memory import Gate, Memory


class Phase(NamedTuple):
    """What a phase did: environment steps and episodes that entered the local memory, int32 [] each."""

    steps: Array
    kept: Array


NOTHING = Phase(jnp.int32(0), jnp.int32(0))


class Seen(NamedTuple):
    """One step of a member's environments, [n]: the lanes after it, what they answered, the transitions with
    the memory's gamma, and what ``Player.act`` returned beside the actions."""

    played: rollout.Lane
    timesteps: Timestep
    transitions: Transition
    choice: Any


def seen(
    lanes: rollout.Lane, actions: Array, answer: tuple[PyTree, Timestep], choice: Any, hyper: Hyper
) -> Seen:
    """A step of ``lanes`` [n], in which the environments answered with their states and timesteps."""
    states, timesteps = answer
    # The memory has the global agent's gamma; a team without one has no memory.
    gamma = 0.0 if hyper.off_policy is None else hyper.off_policy.discount
    rows = jax.vmap(partial(transition, discount=gamma))(lanes.obs, actions, timesteps)
    return Seen(rollout.Lane(states, timesteps.obs, ()), timesteps, rows, choice)


class Player(NamedTuple):
    """A member that plays step by step beside the others.

    begin:  (state, key) -> what it keeps between steps beside its state
    start:  (state, kept) -> (state, kept), at the beginning of a phase
    lanes:  (state, kept) -> its environments [n]
    act:    (state, kept, hyper, key) -> (actions [n, A], choice)
    take:   (state, kept, memory, Seen, gate, hyper, key) -> (state, kept, memory, Phase)
    update: (state, memory, gradient steps [], hyper, key) -> state, with those that were put off; None if it
            has none
    """

    begin: Callable[..., PyTree]
    start: Callable[..., tuple[PyTree, PyTree]]
    lanes: Callable[..., rollout.Lane]
    act: Callable[..., tuple[Array, Any]]
    take: Callable[..., tuple[PyTree, PyTree, Memory, Phase]]
    update: Callable[..., PyTree] | None


class Member(NamedTuple):
    """One agent of the team.

    init:   (key, hyper) -> state
    train:  (state, memory, length [], gate, hyper, key) -> (state, memory, Phase)
    update: (state, memory, count [], hyper, key) -> state, after so many gradient steps and those that were
            put off; None if it has none
    mean:   state -> parameters of its mean network
    value:  state -> parameters of its state-value network, or None
    adopt:  (state, mean parameters, value parameters or None, hyper) -> state
    tested: state -> what ``act`` reads
    act:    (parameters, obs, hyper, key, scale) -> action; ``scale`` multiplies the exploration
    greedy: (mean parameters, obs) -> action
    blank:  mean parameters, all 0
    player: the same, step by step
    """

    init: Callable[..., PyTree]
    train: Callable[..., tuple[PyTree, Memory, Phase]]
    update: Callable[..., PyTree] | None
    mean: Callable[[PyTree], Params]
    value: Callable[[PyTree], Params]
    adopt: Callable[..., PyTree]
    tested: Callable[[PyTree], PyTree]
    act: Callable[..., Array]
    greedy: Callable[[Params, Array], Array]
    blank: Params
    player: Player


def until(body: Callable[[Any], Any], carry: Any, length: Array) -> Any:
    """``body`` over (state, memory, Phase) until the phase has its length in every lane of any ``vmap``.

    The loop's condition is one for all of them, so that the replay is never copied to be selected; ``body``
    leaves those alone that are done.
    """
    return jax.lax.while_loop(lambda carry: tree.any_lane(carry[2].steps < length), body, carry)


def record_transition(discount: Array | float, obs: Array, action: Array, timestep: Timestep) -> Transition:
    """What is kept of a step, as ``rollout`` asks for it."""
    return transition(obs, action, timestep, discount)


def enter(memory: Memory, episodes: rollout.Episode, alive: Array, gate: Gate) -> tuple[Memory, Array]:
    """Whole episodes [K], one after the other; how many passed the gate."""
    valid = (episodes.valid & alive).ravel()
    memory, numbers = store.remember(memory, tree.flatten(episodes.steps), valid)
    passes = gate.passes(episodes.total) & alive
    worth = jnp.repeat(passes, episodes.valid.shape[1], total_repeat_length=valid.size)
    return store.remember_locally(memory, numbers, valid & worth), passes.sum(dtype=jnp.int32)


def adopter(config: Config, fresh: Callable[[Key, Hyper], PyTree]) -> Callable[..., Any]:
    """What takes over a mean network and, where given, a state value; a policy's spread stays its own."""

    def adopt(state: Any, mean: Params, value: Params, hyper: Hyper) -> Any:
        agent = replace(state.agent, actor=state.agent.actor | {"mlp": mean})
        if config.values and value is not None and hasattr(agent, "value"):
            agent = replace(agent, value=value)
        if hasattr(agent, "target_actor"):
            agent = replace(agent, target_actor=agent.actor)
        if config.reset_optimizers:
            new = fresh(jax.random.key(0), hyper)
            moments = {f.name: getattr(new, f.name) for f in fields(agent) if "optimizer" in f.name}
            agent = replace(agent, **moments)
        return replace(state, agent=agent)

    return adopt


def greedy_of(agent: Any, hyper: PyTree, act: Callable[..., Array]) -> dict[str, Any]:
    """``greedy`` and ``blank`` of an agent, whose ``act`` with scale 0 sees nothing but the mean network."""
    key = jax.random.key(0)
    blank = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(agent.init, key, as_arrays(hyper))
    )

    def greedy(mean: Params, obs: Array) -> Array:
        return act(key, agent.policy(replace(blank, actor=blank.actor | {"mlp": mean})), obs, 0.0)

    return {"greedy": greedy, "blank": blank.actor["mlp"]}
