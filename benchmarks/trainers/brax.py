"""Brax's own SAC and PPO."""

from __future__ import annotations

import queue
import threading
from functools import partial
from typing import Any

from benchmarks.trainers import MADE_UP, Cannot, Training, Work

ALGORITHMS = ("sac", "ppo")

CHUNKS = 1_000  # more than anyone asks for


def build(work: Work) -> Training:
    """Return the trainer, whose policy cannot be reached between its epochs.

    ``train`` is one function, so it runs in a thread, which waits in the callback that Brax calls between its
    epochs. The evaluation that Brax makes there is on a task that costs nothing.
    """
    if work.population > 1:
        raise Cannot("trains one agent a program")
    import jax
    import jax.numpy as jnp
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.ppo import train as ppo
    from brax.training.agents.sac import networks as sac_networks
    from brax.training.agents.sac import train as sac

    from benchmarks.trainers import on_brax

    if work.task == MADE_UP:
        raise Cannot("takes gradient steps only where it plays")
    task, length = on_brax.task(work.task)
    if work.task == "brax/hopper":
        still = on_brax.Still(*on_brax.HOPPER_SIZES)
    else:
        still = on_brax.Still(task.observation_size, task.action_size)
    if not hasattr(jax, "device_put_replicated"):  # Brax 0.14 calls it, and JAX 0.10 lacks it
        jax.device_put_replicated = lambda x, devices: jax.tree.map(
            lambda leaf: jnp.stack([leaf] * len(devices)), x
        )
    go: queue.Queue[Any] = queue.Queue()
    came: queue.Queue[Any] = queue.Queue()

    def wait(steps: int, metrics: Any) -> None:
        came.put(None)
        go.get()

    def reach() -> None:
        """Wait until an epoch has ended, or raise the error that ended training."""
        if error := came.get():
            raise error

    common = {
        "environment": task,
        "eval_env": still,
        "episode_length": length,
        "num_timesteps": work.done * CHUNKS,
        "num_evals": CHUNKS + 1,
        "num_eval_envs": 1,
        "progress_fn": wait,
        "learning_rate": work.learning_rate,
        "discounting": work.discount,
        "seed": work.seed,
    }
    if work.algorithm == "ppo":
        train = partial(
            ppo.train,
            **common,
            num_envs=work.lanes,
            unroll_length=work.steps,
            num_minibatches=work.minibatches,
            batch_size=work.lanes // work.minibatches,
            num_updates_per_batch=work.epochs,
            gae_lambda=work.trace_decay,
            entropy_cost=work.entropy_weight,
            network_factory=partial(
                ppo_networks.make_ppo_networks,
                policy_hidden_layer_sizes=work.hidden,
                value_hidden_layer_sizes=work.hidden,
                activation=jax.nn.tanh,
            ),
        )
    else:
        train = partial(
            sac.train,
            **common,
            num_envs=work.lanes,
            batch_size=work.batch,
            min_replay_size=work.batch,
            max_replay_size=work.capacity,
            grad_updates_per_step=work.lanes,
            tau=work.polyak,
            network_factory=partial(sac_networks.make_sac_networks, hidden_layer_sizes=work.hidden),
        )

    def run() -> None:
        try:
            train()
        except Exception as error:
            came.put(error)

    threading.Thread(target=run, daemon=True).start()
    reach()

    def chunk() -> int:
        go.put(None)
        reach()
        return work.done

    return Training(chunk)
