"""Proximal policy optimization with a clipped surrogate. Schulman et al., 2017.

Policy and value have networks and optimizers of their own. Every rollout first trains the policy, until its
divergence from the policy that played is too large, and then the value. This is the form of OpenAI's Spinning
Up (2020), whose constants are the defaults; with ``minibatches``, ``normalize_advantage="minibatch"``,
``entropy_weight``, ``max_grad_norm``, ``target_kl=inf``, ``log_std=0``, ``normalize_obs``,
``normalize_reward`` and ``value_target="clipped"`` it is the common form, PPO2 of OpenAI's Baselines, with
four exceptions: policy and value are trained in turn and their gradients are clipped separately; statistics
of observations are updated after each rollout, while those that divide rewards include the present rollout,
in which discounted sums start from 0; a time limit is not treated as the end of the task; and Adam adds 1e-8
to the root of the second moment, whereas PPO2 adds 1e-5.

Differs from Spinning Up: initialization is orthogonal or, with ``initializer`` "uniform", has zero biases in
the hidden layers and in all of the value network, as in CSPC, which follows the form of 2018; in 2020 all
biases are uniform. Continuous actions that are not squashed are clipped to [-1, 1] for the environment.
Episodes continue across the end of a rollout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import advantage, distributions, nets, normalize, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Key, Number, OnPolicyAgent, Params, PyTree, Spec, Trajectory, number
from popjax.normalize import RunningStatistics
from popjax.optimize import adam, annealed, descend
from popjax.shuffle import permuted

CLIP_OBS = CLIP_REWARD = 10.0  # standard deviations
ROLLOUT = 1_000  # environment steps of each of four lanes: Spinning Up learns from 4,000 at a time


@dataclass(frozen=True)
class Config:
    """Networks, and passes over a rollout."""

    hidden: tuple[int, ...] | None = None  # hidden units; None: 64 64, or 512 after Atari's convolutions
    # activation of the hidden layers; None: tanh, or relu after Atari's convolutions
    activation: Literal["relu", "tanh"] | None = None
    initializer: nets.Initializer = "orthogonal"  # initializer of policy and value networks
    log_std: float = -0.5  # initial log standard deviation of a Gaussian policy
    # whether tanh bounds continuous actions; else they are clipped for the environment
    squash: bool = False
    policy_epochs: int = 80  # maximum passes over a rollout that train the policy
    value_epochs: int = 80  # passes over a rollout that train the value
    minibatches: int = 1  # gradient steps per pass, each on an equal part of the rollout
    # rows over which advantages are scaled to mean 0 and standard deviation 1
    normalize_advantage: Literal["rollout", "minibatch", "none"] = "rollout"
    normalize_obs: bool = False  # observations are whitened by their running statistics
    normalize_reward: bool = False  # rewards are divided by the running deviation of their discounted sums
    # targets of the value: discounted sums of rewards or, as in PPO2, lambda-returns with the change of the
    # value limited to ``clip``
    value_target: Literal["return", "clipped"] = "return"

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 1, "policy_epochs", "value_epochs", "minibatches")


@struct.dataclass
class Hyper:
    """Hyperparameters of one learner."""

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    trace_decay: Number = number(0.97, high=1.0)  # lambda of the advantages
    clip: Number = number(0.2, high=math.inf)  # probability ratios are clipped to [1 - clip, 1 + clip]
    policy_lr: Number = number(3e-4)  # Adam's rate for the policy
    value_lr: Number = number(1e-3)  # Adam's rate for the value
    target_kl: Number = number(0.01, high=math.inf)  # steps stop beyond 1.5 times this divergence [nats]
    entropy_weight: Number = number(0.0)  # weight of the entropy bonus
    max_grad_norm: Number = number(math.inf, high=math.inf)  # global norm to which gradients are clipped
    anneal_rollouts: Number = number(0.0, high=math.inf)  # rollouts of both rates' linear fall to 0; 0: none


@struct.dataclass
class State:
    """Actor and value, Adam's moments of each, statistics of observations and of discounted sums of rewards
    (None without these), rollouts learned from (int32 [], which stays at its maximum once reached, long after
    the rates have fallen)."""

    actor: Params
    value: Params
    actor_optimizer: PyTree
    value_optimizer: PyTree
    observations: RunningStatistics | None
    rewards: RunningStatistics | None
    rollouts: Array


@struct.dataclass
class Losses:
    """policy_loss, value_loss: of the last gradient steps, with "clipped" a quarter of the squared error; kl:
    divergence from the policy that played, nats; entropy, nats; policy_steps: gradient steps of the policy,
    as a float; [] each."""

    policy_loss: Array
    value_loss: Array
    kl: Array
    entropy: Array
    policy_steps: Array


def surrogate(ratio: Array, advantages: Array, clip: Array | float) -> Array:
    """Return the objective [...] of the policy: ``min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)``. Equation
    7."""
    return jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def build(spec: Spec, config: Config = Config()) -> OnPolicyAgent:
    """Return a PPO learner for discrete or continuous actions."""
    if config.normalize_obs:
        normalize.check_no_bytes(spec)
    policy, value = nets.policy_and_value(
        spec.obs_shape,
        spec.action_dim,
        config.hidden,
        discrete=spec.discrete,
        activation=config.activation,
        initializer=config.initializer,
        log_std=config.log_std,
    )
    actions = distributions.of(spec, squash=config.squash)

    def init(key: Key, hyper: Hyper) -> State:
        key_policy, key_value = jax.random.split(key)
        policy_params, value_params = policy.init(key_policy), value.init(key_value)
        return State(
            actor=policy_params,
            value=value_params,
            actor_optimizer=adam(hyper.policy_lr, hyper.max_grad_norm).init(policy_params),
            value_optimizer=adam(hyper.value_lr, hyper.max_grad_norm).init(value_params),
            observations=normalize.init(spec.obs_shape) if config.normalize_obs else None,
            rewards=normalize.init() if config.normalize_reward else None,
            rollouts=jnp.int32(0),
        )

    def seen(observations: PyTree, obs: Array) -> Array:
        return normalize.normalize(observations, obs, clip=CLIP_OBS) if config.normalize_obs else obs

    def adopt(state: State, adopted: Params, state_value: Params = None) -> State:
        actor, observations = adopted if config.normalize_obs else (adopted, state.observations)
        own = state.value if state_value is None else state_value
        return replace(state, actor=actor, observations=observations, value=own)

    def outputs(params: Params, obs: Array) -> Any:
        actor, observations = params if config.normalize_obs else (params, ())
        return policy.apply(actor, seen(observations, obs))

    def unroll(params: Params, memory: PyTree, obs: Array, done: Array) -> tuple[PyTree, Any]:
        return memory, outputs(params, obs)

    def learn_policy(
        state: State, rows: Trajectory, advantages: Array, hyper: Hyper, key: Key
    ) -> tuple[State, tuple[Array, ...]]:
        """Take steps until one finds the divergence too large or all epochs are done; rows and advantages
        [B]."""
        rate = annealed(hyper.policy_lr, state.rollouts, hyper.anneal_rollouts)
        optimizer = adam(rate, hyper.max_grad_norm)

        def told(params: Params, rows: Trajectory) -> tuple[Array, Array, Array]:
            """Return log-probabilities of the actions [B], divergence and entropy []."""
            outputs = policy.apply(params, rows.obs)
            now = actions.log_prob(outputs, rows.action)
            means = rows.log_prob - now, actions.entropy(outputs)
            kl, entropy = (x.mean(where=rows.valid) for x in means)
            return now, kl, entropy

        def loss(params: Params, part: tuple[Trajectory, Array]) -> tuple[Array, Array]:
            rows, advantages = part
            if config.normalize_advantage == "minibatch":
                advantages = normalize.standardized(advantages, rows.valid)
            now, kl, entropy = told(params, rows)
            ratio = jnp.exp(now - rows.log_prob)
            gain = surrogate(ratio, advantages, hyper.clip).mean(where=rows.valid)
            return -gain - hyper.entropy_weight * entropy, kl

        def step(carry: PyTree, part: PyTree) -> tuple[PyTree, None]:
            goes_on, taken, params, moments, _ = carry
            params, moments, value, kl = descend(optimizer, lambda p: loss(p, part), params, moments)
            goes_on &= (taken == 0) | (kl <= 1.5 * hyper.target_kl)
            after, before = (taken + 1, params, moments, value), carry[1:]
            return (goes_on, *tree.where(goes_on, after, before)), None

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(config.policy_epochs))
        orders = _orders(keys, advantages.size, config.minibatches)

        def epoch(carry: PyTree) -> PyTree:
            count, carry = carry
            order = None if orders is None else orders[count]
            parts = _parts((rows, advantages), order, config.minibatches)
            return count + 1, jax.lax.scan(step, carry, parts)[0]

        def unfinished(carry: PyTree) -> Array:
            count, (goes_on, *_) = carry
            return (count < config.policy_epochs) & tree.any_lane(goes_on)

        # Under vmap all lanes run the same number of epochs, and each step masks the lanes that have stopped:
        # a loop with a condition for each lane would select and copy its whole carry.
        begin = (jnp.bool_(True), jnp.int32(0), state.actor, state.actor_optimizer, jnp.float32(0))
        _, (_, taken, params, moments, last) = jax.lax.while_loop(unfinished, epoch, (jnp.int32(0), begin))
        _, kl, entropy = told(params, rows)
        state = replace(state, actor=params, actor_optimizer=moments)
        return state, (last, kl, entropy, jnp.float32(taken))

    def learn_value(
        state: State, rows: Trajectory, before: Array, returns: Array, hyper: Hyper, key: Key
    ) -> tuple[State, Array]:
        """Take ``value_epochs`` passes from the values ``before`` towards the returns, [B] each."""
        rate = annealed(hyper.value_lr, state.rollouts, hyper.anneal_rollouts)
        optimizer = adam(rate, hyper.max_grad_norm)

        def step(carry: PyTree, part: tuple[Array, Array, Array, Array | None]) -> tuple[PyTree, Array]:
            obs, before, returns, valid = part

            def loss(params: Params) -> tuple[Array, None]:
                now = value.apply(params, obs)
                error = jnp.square(now - returns)
                if config.value_target == "clipped":
                    near = before + jnp.clip(now - before, -hyper.clip, hyper.clip)
                    # PPO2 weighs half the square by a half, which matters if gradients are clipped.
                    error = 0.25 * jnp.maximum(error, jnp.square(near - returns))
                return error.mean(where=valid), None

            params, moments, error, _ = descend(optimizer, loss, *carry)
            return (params, moments), error

        def epoch(carry: PyTree, order: Array | None) -> tuple[PyTree, Array]:
            parts = _parts((rows.obs, before, returns, rows.valid), order, config.minibatches)
            carry, errors = jax.lax.scan(step, carry, parts)
            return carry, errors[-1]

        epochs = config.value_epochs
        orders = _orders(jax.random.split(key, epochs), returns.size, config.minibatches)
        begin = state.value, state.value_optimizer
        (params, moments), errors = jax.lax.scan(epoch, begin, orders, length=epochs)
        return replace(state, value=params, value_optimizer=moments), errors[-1]

    def scaled(state: State, rollout: Trajectory, hyper: Hyper) -> tuple[State, Trajectory]:
        """Return the state with the statistics of rewards after the rollout, and the rollout with rewards
        divided by the deviation of these statistics."""
        assert state.rewards is not None
        anew = jnp.zeros(rollout.reward.shape[1:])
        rewards, _ = normalize.update_returns(
            state.rewards, anew, rollout.reward, rollout.done, hyper.discount, rollout.valid
        )
        deviation = jnp.sqrt(rewards.variance + 1e-8)
        reward = jnp.clip(rollout.reward / deviation, -CLIP_REWARD, CLIP_REWARD)
        return replace(state, rewards=rewards), replace(rollout, reward=reward)

    def learn(state: State, rollout: Trajectory, hyper: Hyper, key: Key) -> tuple[State, Losses]:
        key_policy, key_value = jax.random.split(key)
        # Use the statistics of observations under which the rollout was played; update them at the end.
        raw = rollout.obs
        rollout = replace(
            rollout, obs=seen(state.observations, raw), next_obs=seen(state.observations, rollout.next_obs)
        )
        if config.normalize_reward:
            state, rollout = scaled(state, rollout, hyper)
        values, next_values = (value.apply(state.value, obs) for obs in (rollout.obs, rollout.next_obs))
        targets = advantage.targets(
            rollout.reward, rollout.discount, values, next_values, rollout.done, hyper.trace_decay
        )
        rows = tree.flatten(rollout)
        advantages, returns = tree.flatten(targets)
        before = tree.flatten(values)
        if config.value_target == "clipped":
            returns = advantages + before
        if config.normalize_advantage == "rollout":
            advantages = normalize.standardized(advantages, rows.valid)
        state, (policy_loss, kl, entropy, steps) = learn_policy(state, rows, advantages, hyper, key_policy)
        state, value_loss = learn_value(state, rows, before, returns, hyper, key_value)
        state = replace(state, rollouts=optax.safe_increment(state.rollouts))
        if state.observations is not None:
            state = replace(state, observations=normalize.update(state.observations, raw, rollout.valid))
        return state, Losses(policy_loss, value_loss, kl, entropy, steps)

    return OnPolicyAgent(
        init=init,
        act=distributions.acting(actions, outputs),
        learn=learn,
        policy=lambda state: (state.actor, state.observations) if config.normalize_obs else state.actor,
        adopt=adopt,
        value=lambda state, obs, action: value.apply(state.value, seen(state.observations, obs)),
        outputs=outputs,
        unroll=unroll,
        actions=actions,
        state_value=lambda state: state.value,
        actor=policy,
        critic=value,
    )


def _orders(keys: Array, size: int, minibatches: int) -> Array | None:
    """Return the order of ``size`` rows in each epoch, int32 [E, size], drawn with ``keys`` [E]; None for a
    single minibatch. All are drawn at once: one by one, they were a tenth of the kernels of PPO's epochs."""
    if minibatches == 1:
        return None
    # jax.random.permutation sorts, which took a third of PPO's time on a CPU.
    return jax.vmap(lambda key: permuted(key, jnp.arange(size), size))(keys)


def _parts(rows: PyTree, order: Array | None, count: int) -> PyTree:
    """Return rows [B, ...] as [count, B / count, ...], in the given order [B] unless it is None."""
    if order is not None:
        rows = tree.take(rows, order)
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), rows)
