"""QDax's SAC and TD3 for PBT: agents with a replay each, trained as between two selections."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from benchmarks.trainers import ACTION, MADE_UP, OBS, Training, Work, every, made_up, strong

ALGORITHMS = ("sac", "td3")


class Drawn(NamedTuple):
    """Stands in for a replay from which ``rows`` [B, ...] are drawn."""

    rows: Any

    def sample(self, key: Any, sample_size: int) -> Any:
        """Return the rows."""
        return self.rows


def build(work: Work) -> Training:
    """Return the trainer."""
    import jax
    import jax.numpy as jnp
    from brax.envs.wrappers.training import wrap
    from qdax.core.neuroevolution.buffers.buffer import Transition

    from benchmarks.trainers import on_brax

    if work.task == MADE_UP:
        agent, numbers = _agent(work, length=1_000, action_size=ACTION)

        def init(key: Any) -> Any:
            return _told(agent.init(key, ACTION, OBS), numbers)

        def step(state: Any, rows: Any) -> Any:
            return agent.update(state, Drawn(rows))[0]

        told = made_up(work)
        rows = Transition(
            obs=told["obs"],
            next_obs=told["next_obs"],
            rewards=told["reward"],
            dones=told["done"],
            truncations=told["done"],
            actions=told["action"],
        )
        return every(init, step, work, lambda state, obs: _act(agent, work, state, obs), batches=(rows,))

    task, length = on_brax.task(work.task)
    env = wrap(task, episode_length=length)
    key, key_env = jax.random.split(jax.random.PRNGKey(work.seed))
    lanes = jax.jit(jax.vmap(env.reset))(jax.random.split(key_env, (work.population, work.lanes)))
    agent, numbers = _agent(work, length, env.action_size)
    begin = agent.get_init_fn(
        population_size=work.population,
        action_size=env.action_size,
        observation_size=lanes.obs.shape[-1],
        buffer_size=work.capacity,
    )
    train = agent.get_train_fn(
        env=env, num_iterations=work.iterations, env_batch_size=work.lanes, grad_updates_per_step=1
    )
    states, replays = jax.jit(begin)(key)
    states = _told(states, numbers)
    held = [jax.tree.map(jnp.copy, strong((states, lanes, replays)))]  # some leaves share an array
    program = jax.jit(lambda *state: strong(train(*state)[0]), donate_argnums=(0, 1, 2))

    def chunk() -> int:
        held[0] = jax.block_until_ready(program(*held[0]))
        return work.done

    act = jax.jit(jax.vmap(partial(_act, agent, work)))
    return Training(chunk, lambda obs: act(held[0][0], obs))


def _agent(work: Work, length: int, action_size: int) -> tuple[Any, dict[str, float]]:
    """Return the agent and its hyperparameters that a search would draw, for episodes of ``length``."""
    from qdax.baselines.sac_pbt import PBTSAC, PBTSacConfig
    from qdax.baselines.td3_pbt import PBTTD3, PBTTD3Config

    sizes = {
        "batch_size": work.batch,
        "episode_length": length,
        "policy_hidden_layer_size": work.hidden,
        "critic_hidden_layer_size": work.hidden,
    }
    numbers = {"policy_lr": work.learning_rate, "critic_lr": work.learning_rate, "discount": work.discount}
    if work.algorithm == "sac":
        agent = PBTSAC(config=PBTSacConfig(**sizes, tau=work.polyak), action_size=action_size)
        return agent, numbers | {"alpha_lr": work.learning_rate, "reward_scaling": 1.0}
    agent = PBTTD3(config=PBTTD3Config(**sizes, soft_tau_update=work.polyak), action_size=action_size)
    return agent, numbers | {"policy_noise": 0.2, "noise_clip": 0.5, "expl_noise": 0.1}


def _told(states: Any, numbers: dict[str, float]) -> Any:
    """Return the states with these hyperparameters in place of those drawn for a search."""
    import jax.numpy as jnp

    return states.replace(**{name: jnp.full_like(getattr(states, name), x) for name, x in numbers.items()})


def _act(agent: Any, work: Work, state: Any, obs: Any) -> Any:
    """Return the most likely actions of one agent."""
    import jax

    greedy = {"deterministic": True} | ({"expl_noise": 0.0} if work.algorithm == "td3" else {})
    return work.action_scale * agent.select_action(obs, state.policy_params, jax.random.PRNGKey(0), **greedy)
