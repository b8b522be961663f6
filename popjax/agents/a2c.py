"""Advantage actor-critic: one gradient step on each rollout. Mnih et al., 2016, without the asynchrony.

The default hyperparameters are those of OpenAI Baselines' A2C for 10^7 steps in rollouts of 4 lanes and 5
steps. Three things differ from that program: policy and value are separate networks, whereas its default
shares the hidden layers; a time limit is not treated as the end of the task; and on MuJoCo its ``run.py``
whitens observations and scales rewards. A3C restated for lanes, with one network for both and a gradient step
for each lane in turn or one for all, is ``cdrl`` without a teacher.

With an LSTM each of the two networks has its own memory. Both memories advance while the policy acts, so the
policy is then the pair of networks. Episodes continue across rollouts with the memories that the earlier
parameters produced; gradients stop at the beginning of the rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import advantage, distributions, nets, tree
from popjax.advantage import Targets
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Choice,
    Distribution,
    Key,
    Network,
    Number,
    OnPolicyAgent,
    Params,
    PyTree,
    Recurrent,
    Spec,
    Trajectory,
    number,
)
from popjax.nets.recurrent import behind, forgetful
from popjax.optimize import annealed, clip_by_global_norm, descend

ROLLOUT = 5
"""Environment steps of each lane from which a gradient step is taken."""


@dataclass(frozen=True)
class Config:
    """Shapes of the networks."""

    hidden: tuple[int, ...] | None = None  # hidden units; None: 64 64, or 512 after Atari's convolutions
    # activation of the hidden layers; None: tanh, or relu after Atari's convolutions
    activation: Literal["relu", "tanh"] | None = None
    initializer: nets.Initializer = "orthogonal"  # initializer of policy and value networks
    squash: bool = False  # whether tanh bounds continuous actions; else they are clipped
    lstm: int = 0  # units of an LSTM behind the hidden layers of policy and value network; 0: none

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 0, "lstm")


@struct.dataclass
class Hyper:
    """Hyperparameters of one A2C learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    trace_decay: Number = number(1.0, high=1.0)  # lambda of the advantages; 1 is the n-step return
    value_weight: Number = number(0.5)  # weight of the mean squared error of the values in the loss
    entropy_weight: Number = number(0.01)  # weight of the policy's mean entropy [nats] in the loss
    lr: Number = number(7e-4)  # RMSProp's rate at the start
    max_grad_norm: Number = number(0.5, high=math.inf)  # global norm to which gradients are clipped
    anneal_updates: Number = number(500_000.0, high=math.inf)  # updates of lr's linear fall to 0; 0: none


@struct.dataclass
class State:
    """Actor and value network, RMSProp's moments of both, gradient steps taken (int32 [], which stays at its
    maximum once reached, long after the rate has fallen)."""

    actor: Params
    value: Params
    optimizer: PyTree
    updates: Array


@struct.dataclass
class Losses:
    """policy_loss: ``-mean(log pi * advantage)``; value_loss: mean squared error of the values; entropy of
    the policy, mean over the rollout, nats; [] each, before the step."""

    policy_loss: Array
    value_loss: Array
    entropy: Array


def rmsprop(learning_rate: Array | float, max_grad_norm: Array | float) -> optax.GradientTransformation:
    """Return RMSProp (decay 0.99, epsilon 1e-5) after clipping to the global norm ``max_grad_norm``.

    As in TensorFlow 1, for which the hyperparameters were chosen: epsilon is added to the mean square under
    the root, as optax does by itself, and the mean square starts at 1 instead of optax's 0, which makes the
    first hundred steps small. PyTorch adds epsilon outside of the root and starts at 0.
    """
    return optax.chain(
        clip_by_global_norm(max_grad_norm),
        optax.rmsprop(learning_rate, decay=0.99, eps=1e-5, initial_scale=1.0, eps_in_sqrt=True),
    )


def losses_of(
    actions: Distribution, outputs: Any, values: Array, rows: Trajectory, targets: Targets
) -> Losses:
    """Return the losses of networks with the present ``outputs`` and ``values`` [T, N] for the rows."""
    mean = partial(jnp.mean, where=rows.valid)
    return Losses(
        policy_loss=-mean(actions.log_prob(outputs, rows.action) * targets.advantages),
        value_loss=mean(jnp.square(values - targets.returns)),
        entropy=mean(actions.entropy(outputs)),
    )


