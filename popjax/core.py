"""The vocabulary: the records and structs that every other module speaks in.

A thing you call is a ``NamedTuple`` of pure functions; a thing you carry is a frozen
``flax.struct.dataclass``. Agents and environments are written for one individual and lifted to a
population with ``vmap``; a method chains phases ``State -> State`` over the lifted pieces.

Axis letters used in docstrings, outermost first: ``S`` sweep (seeds), ``P`` individuals, ``N``
environment lanes, ``T`` time, ``B`` batch, ``D`` observation, ``A`` action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

PyTree: TypeAlias = Any
Key: TypeAlias = Array
"""A typed key of ``jax.random.key``."""
Params: TypeAlias = PyTree
Number: TypeAlias = float
"""A hyperparameter: a Python float where you write it, a float32 array ``[]`` inside a State."""
S = TypeVar("S")


@struct.dataclass
class Transition:
    """Experience. Leading axes are free; the trailing ones are given.

    obs:      [..., *obs]  observation acted on.
    action:   [..., A]     float in [-1, 1], or int32 [...] where actions are discrete.
    reward:   [...]        task reward.
    discount: [...]        what multiplies the bootstrap value: 0 where the task ended or was cut, else gamma.
                           A time limit is not termination.
    next_obs: [..., *obs]  true successor, never the observation after an automatic reset.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    next_obs: Array


@struct.dataclass
class Weighted(Transition):
    """Transitions that count differently in a loss.

    weight: float32 [...]  multiplies a transition's error, such as an importance weight.
    """

    weight: Array


def importance(batch: Transition) -> Array | float:
    """Return the weights [...] of ``Weighted`` transitions, 1 of others."""
    return batch.weight if isinstance(batch, Weighted) else 1.0


@struct.dataclass
class Trajectory(Transition):
    """Consecutive steps of one policy, [T, N, ...]: what an on-policy agent learns from.

    ``action`` is the one that was sampled: a continuous one may lie beyond [-1, 1].

    done:     bool [T, N]     the episode ended here, for either reason: the next row is of another one.
    log_prob: float32 [T, N]  of the action under the policy that sampled it, nats.
    valid:    bool [T, N]     rows that were played, the others leave no trace; None: all were.
    memory:   [1, N, ...]     what the policy remembered before the first row; () of one without memory.
    outputs:  [T, N, ...]     of the network that acted; () where nobody asks for them.
    """

    done: Array
    log_prob: Array
    valid: Array | None = None
    memory: PyTree = ()
    outputs: PyTree = ()


@struct.dataclass
class Timestep:
    """The answer of an environment to one action; Gymnasium's words with Gymnasium's meaning.

    obs:        [*obs]  observation to act on next: ``next_obs``, but after an automatic reset or a cut.
    next_obs:   [*obs]  true successor of the action.
    reward:     []      float32.
    terminated: []      bool: the task ended; nothing follows.
    truncated:  []      bool: the time limit was reached; the value of ``next_obs`` still counts.
    cut:        []      bool: the value of ``next_obs`` does not count although the episode goes on, as where
                        a lost life is taught to be an end (Mnih et al., 2015).
    """

    obs: Array
    next_obs: Array
    reward: Array
    terminated: Array
    truncated: Array
    cut: Array | bool = False

    @property
    def done(self) -> Array:
        """[] bool: the episode is over, for either reason."""
        return self.terminated | self.truncated

    @property
    def final(self) -> Array:
        """[] bool: the value of ``next_obs`` does not count."""
        return self.terminated | self.cut


class Spec(NamedTuple):
    """Facts of an environment that a learner needs before it starts.

    ``action_dim`` is the number of action components in [-1, 1], or of discrete actions. ``episode_length``
    is the time limit in environment steps. ``stack`` frames, oldest first, make an observation along its last
    axis. ``dt`` is the duration of an environment step in seconds, ``None`` where the task has no clock.
    ``highest_return`` is what no policy can exceed, ``None`` where that is not known.
    """

    name: str
    obs_shape: tuple[int, ...]
    action_dim: int
    episode_length: int
    discrete: bool = False
    obs_dtype: Any = jnp.float32
    dt: float | None = None
    highest_return: float | None = None
    stack: int = 1


