"""What can be chosen of Collaborative Exploration: shapes and forms in ``Config``, numbers in ``Hyper``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from popjax.agents import sac
from popjax.checks import check_choices, check_least
from popjax.core import Number, number
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods.ce import acting, drives, learners


@dataclass(frozen=True)
class Config:
    """Who learns, from what, and where they collaborate."""

    population: int = 4  # agents
    lanes: int = 1  # environments of each agent
    updates_per_step: float = 1.0  # gradient steps of each agent per environment step of any agent
    batch: int = 256  # transitions per gradient step, common to all agents
    capacity: int = 1_000_000  # transitions that the replay holds, rounded down to whole vector steps
    warmup: int = 10_000  # environment steps of all agents that are uniformly random and before any update
    sac: sac.Config = field(default_factory=sac.Config)  # actor and critics
    learner: learners.Kind = "sac"  # agents apart, on one torso, DiCE's, or SUNRISE's in one environment

    col_training: bool = True  # agents have a reward beside the task's
    intrinsic: drives.Kind = "collab"  # which; used when col_training
    contrastive: contrastive.Config = field(default_factory=contrastive.Config)  # encoder, banks, neighbours
    encoder_steps: int = 1  # encoder steps per update
    rnd: rnd.Config = field(default_factory=rnd.Config)  # of the intrinsic kinds that begin with rnd
    diayn: diayn.Config = field(default_factory=diayn.Config)  # of the intrinsic kind diayn
    skills: int = 50  # of DIAYN
    pretraining: int = 1_000_000  # environment steps in which DIAYN sees no task reward

    col_unroll: bool = False  # agents choose actions with an eye on each other
    unroll_mode: acting.Mode = "eps_collab"  # used when col_unroll
    candidates: int = 10  # M, actions sampled from each policy by eps_collab

    col_eval: bool = False  # evaluation uses all agents; else agent eval_agent
    eval_classifier: Literal["softmax", "q"] = "softmax"  # used when col_eval
    eval_agent: int = 0  # who is evaluated without col_eval; SUNRISE is by its mean action
    q_horizon: int = 100  # environment steps that the Q-classifier looks ahead and sticks to its choice

    def __post_init__(self) -> None:
        whole = (
            "population",
            "lanes",
            "batch",
            "capacity",
            "encoder_steps",
            "candidates",
            "q_horizon",
            "skills",
        )
        check_choices(self)
        check_least(self, 1, *whole)
        check_least(self, 0, "warmup", "pretraining")
        if not 0 <= self.eval_agent < self.population:
            raise ValueError(f"eval_agent {self.eval_agent} is none of {self.population} agents")
        updates = self.updates_per_step * self.actors * self.lanes
        if not 0.5 <= updates < math.inf or abs(updates - round(updates)) > 1e-6:
            raise ValueError(
                f"updates_per_step {self.updates_per_step} times {self.actors * self.lanes} environment steps"
                " must be a whole number of updates, at least 1"
            )
        if self.capacity < max(self.batch, self.window):
            raise ValueError(
                f"capacity {self.capacity} is less than a batch of {self.batch} or the {self.window}"
                " transitions in which positives and returns are looked for; raise it"
            )
        self._check_learner()
        if self.intrinsic == "rnd" and self.col_training and self.population > 1:
            raise ValueError(
                f"rnd is one agent's; with {self.population} say rnd_replica, rnd_ce or rnd_each"
            )

    def _check_learner(self) -> None:
        if self.population == 1 and (self.learner == "dice" or self.unroll == "eps_collab"):
            name = "dice" if self.learner == "dice" else "eps_collab"
            raise ValueError(f"{name} has nobody to differ from: population is 1")
        if self.learner == "dice" and self.batch % self.population:
            raise ValueError(f"dice takes equal shares: batch {self.batch} / population {self.population}")
        if self.learner == "multihead" and not self.sac.hidden:
            raise ValueError("multihead agents share hidden layers: sac.hidden is empty")
        alone = self.unroll in ("eps_collab", "eps_greedy") or self.evaluation == "q" or self.col_training
        if self.learner == "sunrise" and alone:
            raise ValueError(
                "sunrise has one environment for all: say col_training=False, unroll_mode ucb or softmax,"
                " eval_classifier softmax"
            )
        if self.drive == "diayn" and self.col_eval:
            raise ValueError("diayn is evaluated by its best skill: say col_eval=False")

    @property
    def actors(self) -> int:
        """How many agents have lanes of their own."""
        return 1 if self.learner == "sunrise" else self.population

    @property
    def updates(self) -> int:
        """Gradient steps of each agent in a synchronous step."""
        return round(self.updates_per_step * self.actors * self.lanes)

    @property
    def unroll(self) -> acting.Mode | None:
        """How agents choose actions, None if each by itself."""
        if self.col_unroll:
            return self.unroll_mode
        return "ucb" if self.learner == "sunrise" else None

    @property
    def evaluation(self) -> Literal["softmax", "q", "mean"] | None:
        """How all agents are evaluated as one, None if ``eval_agent`` is; SUNRISE by its mean action."""
        if self.col_eval:
            return self.eval_classifier
        return "mean" if self.learner == "sunrise" else None

    @property
    def window(self) -> int:
        """Transitions between the ends of what is looked up around a row."""
        around = 2 * self.contrastive.horizon + 1
        classified = self.q_horizon if self.evaluation == "q" else 1
        return max(around, classified) * self.actors * self.lanes

    @property
    def drive(self) -> drives.Kind | None:
        """The intrinsic reward in force."""
        return self.intrinsic if self.col_training else None


@struct.dataclass
class Hyper:
    """Numbers of the method."""

    sac: sac.Hyper = field(default_factory=sac.Hyper)
    intrinsic_weight: Number = number(0.2)  # lambda of the intrinsic reward
    ego_weight: Number = number(0.5, high=1.0)  # w, share of an agent's own novelty in its reward
    contrast_temperature: Number = number(0.07)  # of InfoNCE
    encoder_lr: Number = number(3e-4)  # Adam's rate for the encoder
    rnd: rnd.Hyper = field(default_factory=rnd.Hyper)
    diayn: diayn.Hyper = field(default_factory=diayn.Hyper)
    epsilon: Number = number(0.2, high=1.0)  # how often eps_collab and eps_greedy do not act as they would
    ucb_weight: Number = number(1.0)  # standard deviations that ucb adds to the mean
    member_share: Number = number(0.5, high=1.0)  # probability that a SUNRISE member learns from a transition
    sunrise_temperature: Number = number(20.0)  # T in SUNRISE's weight of a target
    classifier_lr: Number = number(3e-4)  # Adam's rate for the Q-classifier
    eval_softmax_inv_temp: Number = number(1.0)  # softmax over Q at evaluation and in unroll_mode softmax
    eval_softmax_eps: Number = number(1.0, high=1.0)  # probability that it is sampled; else its mode


def check_shapes(hyper: Hyper, config: Config) -> None:
    """Holds every number to one for all, or [P] where agents may differ.

    Raises:
        ValueError: another shape, or a number of each agent where they have one in common.
    """
    each = {"intrinsic_weight", "ego_weight"}
    if config.learner != "multihead":
        # The replay stores the discount, so that it is one for all.
        each |= {f"sac.{name}" for name in sac.Hyper.__dataclass_fields__ if name != "discount"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(hyper):
        name, shape = jax.tree_util.keystr(path, simple=True, separator="."), jnp.shape(leaf)
        if shape and (name not in each or shape != (config.population,)):
            allowed = (
                f"one number, or one of each of {config.population} agents" if name in each else "one number"
            )
            raise ValueError(f"hyper.{name} is {allowed}; got shape {shape}")