def total(losses: Losses, value_weight: Number, entropy_weight: Number) -> Array:
    """Return the loss [] that a gradient step descends."""
    return losses.policy_loss + value_weight * losses.value_loss - entropy_weight * losses.entropy


def build(spec: Spec, config: Config = Config()) -> OnPolicyAgent:
    """Return an A2C learner for discrete or continuous actions."""
    networks = _networks(spec, config)
    policy, value = (x if isinstance(x, Recurrent) else forgetful(x) for x in networks)
    actions = distributions.of(spec, squash=config.squash)

    def init(key: Key, hyper: Hyper) -> State:
        key_policy, key_value = jax.random.split(key)
        policy_params, value_params = policy.init(key_policy), value.init(key_value)
        optimizer = rmsprop(hyper.lr, hyper.max_grad_norm).init((policy_params, value_params))
        return State(policy_params, value_params, optimizer, jnp.int32(0))

    def policy_of(state: State) -> Params:
        return (state.actor, state.value) if config.lstm else state.actor

    def adopt(state: State, adopted: Params, state_value: Params = None) -> State:
        actor, own = adopted if config.lstm else (adopted, state.value)
        return replace(state, actor=actor, value=own if state_value is None else state_value)

    def outputs(params: Params, obs: Array) -> Any:
        return policy.step(params, (), obs)[1]

    def unroll(params: Params, memory: PyTree, obs: Array, done: Array) -> tuple[PyTree, Any]:
        if not config.lstm:
            return memory, policy.unroll(params, (), obs, done)[1]
        memories, said = policy.unroll(params[0], memory[0], obs, done)
        return (behind(policy, memories, done), memory[1]), said

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        if not config.lstm:
            return distributions.choose(actions, memory, outputs(params, obs), key, scale)
        remembered, said = policy.step(params[0], memory[0], obs)
        memory = remembered, value.step(params[1], memory[1], obs)[0]
        return distributions.choose(actions, memory, said, key, scale)

    def value_of(state: State, obs: Array, action: Array) -> Array:
        lanes = obs.shape[: obs.ndim - len(spec.obs_shape)]
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (*lanes, *x.shape)), value.memory)
        return value.step(state.value, memory, obs)[1]

    def learn(state: State, rollout: Trajectory, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        remembered = tree.take(rollout.memory, 0) if config.lstm else ((), ())
        memories, values = value.unroll(state.value, remembered[1], rollout.obs, rollout.done)
        next_values = value.step(state.value, memories, rollout.next_obs)[1]
        advantages = advantage.generalized(
            rollout.reward, rollout.discount, values, next_values, rollout.done, hyper.trace_decay
        )
        targets = Targets(advantages, advantages + values)

        def loss(params: tuple[Params, Params]) -> tuple[Array, Losses]:
            outputs = policy.unroll(params[0], remembered[0], rollout.obs, rollout.done)[1]
            now = value.unroll(params[1], remembered[1], rollout.obs, rollout.done)[1]
            losses = losses_of(actions, outputs, now, rollout, targets)
            return total(losses, hyper.value_weight, hyper.entropy_weight), losses

        rate = annealed(hyper.lr, state.updates, hyper.anneal_updates)
        (policy_params, value_params), optimizer, _, losses = descend(
            rmsprop(rate, hyper.max_grad_norm), loss, (state.actor, state.value), state.optimizer
        )
        return State(policy_params, value_params, optimizer, optax.safe_increment(state.updates)), losses

    return OnPolicyAgent(
        init=init,
        act=act,
        learn=learn,
        policy=policy_of,
        adopt=adopt,
        value=value_of,
        outputs=None if config.lstm else outputs,
        unroll=unroll,
        actions=actions,
        state_value=lambda state: state.value,
        actor=networks[0],
        critic=networks[1],
        memory=(policy.memory, value.memory) if config.lstm else (),
    )


def _networks(spec: Spec, config: Config) -> tuple[Network, Network] | tuple[Recurrent, Recurrent]:
    """Return the networks of policy and value."""
    sizes = spec.obs_shape, spec.action_dim, config.hidden
    options: Any = {"discrete": spec.discrete, "activation": config.activation}
    options["initializer"] = config.initializer
    if config.lstm:
        return nets.recurrent_policy_and_value(*sizes, config.lstm, **options)
    return nets.policy_and_value(*sizes, **options)
