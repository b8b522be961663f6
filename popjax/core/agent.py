"""The contracts of parts written for one individual: networks, policies, agents, replays and drives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jax import Array

from popjax.core.experience import Trajectory, Transition
from popjax.core.types import Key, Params, PyTree


class Network(NamedTuple):
    """A function with learnable parameters, ``apply(params, *inputs)``, for one input. Batch it by ``vmap``
    or by leading axes, which every layer of ``nets`` lets through."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Recurrent(NamedTuple):
    """A Network with a memory. Inputs may have further axes, such as lanes, between the time axis and the
    axes of a single input.

    init:   key -> params
    memory: at the start of an episode; () without memory
    step:   (params, memory, obs) -> (memory, outputs)
    unroll: (params, memory, obs [T, ...], done bool [T, ...]) -> (memories, outputs) [T, ...]; the memory
            restarts after every row that ends an episode, and ``memories`` holds it before the restart
    """

    init: Callable[[Key], Params]
    memory: PyTree
    step: Callable[[Params, PyTree, Array], tuple[PyTree, Any]]
    unroll: Callable[[Params, PyTree, Array, Array], tuple[PyTree, Any]]


class Distribution(NamedTuple):
    """A family of distributions over actions, see ``distributions``.

    sample:   (key, outputs, scale) -> action; ``scale`` 1 draws from the distribution, 0 gives its mode, and
              values between draw from narrower ones
    log_prob: (outputs, action) -> [...] at ``scale`` 1
    entropy:  outputs -> [...]
    mode:     outputs -> action
    bounded:  action -> the action that an environment takes
    vector:   outputs -> [..., A], differentiable: the greedy action as the environment takes it, or the
              logits or values of discrete actions
    kl:       (outputs p, outputs q) -> [...] KL(p || q); None without a density
    """

    sample: Callable[[Key, Any, Array | float], Array]
    log_prob: Callable[[Any, Array], Array]
    entropy: Callable[[Any], Array]
    mode: Callable[[Any], Array]
    bounded: Callable[[Array], Array]
    vector: Callable[[Any], Array]
    kl: Callable[[Any, Any], Array] | None = None


class Choice(NamedTuple):
    """The answer of a policy to one observation.

    memory:   carried to the next observation; () without memory.
    action:   for the environment: [A] in [-1, 1], or int32 [] if actions are discrete.
    sampled:  the action as drawn from its distribution, before squashing or clipping.
    log_prob: float32 [] of ``sampled`` at ``scale`` 1, nats; 0 without a density.
    """

    memory: PyTree
    action: Array
    sampled: Array
    log_prob: Array


Act: TypeAlias = Callable[[Params, PyTree, Array, Key, "Array | float"], Choice]
"""``(params, memory, obs, key, scale) -> Choice``, for one observation: the signature of everything that
acts. ``scale`` multiplies the exploration; 0 is greedy."""


Unroll: TypeAlias = Callable[[Params, PyTree, Array, Array], tuple[PyTree, Any]]
"""``(params, memory, obs [T, ...], done bool [T, ...]) -> (memory after the last row, outputs [T, ...])`` of
a policy along the rows of lanes; its memory restarts after every row that ends an episode. The
outputs of discrete actions are logits [T, ..., A]."""


class Eyes(NamedTuple):
    """The convolutions with which an agent's critic looks at images.

    network: image [..., *obs] -> features [..., F]
    of:      state of the agent -> parameters of ``network``
    torso:   name of these convolutions in ``nets.images.TORSOS``, so that a drive can build its own of the
             same shape; "auto": those that fit the observations
    """

    network: Network
    of: Callable[[PyTree], Params]
    torso: str = "auto"


