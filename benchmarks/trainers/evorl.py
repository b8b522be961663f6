"""EvoRL's SAC and PPO workflows, vmapped as its PBT does; from a checkout of its repository on the path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.trainers import MADE_UP, Cannot, Training, Work, every, task_class

ALGORITHMS = ("sac", "ppo")


def build(work: Work) -> Training:
    """Return the trainer: ``step`` of the workflow, vmapped over a population of several agents."""
    if work.task == MADE_UP:
        raise Cannot("takes gradient steps only where it plays")
    import evorl
    import jax
    from evorl.algorithms.ppo import PPOWorkflow
    from evorl.algorithms.sac import SACWorkflow
    from evorl.sample_batch import SampleBatch
    from omegaconf import OmegaConf

    root = Path(evorl.__file__).resolve().parents[1]
    config = OmegaConf.load(root / "configs" / "agent" / f"{work.algorithm}.yaml")
    config.merge_with(
        {
            "env": _task(work.task),
            "checkpoint": {"enable": False},
            "output_dir": "",
            "seed": 0,
            "enable_jit": True,
        }
    )
    widths = list(work.hidden)
    if work.algorithm == "ppo":
        config.merge_with(
            {
                "num_envs": work.lanes,
                "rollout_length": work.steps,
                "minibatch_size": work.lanes * work.steps // work.minibatches,
                "reuse_rollout_epochs": work.epochs,
                "optimizer": {"lr": work.learning_rate},
                "discount": work.discount,
                "gae_lambda": work.trace_decay,
                "loss_weights": {"actor_entropy": -work.entropy_weight},
                "agent_network": {"actor_hidden_layer_sizes": widths, "critic_hidden_layer_sizes": widths},
            }
        )
        workflow: Any = PPOWorkflow.build_from_config(config)
    else:
        config.merge_with(
            {
                "num_envs": work.lanes,
                "rollout_length": 1,
                "num_updates_per_iter": work.lanes,
                "actor_update_interval": 1,
                "adaptive_alpha": True,
                "alpha": 1.0,
                "optimizer": {"lr": work.learning_rate},
                "discount": work.discount,
                "tau": work.polyak,
                "batch_size": work.batch,
                "replay_buffer_capacity": work.capacity,
                "random_timesteps": work.batch,
                "learning_start_timesteps": work.batch,
                "agent_network": {"actor_hidden_layer_sizes": widths, "critic_hidden_layer_sizes": widths},
            }
        )
        workflow = SACWorkflow.build_from_config(config)

    def act(state: Any, obs: Any) -> Any:
        sample = SampleBatch(obs=obs)
        found = workflow.agent.evaluate_actions(state.agent_state, sample, jax.random.PRNGKey(0))[0]
        return work.action_scale * found

    return every(workflow.init, lambda state: workflow.step(state)[1], work, act)


def _task(name: str) -> dict[str, Any]:
    """Return EvoRL's description of a task; if it is of gymnax, let ``gymnax.make`` return it from now on."""
    if name == "brax/hopper":
        from benchmarks.trainers import on_brax

        return {
            "env_name": on_brax.HOPPER,
            "env_type": "brax",
            "max_episode_steps": on_brax.HOPPER_EPISODE,
        }
    import gymnax

    task = task_class(name)

    class Discounted(task):
        """A task that reports a discount, as gymnax 0.0 did and EvoRL expects."""

        def step_env(self, *state: Any) -> Any:
            obs, moved, reward, terminated, info = super().step_env(*state)
            return obs, moved, reward, terminated, info | {"discount": 1.0 - terminated}

    gymnax.make = lambda name: (Discounted(), task().default_params)
    length = task().default_params.max_steps_in_episode
    return {"env_name": name, "env_type": "gymnax", "max_episode_steps": length}
