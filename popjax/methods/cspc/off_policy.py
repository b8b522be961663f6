"""An agent that learns from the team's memory in every step."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, rollout, tree
from popjax.core import Env, Key, Params, PyTree, Transition, example_transition
from popjax.methods.cspc import memory as store
from popjax.methods.cspc.config import Config, Hyper
from popjax.methods.cspc.members import (
    NOTHING,
    Member,
    Phase,
    Player,
    Seen,
    adopter,
    enter,
    greedy_of,
    record_transition,
    until,
)
from popjax.methods.cspc.memory import Gate, Memory


@struct.dataclass
class State:
    """An agent that learns from the memory.

    agent:    its own State.
    lanes:    [E]
    underway: [E]
    steps:    int32 [] it has played.
    owed:     int32 [] gradient steps put off.
    updates:  int32 [] gradient steps taken.
    losses:   of the last.
    """

    agent: PyTree
    lanes: rollout.Lane
    underway: store.Underway
    steps: Array
    owed: Array
    updates: Array
    losses: PyTree


def build(env: Env, config: Config, kind: agents.AnyConfig, *, is_global: bool) -> Member:
    """An agent of a kind; only the global one draws from the local memory, too."""
    if getattr(kind, "normalize", False) or getattr(kind, "normalize_obs", False):
        raise ValueError("an off-policy agent that normalizes observations cannot exchange policies")
    agent = agents.build(env.spec, kind)
    lanes_env = rollout.autoreset(env)
    lanes = config.lanes
    # A copy that takes over policies has better to do than to play at random.
    warmup = config.warmup if is_global or not config.transfer else 0

    def init(key: Key, hyper: Hyper) -> State:
        key_agent, key_lanes = jax.random.split(key)
        state = agent.init(key_agent, hyper.off_policy)
        start = partial(rollout.start, lanes_env, ())
        batch = tree.repeat(example_transition(env.spec), config.batch)
        losses = jax.eval_shape(agent.learn, state, batch, hyper.off_policy, key)[1]
        return State(
            agent=state,
            lanes=jax.vmap(start)(jax.random.split(key_lanes, lanes)),
            underway=tree.repeat(store.underway(env.spec.episode_length), lanes),
            steps=jnp.int32(0),
            owed=jnp.int32(0),
            updates=jnp.int32(0),
            losses=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses),
        )

    def update(state: State, memory: Memory, count: Array, hyper: Hyper, key: Key) -> State:
        """``count`` gradient steps. One that is alone has nobody's good episodes but its own to prefer."""

        def draw(key: Key) -> Transition:
            if is_global and config.members > 1:
                return store.sample(memory, key, config.batch, hyper.local_share, config.local_least)
            return store.sample_all(memory, key, config.batch)

        def one(i: Array, carry: tuple[PyTree, PyTree, Array]) -> tuple[PyTree, PyTree, Array]:
            learner, _, updates = carry
            key_sample, key_learn = jax.random.split(jax.random.fold_in(key, i))
            return *agent.learn(learner, draw(key_sample), hyper.off_policy, key_learn), updates + 1

        before = (state.agent, state.losses, state.updates)
        learner, losses, updates = jax.lax.fori_loop(0, count, one, before)
        return replace(state, agent=learner, losses=losses, updates=updates)

    def update_owed(state: State, memory: Memory, more: Array, hyper: Hyper, key: Key) -> State:
        """``more`` gradient steps and those put off, as soon as there is enough to learn from."""
        owed = state.owed + more
        count = jnp.where(memory.replay.size >= max(config.update_after, 1), owed, 0)
        return replace(update(state, memory, count, hyper, key), owed=owed - count)

    def play(lane: rollout.Lane, state: State, hyper: Hyper, key: Key) -> Any:
        played, rows = rollout.experience(
            lanes_env,
            agent,
            agent.policy(state.agent),
            lane,
            key,
            1,
            random=state.steps < warmup,
            exploration=hyper.off_policy.exploration,
            discount=hyper.off_policy.discount,
        )
        return played, tree.take(rows, 0)

    def train(
        state: State, memory: Memory, length: Array, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Memory, Phase]:
        """Steps and gradient steps in turn. Lanes go on where the last phase left them."""

        def step(carry: tuple[State, Memory, Phase]) -> tuple[State, Memory, Phase]:
            state, memory, phase = carry
            alive = phase.steps < length
            key_play, key_update = jax.random.split(jax.random.fold_in(key, phase.steps))
            played, (rows, done) = jax.vmap(play, (0, None, None, 0))(
                state.lanes, state, hyper, jax.random.split(key_play, lanes)
            )
            more = jnp.where(alive, lanes, 0)
            if not config.store_first:
                state = update_owed(state, memory, more, hyper, key_update)
                memory = store.after(memory, state.updates)
            memory, number = store.remember(memory, rows, jnp.broadcast_to(alive, (lanes,)))
            memory, underway, kept = store.track_episodes(
                memory, state.underway, number, rows.reward, done & alive, gate
            )
            state = replace(
                state,
                lanes=tree.where(alive, played, state.lanes),
                underway=tree.where(alive, underway, state.underway),
                steps=state.steps + more,
            )
            if config.store_first:
                state = update_owed(state, memory, more, hyper, key_update)
            return state, memory, Phase(phase.steps + more, phase.kept + kept)

        return until(step, (state, memory, NOTHING), length)

    def train_in_bursts(
        state: State, memory: Memory, length: Array, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Memory, Phase]:
        """Whole episodes, each followed by as many gradient steps."""

        def episode(carry: tuple[State, Memory, Phase]) -> tuple[State, Memory, Phase]:
            state, memory, phase = carry
            alive = phase.steps < length
            key_play, key_update = jax.random.split(jax.random.fold_in(key, phase.steps))

            def policy(step: Array, obs: Array, key: Key) -> tuple[Array, Array]:
                params, exploration = agent.policy(state.agent), hyper.off_policy.exploration
                return step + 1, rollout.explore(agent, params, obs, key, step < warmup, exploration)

            record = partial(record_transition, hyper.off_policy.discount)
            one = rollout.episode(env, policy, state.steps, key_play, record=record)
            more = jnp.where(alive, one.length, 0)
            if not config.store_first:
                state = update_owed(state, memory, more, hyper, key_update)
                memory = store.after(memory, state.updates)
            memory, kept = enter(memory, jax.tree.map(lambda x: x[None], one), alive, gate)
            if config.store_first:
                state = update_owed(state, memory, more, hyper, key_update)
            state = replace(state, steps=state.steps + more)
            return state, memory, Phase(phase.steps + more, phase.kept + kept)

        return until(episode, (state, memory, NOTHING), length)

    def act_now(state: State, kept: tuple[()], hyper: Hyper, key: Key) -> tuple[Array, tuple[()]]:
        def one(obs: Array, key: Key) -> Array:
            params, random = agent.policy(state.agent), state.steps < warmup
            return rollout.explore(agent, params, obs, key, random, hyper.off_policy.exploration)

        return jax.vmap(one)(state.lanes.obs, jax.random.split(key, lanes)), ()

    def take(
        state: State, kept: tuple[()], memory: Memory, seen: Seen, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, tuple[()], Memory, Phase]:
        done, everybody = seen.timesteps.done, jnp.ones(lanes, jnp.bool_)
        memory, number = store.remember(memory, seen.transitions, everybody)
        reward = seen.timesteps.reward
        memory, underway, count = store.track_episodes(memory, state.underway, number, reward, done, gate)
        state = replace(state, lanes=seen.played, underway=underway, steps=state.steps + lanes)
        return state, (), memory, Phase(jnp.int32(lanes), count)

    def act(params: Params, obs: Array, hyper: Hyper, key: Key, scale: Array | float) -> Array:
        return agent.act(params, (), obs, key, scale * hyper.off_policy.exploration).action

    def greedy(key: Key, params: Params, obs: Array, scale: Array | float) -> Array:
        return agent.act(params, (), obs, key, scale).action

    return Member(
        init=init,
        train=train_in_bursts if config.burst else train,
        update=update_owed,
        mean=lambda state: state.agent.actor["mlp"],
        value=lambda state: getattr(state.agent, "value", None),
        adopt=adopter(config, lambda key, hyper: agent.init(key, hyper.off_policy)),
        tested=lambda state: agent.policy(state.agent),
        act=act,
        player=Player(
            begin=lambda state, key: (),
            start=lambda state, kept: (state, kept),
            lanes=lambda state, kept: state.lanes,
            act=act_now,
            take=take,
            update=update_owed,
        ),
        **greedy_of(agent, agents.default_hyper(kind), greedy),
    )


def copied(state: State, other: State) -> State:
    """``state`` with all that ``other`` has learned, but its own moments, lanes and counts."""
    own = ("optimizer", "updates")
    names = [field.name for field in fields(state.agent) if not any(part in field.name for part in own)]
    return replace(state, agent=replace(state.agent, **{name: getattr(other.agent, name) for name in names}))
