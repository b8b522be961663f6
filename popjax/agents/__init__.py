"""Learning agents, one file each, each for one individual.

Every module exposes ``Config`` (shapes and static choices), ``Hyper`` (numbers), ``State`` and
``build(spec, config)``, which makes an ``Agent`` or, of those that learn on-policy, an ``OnPolicyAgent``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

from popjax.agents import a2c, ddpg, dqn, ppo, sac, sac2018, td3
from popjax.checks import nearest_divisor
from popjax.core import Agent, OnPolicyAgent, Spec

AGENTS: dict[str, ModuleType] = {"ddpg": ddpg, "td3": td3, "sac": sac, "sac2018": sac2018, "dqn": dqn}
"""The kinds of agent that learn from a replay, by their names on the command line."""
ON_POLICY_AGENTS: dict[str, ModuleType] = {"a2c": a2c, "ppo": ppo}
"""The kinds that learn from what they have just played."""

AnyConfig: TypeAlias = ddpg.Config | td3.Config | sac.Config | sac2018.Config | dqn.Config
AnyOnPolicyConfig: TypeAlias = a2c.Config | ppo.Config


def build(spec: Spec, config: AnyConfig) -> Agent:
    """Return the agent that ``config`` belongs to."""
    agent: Agent = _module(config, AGENTS).build(spec, config)
    return agent


def build_on_policy(spec: Spec, config: AnyOnPolicyConfig, rollout: int | None = None) -> OnPolicyAgent:
    """Return the on-policy agent that ``config`` belongs to, which learns from ``rollout`` environment steps
    at a time; None: it only acts.

    Raises:
        ValueError: the agent's minibatches do not divide these steps.
    """
    parts = config.minibatches if isinstance(config, ppo.Config) else 1
    if rollout is not None and rollout % parts:
        raise ValueError(
            f"a rollout of {rollout} steps is not divided by minibatches {parts};"
            f" {nearest_divisor(rollout, parts)} would do"
        )
    agent: OnPolicyAgent = _module(config, ON_POLICY_AGENTS).build(spec, config)
    return agent


def default_hyper(config: AnyConfig | AnyOnPolicyConfig) -> Any:
    """Return the default numbers of the agent that ``config`` belongs to."""
    return _module(config, AGENTS | ON_POLICY_AGENTS).Hyper()


def default_rollout(config: AnyOnPolicyConfig) -> int:
    """Return the environment steps of a lane in a rollout, as the on-policy agent's source has it."""
    steps: int = _module(config, ON_POLICY_AGENTS).ROLLOUT
    return steps


def _module(config: Any, known: dict[str, ModuleType]) -> ModuleType:
    for module in known.values():
        if isinstance(config, module.Config):
            return module
    raise ValueError(f"{type(config).__name__} is not the Config of an agent; there is {', '.join(known)}")
