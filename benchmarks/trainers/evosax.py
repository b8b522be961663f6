"""evosax's OpenAI-ES with its own evaluation of gymnax's tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.trainers import EPISODE, Cannot, Training, Work, scanned

ALGORITHMS = ("es",)


def build(work: Work) -> Training:
    """Return the trainer: ask, evaluate, tell, with the hyperparameters of popjax's ``es``."""
    import jax
    import optax
    from evosax.algorithms import Open_ES
    from evosax.problems import GymnaxProblem
    from evosax.problems.networks import MLP, tanh_output_fn

    if work.population % 2:
        raise Cannot("draws individuals in pairs")

    def torque(x: Any, key: Any = None) -> Any:
        return work.action_scale * tanh_output_fn(x)

    policy = MLP(layer_sizes=(*work.hidden, 1), output_fn=torque)
    problem = GymnaxProblem(work.task, policy, episode_length=EPISODE)
    strategy = Open_ES(
        population_size=work.population,
        solution=problem.sample(jax.random.key(work.seed)),
        optimizer=optax.adam(0.01),
        std_schedule=optax.constant_schedule(0.05),
    )
    numbers = strategy.default_params

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 4)
        mean = problem.sample(keys[1])
        return keys[0], strategy.init(keys[2], mean, numbers), problem.init(keys[3])

    def step(state: Any) -> Any:
        key, search, seen = state
        key, key_ask, key_evaluate, key_tell = jax.random.split(key, 4)
        population, search = strategy.ask(key_ask, search, numbers)
        fitness, seen, _ = problem.eval(key_evaluate, population, seen)
        search, _ = strategy.tell(key_tell, population, -fitness, search, numbers)  # it minimizes
        return key, search, seen

    return scanned(init, step, work)
