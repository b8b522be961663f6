"""What is added to the task's reward: one record for all drives, so that the method is one loop.

A drive holds its state, may look at every step that the agents take, rewards a batch for each agent, and
learns beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, Params, PyTree
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods.ce.learners import Batch
from popjax.optimize import adam, descend

Kind = Literal["collab", "rnd", "rnd_replica", "rnd_ce", "rnd_each", "diayn"]
RND_MODULES: dict[str, Literal["one", "each"]] = {
    "rnd": "one",
    "rnd_ce": "one",
    "rnd_replica": "each",
    "rnd_each": "each",
}
Pairs = Callable[[Key], tuple[Array, Array, Array]]
"""key -> anchors [B, D], positives [B, D], valid bool [B]: states of one episode a few steps apart."""


class Drive(NamedTuple):
    """A reward of the agents' own.

    init:     key -> state
    remember: (state, successors [P, N, D], done [P, N], generation, hyper) -> state, after every step
    reward:   (state, Batch, hyper) -> bonus [P, B], through which no gradient flows
    learn:    (state, Batch, Pairs, hyper, key) -> (state, losses), in every update
    """

    init: Callable[[Key], PyTree]
    remember: Callable[..., PyTree]
    reward: Callable[..., Array]
    learn: Callable[..., tuple[PyTree, PyTree]]


def none(population: int) -> Drive:
    """No drive: the task's reward is all."""
    return Drive(
        init=lambda key: (),
        remember=lambda state, *_: state,
        reward=lambda state, batch, hyper: jnp.zeros((population, len(batch.owner))),
        learn=lambda state, *_: (state, ()),
    )


@struct.dataclass
class Collab:
    """Encoder and Adam's moments, shared; the banks of the agents [P]."""

    encoder: Params
    optimizer: PyTree
    banks: contrastive.Bank


@struct.dataclass
class EncoderLosses:
    """encoder_loss: InfoNCE, nats []; 0 of an encoder that is not trained."""

    encoder_loss: Array


def collab(obs_dim: int, config: contrastive.Config, population: int, steps: int) -> Drive:
    """The collaborative novelty of equations 2 and 3 with an encoder that takes ``steps`` steps an update."""
    network = contrastive.encoder(obs_dim, config)

    def init(key: Key) -> Collab:
        params = network.init(key)
        banks = tree.repeat(contrastive.bank(config.bank_size, obs_dim), population)
        return Collab(params, adam(0.0, jnp.inf).init(params), banks)

    def remember(state: Collab, successors: Array, done: Array, generation: Array, hyper: Any) -> Collab:
        pushed = jax.vmap(contrastive.push)(state.banks, successors)
        return replace(state, banks=tree.where(generation % config.bank_every == 0, pushed, state.banks))

    def reward(state: Collab, batch: Batch, hyper: Any) -> Array:
        embedded = contrastive.embed(network, state.encoder, batch.transition.next_obs)
        keys = contrastive.embed(network, state.encoder, state.banks.states)
        new = contrastive.novelty(embedded, keys, state.banks.count, config)  # [B, P]
        return contrastive.collaborative(new, hyper.ego_weight).T

    def learn(
        state: Collab, batch: Batch, pairs: Pairs, hyper: Any, key: Key
    ) -> tuple[Collab, EncoderLosses]:
        if config.encoder != "contrastive":
            return state, EncoderLosses(jnp.float32(0))

        def step(carry: tuple[Params, PyTree], key: Key) -> tuple[tuple[Params, PyTree], Array]:
            anchors, positives, valid = pairs(key)

            def loss(params: Params) -> tuple[Array, None]:
                one, other = network.apply(params, anchors), network.apply(params, positives)
                return contrastive.info_nce(one, other, valid, hyper.contrast_temperature), None

            params, optimizer, value, _ = descend(adam(hyper.encoder_lr, jnp.inf), loss, *carry)
            return (params, optimizer), value

        keys = jax.random.split(key, steps)
        (params, optimizer), losses = jax.lax.scan(step, (state.encoder, state.optimizer), keys)
        return replace(state, encoder=params, optimizer=optimizer), EncoderLosses(losses[-1])

    return Drive(init, remember, reward, learn)


def distillation(obs_dim: int, kind: Kind, config: rnd.Config, population: int, lanes: int) -> Drive:
    """Random network distillation: one module for all agents, or one each; ``rnd_replica`` trains that of an
    agent on the agent's own transitions only."""
    shared = RND_MODULES[kind] == "one"
    modules = 1 if shared else population
    config = replace(config, lanes=(population if shared else 1, lanes))
    module = rnd.rnd(obs_dim, config)
    watch = rnd.observer(obs_dim, config) if config.scale == "return" else None

    def init(key: Key) -> rnd.State:
        return jax.vmap(module.init)(jax.random.split(key, modules))

    def remember(state: rnd.State, successors: Array, done: Array, generation: Array, hyper: Any) -> Any:
        if watch is None:
            return state
        stream = (modules, 1, *config.lanes)  # one step of time
        seen, ended = successors.reshape(*stream, obs_dim), done.reshape(stream)
        # Bonuses of observations that nothing has whitened yet are of another scale.
        whitened = jnp.broadcast_to((state.observations.count > 0)[:, None, None, None], stream)
        return jax.vmap(watch, (0, 0, 0, None, 0))(state, seen, ended, hyper.rnd, whitened)

    def reward(state: rnd.State, batch: Batch, hyper: Any) -> Array:
        bonus = jax.vmap(module.reward, (0, None))(state, batch.transition)  # [modules, B]
        return jnp.broadcast_to(bonus, (population, bonus.shape[1]))

    def learn(state: rnd.State, batch: Batch, pairs: Pairs, hyper: Any, key: Key) -> tuple[rnd.State, Any]:
        own = batch.owner == jnp.arange(modules)[:, None]  # [modules, B]
        weight = jnp.float32(own) if kind == "rnd_replica" else jnp.ones_like(own, jnp.float32)
        keys = jax.random.split(key, modules)
        state, losses = jax.vmap(module.learn, (0, None, 0, None, 0))(
            state, batch.transition, weight, hyper.rnd, keys
        )
        return state, jax.tree.map(jnp.mean, losses)

    return Drive(init, remember, reward, learn)


def skills(obs_dim: int, count: int, config: diayn.Config, population: int) -> Drive:
    """DIAYN: to be told apart by the states that a skill leads to. Observations end in the skill, one-hot."""
    module = diayn.diayn(obs_dim, count, config)

    def reward(state: diayn.State, batch: Batch, hyper: Any) -> Array:
        bonus = module.reward(state, batch.transition)
        return jnp.broadcast_to(bonus, (population, len(bonus)))

    def learn(
        state: diayn.State, batch: Batch, pairs: Pairs, hyper: Any, key: Key
    ) -> tuple[diayn.State, diayn.Losses]:
        everything = jnp.ones(len(batch.owner))
        return module.learn(state, batch.transition, everything, hyper.diayn, key)

    return Drive(module.init, lambda state, *_: state, reward, learn)
