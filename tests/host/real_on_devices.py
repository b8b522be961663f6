"""Run by ``test_shard`` in a process that has two devices: a method of the package; prints JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from popjax import tree
from popjax.agents import td3
from popjax.envs import make
from popjax.host.checkpoints import state_arrays
from popjax.host.scaling import memory, shard, sweep
from popjax.host.training import train
from popjax.host.training.compiled_programs import lower_chunk
from popjax.methods import independent
from tests import absent, hlo
from tests.host import on_devices

ENV = make("probe/context")
CONFIG = independent.Config(agent=td3.Config(hidden=(16,)), population=2, batch=8, capacity=100, warmup=4)


def population() -> dict[str, int]:
    """One member on two devices, each with its own agents' replays: bytes of the largest thing that they tell
    each other, of a replay's observations, and of the chunk's arguments on each device and in all."""
    method = independent.build(ENV, replace(CONFIG, capacity=10_000))
    shapes = jax.eval_shape(sweep.lift(method.init, 1), *absent.start(method, 1))
    placement = shard.place(shapes, 2)
    program = lower_chunk(method, shapes, 4, placement).compile()
    kernels = (kernel for loop in hlo.read(program.as_text()).main().walk() for kernel in loop.kernels)
    told = [each.instruction for each in kernels if each.instruction.opcode.startswith(hlo.COLLECTIVES)]
    return {
        "told": max((each.bytes for each in told), default=0),
        "observations": memory.tree_bytes(shapes.replay.rows.obs),
        "own": memory.argument_bytes(program),
        "all": memory.tree_bytes(shapes),
    }


if __name__ == "__main__":
    method = independent.build(ENV, CONFIG)
    # One chunk of the length that ``collectives`` compiles, so that it is compiled once.
    options: Any = {"env_steps": 100, "eval_every": 100, "log_every": 100, "quiet": True, "seeds": 4}
    spread = train(method, ENV, devices=2, **options).state
    alone = tree.concat([train(method, ENV, members=part, **options).state for part in ((0, 2), (2, 4))])
    pairs = zip(state_arrays.to_arrays(spread).values(), state_arrays.to_arrays(alone).values(), strict=True)
    answer = {
        "devices": len(spread.generation.sharding.device_set),
        "difference": max(float(np.abs(np.float64(x) - np.float64(y)).max()) for x, y in pairs if x.size),
        "collectives": on_devices.collectives(method, 4, 2),
        "population": population(),
    }
    print(json.dumps(answer))