def continuous_dims(spec: Spec, who: str) -> tuple[int, int]:
    """Return (observation size, action size) for a learner ``who`` of vector observations and continuous
    actions.

    Raises:
        ValueError: the task has discrete actions, or observations that are not vectors.
    """
    if spec.discrete:
        raise ValueError(f"{who} needs continuous actions; {spec.name} has {spec.action_dim} discrete ones")
    return vector_size(spec, who), spec.action_dim


def vector_size(spec: Spec, who: str) -> int:
    """Return the observation size for a learner ``who``; a ValueError where observations are not vectors."""
    if len(spec.obs_shape) != 1:
        raise ValueError(f"{who} needs vector observations; those of {spec.name} have shape {spec.obs_shape}")
    return spec.obs_shape[0]


class Origin(NamedTuple):
    """The call of ``envs.make`` behind an environment: its name and, as JSON, its options.

    ``functions`` are the ``reset`` and ``step`` that it made: with others it is another environment.
    """

    name: str
    options: str
    functions: tuple[Any, Any]


class Env(NamedTuple):
    """One environment, no batch axis. ``step`` does not reset; see ``rollout.autoreset``.

    reset:  key -> (state, obs)
    step:   (state, action) -> (state, Timestep)
    scored: the same environment with the rewards that evaluations count; None: these
    origin: how it can be made again; None of one made by hand
    """

    reset: Callable[[Key], tuple[PyTree, Array]]
    step: Callable[[PyTree, Array], tuple[PyTree, Timestep]]
    spec: Spec
    scored: Any = None
    origin: Origin | None = None


class Network(NamedTuple):
    """A function with learnable parameters, for one input: ``apply(params, *inputs)``; batches by ``vmap``
    or by leading axes, which every layer of ``nets`` lets through."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Recurrent(NamedTuple):
    """A Network with a memory. Axes between time and what is given of one input, such as lanes, are free.

    init:   key -> params
    memory: what it remembers at the start of an episode; () of one that forgets at once
    step:   (params, memory, obs) -> (memory, outputs)
    unroll: (params, memory, obs [T, ...], done bool [T, ...]) -> (memories, outputs) [T, ...]: the memory
            starts anew behind every row in which an episode ended, and is told as it was before that
    """

    init: Callable[[Key], Params]
    memory: PyTree
    step: Callable[[Params, PyTree, Array], tuple[PyTree, Any]]
    unroll: Callable[[Params, PyTree, Array, Array], tuple[PyTree, Any]]


class Distribution(NamedTuple):
    """A family of distributions over actions, see ``distributions``.

    sample:   (key, outputs, scale) -> action; ``scale`` 1 draws from the distribution, 0 is its mode, and
              between them lie narrower ones
    log_prob: (outputs, action) -> [...], that of ``scale`` 1
    entropy:  outputs -> [...]
    mode:     outputs -> action
    bounded:  action -> what an environment takes of it
    vector:   outputs -> [..., A], differentiable: the greedy action as the environment takes it, or the
              logits or values of discrete actions
    kl:       (outputs p, outputs q) -> [...] KL(p || q); None of a policy without a density
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

    memory:   what it carries to the next observation; () of a policy without memory.
    action:   what the environment takes: [A] in [-1, 1], or int32 [] where actions are discrete.
    sampled:  the action as its distribution drew it, before squashing or clipping.
    log_prob: float32 [] of ``sampled`` at ``scale`` 1, nats; 0 of a policy without a density.
    """

    memory: PyTree
    action: Array
    sampled: Array
    log_prob: Array


Act: TypeAlias = Callable[[Params, PyTree, Array, Key, "Array | float"], Choice]
"""``(params, memory, obs, key, scale) -> Choice``, for one observation: the signature of everything that
acts. ``scale`` multiplies the exploration; 0 is greedy."""


Unroll: TypeAlias = Callable[[Params, PyTree, Array, Array], tuple[PyTree, Any]]
"""``(params, memory, obs [T, ...], done bool [T, ...]) -> (memory behind the last row, outputs [T, ...])`` of
a policy along the rows of lanes; its memory starts anew behind every row in which an episode ended. The
outputs of discrete actions are logits [T, ..., A]."""


class Agent(NamedTuple):
    """One learning individual that learns from a replay.

    init:        (key, hyper) -> state
    act:         see ``Act``; a discrete action of a value-based agent is random with probability ``scale``
    learn:       (state, batch, hyper, key) -> (state, losses); one gradient step on transitions [B, ...],
                 which may be ``Weighted`` where there is a ``td_error``
    policy:      state -> parameters that ``act`` reads
    adopt:       (state, policy, value=None) -> state that acts by ``policy``, targets included and Adam's
                 moments kept; takes over the state value ``value``, too, if both have one
    value:       (state, obs [..., *obs], action) -> [...] value of the action under the agent's critic
    values:      as ``value``, [K, ...] under each of its K critics; None of an agent with one
    outputs:     (policy, obs [..., *obs]) -> what ``actions`` turns into actions, differentiable
    actions:     the family of distributions that ``outputs`` parametrise
    actor:       network of the policy
    critic:      network of the critic
    state_value: state -> parameters of V(s); None of an agent without
    td_error:    (state, batch) -> target minus value [B]; None of an agent without priorities
    observe:     (state, obs [B, ...], valid [B]) -> state that has seen these observations
    exploration: (hyper, env_steps) -> the ``scale`` with which to act after so many steps of this agent
    inherit:     (state, other) -> the state ``other`` of another agent of this kind with the own optimizer's
                 moments and counts; of an agent that keeps none, ``other``
    memory:      what the policy remembers at the start of an episode; () of one that acts by what it sees
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


