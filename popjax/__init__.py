"""Population-based reinforcement learning in JAX.

    env = popjax.make("gymnax/Pendulum-v1")
    method = popjax.pderl.build(env)
    result = popjax.train(method, env, env_steps=100_000, seeds=3)

Names are imported when they are first used, so ``import popjax`` is immediate and loads no physics engine
that the program does not use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from popjax.host.recipes import METHODS as _METHODS

# Give each LAPACK call one thread. By default OpenBLAS starts one per core even for a small matrix, and these
# threads busy-wait for one another and for XLA's: orthogonal weights of four agents took 7 s, not 0.05 s.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if TYPE_CHECKING:
    from popjax import agents, core, envs, methods, nets, rollout, testing, tree
    from popjax.cli.pretrained import pretrained
    from popjax.core import (
        Agent,
        Env,
        Intrinsic,
        Method,
        Network,
        Replay,
        Spec,
        Timestep,
        Transition,
        chain,
        stacked,
    )
    from popjax.envs import make, suites, tasks
    from popjax.host.errors import Interrupted, NonFiniteMetric, Refused
    from popjax.host.report import learning_curve, report
    from popjax.host.runs import Evaluation, History, Recorded, Result, load
    from popjax.host.training import evaluate, train
    from popjax.methods import (
        align,
        ca2e,
        cdrl,
        ce,
        cem_rl,
        cspc,
        diayn,
        dice,
        distil,
        erl,
        es,
        independent,
        onpolicy,
        pbt,
        pderl,
        sunrise,
    )
    from popjax.recipe import Preset, Recipe, recorded
    from popjax.version import __version__

_NAMES = {
    "popjax.cli.pretrained": ("pretrained",),
    "popjax.core": (
        "Agent",
        "Env",
        "Intrinsic",
        "Method",
        "Network",
        "Replay",
        "Spec",
        "Timestep",
        "Transition",
        "chain",
        "stacked",
    ),
    "popjax.envs": ("make", "suites", "tasks"),
    "popjax.host.errors": ("Interrupted", "NonFiniteMetric", "Refused"),
    "popjax.host.report": ("learning_curve", "report"),
    "popjax.host.runs": ("Evaluation", "History", "Recorded", "Result", "load"),
    "popjax.host.training": ("evaluate", "train"),
    "popjax.recipe": ("Preset", "Recipe", "recorded"),
    "popjax.version": ("__version__",),
}
_MODULES = {
    name: f"popjax.{name}"
    for name in ("agents", "core", "envs", "methods", "nets", "rollout", "testing", "tree")
} | _METHODS
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [  # noqa: RUF022 - modules, names, methods
    "agents",
    "core",
    "envs",
    "methods",
    "nets",
    "rollout",
    "testing",
    "tree",
    "pretrained",
    "Agent",
    "Env",
    "Intrinsic",
    "Method",
    "Network",
    "Replay",
    "Spec",
    "Timestep",
    "Transition",
    "chain",
    "stacked",
    "make",
    "suites",
    "tasks",
    "Interrupted",
    "NonFiniteMetric",
    "Refused",
    "evaluate",
    "Evaluation",
    "History",
    "Recorded",
    "load",
    "learning_curve",
    "report",
    "Result",
    "train",
    "Preset",
    "Recipe",
    "recorded",
    "__version__",
    "ca2e",
    "cdrl",
    "ce",
    "cem_rl",
    "cspc",
    "diayn",
    "dice",
    "distil",
    "erl",
    "es",
    "independent",
    "onpolicy",
    "pbt",
    "pderl",
    "sunrise",
    "align",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'popjax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
