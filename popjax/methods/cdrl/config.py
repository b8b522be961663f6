"""The choices and numbers of collaborative deep RL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax.checks import check_choices, check_least, check_widths
from popjax.core import Number, number
from popjax.nets import recurrent

NEVER = math.inf
"""A time that no run reaches."""


@dataclass(frozen=True)
class Config:
    """How a student learns from its task and its teachers, and how teachers do that train beside it."""

    network: recurrent.Config = field(default_factory=recurrent.Config)  # of the student and those teachers
    lanes: int = 8  # environments of each task, the workers of A3C
    steps: int = 20  # environment steps of each lane in a rollout
    # a gradient step for each lane, one after the other, or one for the mean over lanes: with 8 lanes 8 times
    # fewer of every kind, so that lr, distil_lr and align_lr are to be raised together
    update_mode: Literal["sequential", "batched"] = "sequential"
    # where a lane's gradients are taken: the parameters so far, or those that acted
    grad_at: Literal["current", "behaviour"] = "current"
    student_gae: bool = True  # the student learns from its own rewards, too
    timeout_bootstrap: bool = False  # the value behind a time limit counts, else a time limit is an end

    distil_head: Literal["distil", "policy"] = "distil"  # the student's head that learns from teachers
    # whose memory a teacher reads a rollout with; "student" as in the authors' code
    teacher_state: Literal["own", "student"] = "own"
    # no alignment of logits, by a network trained before, or by one that is trained meanwhile
    align: Literal["none", "offline", "online"] = "online"
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)  # hidden layers of an alignment network, units
    align_act: recurrent.AlignActivation = "elu"  # between them; "relu" in the paper's text
    align_kl: Literal["code", "paper"] = "code"  # KL(aligned || student), or the other way about
    # teachers see observations with other channels or components padded with zeros or cropped
    pad_observations: bool = False
    pad_actions: bool = False  # without alignment, a teacher's logits are padded with -inf or cropped

    def __post_init__(self) -> None:
        check_choices(self)
        check_widths(self)
        check_least(self, 1, "lanes", "steps")
        if min(self.align_hidden, default=1) < 1:
            raise ValueError(f"align_hidden: layers need units, got {self.align_hidden}")
        if self.align != "none" and self.pad_actions:
            raise ValueError(f"pad_actions is for align none; align {self.align} maps actions by a network")


@struct.dataclass
class Hyper:
    """Numbers of a student and its teachers.

    ``align_from``, ``distil_from`` and ``distil_until`` are counted in the student's environment steps: below
    1 as a fraction of ``budget``, rounded to whole steps, else as a number of steps, so that 1 is the first
    step and not the whole budget; infinity is never. The defaults are those of two tasks that both start from
    scratch, with the paper's budget: a shorter run needs a smaller one, else it ends before anything is
    distilled. Where alignment networks train online, ``distil_from`` is to be after ``align_from``.
    """

    discount: Number = number(0.99, high=1.0)  # gamma, per environment step
    trace_decay: Number = number(1.0, high=1.0)  # lambda of the advantages
    value_coef: Number = number(0.5)  # of half the summed squared error of the values in the loss
    entropy: Number = number(0.01)  # weight of the policy's summed entropy in the loss, per nat
    max_grad_norm: Number = number(40.0)  # global norm to which every gradient is clipped
    lr: Number = number(1e-4)  # Adam's rate for the task's own rewards
    distil_lr: Number = number(1e-4)  # that of distillation, which has an Adam of its own
    align_lr: Number = number(1e-4)  # that of the alignment networks
    temperature: Number = number(1.0, low=1e-6)  # tau, by which a teacher's logits are divided
    align_from: Number = number(0.15)  # T1, when alignment networks begin to train
    distil_from: Number = number(0.2)  # T2, when distillation begins
    distil_until: Number = number(0.75)  # when both end
    budget: Number = number(2e7, low=1.0)  # what fractions are fractions of, environment steps of the student


def reached(taken: Array, when: Number, hyper: Hyper) -> Array:
    """[] bool: whether ``taken`` environment steps are at or beyond the time ``when`` of ``hyper``."""
    # Rounded, because 0.3 of 100,000 is 30,000.002 in float32, which 30,000 steps would not have reached.
    return taken.astype(jnp.float32) >= jnp.where(when < 1, jnp.round(when * hyper.budget), when)
