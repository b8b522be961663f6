"""Learning agents, one module each, written for one individual.

Every module exposes ``Config`` (shapes and static choices), ``Hyper`` (hyperparameters), ``State`` and
``build(spec, config)``, which makes an ``Agent``, or an ``OnPolicyAgent`` if it learns on-policy. A module of
the latter kind also exposes ``ROLLOUT``, the environment steps of a lane in a rollout, by which methods
recognise it. A module of your own with these names works in the same way: popjax uses the module in which the
Config is defined.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import jax

from popjax import kinds
from popjax.agents import a2c, ddpg, dqn, drq, ppo, sac, sac2018, td3
from popjax.arguments import told
from popjax.checks import nearest_divisor
from popjax.core import Agent, OnPolicyAgent, Spec

AGENTS: dict[str, ModuleType] = {
    "ddpg": ddpg,
    "td3": td3,
    "sac": sac,
    "sac2018": sac2018,
    "drq": drq,
    "dqn": dqn,
}
"""The kinds of agent that learn from a replay, by their names on the command line."""
ON_POLICY_AGENTS: dict[str, ModuleType] = {"a2c": a2c, "ppo": ppo}
"""The kinds that learn from their latest rollout."""

AnyConfig: TypeAlias = ddpg.Config | td3.Config | sac.Config | sac2018.Config | drq.Config | dqn.Config
AnyOnPolicyConfig: TypeAlias = a2c.Config | ppo.Config
Made = TypeVar("Made", Agent, OnPolicyAgent)


def build(spec: Spec, config: AnyConfig) -> Agent:
    """Return the agent that ``config`` belongs to.

    Raises:
        ValueError: ``spec`` is no Spec, ``config`` is not of an agent that learns from a replay, or the agent
            has a memory.
    """
    agent = _built(spec, config, AGENTS, Agent)
    check_no_memory(agent)
    return agent


def check_no_memory(agent: Agent) -> None:
    """Check that an agent acts on the present observation alone, as learning from single transitions
    requires.

    Raises:
        ValueError: the policy has a memory.
    """
    if jax.tree.leaves(agent.memory):
        shapes = jax.tree.map(jax.numpy.shape, agent.memory)
        raise ValueError(
            f"an Agent learns from single transitions and cannot have a memory, got {shapes}; make it an"
            " OnPolicyAgent, or set memory=()"
        )


def build_on_policy(spec: Spec, config: AnyOnPolicyConfig, rollout: int | None = None) -> OnPolicyAgent:
    """Return the on-policy agent of ``config``, which learns from ``rollout`` environment steps at a time;
    with None, the agent only acts.

    Raises:
        ValueError: the agent's minibatches do not divide these steps, or ``config`` is not of an on-policy
            agent.
    """
    parts = config.minibatches if isinstance(config, ppo.Config) else 1
    if rollout is not None and rollout % parts:
        raise ValueError(
            f"a rollout of {rollout} steps is not divisible by minibatches {parts};"
            f" use {nearest_divisor(rollout, parts)}"
        )
    return _built(spec, config, ON_POLICY_AGENTS, OnPolicyAgent)


def default_hyper(config: AnyConfig | AnyOnPolicyConfig) -> Any:
    """Return the default hyperparameters of the agent that ``config`` belongs to."""
    return _module(config, AGENTS | ON_POLICY_AGENTS).Hyper()


def default_rollout(config: AnyOnPolicyConfig) -> int:
    """Return the default environment steps of a lane in a rollout of an on-policy agent, as in the agent's
    source.

    Raises:
        ValueError: ``config`` is not of an on-policy agent.
    """
    module = _module(config, ON_POLICY_AGENTS)
    if not on_policy(config):
        raise ValueError(
            f"{module.__name__} has no ROLLOUT, the environment steps of a lane in a rollout, which marks"
            f" agents that learn on-policy; add it, or choose {' or '.join(ON_POLICY_AGENTS)}"
        )
    steps: int = module.ROLLOUT
    return steps


def kind(config: Any) -> str:
    """Return the command-line name of the kind of agent that ``config`` belongs to; for a kind of your own,
    the name of its module."""
    known = AGENTS | ON_POLICY_AGENTS
    module = _module(config, known)
    return next((name for name, one in known.items() if one is module), module.__name__)


def on_policy(config: Any) -> bool:
    """Return whether the agent that ``config`` belongs to learns from its latest rollout."""
    return hasattr(_module(config, AGENTS | ON_POLICY_AGENTS), "ROLLOUT")


def _built(spec: Spec, config: Any, known: dict[str, ModuleType], kind: type[Made]) -> Made:
    if not isinstance(spec, Spec):
        raise ValueError(f"spec must be a Spec, such as env.spec, got {told(spec)}")
    agent = _module(config, known).build(spec, config)
    if isinstance(agent, OnPolicyAgent):
        default_rollout(config)  # methods that take both kinds tell them apart by it
    if not isinstance(agent, kind):
        raise kinds.stranger(config, "an agent", known)
    return agent


def _module(config: Any, known: dict[str, ModuleType]) -> ModuleType:
    return kinds.home(config, "an agent", known)
