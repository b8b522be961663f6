"""QDax's SAC and TD3 for PBT: a population with a replay each, trained as between two selections."""

from __future__ import annotations

from typing import Any

from benchmarks.trainers import Training, Work, strong

ALGORITHMS = ("sac", "td3")


def build(work: Work) -> Training:
    """Return the trainer."""
    import jax
    import jax.numpy as jnp
    from brax import envs
    from brax.envs.wrappers.training import wrap
    from qdax.baselines.sac_pbt import PBTSAC, PBTSacConfig
    from qdax.baselines.td3_pbt import PBTTD3, PBTTD3Config

    from benchmarks.trainers import on_brax

    if work.task == "brax/hopper":
        task, length = envs.get_environment(on_brax.HOPPER), on_brax.HOPPER_EPISODE
    else:
        task, length = on_brax.Pendulum(), on_brax.EPISODE
    env = wrap(task, episode_length=length)
    key, key_env = jax.random.split(jax.random.PRNGKey(work.seed))
    lanes = jax.jit(jax.vmap(env.reset))(jax.random.split(key_env, (work.population, 1)))
    sizes = {
        "batch_size": work.batch,
        "episode_length": length,
        "policy_hidden_layer_size": work.hidden,
        "critic_hidden_layer_size": work.hidden,
    }
    numbers = {"policy_lr": work.learning_rate, "critic_lr": work.learning_rate, "discount": work.discount}
    if work.algorithm == "sac":
        agent = PBTSAC(config=PBTSacConfig(**sizes, tau=work.polyak), action_size=env.action_size)
        numbers |= {"alpha_lr": work.learning_rate, "reward_scaling": 1.0}
    else:
        config = PBTTD3Config(**sizes, soft_tau_update=work.polyak)
        agent = PBTTD3(config=config, action_size=env.action_size)
        numbers |= {"policy_noise": 0.2, "noise_clip": 0.5, "expl_noise": 0.1}
    init = agent.get_init_fn(
        population_size=work.population,
        action_size=env.action_size,
        observation_size=lanes.obs.shape[-1],
        buffer_size=work.capacity,
    )
    train = agent.get_train_fn(
        env=env, num_iterations=work.iterations, env_batch_size=1, grad_updates_per_step=1
    )
    states, replays = jax.jit(init)(key)
    for name, value in numbers.items():
        states = states.replace(**{name: jnp.full_like(getattr(states, name), value)})  # drawn for the search
    held = [jax.tree.map(jnp.copy, strong((states, lanes, replays)))]  # some leaves are one array
    program = jax.jit(lambda *state: strong(train(*state)[0]), donate_argnums=(0, 1, 2))

    def chunk() -> int:
        held[0] = jax.block_until_ready(program(*held[0]))
        return work.done

    @jax.jit
    def act(params: Any, obs: Any) -> Any:
        greedy = {"deterministic": True} | ({"expl_noise": 0.0} if work.algorithm == "td3" else {})
        choose = jax.vmap(lambda own, seen: agent.select_action(seen, own, key, **greedy))
        return work.action_scale * choose(params, obs)

    return Training(chunk, lambda obs: act(held[0][0].policy_params, obs))
