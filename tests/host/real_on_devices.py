"""Run by ``test_shard`` in a process that has two devices: a method of the package; prints JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from popjax import tree
from popjax.agents import td3
from popjax.envs import make
from popjax.host import leaves
from popjax.host.train import train
from popjax.methods import independent
from tests.host import on_devices

ENV = make("probe/context")
CONFIG = independent.Config(agent=td3.Config(hidden=(16,)), population=2, batch=8, capacity=100, warmup=4)

if __name__ == "__main__":
    method = independent.build(ENV, CONFIG)
    # One chunk of the length that ``collectives`` compiles, so that it is compiled once.
    options: Any = {"env_steps": 100, "eval_every": 100, "log_every": 100, "quiet": True, "seeds": 4}
    spread = train(method, ENV, devices=2, **options).state
    alone = tree.concat([train(method, ENV, members=part, **options).state for part in ((0, 2), (2, 4))])
    pairs = zip(leaves.to_arrays(spread).values(), leaves.to_arrays(alone).values(), strict=True)
    answer = {
        "devices": len(spread.env_steps.sharding.device_set),
        "difference": max(float(np.abs(np.float64(x) - np.float64(y)).max()) for x, y in pairs if x.size),
        "collectives": on_devices.collectives(method, 4, 2),
    }
    print(json.dumps(answer))
