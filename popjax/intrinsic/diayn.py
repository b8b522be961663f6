"""Diversity is all you need: skills are rewarded for visiting states that reveal them.

Source: "Diversity Is All You Need: Learning Skills without a Reward Function" (Eysenbach, Gupta, Ibarz &
Levine, 2019). The policy sees observations ``[s, one-hot skill]`` of a ``skilled`` environment; the
discriminator sees only the state ``s``, without the skill that it has to infer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Env,
    Intrinsic,
    Key,
    Number,
    Params,
    PyTree,
    Spec,
    Timestep,
    Transition,
    number,
    vector_size,
)
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """The skills and the shape of the discriminator."""

    skills: int = 50  # number of skills
    hidden: tuple[int, ...] = (300, 300)  # hidden layers, units

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "skills")


@struct.dataclass
class Hyper:
    """Hyperparameters of one module."""

    weight: Number = number(0.2)  # weight of the bonus added to the task's reward
    lr: Number = number(3e-4)  # Adam's rate for the discriminator


@struct.dataclass
class State:
    """One module.

    discriminator, optimizer: parameters and Adam's moments.
    running:                  float32 [*lanes]  task return of a lane's episode under way, -inf if another
                              agent began it.
    returns:                  float32 [skills]  task return of the latest episode of each skill, -inf before
                              its first episode has ended.
    """

    discriminator: Params
    optimizer: PyTree
    running: Array
    returns: Array

    @property
    def best(self) -> Array:
        """Return the skill whose latest episode returned most, int32 []."""
        return jnp.argmax(self.returns)


@struct.dataclass
class Losses:
    """discriminator_loss: weighted mean cross-entropy, nats; accuracy: weighted share of states whose
    likeliest skill is the true one; [] each."""

    discriminator_loss: Array
    accuracy: Array


@struct.dataclass
class Skilled:
    """State of a ``skilled`` environment: the state of the environment within, the skill int32 [] of the
    episode under way, and the key that draws the next skill."""

    env: PyTree
    skill: Array
    key: Key


def skilled(env: Env, skills: int) -> Env:
    """Return ``env`` with a skill, redrawn for every episode, appended to its vector observations."""
    size = vector_size(env.spec, "diayn")

    def reset(key: Key) -> tuple[Skilled, Array]:
        key, key_env, key_skill = jax.random.split(key, 3)
        (inner, obs), skill = env.reset(key_env), jax.random.randint(key_skill, (), 0, skills)
        return Skilled(inner, skill, key), with_skill(obs, skill, skills)

    def step(state: Skilled, action: Array) -> tuple[Skilled, Timestep]:
        inner, timestep = env.step(state.env, action)
        key, key_skill = jax.random.split(state.key)
        skill = jnp.where(timestep.done, jax.random.randint(key_skill, (), 0, skills), state.skill)
        obs = with_skill(timestep.obs, skill, skills)
        next_obs = with_skill(timestep.next_obs, state.skill, skills)
        return Skilled(inner, skill, key), replace(timestep, obs=obs, next_obs=next_obs)

    dtype = jnp.float32 if env.spec.obs_dtype == jnp.uint8 else env.spec.obs_dtype
    # With a skill, frames are no stack.
    spec = env.spec._replace(obs_shape=(size + skills,), obs_dtype=dtype, stack=1)
    return env._replace(reset=reset, step=step, spec=spec)


def with_skill(obs: Array, skill: Array, skills: int) -> Array:
    """Return obs [..., D] with skill int [...] in [0, skills) as one-hot: [..., D + skills].

    Bytes are divided by 255, which would shrink the one-hot in a network.
    """
    obs = nets.scaled(obs)
    one_hot = jax.nn.one_hot(skill, skills, dtype=obs.dtype)
    return jnp.concatenate([obs, jnp.broadcast_to(one_hot, (*obs.shape[:-1], skills))], -1)


def build(spec: Spec, config: Config = Config(), lanes: tuple[int, ...] = (1,)) -> Intrinsic:
    """Return a module for the task ``spec``, whose observations are states [D] without a skill.

    Observations of a batch are [B, D + skills], as in a ``skilled`` environment. ``reward`` is
    ``log q(z|s') - log(1/skills)``, nats, at most log(skills) and 0 for a discriminator that knows nothing.
    ``learn`` trains q by cross-entropy on ``s``. ``observe`` records the return of each skill in the task.
    """
    obs_dim, skills = vector_size(spec, "diayn"), config.skills
    network = nets.mlp(obs_dim, config.hidden, skills, initializer="uniform_fan_in")

    def log_q(params: Params, states: Array) -> Array:
        return jax.nn.log_softmax(network.apply(params, states))  # [B, skills]

    def split(obs: Array) -> tuple[Array, Array]:
        if obs.shape[-1] != obs_dim + skills:
            raise ValueError(f"observations need {obs_dim} + {skills} components, got {obs.shape[-1]}")
        return obs[..., :obs_dim], obs[..., obs_dim:]

    def init(key: Key) -> State:
        params = network.init(key)
        moments = adam(0.0, jnp.inf).init(params)
        return State(params, moments, jnp.zeros(lanes), jnp.full(skills, -jnp.inf, jnp.float32))

    def reward(state: State, batch: Transition) -> Array:
        # The skill is the one that acted.
        (_, skill), (successors, _) = split(batch.obs), split(batch.next_obs)
        known = (skill * log_q(state.discriminator, successors)).sum(-1)
        return jax.lax.stop_gradient(known + jnp.log(skills))

    def learn(state: State, batch: Transition, weight: Array, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        counts = weight > 0
        states, skill = split(jnp.where(counts[:, None], batch.obs, 0.0))
        share = weight / jnp.where(counts.any(), weight.sum(), 1.0)

        def loss(params: Params) -> tuple[Array, Array]:
            guess = log_q(params, states)
            correct = guess.argmax(-1) == skill.argmax(-1)
            return -(share * (skill * guess).sum(-1)).sum(), (share * correct).sum()

        params, optimizer, value, accuracy = descend(
            adam(hyper.lr, jnp.inf), loss, state.discriminator, state.optimizer
        )
        # Skip a batch without any weight as a whole, since Adam would move by its momentum alone.
        new = replace(state, discriminator=params, optimizer=optimizer)
        return tree.where(counts.any(), new, state), Losses(value, accuracy)

    def observe(state: State, rows: Transition, done: Array, valid: Array, hyper: Hyper) -> State:
        skill = split(rows.obs)[1].argmax(-1)

        def one(carry: tuple[Array, Array], step: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
            running, returns = carry
            reward, done, valid, skill = step
            running, ended = running + jnp.where(valid, reward, 0.0), done & valid
            slot = jnp.where(ended & jnp.isfinite(running), skill, skills).ravel()
            # If episodes of one skill end at once, the last lane counts; scattered to one slot, they would
            # have no order on accelerators.
            last = jnp.full(skills, -1).at[slot].max(jnp.arange(slot.size), mode="drop")
            returns = jnp.where(last >= 0, running.ravel()[last], returns)
            return (jnp.where(ended, 0.0, running), returns), None

        carry = state.running, state.returns
        (running, returns), _ = jax.lax.scan(one, carry, (rows.reward, done, valid, skill))
        return replace(state, running=running, returns=returns)

    return Intrinsic(init, reward, learn, observe)
