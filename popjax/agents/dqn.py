"""Deep Q-learning for discrete actions, with later improvements as options.

Mnih et al., Nature 2015; double Q: van Hasselt et al., AAAI 2016; dueling: Wang et al., ICML 2016. Learns
from n-step transitions as from plain ones, since a transition carries its own discount.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import distributions, nets, normalize, tree
from popjax.checks import check_types, check_widths
from popjax.core import (
    Agent,
    Choice,
    Eyes,
    Key,
    Network,
    Number,
    Params,
    PyTree,
    Spec,
    Transition,
    importance,
    number,
)
from popjax.nets import images
from popjax.optimize import adam, descend


@dataclass(frozen=True)
class Config:
    """Shape of the network and form of the target."""

    torso: Literal["auto", "dense", "minatar", "atari"] = "auto"  # convolutions; "auto": by observation shape
    hidden: tuple[int, ...] = ()  # units of the dense layers; (): the torso's default
    norm: nets.Norm = "layer"  # norm before each activation of the dense layers
    dueling: bool = False  # whether value and advantage have separate dense layers
    double: bool = True  # whether the online network chooses the action that the target network values
    huber: bool = False  # Huber loss with threshold 1 instead of half the squared error
    normalize_obs: bool = False  # observations are whitened by their running statistics
    # probability of a random action in evaluations; 0.001 on Atari and in ce, since a greedy policy might
    # repeat the same actions until the time limit
    eval_exploration: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        if not 0 <= self.eval_exploration <= 1:
            raise ValueError(f"eval_exploration must be in [0, 1], got {self.eval_exploration}")


@struct.dataclass
class Hyper:
    """Hyperparameters of one DQN learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    lr: Number = number(1e-4)  # Adam's rate
    max_grad_norm: Number = number(10.0, high=math.inf)  # global norm to which the gradient is clipped
    target_period: Number = number(2_500, low=1.0, high=math.inf)  # gradient steps between copies; inf: never
    exploration_start: Number = number(1.0, high=1.0)  # probability of a random action at the beginning
    exploration: Number = number(0.1, high=1.0)  # probability of a random action after exploration_steps
    exploration_steps: Number = number(1e6, low=1.0, high=math.inf)  # environment steps of that linear change


@struct.dataclass
class State:
    """Online and target network, Adam's moments; age: int32 [] gradient steps since the last copy to the
    target (stays at its maximum once reached)."""

    online: Params
    target: Params
    optimizer: PyTree
    age: Array


@struct.dataclass
class Losses:
    """loss: weighted mean of half the squared TD error or of its Huber loss; value: mean value of the actions
    taken; [] each."""

    loss: Array
    value: Array


def build(spec: Spec, config: Config = Config()) -> Agent:
    """Return a DQN learner. ``learn`` takes a gradient step; every ``target_period``-th one also copies the
    network to the target."""
    if not spec.discrete:
        raise ValueError(
            f"dqn needs discrete actions; {spec.name} has {spec.action_dim} continuous ones: use ddpg"
        )
    if config.normalize_obs:
        normalize.check_no_bytes(spec)
    network, actions = _network(spec, config), distributions.epsilon_greedy()

    def init(key: Key, hyper: Hyper) -> State:
        params = network.init(key)
        return State(params, params, adam(hyper.lr, hyper.max_grad_norm).init(params), jnp.int32(0))

    def inherit(state: State, other: State) -> State:
        return replace(other, optimizer=state.optimizer, age=state.age)

    def adopt(state: State, policy: Params, value: Params = None) -> State:
        return replace(state, online=policy, target=policy)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        if config.eval_exploration:  # a scale of 0 is an evaluation's
            scale = jnp.where(jnp.asarray(scale) > 0, scale, config.eval_exploration)
        return distributions.choose(actions, memory, network.apply(params, obs), key, scale)

    def value(state: State, obs: Array, action: Array) -> Array:
        return chosen(network.apply(state.online, obs), action)

    def targets(state: State, batch: Transition) -> Array:
        """Return the targets [B] of the values of transitions."""
        values = network.apply(state.target, batch.next_obs)  # [B, A]
        chooser = network.apply(state.online, batch.next_obs) if config.double else values
        return batch.reward + batch.discount * chosen(values, jnp.argmax(chooser, -1))

    def td_error(state: State, batch: Transition) -> Array:
        return targets(state, batch) - value(state, batch.obs, batch.action)

    def learn(state: State, batch: Transition, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        target, weight = targets(state, batch), importance(batch)

        def loss(params: Params) -> tuple[Array, Array]:
            value = chosen(network.apply(params, batch.obs), batch.action)
            return jnp.mean(weight * error(target - value)), jnp.mean(value)

        optimizer = adam(hyper.lr, hyper.max_grad_norm)
        online, moments, total, value = descend(optimizer, loss, state.online, state.optimizer)
        age = optax.safe_increment(state.age)
        copy = age.astype(jnp.float32) >= hyper.target_period
        state = State(online, tree.where(copy, online, state.target), moments, jnp.where(copy, 0, age))
        return state, Losses(loss=total, value=value)

    def error(difference: Array) -> Array:
        half = 0.5 * jnp.square(difference)
        return jnp.where(jnp.abs(difference) <= 1, half, jnp.abs(difference) - 0.5) if config.huber else half

    agent = Agent(
        init=init,
        act=act,
        learn=learn,
        policy=lambda state: state.online,
        adopt=adopt,
        inherit=inherit,
        value=value,
        outputs=network.apply,
        actions=actions,
        actor=network,
        critic=network,
        td_error=td_error,
        exploration=annealed,
        eyes=_eyes(spec, config),
    )
    return normalize.whitened(agent, spec.obs_shape) if config.normalize_obs else agent


def chosen(values: Array, action: Array) -> Array:
    """Return the entries [...] of ``values`` [..., A] at ``action`` [...]."""
    return jnp.take_along_axis(values, action[..., None], -1)[..., 0]


def annealed(hyper: Hyper, env_steps: Array) -> Array:
    """Return the probability [] of a random action after ``env_steps`` of this agent."""
    share = jnp.minimum(1.0, env_steps / hyper.exploration_steps)
    return hyper.exploration_start + share * (hyper.exploration - hyper.exploration_start)


def _torso(spec: Spec, config: Config) -> str:
    return images.torso_for(spec.obs_shape) if config.torso == "auto" else config.torso


def _eyes(spec: Spec, config: Config) -> Eyes | None:
    torso = _torso(spec, config)
    convolutions, _ = images.TORSOS[torso]
    if not convolutions:
        return None

    def of(state: State) -> Params:
        return {name: part for name, part in state.online.items() if name.startswith("Conv")}

    return Eyes(images.eyes(spec.obs_shape, convolutions), of, torso)


def _network(spec: Spec, config: Config) -> Network:
    convolutions, hidden = images.TORSOS[_torso(spec, config)]
    if convolutions:
        images.places(spec.obs_shape, convolutions)  # refuses observations that they cannot read
    return images.q_network(
        spec.obs_shape,
        spec.action_dim,
        convolutions=convolutions,
        hidden=config.hidden or hidden,
        norm=config.norm,
        dueling=config.dueling,
    )
