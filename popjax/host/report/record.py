"""The record of a run, or of one setting of the hyperparameters that it sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from popjax.host.runs import rundir
from popjax.host.runs.history import Evaluation


@dataclass(frozen=True)
class Record:
    """A run directory, or the part of it with one setting of the swept hyperparameters.

    summary: None while the run goes on or after it was interrupted.
    failed:  members with a non-finite metric, whose evaluations are left out, each with "member", "seed" and
             "reason"; for a run without a summary, those that its newest checkpoint records.
    swept:   hyperparameters of this setting by name, such as "hyper.actor_lr"; empty if only seeds differ.
    """

    root: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    evaluations: tuple[Evaluation, ...]
    failed: tuple[Mapping[str, Any], ...] = ()
    swept: Mapping[str, float] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The environment and its options."""
        options = ", ".join(f"{k}={v}" for k, v in self.config.get("env_options", {}).items())
        return self.config["env"] + (f" ({options})" if options else "")

    @property
    def name(self) -> str:
        """The method, and its agents if the method has a choice."""
        agents = self.config.get("agents") or {"agent": self.config.get("agent")}
        kinds = [kind for kind in agents.values() if kind and kind != "none"]
        return self.config["method"] + (f" ({', '.join(kinds)})" if kinds else "")

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Values of all options that define the method, by option, as they were recorded."""
        chosen = {key: self.config.get(key) or {} for key in ("config", "hyper", "runs")}
        return {"method": self.name, **dict(rundir.flattened(chosen)), **self.swept}

    def choice(self, option: str) -> Any:
        """Return the value of an option; its default if the method has gained it since the run began, None if
        there is no such option."""
        return self.choices[option] if option in self.choices else self._defaults.get(option)

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """Defaults of the method's options; none if the method is not here."""
        try:
            return rundir.default_options(self.config) if self.config.get("config") else {}
        except Exception:  # the module may be gone, raise anything, or lack these agents
            return {}

    def has(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line of the run's records is of this setting."""
        return all(line.get(name) == value for name, value in self.swept.items())
