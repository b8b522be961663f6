"""SBX's SAC, TD3 and PPO: Stable-Baselines3 with compiled updates, environments in Python, one agent each."""

from __future__ import annotations

from typing import Any

from benchmarks.trainers import ACTION, MADE_UP, OBS, Cannot, Training, Work, made_up

ALGORITHMS = ("sac", "td3", "ppo")


def build(work: Work) -> Training:
    """Return the trainer: ``learn``, continued for the steps of a chunk."""
    if work.population > 1:
        raise Cannot("trains one agent a process")
    import gymnasium
    import numpy as np
    from sbx import PPO, SAC, TD3
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv

    if work.task in ("Breakout-MinAtar", "brax/hopper"):
        raise Cannot("plays Gymnasium's tasks, not those of gymnax or Brax")
    widths = list(work.hidden)
    if work.task == MADE_UP:
        return _updates(work)
    if work.algorithm == "ppo":
        model = PPO(
            "MlpPolicy",
            DummyVecEnv([lambda: gymnasium.make(work.task)] * work.lanes),
            n_steps=work.steps,
            n_epochs=work.epochs,
            batch_size=work.lanes * work.steps // work.minibatches,
            policy_kwargs={"net_arch": widths},
            learning_rate=work.learning_rate,
            gamma=work.discount,
            gae_lambda=work.trace_decay,
            ent_coef=work.entropy_weight,
            seed=work.seed,
        )
    else:
        env = gymnasium.make(work.task)
        noise = NormalActionNoise(np.zeros(env.action_space.shape), 0.1 * np.ones(env.action_space.shape))
        model = (SAC if work.algorithm == "sac" else TD3)(
            "MlpPolicy",
            env,
            action_noise=noise if work.algorithm == "td3" else None,
            batch_size=work.batch,
            buffer_size=work.capacity,
            learning_starts=work.batch,
            train_freq=1,
            gradient_steps=1,
            policy_kwargs={"net_arch": widths},
            learning_rate=work.learning_rate,
            gamma=work.discount,
            tau=work.polyak,
            seed=work.seed,
        )
        model.learn(2 * work.batch)

    def chunk() -> int:
        model.learn(work.done, reset_num_timesteps=False)
        return work.done

    def act(obs: Any) -> Any:
        return model.predict(np.asarray(obs[0]), deterministic=True)[0][None]

    return Training(chunk, act)


def _updates(work: Work) -> Training:
    """Return the trainer that only calls ``train``, with a replay that always draws the same rows."""
    import gymnasium
    import numpy as np
    import torch
    from sbx import SAC, TD3
    from stable_baselines3.common.buffers import ReplayBufferSamples
    from stable_baselines3.common.logger import Logger

    class Shapes(gymnasium.Env):
        """An environment with HalfCheetah's shapes that cannot be played."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,))
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,))

    rows = {
        name: torch.tensor(np.reshape(x, (work.iterations * work.batch, -1)))
        for name, x in made_up(work).items()
    }
    drawn = ReplayBufferSamples(
        observations=rows["obs"],
        actions=rows["action"],
        next_observations=rows["next_obs"],
        dones=rows["done"],
        rewards=rows["reward"],
    )

    class Drawn:
        """Stands in for a replay."""

        def sample(self, count: int, env: Any = None) -> ReplayBufferSamples:
            """Return all rows."""
            assert count == len(drawn.rewards)
            return drawn

    model = (SAC if work.algorithm == "sac" else TD3)(
        "MlpPolicy",
        Shapes(),
        batch_size=work.batch,
        buffer_size=1,
        policy_kwargs={"net_arch": list(work.hidden)},
        learning_rate=work.learning_rate,
        gamma=work.discount,
        tau=work.polyak,
        seed=work.seed,
    )
    model.set_logger(Logger(None, []))
    model.replay_buffer = Drawn()

    def chunk() -> int:
        model.train(work.iterations, work.batch)
        return work.done

    return Training(chunk)
