"""PureJaxRL's PPO for continuous actions; from the folder ``purejaxrl`` of a checkout of its repository on
the path, which imports navix, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from benchmarks.trainers import Cannot, Training, Work

ALGORITHMS = ("ppo",)
UNITS = 256  # width of its two hidden layers


def build(work: Work) -> Training:
    """Return the trainer, whose policy cannot be reached.

    Its training is one function from the seed to the end, so a chunk is a whole run, vmapped as in its
    examples. Its module has fixed widths of layers; ``dense`` replaces them.
    """
    if work.task not in ("Pendulum-v1", "brax/hopper"):
        raise Cannot("plays Brax's tasks with continuous actions")
    if len(set(work.hidden)) > 1 or len(work.hidden) != 2:
        raise Cannot("has two hidden layers of one width")
    import jax
    import ppo_continuous_action as purejaxrl
    from brax import envs
    from flax import linen as nn

    from benchmarks.trainers import on_brax

    def dense(units: int, **options: Any) -> nn.Module:
        return nn.Dense(work.hidden[0] if units == UNITS else units, **options)

    purejaxrl.nn = SimpleNamespace(**vars(nn) | {"Dense": dense})
    envs.register_environment("pendulum", lambda backend: on_brax.Pendulum())
    train = purejaxrl.make_train(
        {
            "ENV_NAME": "hopper" if work.task == "brax/hopper" else "pendulum",  # with positional physics
            "NUM_ENVS": work.lanes,
            "NUM_STEPS": work.steps,
            "TOTAL_TIMESTEPS": work.iterations * work.lanes * work.steps,
            "UPDATE_EPOCHS": work.epochs,
            "NUM_MINIBATCHES": work.minibatches,
            "LR": work.learning_rate,
            "ANNEAL_LR": False,
            "GAMMA": work.discount,
            "GAE_LAMBDA": work.trace_decay,
            "ENT_COEF": work.entropy_weight,
            "CLIP_EPS": 0.2,
            "VF_COEF": 0.5,
            "MAX_GRAD_NORM": 0.5,
            "ACTIVATION": "tanh",
            "NORMALIZE_ENV": False,
        }
    )
    program = jax.jit(train if work.population == 1 else jax.vmap(train))
    key = jax.random.PRNGKey(work.seed)
    keys = key if work.population == 1 else jax.random.split(key, work.population)

    def chunk() -> int:
        jax.block_until_ready(program(keys)["runner_state"])
        return work.done

    return Training(chunk)