class Agent(NamedTuple):
    """One learning individual that learns from a replay.

    init:        (key, hyper) -> state
    act:         see ``Act``; a discrete action of a value-based agent is random with probability ``scale``
    learn:       (state, batch, hyper, key) -> (state, losses); one gradient step on transitions [B, ...],
                 which may be ``Weighted`` if there is a ``td_error``
    policy:      state -> parameters that ``act`` reads
    adopt:       (state, policy, value=None) -> state that acts by ``policy``, targets included and Adam's
                 moments kept; takes over the state value ``value``, too, if both have one
    value:       (state, obs [..., *obs], action) -> [...] value of the action under the agent's critic
    values:      as ``value``, [K, ...] under each of its K critics; None for agents with one critic
    outputs:     (policy, obs [..., *obs]) -> parameters of ``actions``, differentiable
    actions:     the family of distributions that ``outputs`` parametrise
    actor:       network of the policy
    critic:      network of the critic
    state_value: state -> parameters of V(s); None for agents without
    td_error:    (state, batch) -> target minus value [B]; None without priorities
    observe:     (state, obs [B, ...], valid [B]) -> state that has seen these observations
    exploration: (hyper, env_steps) -> the ``scale`` of exploration after ``env_steps`` steps of this agent
    inherit:     (state, other) -> ``other``, the state of another agent of this kind, with the optimizer's
                 moments and counts of ``state``, if the agent has any
    memory:      (): an agent that learns from single transitions has none
    eyes:        convolutions of its critic; None for agents without
    """

    init: Callable[[Key, PyTree], PyTree]
    act: Act
    learn: Callable[[PyTree, Transition, PyTree, Key], tuple[PyTree, PyTree]]
    policy: Callable[[PyTree], Params]
    adopt: Callable[..., PyTree]
    value: Callable[[PyTree, Array, Array], Array]
    outputs: Callable[[Params, Array], Any]
    actions: Distribution
    actor: Network
    critic: Network
    values: Callable[[PyTree, Array, Array], Array] | None = None
    state_value: Callable[[PyTree], Params] | None = None
    td_error: Callable[..., Array] | None = None
    observe: Callable[[PyTree, Array, Array], PyTree] = lambda state, obs, valid: state
    exploration: Callable[[PyTree, Array], Array] = lambda hyper, env_steps: hyper.exploration
    inherit: Callable[[PyTree, PyTree], PyTree] = lambda state, other: other
    memory: PyTree = ()
    eyes: Eyes | None = None


class OnPolicyAgent(NamedTuple):
    """An individual that learns once from each rollout of its current policy. Its ``Hyper`` has a
    ``discount``.

    ``act``, ``policy``, ``adopt``, ``outputs``, ``actions``, ``state_value`` as in ``Agent``; ``scale`` 1 is
    the policy, 0 its mode. ``outputs`` is None for policies with a memory.

    learn:  (state, trajectory [T, N, ...], hyper, key) -> (state, losses); all the updates of one rollout
    value:  (state, obs [..., *obs], action) -> V(obs) [...], whatever the action
    unroll: see ``Unroll``
    memory: memory of the policy at the start of an episode; () without memory
    """

    init: Callable[[Key, PyTree], PyTree]
    act: Act
    learn: Callable[[PyTree, Trajectory, PyTree, Key], tuple[PyTree, PyTree]]
    policy: Callable[[PyTree], Params]
    adopt: Callable[..., PyTree]
    value: Callable[[PyTree, Array, Array], Array]
    outputs: Callable[[Params, Array], Any] | None
    unroll: Unroll
    actions: Distribution
    actor: Network | Recurrent
    critic: Network | Recurrent
    state_value: Callable[[PyTree], Params] | None = None
    memory: PyTree = ()


class Replay(NamedTuple):
    """A store of rows (any pytree) with a fixed capacity, in which new rows overwrite the oldest.

    init:   example row -> state
    add:    (state, rows [B, ...], valid [B]) -> state; rows that are not valid leave no trace
    sample: (state, key, batch size) -> rows [B, ...], uniform over the stored ones
    """

    init: Callable[[PyTree], PyTree]
    add: Callable[[PyTree, PyTree, Array], PyTree]
    sample: Callable[[PyTree, Key, int], PyTree]


class Intrinsic(NamedTuple):
    """A reward added to the task's, written for one module; ``population.drives`` lifts it to a population.

    init:    key -> state
    reward:  (state, batch [B]) -> bonus [B], through which no gradient flows
    learn:   (state, batch [B], weight [B], hyper, key) -> (state, losses); weight 0 leaves a transition out
    observe: (state, rows [T, *lanes], done [T, *lanes], valid [T, *lanes], hyper) -> state that has seen
             these steps, in order of time; those that are not valid leave no trace
    """

    init: Callable[[Key], PyTree]
    reward: Callable[[PyTree, Transition], Array]
    learn: Callable[[PyTree, Transition, Array, PyTree, Key], tuple[PyTree, PyTree]]
    observe: Callable[[PyTree, Transition, Array, Array, PyTree], PyTree] = lambda state, *_: state
