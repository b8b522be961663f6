"""Config, hyperparameters, metrics and records of collaborative deep RL, and when teachers teach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax.advantage import Targets
from popjax.agents import a2c
from popjax.checks import check_least, check_types, check_widths
from popjax.core import Env, Number, Params, PyTree, Trajectory, number
from popjax.counting import Count
from popjax.distillation import Direction
from popjax.nets import recurrent
from popjax.population import tutoring
from popjax.population.lanes import Lanes
from popjax.population.tutoring import Distillation, Due
from popjax.recipe import Preset

NEVER = math.inf
"""Number of steps that no run reaches."""
TIMES = ("align_from", "distil_from", "distil_until")
BUDGET = 20_000_000
"""Environment steps of the paper's runs, the default of ``Hyper.budget``."""


@dataclass(frozen=True)
class Config:
    """Options of a student, its teachers, and teachers that train beside it."""

    # networks of the student and of the teachers trained beside it
    network: recurrent.Config = field(default_factory=recurrent.Config)
    lanes: int = 8  # environments of each task, the workers of A3C
    steps: int = 20  # environment steps of each lane in a rollout
    # one gradient step for each lane in turn, or one for the mean over lanes; the latter takes fewer steps,
    # with 8 lanes 8 times fewer, so raise lr, distil_lr and align_lr together
    update_mode: Literal["sequential", "batched"] = "sequential"
    student_gae: bool = True  # whether the student also learns from its own rewards
    distil_head: Literal["distil", "policy"] = "distil"  # the student's head that learns from teachers
    # the memory with which a teacher reads a rollout; "student" as in the authors' code
    teacher_state: Literal["own", "student"] = "own"
    # alignment of teachers' logits: none, by a network trained before the run, or by one trained during it
    align: Literal["none", "offline", "online"] = "online"
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)  # units of an alignment network's hidden layers
    align_kl: Direction = "code"  # KL(aligned || student), or the reverse
    # pad observations with zeros, or crop them, to as many channels or components as a teacher reads
    pad_observations: bool = False
    pad_actions: bool = False  # without alignment, a teacher's logits are padded with -inf or cropped

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "lanes", "steps")
        check_widths(self)
        if self.align != "none" and self.pad_actions:
            raise ValueError(
                f"pad_actions is for align none; unset it, since align {self.align} maps actions by a network"
            )


@struct.dataclass
class Hyper:
    """Hyperparameters of a student and its teachers.

    ``align_from``, ``distil_from`` and ``distil_until`` are environment steps of the student. A value below 1
    is a fraction of ``budget``, rounded to whole steps; any other is a number of steps, so 1 is the first
    step and not the whole budget. Infinity means never. The defaults are for two tasks that both start from
    scratch, with the paper's budget; give a shorter run a smaller one, or it ends before anything is
    distilled. If alignment networks train online, ``distil_from`` must come after ``align_from``.
    """

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    trace_decay: Number = number(1.0, high=1.0)  # lambda of the advantages
    value_coef: Number = number(0.5)  # weight in the loss of half the summed squared error of values
    entropy: Number = number(0.01)  # weight of the policy's summed entropy in the loss, per nat
    max_grad_norm: Number = number(40.0, high=math.inf)  # global norm to which every gradient is clipped
    lr: Number = number(1e-4)  # Adam's rate for the task's own rewards
    distil_lr: Number = number(1e-4)  # learning rate of distillation, which has its own Adam
    align_lr: Number = number(1e-4)  # learning rate of the alignment networks
    # tau: divides a teacher's logits and, in the alignment loss with align_kl paper, the student's, too
    temperature: Number = number(1.0, low=1e-6)
    align_from: Number = number(0.15, high=math.inf)  # T1, start of alignment [steps or share of budget]
    distil_from: Number = number(0.2, high=math.inf)  # T2, start of distillation [steps or share of budget]
    distil_until: Number = number(0.75, high=math.inf)  # end of both [steps or share of budget]
    budget: Number = number(2e7, low=1.0)  # environment steps of the student that fractions refer to