class OnPolicyAgent(NamedTuple):
    """An individual that learns once from what its present policy did. Its ``Hyper`` has a ``discount``.

    ``act``, ``policy``, ``adopt``, ``outputs``, ``actions``, ``state_value``, ``memory`` as in ``Agent``;
    ``scale`` 1 is the policy, 0 its mode. ``outputs`` is None of a policy with a memory.

    learn:  (state, trajectory [T, N, ...], hyper, key) -> (state, losses); all the updates of one rollout
    value:  (state, obs [..., *obs], action) -> V(obs) [...], whatever the action
    unroll: see ``Unroll``
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
    """A store of rows (any pytree) with a fixed capacity, the oldest overwritten.

    init:   example row -> state
    add:    (state, rows [B, ...], valid [B]) -> state; rows that are not valid leave no trace
    sample: (state, key, batch size) -> rows [B, ...], uniform over what is stored
    """

    init: Callable[[PyTree], PyTree]
    add: Callable[[PyTree, PyTree, Array], PyTree]
    sample: Callable[[PyTree, Key, int], PyTree]


class Intrinsic(NamedTuple):
    """A reward beside the task's, written for one module; ``population.drives`` lifts it to a population.

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


class Built(NamedTuple):
    """The call that made a Method: ``build(env, config, **further)``."""

    build: Callable[..., Any]
    env: Env
    config: Any
    further: Mapping[str, Any]


class Method(NamedTuple):
    """A training method: everything the host needs, and all that it may know.

    init:        (key, hyper) -> State
    step:        State -> State; one generation or iteration, safe under jit, vmap, scan and sharding
    policy:      State -> parameters of the policy you would deploy now
    act:         (policy parameters, memory, obs, key, scale) -> Choice, see ``Act``; pure: all that
                 evaluation and export use
    hyper:       the default hyperparameters, a struct of numbers
    steps_bound: the most environment steps that one ``step`` can count
    memory:      what a policy remembers at the start of an episode; () of one that acts by what it sees
    individuals: State -> parameters [P] of everybody's policies, each like those that ``policy`` gives; None
                 where they act together, share one or play different tasks
    built:       the call that made it; None of a method whose ``build`` is not ``recipe.recorded``
    exploration: State -> the ``scale`` [] at which the policy explores now while it trains
    unroll:      see ``Unroll``: the logits by which the policy acts, from which others can learn; None of a
                 policy that has none
    learning_starts: environment steps before the first update; a shorter run is told that it learns nothing
    """

    init: Callable[[Key, PyTree], Any]
    step: Callable[[Any], Any]
    policy: Callable[[Any], Params]
    act: Act
    hyper: Any
    steps_bound: int
    memory: PyTree = ()
    individuals: Callable[[Any], Params] | None = None
    built: Built | None = None
    exploration: Callable[[Any], Array | float] = lambda state: 1.0
    unroll: Unroll | None = None
    learning_starts: int = 0


