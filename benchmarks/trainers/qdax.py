"""QDax's SAC for PBT: a population with a replay each, trained as between two selections."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.trainers import Cannot, Work


def build(work: Work) -> Callable[[], int]:
    """Return the chunk."""
    import jax
    import jax.numpy as jnp
    from brax.envs.wrappers.training import wrap
    from qdax.baselines.sac_pbt import PBTSAC, PBTSacConfig

    from benchmarks.trainers import on_brax

    if work.algorithm == "ppo":
        raise Cannot("has no PPO")
    env = wrap(on_brax.Pendulum(), episode_length=on_brax.EPISODE)
    config = PBTSacConfig(
        batch_size=work.batch,
        episode_length=on_brax.EPISODE,
        policy_hidden_layer_size=work.hidden,
        critic_hidden_layer_size=work.hidden,
    )
    agent = PBTSAC(config=config, action_size=1)
    init = agent.get_init_fn(
        population_size=work.population, action_size=1, observation_size=3, buffer_size=work.capacity
    )
    train = agent.get_train_fn(
        env=env, num_iterations=work.iterations, env_batch_size=1, grad_updates_per_step=1
    )
    key, key_env = jax.random.split(jax.random.PRNGKey(0))
    states, replays = jax.jit(init)(key)
    lanes = jax.vmap(env.reset)(jax.random.split(key_env, (work.population, 1)))
    held = [jax.tree.map(jnp.copy, (states, lanes, replays))]  # of which leaves are one array
    program = jax.jit(lambda *state: train(*state)[0], donate_argnums=(0, 1, 2))

    def chunk() -> int:
        held[0] = jax.block_until_ready(program(*held[0]))
        return work.done

    return chunk