@struct.dataclass
class Metrics:
    """Metrics of a step. Rows [P] are the student, then the teachers that train, each in its own task.

    fitness:       float32 [P] return of the last finished episode, mean over lanes.
    score:         float32 [P] mean return of the last 100 episodes, or of all so far; 0 before the first.
    lengths:       float32 [P] environment steps of the last finished episode, mean over lanes.
    episodes:      int32 [P]   finished episodes.
    losses:        [P] each    losses of A2C, means over rows.
    gradient_norm: float32 [P] global norm of their gradient before clipping, mean over gradient steps.
    actions:       [A]         mean probabilities of the student's actions in its rollouts.
    distillations: one for every teacher, see ``Distillation``.
    """

    fitness: Array
    score: Array
    lengths: Array
    episodes: Array
    losses: a2c.Losses
    gradient_norm: Array
    actions: Array
    distillations: tuple[Distillation, ...]


@struct.dataclass
class Student:
    """The network of a task with the moments of its two Adams: for its rewards, and for its teachers."""

    params: Params
    optimizer: PyTree
    distil_optimizer: PyTree


@struct.dataclass
class Task:
    """A task with its learner; lanes [1, N]; rollouts [T, N] with ``Heads`` as outputs, and their targets."""

    student: Student
    lanes: Lanes
    played: Trajectory
    targets: Targets


def preset(task: str) -> Preset | None:
    """Return the constants for a game such as "atari/bowling": the defaults, with the paper's options of
    Atari games; None for other tasks."""
    return Preset(Config(), Hyper(), BUDGET, tutoring.UNIVERSE) if task.startswith("atari/") else None


def due(taken: Count, hyper: Hyper) -> Due:
    """Return which networks learn from teachers after ``taken`` environment steps."""
    going_on = ~reached(taken, hyper.distil_until, hyper)
    return Due(*(going_on & reached(taken, when, hyper) for when in (hyper.align_from, hyper.distil_from)))


def reached(taken: Count, when: Number, hyper: Hyper) -> Array:
    """Return bool []: whether ``taken`` environment steps are at or beyond the time ``when`` of ``hyper``."""
    # Rounded, because 0.3 of 100,000 is 30,000.002 in float32, which 30,000 steps would not have reached.
    return taken / 1 >= jnp.where(when < 1, jnp.round(when * hyper.budget), when)


def remarks(
    env: Env,
    config: Config,
    hyper: Hyper,
    env_steps: int,
    teachers: Sequence[Any] = (),
    teacher_envs: Sequence[Env] = (),
    alignments: Sequence[Any] = (),
) -> list[str]:
    """Return a line for each reason why a run of ``env_steps`` would distil nothing, or the wrong thing."""
    if not (teachers or teacher_envs):
        return []
    align_from, distil_from, distil_until = (_resolved(hyper, name) for name in TIMES)
    wanted = np.isfinite(distil_from)
    told = [
        f"{name} 1 is the first environment step: a fraction of the budget is below 1, and inf is never"
        for name in TIMES
        if np.any(np.asarray(getattr(hyper, name)) == 1)
    ]
    if late := _where(wanted & (distil_from > env_steps), distil_from):
        remedy = f"; set --hyper.budget {env_steps} for fractions of this run"
        fractions = np.any(np.asarray(hyper.distil_from) < 1)
        told.append(
            f"nothing is distilled: that begins at {late} environment steps and the run ends at {env_steps:,}"
            + (remedy if fractions else "")
        )
    if ended := _where(wanted & (distil_until <= distil_from), distil_until):
        told.append(
            f"nothing is distilled: distil_from is not before distil_until, {ended} environment steps"
        )
    early = _where(wanted & (distil_from < align_from), distil_from)
    if early and config.align == "online":
        told.append(
            f"distillation begins at {early} environment steps, before alignment networks begin to train:"
            " until then it follows untrained ones; let distil_from be after align_from"
        )
    return told


def _resolved(hyper: Hyper, name: str) -> np.ndarray:
    """Return a time of ``hyper`` in environment steps, for each value of that time or of the budget."""
    when, budget = np.asarray(getattr(hyper, name), float), np.asarray(hyper.budget, float)
    return np.where(when < 1, np.round(np.minimum(when, 1) * budget), when)


def _where(which: np.ndarray, times: np.ndarray) -> str:
    """Return the times at which ``which`` holds as text; empty if there are none."""
    which, times = np.broadcast_arrays(which, times)
    return ", ".join(f"{time:,.0f}" for time in np.unique(times[which]))