class Pretrained(NamedTuple):
    """The policy of a finished run, frozen.

    name:        where it comes from, for messages.
    spec:        the task that it was trained on.
    act:         as ``Method.act``.
    params:      what ``act`` reads.
    memory:      what the policy remembers at the start of an episode.
    env_steps:   what its training cost, environment steps.
    config:      the Config of its method.
    individuals: parameters [P] of all policies of the population; None where nobody acts alone.
    unroll:      as ``Method.unroll``.
    origin:      the run that it comes from, as ``config.json`` keeps it; None of a policy without one.
    """

    name: str
    spec: Spec
    act: Act
    params: Params
    memory: PyTree = ()
    env_steps: int = 0
    config: Any = None
    individuals: Params | None = None
    unroll: Unroll | None = None
    origin: Mapping[str, Any] | None = None


class Ingredient(NamedTuple):
    """A use that a method makes of finished runs.

    keyword: of ``build``, which takes a tuple of records.
    make:    (env, policies) -> records, one for each policy; a ValueError where one does not fit.
    record:  their type, a NamedTuple of the ``Pretrained`` and facts that JSON can hold.
    help:    the option's line in ``--help``.
    """

    keyword: str
    make: Callable[[Env, Sequence[Pretrained]], Sequence[Any]]
    record: Any
    help: str = ""


def chain(*phases: Callable[[S], S]) -> Callable[[S], S]:
    """Compose ``State -> State`` phases, left to right."""

    def step(state: S) -> S:
        for phase in phases:
            # The name of the phase labels its operations in profiles and compiled text.
            with jax.named_scope(getattr(phase, "__name__", "phase")):
                state = phase(state)
        return state

    return step


def stacked(**kwargs: Any) -> Any:
    """Mark a field of a State: each of its leaves leads with the population axis ``P``."""
    return struct.field(metadata={"stacked": True}, **kwargs)


def stacked_fields(state: Any) -> dict[str, PyTree]:
    """Return the fields of a State that were declared with ``stacked()``, by name."""
    return {f.name: getattr(state, f.name) for f in fields(state) if f.metadata.get("stacked")}


def number(default: float, low: float = 0.0, high: float = math.inf) -> Any:
    """Declare a field of a ``Hyper``: a number in [low, high], which ``checks.check_numbers`` asks for before
    a run."""
    return struct.field(default=default, metadata={"range": (low, high)})


def as_arrays(hyper: S) -> S:
    """Return every number as a strong float32 array: weak types would recompile the first chunk."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), hyper)


def example_transition(spec: Spec) -> Transition:
    """Return one transition of an environment in shape and dtype, all zeros: what a replay is made for."""
    obs = jnp.zeros(spec.obs_shape, spec.obs_dtype)
    action = jnp.zeros((), jnp.int32) if spec.discrete else jnp.zeros(spec.action_dim)
    return Transition(obs, action, jnp.float32(0), jnp.float32(0), obs)


def transition(
    obs: Array, action: Array, timestep: Timestep, discount: Array | float, timeout_is_terminal: bool = False
) -> Transition:
    """Return a Timestep as a learner sees it.

    ``discount`` [] is gamma. ``timeout_is_terminal`` treats the time limit as the end of the task, as many
    published implementations do; the value of the last state is then taken to be 0.
    """
    ended = timestep.final | timestep.truncated if timeout_is_terminal else timestep.final
    return Transition(
        obs=obs,
        action=action,
        reward=timestep.reward,
        discount=jnp.where(ended, 0.0, discount),
        next_obs=timestep.next_obs,
    )
