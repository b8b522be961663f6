"""A part of a user's own is found by the module of its Config, also where that extends one of ours."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from popjax import agents
from popjax.agents import sac
from popjax.core import Spec
from popjax.intrinsic import contrastive, rnd
from popjax.methods import ce
from popjax.population import drives
from popjax.population.learners import Multihead

SPEC = Spec("task", (2,), 1, 10)


def module(monkeypatch, base, **names):
    """Return the Config, which extends that of ``base``, of a new module with ``names``."""
    made = types.ModuleType("mine")
    made.Config = dataclass(frozen=True)(type("Config", (base.Config,), {"__module__": "mine"}))
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, "mine", made)
    return made.Config


@struct.dataclass
class Hyper(sac.Hyper):
    """Numbers of an agent of one's own."""

    discount: float = 0.5


def test_an_agent_that_extends_ours_is_its_own(monkeypatch):
    def build(spec, config):
        return sac.build(spec, config)._replace(exploration=lambda hyper, steps: jnp.float32(7))

    config = module(monkeypatch, sac, Hyper=Hyper, build=build)(hidden=(4,))
    assert agents.build(SPEC, config).exploration(None, 0) == 7
    assert agents.default_hyper(config) == Hyper()
    assert agents.kind(config) == "mine"


@pytest.mark.parametrize("base", [contrastive, rnd])
def test_a_drive_that_extends_ours_is_its_own(base, monkeypatch):
    def build(spec, config, lanes):
        return rnd.build(spec, rnd.Config(hidden=(4,), features=2), lanes)._replace(
            init=lambda key: jnp.ones(3)
        )

    config = module(monkeypatch, base, Hyper=Hyper, build=build)()
    assert drives.build(SPEC, config, 2, 1).init(jax.random.key(0)).shape == (2, 3)
    assert drives.default_hyper(config) == Hyper()


def test_a_class_without_a_module_of_its_own_is_the_base_it_extends(monkeypatch):
    assert agents.kind(module(monkeypatch, sac)()) == agents.kind(Multihead()) == "sac"
    assert drives.default_hyper(module(monkeypatch, rnd)()) == rnd.Hyper()


def test_a_build_without_numbers_is_refused(monkeypatch):
    config = module(monkeypatch, sac, build=sac.build)()
    with pytest.raises(ValueError, match="mine has no Hyper next to its Config, as an agent needs; add it"):
        agents.build(SPEC, config)


def test_collaborative_exploration_keeps_the_numbers_of_an_agent_that_extends_drq(monkeypatch):
    config = module(monkeypatch, agents.drq, Hyper=Hyper, build=agents.drq.build)()
    assert ce.default_hyper(ce.Config(learner=config)).learner == Hyper()
