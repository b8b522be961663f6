"""State, metrics and functions that a population of agents contributes to a method, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Act, Agent, Key, Method, OnPolicyAgent, Params, PyTree, Transition, Unroll, stacked
from popjax.counting import Count
from popjax.evolution.ranking import best_first
from popjax.population import judging
from popjax.population.lanes import Lanes
from popjax.population.learners import Learners


@struct.dataclass
class Metrics:
    """Metrics of an iteration.

    fitness:  float32 [P] return of the last finished episode, mean over lanes.
    episodes: int32 [P]   finished episodes.
    losses:   [P] each    the agent's losses in the last update of the iteration, 0 before the first.
    bonus:    float32 [P] mean bonus that the drive added to the rewards learned from; None without a drive.
    drive:    [] each     the drive's losses in its last update; None without a drive.
    """

    fitness: Array
    episodes: Array
    losses: PyTree
    bonus: Array | None
    drive: PyTree


@struct.dataclass
class State:
    """State that agents of all kinds carry; ``drive`` is None without one."""

    key: Key
    hyper: PyTree
    env_steps: Count  # [] summed over agents and lanes
    generation: Array  # int32 [] iterations
    metrics: Metrics
    drive: PyTree
    agents: PyTree = stacked()
    lanes: Lanes = stacked()  # [P, N]


def _no_replay(state: Any, key: Key) -> Transition:
    raise ValueError("agents that learn on-policy keep no replay; learn from state.trajectory")


class Parts(NamedTuple):
    """Parts of a method that ``P`` agents contribute; ``offpolicy.build`` and ``onpolicy.build`` return them.

    fields:          (key, hyper) -> the fields of State by name, before the first step
    collect:         State -> State: all agents play in their lanes; an on-policy drive adds its reward
    learn:           State -> State: all agents learn
    individuals:     State -> policies [P], as the Method's ``act`` reads them
    deploy:          (State, policies [P] of such agents) -> policies [P], as the Method's ``act`` reads them
    act:             of one of these policies, see ``core.Act``
    agent:           the agent of which all are copies
    steps:           environment steps of an iteration, of all agents together
    sample:          (State, key) -> rows [P, B] from which each agent can learn: drawn from the replay, with
                     observations looked up, the drive's reward added and the agent's discount put in
    look:            (State, observations as its replay stores them) -> observations, see ``replay.frames``
    exploration:     State -> the mean scale [] at which agents explore now
    unroll:          as ``Method.unroll``
    learning_starts: as ``Method.learning_starts``
    crew:            all off-policy agents together; None for on-policy ones
    hand_over:       as ``drives.Drive.hand_over``
    """

    fields: Callable[[Key, PyTree], dict[str, Any]]
    collect: Callable[[Any], Any]
    learn: Callable[[Any], Any]
    individuals: Callable[[Any], Params]
    deploy: Callable[[Any, Params], Params]
    act: Act
    agent: Agent | OnPolicyAgent
    steps: int
    sample: Callable[[Any, Key], Transition] = _no_replay
    look: Callable[[Any, Array], Array] = lambda state, obs: obs
    exploration: Callable[[Any], Array | float] = lambda state: 1.0
    unroll: Unroll | None = None
    learning_starts: int = 0
    crew: Learners | None = None
    hand_over: Callable[..., PyTree] | None = None


def whole(
    parts: Parts, hyper: PyTree, init: Callable[[Key, PyTree], Any], step: Callable[[Any], Any]
) -> Method:
    """Return the Method made of these parts; it deploys the agent with the highest ``metrics.fitness`` among
    those that have not diverged."""

    def policy(s: Any) -> Params:
        policies = parts.individuals(s)
        return tree.take(policies, best_first(judging.sound(s.metrics.fitness, policies))[0])

    return Method(
        init=init,
        step=step,
        policy=policy,
        act=parts.act,
        hyper=hyper,
        steps_bound=parts.steps,
        memory=parts.agent.memory,
        individuals=parts.individuals,
        exploration=parts.exploration,
        unroll=parts.unroll,
        learning_starts=parts.learning_starts,
    )
