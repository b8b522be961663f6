"""Learning agents, one file each, each for one individual.

Every module exposes ``Config`` (shapes and static choices), ``Hyper`` (numbers), ``State`` and
``build(spec, config) -> Agent``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from popjax.agents import ddpg, sac, td3
from popjax.core import Agent, Spec

AGENTS: dict[str, ModuleType] = {"ddpg": ddpg, "td3": td3, "sac": sac}

AnyConfig = ddpg.Config | td3.Config | sac.Config


def build(spec: Spec, config: AnyConfig) -> Agent:
    """The agent that ``config`` belongs to."""
    return _module(config).build(spec, config)


def default_hyper(config: AnyConfig) -> Any:
    """The default numbers of the agent that ``config`` belongs to."""
    return _module(config).Hyper()


def _module(config: Any) -> ModuleType:
    for module in AGENTS.values():
        if isinstance(config, module.Config):
            return module
    raise ValueError(f"{type(config).__name__} is not the Config of an agent; there is {', '.join(AGENTS)}")
