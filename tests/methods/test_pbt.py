"""Searches over numbers in training: what is copied, what evolves, and what stays as it is without one."""

from __future__ import annotations

from functools import partial

from popjax.agents import a2c, td3
from popjax.envs import make
from popjax.evolution import search
from popjax.methods import pbt
from tests.support import Case


def on_policy(**choices):
    own = {"lanes": 2, "steps": 5, "interval": 10, "episodes": 4, "population": 4, "rounds": 6}
    return pbt.configured(a2c.Config(hidden=(8,)), **(own | choices))


def off_policy(**choices):
    own = {
        "batch": 8,
        "capacity": 64,
        "warmup": 2,
        "interval": 2,
        "episodes": 2,
        "population": 4,
        "rounds": 6,
    }
    return pbt.configured(td3.Config(hidden=(8, 8)), **(own | choices))


def a_case(config, env="probe/corridor", population=4, **marks):
    return Case(partial(pbt.build, make(env), config), population=population, **marks)


CASES = {
    "pbt": a_case(off_policy()),
    "pbt_copy_replay": a_case(off_policy(copy_replay=True, search=search.Pbt("welch")), slow=True),
    "pbt_on_policy": a_case(on_policy(), "probe/corridor-discrete"),
    "pbt_scoring": a_case(on_policy(scoring=2, search=search.Pbt("tournament")), slow=True),
    "pbt_halving": a_case(off_policy(search=search.Halving(freed="fresh")), slow=True),
    "pbt_mf": a_case(
        on_policy(population=8, search=search.MultipleFrequencies((1, 2))), population=8, slow=True
    ),
}
