"""rejax's SAC, TD3 and PPO, as its ``train`` runs them."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.trainers import ACTION, MADE_UP, OBS, Training, Work, every, made_up, task_class

ALGORITHMS = ("sac", "td3", "ppo")
DELAY = 2  # steps of TD3's critics for one of its actor


def build(work: Work) -> Training:
    """Return the trainer: ``train_iteration`` of a population, vmapped as rejax's examples do."""
    import jax.numpy as jnp
    from flax import linen as nn
    from rejax import PPO, SAC, TD3
    from rejax.buffers import Minibatch
    from rejax.networks import DeterministicPolicy, QNetwork

    common = {"env": _task(work.task), "skip_initial_evaluation": True}
    if work.algorithm == "ppo":
        algorithm = PPO.create(
            **common,
            agent_kwargs={"hidden_layer_sizes": work.hidden, "activation": "tanh"},
            num_envs=work.lanes,
            num_steps=work.steps,
            num_epochs=work.epochs,
            num_minibatches=work.minibatches,
            learning_rate=work.learning_rate,
            gamma=work.discount,
            gae_lambda=work.trace_decay,
            ent_coef=work.entropy_weight,
        )
    else:
        replay = {
            "buffer_size": work.capacity,
            "fill_buffer": work.batch,
            "batch_size": work.batch,
            "num_envs": work.lanes,
            "num_epochs": work.lanes,
            "learning_rate": work.learning_rate,
            "gamma": work.discount,
            "polyak": 1 - work.polyak,
        }
        if work.algorithm == "sac":
            algorithm = SAC.create(**common, **replay, hidden_layer_sizes=work.hidden)
        else:
            algorithm = TD3.create(**common, **replay, exploration_noise=0.1, policy_delay=DELAY)
            # Its ``create`` has no argument for the widths.
            layers = {"hidden_layer_sizes": work.hidden, "activation": nn.relu}
            actor = DeterministicPolicy(algorithm.actor.action_dim, algorithm.actor.action_range, **layers)
            algorithm = algorithm.replace(actor=actor, critic=QNetwork(**layers))

    def act(state: Any, obs: Any) -> Any:
        if work.algorithm == "td3":
            return algorithm.actor.apply(state.actor_ts.params, obs)
        found = algorithm.actor.apply(state.actor_ts.params, obs, method="_action_dist").mode()
        return found if algorithm.discrete else work.action_scale * jnp.tanh(found)

    each = DELAY if work.algorithm == "td3" else 1
    if work.task == MADE_UP:
        batches = (Minibatch(**made_up(work, each)),)
        step = partial(_update_td3 if work.algorithm == "td3" else _update_sac, algorithm)
        return every(algorithm.init_state, step, work, act, each, batches)
    return every(algorithm.init_state, algorithm.train_iteration, work, act, each)


def _update_sac(algorithm: Any, state: Any, batch: Any) -> Any:
    """Return the state after a gradient step on a batch and the step of the targets that follows it."""
    state = algorithm.update(state, batch)
    targets = algorithm.maybe_update_target_params(state.critic_ts.params, state.critic_target_params, 1, 0)
    return state.replace(critic_target_params=targets)


def _update_td3(algorithm: Any, state: Any, batches: Any) -> Any:
    """Return the state after a gradient step of the critics on each of ``DELAY`` batches, one of the actor on
    the last, and one of the targets."""
    for turn in range(DELAY):
        batch = type(batches)(*(x[turn] for x in batches))
        state = algorithm.update_critic(state, batch)
    state = algorithm.update_actor(state, batch)
    critic, actor = (
        algorithm.maybe_update_target_params(own.params, target, 1, 0)
        for own, target in (
            (state.critic_ts, state.critic_target_params),
            (state.actor_ts, state.actor_target_params),
        )
    )
    return state.replace(critic_target_params=critic, actor_target_params=actor)


def _task(name: str) -> Any:
    """Return the task with the step of gymnax 0.0: rejax 0.1 unpacks five values, gymnax 1.0 returns six."""
    if name == MADE_UP:
        import jax.numpy as jnp
        from gymnax.environments import spaces
        from gymnax.environments.environment import Environment

        class Shapes(Environment):
            """An environment with HalfCheetah's shapes that cannot be played."""

            def reset(self, key: Any, params: Any = None) -> Any:
                return jnp.zeros(OBS), jnp.zeros(())

            def observation_space(self, params: Any) -> Any:
                return spaces.Box(-jnp.inf, jnp.inf, (OBS,))

            def action_space(self, params: Any = None) -> Any:
                return spaces.Box(-1, 1, (ACTION,))

        return Shapes()
    if name == "brax/hopper":
        from brax.envs import create
        from rejax.compat.brax2gymnax import Brax2GymnaxEnv

        from benchmarks.trainers import on_brax

        class OwnStep(Brax2GymnaxEnv):
            """Brax's task without gymnax's reset: Brax's wrappers count the steps and reset."""

            def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
                return self.step_env(key, state, action, params)

        return OwnStep(create(on_brax.HOPPER, on_brax.HOPPER_EPISODE))

    class FiveValues(task_class(name)):
        """A gymnax task whose step returns five values."""

        def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
            obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
            return obs, state, reward, terminated | truncated, info

    return FiveValues()
