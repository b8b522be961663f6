"""An agent that learns from what it has just played, batch by batch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, rollout, tree
from popjax.core import Env, Key, Params, PyTree, Trajectory, example_transition, transition
from popjax.methods.cspc import memory as store
from popjax.methods.cspc.config import Config, Hyper
from popjax.methods.cspc.members import (
    NOTHING,
    Member,
    Phase,
    Player,
    Seen,
    adopter,
    greedy_of,
    seen,
    until,
)
from popjax.methods.cspc.memory import Gate, Memory


@struct.dataclass
class State:
    """An agent that learns from what it has just played: its own State, lanes [E], underway [E], and the
    losses of its last update."""

    agent: PyTree
    lanes: rollout.Lane
    underway: store.Underway
    losses: PyTree


@struct.dataclass
class Batch:
    """A batch or an episode that is played step by step: rows [T, E], and how many of the T are there,
    int32 []."""

    rows: Trajectory
    filled: Array


def build(env: Env, config: Config, kind: agents.AnyOnPolicyConfig, *, shares: bool) -> Member:
    """An agent of a kind; it ``shares`` what it sees, if so."""
    if getattr(kind, "normalize_obs", False):
        raise ValueError("an on-policy agent that whitens observations cannot exchange policies")
    if units := getattr(kind, "lstm", 0):
        raise ValueError(f"agents with a memory cannot exchange policies: lstm must be 0, got {units}")
    by_episode = config.on_policy_update == "episode"
    parts = getattr(kind, "minibatches", 1)
    if by_episode and parts > 1:
        raise ValueError(f"an episode may have fewer steps than {parts} minibatches; 1 would do")
    lanes, limit = config.on_policy_lanes, env.spec.episode_length
    length_of_lane = limit if by_episode else config.on_policy_batch // lanes
    if config.reset_at_batch and length_of_lane < limit:
        raise ValueError(
            f"with on_policy_batch {config.on_policy_batch} and on_policy_lanes {lanes} a reset at every"
            f" batch hides what comes after step {length_of_lane} of an episode's {limit}; say"
            f" no-reset-at-batch, or a batch of at least {lanes * limit}"
        )
    agent = agents.build_on_policy(env.spec, kind, lanes * length_of_lane)
    lanes_env = rollout.autoreset(env)

    def start(key: Key) -> tuple[rollout.Lane, store.Underway]:
        keys = jax.random.split(key, lanes)
        blank = tree.repeat(store.underway(env.spec.episode_length), lanes)
        return jax.vmap(partial(rollout.start, lanes_env, ()))(keys), blank

    def play(lane: rollout.Lane, params: Params, hyper: Hyper, key: Key) -> Any:
        return rollout.trajectory(
            lanes_env, agent, params, lane, key, length_of_lane, discount=hyper.on_policy.discount
        )

    def play_all(state: State, hyper: Hyper, key: Key) -> Any:
        """Lanes [E]; trajectory, timesteps and actions [T, E]."""
        keys = jax.random.split(key, lanes)
        return jax.vmap(play, (0, None, None, 0), (0, 1))(state.lanes, agent.policy(state.agent), hyper, keys)

    def init(key: Key, hyper: Hyper) -> State:
        key_agent, key_lanes = jax.random.split(key)
        state = State(agent.init(key_agent, hyper.on_policy), *start(key_lanes), losses=())
        rows = jax.eval_shape(play_all, state, hyper, key)[1][0]
        losses = jax.eval_shape(agent.learn, state.agent, rows, hyper.on_policy, key)[1]
        return replace(state, losses=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), losses))

    def share(
        memory: Memory, underway: store.Underway, rows: Any, alive: Array, gate: Gate, hyper: Hyper
    ) -> tuple[Memory, store.Underway, Array]:
        """Everything goes to the memory, and what passes the gate to the local one."""
        trajectory, timesteps, actions = rows
        done = timesteps.done
        if config.reset_at_batch:
            done = done.at[-1].set(True)
        # The memory has the global agent's gamma.
        seen = jax.vmap(jax.vmap(partial(transition, discount=hyper.off_policy.discount)))(
            trajectory.obs, actions, timesteps
        )
        flat = tree.flatten(seen)
        memory, numbers = store.remember(memory, flat, jnp.broadcast_to(alive, flat.reward.shape))

        def follow(carry: Any, row: Any) -> Any:
            memory, underway, kept = carry
            number, reward, done = row
            memory, underway, more = store.track_episodes(
                memory, underway, number, reward, done & alive, gate
            )
            return (memory, underway, kept + more), None

        # Only the ring of indices changes here: transitions stay outside of the loop.
        rest, thin = memory.replay, replace(memory, replay=())  # type: ignore[arg-type]
        steps = (numbers.reshape(done.shape), timesteps.reward, done)
        (thin, underway, kept), _ = jax.lax.scan(follow, (thin, underway, jnp.int32(0)), steps)
        return replace(thin, replay=rest), underway, kept

    def train(
        state: State, memory: Memory, length: Array, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Memory, Phase]:
        """Whole batches."""

        def batch(carry: tuple[State, Memory, Phase]) -> tuple[State, Memory, Phase]:
            before, memory, phase = carry
            alive = phase.steps < length
            keys = jax.random.split(jax.random.fold_in(key, phase.steps), 3)
            state = before
            if config.reset_at_batch:
                lane, underway = start(keys[0])
                state = replace(state, lanes=lane, underway=underway)
            played, rows = play_all(state, hyper, keys[1])
            kept, underway = jnp.int32(0), state.underway
            if shares:
                memory, underway, kept = share(memory, underway, rows, alive, gate, hyper)
            learner, losses = agent.learn(state.agent, rows[0], hyper.on_policy, keys[2])
            state = tree.where(alive, State(learner, played, underway, losses), before)
            steps = phase.steps + jnp.where(alive, config.on_policy_batch, 0)
            return state, memory, Phase(steps, phase.kept + kept)

        return until(batch, (state, memory, NOTHING), length)

    def train_by_episode(
        state: State, memory: Memory, length: Array, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Memory, Phase]:
        """Whole episodes, each learned from at its end."""

        def unfinished(carry: Any) -> Array:
            (_, kept), _, phase = carry
            return (phase.steps < length) | (kept.filled > 0)

        def step(carry: Any) -> Any:
            before, memory, phase = carry
            state, kept = before
            alive = unfinished(carry)
            key_act, key_learn = jax.random.split(jax.random.fold_in(key, phase.steps))
            actions, choice = act_now(state, kept, hyper, key_act)
            answer = jax.vmap(lanes_env.step)(state.lanes.env, actions)
            happened = seen(state.lanes, actions, answer, choice, hyper)
            state, kept, memory, more = taken(state, kept, memory, happened, alive, gate, hyper, key_learn)
            steps = phase.steps + jnp.where(alive, more.steps, 0)
            return tree.where(alive, (state, kept), before), memory, Phase(steps, phase.kept + more.kept)

        start = ((state, begin(state, key)), memory, NOTHING)
        (state, _), memory, phase = jax.lax.while_loop(
            lambda carry: tree.any_lane(unfinished(carry)), step, start
        )
        return state, memory, phase

    def begin(state: State, key: Key) -> Batch:
        blank = Trajectory(
            **vars(tree.repeat(example_transition(env.spec), lanes)),
            done=jnp.zeros(lanes, jnp.bool_),
            log_prob=jnp.zeros(lanes),
        )
        return Batch(tree.repeat(blank, length_of_lane), jnp.int32(0))

    def act_now(state: State, kept: Batch, hyper: Hyper, key: Key) -> tuple[Array, Any]:
        keys, params = jax.random.split(key, lanes), agent.policy(state.agent)
        choose_all = jax.vmap(agent.act, (None, None, 0, 0, None))
        _, action, *sampled = choose_all(params, (), state.lanes.obs, keys, 1.0)
        return action, tuple(sampled)

    def take(
        state: State, kept: Batch, memory: Memory, happened: Seen, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Batch, Memory, Phase]:
        return taken(state, kept, memory, happened, jnp.bool_(True), gate, hyper, key)

    def taken(
        state: State,
        kept: Batch,
        memory: Memory,
        happened: Seen,
        alive: Array,
        gate: Gate,
        hyper: Hyper,
        key: Key,
    ) -> tuple[State, Batch, Memory, Phase]:
        """What ``take`` does, with no trace in the memory unless ``alive``."""
        done, (action, log_prob) = happened.timesteps.done, happened.choice
        row = Trajectory(
            obs=state.lanes.obs,
            action=action,
            reward=happened.timesteps.reward,
            discount=jnp.where(happened.timesteps.final, 0.0, hyper.on_policy.discount),
            next_obs=happened.timesteps.next_obs,
            done=done,
            log_prob=log_prob,
        )
        rows = tree.put(kept.rows, kept.filled, row)
        count, underway = jnp.int32(0), state.underway
        if shares:
            memory, number = store.remember(memory, happened.transitions, jnp.broadcast_to(alive, lanes))
            memory, underway, count = store.track_episodes(
                memory, underway, number, row.reward, done & alive, gate
            )
        full = kept.filled + 1 == length_of_lane
        learned = rows
        if by_episode:
            full = done[0]
            learned = replace(rows, valid=(jnp.arange(length_of_lane) <= kept.filled)[:, None])
        before = (state.agent, state.losses)
        learner, losses = jax.lax.cond(
            tree.any_lane(full),
            lambda: tree.where(full, agent.learn(state.agent, learned, hyper.on_policy, key), before),
            lambda: before,
        )
        kept = Batch(rows, jnp.where(full, 0, kept.filled + 1))
        return State(learner, happened.played, underway, losses), kept, memory, Phase(jnp.int32(lanes), count)

    def act(params: Params, obs: Array, hyper: Hyper, key: Key, scale: Array | float) -> Array:
        return choose(key, params, obs, scale)

    def choose(key: Key, params: Params, obs: Array, scale: Array | float) -> Array:
        return agent.act(params, (), obs, key, scale).action

    return Member(
        init=init,
        train=train_by_episode if by_episode else train,
        update=None,
        mean=lambda state: state.agent.actor["mlp"],
        value=lambda state: state.agent.value,
        adopt=adopter(config, lambda key, hyper: agent.init(key, hyper.on_policy)),
        tested=lambda state: agent.policy(state.agent),
        act=act,
        player=Player(
            begin=begin,
            start=lambda state, kept: (state, kept),
            lanes=lambda state, kept: state.lanes,
            act=act_now,
            take=take,
            update=None,
        ),
        **greedy_of(agent, agents.default_hyper(kind), choose),
    )
