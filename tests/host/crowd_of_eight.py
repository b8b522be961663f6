"""``crowd`` as the command line wants a method: with a Config and a build that takes it."""

from __future__ import annotations

from dataclasses import dataclass

from popjax.core import Env, Method
from popjax.recipe import Recipe, recorded
from tests.host import crowd

Hyper = crowd.Hyper


@dataclass(frozen=True)
class Config:
    population: int = 8


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    return crowd.build(config.population)


METHOD = Recipe(build, Config, lambda config: Hyper())
