"""Soft actor-critic from pixels with shifted images. DrQ: Kostrikov, Yarats & Fergus, 2020, as in jaxrl2.

Actor and twin critics share convolutions, which only the critics train. A gradient step: the actor copies the
convolutions -> images are shifted -> critics -> targets -> actor -> temperature. The actor ascends the
critics as they were before their step, and its gradient does not flow through the convolutions. It acts with
the copied convolutions, which are one step old.

Differs from the paper, as jaxrl2 does: one draw of shifts instead of means over two, targets are the mean of
the target twins, and the target entropy is minus half the action's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import nets
from popjax.agents import sac
from popjax.agents.sac import Losses, Parts, State
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Agent, Eyes, Key, Network, Number, Params, Spec, Transition, needs_continuous, number
from popjax.nets import images
from popjax.optimize import adam, descend

__all__ = ["Config", "Hyper", "Losses", "State", "build", "parts", "shifted"]
TORSO = "drq"
CONVOLUTIONS, HIDDEN = images.TORSOS[TORSO]


@dataclass(frozen=True)
class Config:
    """Shapes of the networks behind the convolutions, and the shift."""

    hidden: tuple[int, ...] = HIDDEN  # units of the hidden layers of actor and critics
    latent: int = 50  # outputs of the layer between the convolutions and the hidden layers
    shift: int = 4  # maximum shift of an image along each axis [pixels]

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "latent")
        check_least(self, 0, "shift")


@struct.dataclass
class Hyper(sac.Hyper):
    """Hyperparameters of one DrQ learner: those of SAC, two of them with other defaults."""

    max_grad_norm: Number = number(math.inf, high=math.inf)  # global norm to which gradients are clipped
    init_temperature: Number = number(0.1, instead="temperature_lr")  # temperature at the start


CLIPPED = Hyper(max_grad_norm=20.0)
"""Hyperparameters of Collaborative Exploration's DrQ."""


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a DrQ learner. ``act`` with scale 0 is tanh of the mean.

    Raises:
        ValueError: actions are discrete, or observations are not images or too small.
    """
    return parts(spec, config).agent


def parts(spec: Spec, config: Config = Config()) -> Parts:
    """Return the learner in parts, of which only ``step`` copies the convolutions and shifts the images."""
    if spec.discrete:
        raise needs_continuous(spec, "drq")
    if len(spec.obs_shape) != 3:
        raise ValueError(f"drq needs images; {spec.name} has observations of shape {spec.obs_shape}: use sac")
    eyes = images.eyes(spec.obs_shape, CONVOLUTIONS, initializer="orthogonal")
    latent = images.latent(images.places(spec.obs_shape, CONVOLUTIONS), config.latent)
    sizes = config.latent, spec.action_dim, config.hidden
    head = nets.critic(*sizes, initializer="orthogonal")
    actor = _actor(eyes, latent, nets.gaussian_actor(*sizes))
    twins = _critics(eyes, latent, nets.ensemble(head, 2))
    base = sac.assembled(actor, actor, twins, spec.action_dim, "mean", "mean")

    def step(
        state: State,
        batch: Transition,
        hyper: Hyper,
        key: Key,
        critic_weight: Array | float = 1.0,
        weight: Array | float = 1.0,
    ) -> tuple[State, Losses]:
        key_obs, key_next, key_critic, key_actor = jax.random.split(key, 4)
        before = replace(state, actor=_seeing(state.actor, state.critics))
        obs, next_obs = batch.obs, batch.next_obs
        obs, next_obs = shifted(key_obs, obs, config.shift), shifted(key_next, next_obs, config.shift)
        batch = replace(batch, obs=obs, next_obs=next_obs)
        state, critic_loss = base.learn_critics(before, batch, hyper, key_critic, critic_weight)
        policy, optimizer, loss, entropy = descend(
            adam(hyper.actor_lr, hyper.max_grad_norm),
            lambda params: base.actor_loss(params, before, obs, key_actor, weight),
            before.actor,
            before.actor_optimizer,
        )
        state = replace(state, actor=policy, actor_optimizer=optimizer)
        state = base.learn_temperature(state, hyper, entropy)
        return state, Losses(critic_loss, loss, jnp.exp(state.log_temperature), entropy)

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        """Adopt the policy, and give the critics its convolutions.

        Policy and critics share them: the next step copies the critics' to the policy, and would undo the
        adoption.
        """
        critics, target_critics = (_seeing(x, policy) for x in (state.critics, state.target_critics))
        return replace(state, actor=policy, critics=critics, target_critics=target_critics)

    sight = Eyes(eyes, lambda state: state.critics["convolutions"], TORSO)
    agent = base.agent._replace(learn=lambda *given: step(*given), adopt=adopt, eyes=sight)
    return base._replace(agent=agent, step=step)


def shifted(key: Key, images: Array, pad: int) -> Array:
    """Return images [B, H, W, C], each shifted independently and uniformly by up to ``pad`` pixels along both
    axes; new pixels repeat the edge."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, offset: crop(image, offset, pad))(images, offsets)


def crop(image: Array, offset: Array, pad: int) -> Array:
    """Return the [H, W, C] pixels that begin at ``offset`` int [2] of an image [H, W, C] padded with ``pad``
    repetitions of its edge; offset (pad, pad) gives the image itself."""
    rows, columns = (
        jnp.clip(jnp.arange(size) + offset[axis] - pad, 0, size - 1)
        for axis, size in enumerate(image.shape[:2])
    )
    return image[rows][:, columns]


def _seeing(params: Params, other: Params) -> Params:
    """Return ``params`` with the convolutions of ``other``."""
    return {**params, "convolutions": other["convolutions"]}


def _actor(eyes: Network, latent: Network, policy: Network) -> Network:
    """Return the network obs -> Gaussian, through whose convolutions no gradient flows."""

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        begun = {"convolutions": eyes.init(keys[0]), "latent": latent.init(keys[1])}
        return {**begun, **policy.init(keys[2])}

    def apply(params: Params, obs: Array) -> tuple[Array, Array]:
        seen = jax.lax.stop_gradient(eyes.apply(params["convolutions"], obs))
        rest = {name: params[name] for name in params if name not in ("convolutions", "latent")}
        mean, log_std = policy.apply(rest, latent.apply(params["latent"], seen))
        return mean, log_std

    return Network(init, apply)


def _critics(eyes: Network, latent: Network, heads: Network) -> Network:
    """Return the network (obs, action) -> values [2, ...]: twin heads on one encoder."""

    def init(key: Key) -> Params:
        keys = jax.random.split(key, 3)
        begun = {"convolutions": eyes.init(keys[0]), "latent": latent.init(keys[1])}
        return {**begun, "heads": heads.init(keys[2])}

    def apply(params: Params, obs: Array, action: Array) -> Array:
        seen = latent.apply(params["latent"], eyes.apply(params["convolutions"], obs))
        values: Array = heads.apply(params["heads"], seen, action)
        return values

    return Network(init, apply)
