"""Novelty by nearest neighbours in the space of a contrastive encoder, and its collaborative form.

Collaborative Exploration (ICLR 2024 submission), equations 2 to 4: the dissimilarity of a state to each
agent's recent visits, between embeddings that are trained to be similar for states of an episode a few steps
apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Intrinsic, Key, Network, Number, Params, PyTree, Spec, Transition, number, vector_size
from popjax.nets import images
from popjax.optimize import adam, descend
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes of the encoder, the bank of visited states, and the neighbourhood."""

    # contrastive: trained; critic: trained behind the convolutions of the first agent's critic; random: left
    # as initialised; identity: the raw observation
    encoder: Literal["contrastive", "critic", "random", "identity"] = "contrastive"
    hidden: tuple[int, ...] = (64,)  # hidden layers of the encoder, units
    # convolutions before the hidden layers, for images; "auto": of the same shape as the agents'
    torso: images.Torso = "auto"
    features: int = 64  # size of an embedding
    bank_size: int = 300  # states of each agent that are remembered
    bank_every: int = 5  # environment steps of a lane between two remembered states
    neighbours: int = 20  # number K of nearest neighbours
    others: Literal["mean", "max", "min"] = "mean"  # g, aggregate of the novelty to the other agents
    horizon: int = 5  # largest distance of a positive pair [environment steps]
    steps: int = 1  # encoder steps per gradient step of the agents

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "features", "bank_size", "bank_every", "neighbours", "horizon", "steps")
        if self.bank_size < self.neighbours:
            raise ValueError(
                f"a bank of {self.bank_size} states has no {self.neighbours} nearest neighbours;"
                f" raise bank_size or lower neighbours"
            )

    @property
    def trained(self) -> bool:
        """Return whether the encoder learns."""
        return self.encoder in ("contrastive", "critic")


@struct.dataclass
class Hyper:
    """Hyperparameters of one module."""

    weight: Number = number(0.2)  # lambda, weight of the bonus added to the task's reward
    ego_weight: Number = number(0.5, high=1.0)  # w, share of an agent's own novelty in its bonus
    temperature: Number = number(0.07, low=1e-6)  # temperature of InfoNCE
    lr: Number = number(3e-4)  # Adam's rate for the encoder


@struct.dataclass
class State:
    """One module.

    encoder, optimizer: parameters and Adam's moments.
    bank:               the last states visited, raw because the encoder changes, [bank_size, *obs].
    clock:              int32 [*lanes]  environment steps since a lane's last remembered state.
    eyes:               parameters of the critic's convolutions; None without encoder "critic".
    """

    encoder: Params
    optimizer: PyTree
    bank: Ring
    clock: Array
    eyes: Params | None


@struct.dataclass
class Losses:
    """encoder_loss: InfoNCE, nats []; 0 if the encoder is not trained."""

    encoder_loss: Array


def build(
    spec: Spec, config: Config = Config(), lanes: tuple[int, ...] = (1,), eyes: Network | None = None
) -> Intrinsic:
    """Return a module that rewards states far from those of its bank. Equations 2 and 4.

    ``observe`` remembers every ``bank_every``-th successor of each of the environment ``lanes``. ``learn``
    takes rows whose ``next_obs`` lies within ``horizon`` steps of ``obs`` in the same episode; rows of
    weight 0 take no part. With encoder "critic", ``reward`` and ``learn`` look through ``eyes``, which never
    learn here.

    Raises:
        ValueError: the encoder is "critic" and there are no ``eyes``, or it cannot read the observations.
    """
    if config.encoder == "critic" and eyes is None:
        raise ValueError(
            "encoder critic needs agents with a replay whose critic has convolutions: drq, or dqn on images"
            " without normalize_obs; set drive.encoder contrastive"
        )
    sight = eyes if config.encoder == "critic" else None
    network = encoder(spec, config, sight)

    def init(key: Key) -> State:
        params, looking = network.init(key), None if sight is None else sight.init(key)
        bank = ring(config.bank_size).init(jnp.zeros(spec.obs_shape, spec.obs_dtype))
        return State(params, adam(0.0, jnp.inf).init(params), bank, jnp.zeros(lanes, jnp.int32), looking)

    def seen(state: State, obs: Array) -> Array:
        return obs if sight is None else jax.lax.stop_gradient(sight.apply(state.eyes, obs))

    def reward(state: State, batch: Transition) -> Array:
        embedded = embed(network, state.encoder, seen(state, batch.next_obs))
        keys = embed(network, state.encoder, seen(state, state.bank.unpacked()))
        return novelty(embedded, keys, state.bank.size, config.neighbours)

    def learn(state: State, batch: Transition, weight: Array, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        if not config.trained:
            return state, Losses(jnp.float32(0))
        valid, obs, next_obs = weight > 0, seen(state, batch.obs), seen(state, batch.next_obs)

        def loss(params: Params) -> tuple[Array, None]:
            anchors, positives = network.apply(params, obs), network.apply(params, next_obs)
            return info_nce(anchors, positives, valid, hyper.temperature), None

        params, optimizer, value, _ = descend(adam(hyper.lr, jnp.inf), loss, state.encoder, state.optimizer)
        # Skip a batch without any weight as a whole, since Adam would move by its momentum alone.
        new = tree.where(valid.any(), (params, optimizer), (state.encoder, state.optimizer))
        return replace(state, encoder=new[0], optimizer=new[1]), Losses(value)

    def observe(state: State, rows: Transition, done: Array, valid: Array, hyper: Hyper) -> State:
        clock = state.clock + jnp.cumsum(valid, 0, dtype=jnp.int32)  # [T, *lanes]
        due = valid & (clock % config.bank_every == 0)
        states = rows.next_obs.reshape(-1, *spec.obs_shape)
        bank = ring(config.bank_size).add(state.bank, states, due.ravel())
        return replace(state, bank=bank, clock=clock[-1] % config.bank_every)

    return Intrinsic(init, reward, learn, observe)


def encoder(spec: Spec, config: Config = Config(), eyes: Network | None = None) -> Network:
    """Return the network obs [..., *obs] -> embedding [..., F]; with ``eyes``, their features -> embedding.

    Images pass through convolutions first; encoder "identity" returns the observation itself, bytes divided
    by 255.
    """
    if eyes is not None:
        image = jnp.zeros(spec.obs_shape, spec.obs_dtype)
        features = jax.eval_shape(lambda key: eyes.apply(eyes.init(key), image), jax.random.key(0))
        return nets.mlp(features.size, config.hidden, config.features)
    if config.encoder == "identity":
        vector_size(spec, "the identity encoder")
        return Network(init=lambda key: (), apply=lambda params, obs: nets.scaled(obs))
    return images.behind_convolutions(
        spec.obs_shape, lambda size: nets.mlp(size, config.hidden, config.features), config.torso
    )


def cosine(u: Array, v: Array) -> Array:
    """Return cosines of all pairs: u [..., B, F], v [..., M, F] -> [..., B, M]; 0 if either vector is 0."""
    return _unit(u) @ jnp.swapaxes(_unit(v), -1, -2)


def _unit(x: Array) -> Array:
    """Return rows scaled to length 1, or 0 for 0. The bound is under the root, whose gradient at 0 is not
    finite."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def novelty(embedded: Array, keys: Array, count: Array, neighbours: int) -> Array:
    """Return the novelty [B] in [-1, 1] of each state to an agent: minus the cosine of the K-th nearest key.
    Equation 2.

    embedded:   [B, F]    embeddings of the states
    keys:       [M, F]    embeddings of the agent's bank
    count:      int32 []  number of filled keys, which come first
    neighbours: K; with fewer keys the farthest counts, and an empty bank gives 0
    """
    alike = jnp.where(jnp.arange(len(keys)) < count, cosine(embedded, keys), -jnp.inf)
    nearest = jax.lax.top_k(alike, neighbours)[0]  # [B, K]
    last = jnp.arange(neighbours) == jnp.minimum(count, neighbours) - 1
    return -jnp.where(last, nearest, 0.0).sum(-1)


_MOST: dict[str, tuple[Any, float]] = {"max": (jnp.max, -jnp.inf), "min": (jnp.min, jnp.inf)}


def collaborative(
    novelty: Array, ego_weight: Array | float, others: Literal["mean", "max", "min"] = "mean"
) -> Array:
    """Return each agent's reward [..., P] from the novelty [..., P] of a state to each. Equation 3.

    ``ego_weight`` times the agent's own novelty, and the rest times the mean, largest or smallest of the
    others'. A single agent gets its own novelty.
    """
    population = novelty.shape[-1]
    if population == 1:
        return novelty
    if others == "mean":
        theirs = (novelty.sum(-1, keepdims=True) - novelty) / (population - 1)
    else:
        own, (most, nothing) = jnp.eye(population, dtype=bool), _MOST[others]
        theirs = most(jnp.where(own, nothing, novelty[..., None, :]), -1)
    return ego_weight * novelty + (1 - ego_weight) * theirs


def info_nce(anchors: Array, positives: Array, valid: Array, temperature: Array | float) -> Array:
    """Return the contrastive loss [], from embeddings [B, F] each. Equation 4.

    For each anchor, all positives of the batch are candidates and its own positive is the correct one. Rows
    that are not ``valid`` bool [B] are neither anchors nor candidates.
    """
    chex.assert_rank([anchors, positives, valid], [2, 2, 1])
    logits = jnp.where(valid, cosine(anchors, positives) / temperature, -jnp.inf)
    right = jnp.where(valid, jnp.diagonal(cosine(anchors, positives)) / temperature, 0.0)
    # Avoid the -inf of a row without candidates, and its NaN gradient, although the row is not used below.
    spread = jax.nn.logsumexp(jnp.where(valid.any(), logits, 0.0), axis=-1)
    losses = jnp.where(valid, spread - right, 0.0)
    return losses.sum() / jnp.maximum(valid.sum(), 1)


def embed(network: Network, params: Params, states: Array) -> Array:
    """Return embeddings through which no gradient flows back."""
    return jax.lax.stop_gradient(network.apply(params, states))
