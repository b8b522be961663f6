"""Other libraries' trainers, and ours, reduced to the loop that is compared.

Each module has ``build(work) -> chunk``: ``chunk()`` trains for ``work.iterations`` and returns how much it
did, summed over agents: SAC's gradient steps, PPO's environment steps. What cannot be built raises
``Cannot``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """The same work for every trainer, on Pendulum-v1.

    SAC: each agent has a replay of its own, and an iteration is one environment step and one gradient step.
    PPO: an iteration is a rollout of ``steps`` in each of ``lanes``, learned from in ``epochs`` of
    ``minibatches``.
    """

    algorithm: str = "sac"
    population: int = 1
    iterations: int = 100
    hidden: tuple[int, ...] = (256, 256)
    batch: int = 256
    capacity: int = 131_072
    lanes: int = 64
    steps: int = 64
    epochs: int = 4
    minibatches: int = 4

    @property
    def done(self) -> int:
        """What a chunk amounts to."""
        each = self.lanes * self.steps if self.algorithm == "ppo" else 1
        return self.iterations * each * self.population


class Cannot(Exception):
    """The trainer has no such thing."""


def scanned(init: Callable[[Any], Any], step: Callable[[Any], Any], work: Work) -> Callable[[], int]:
    """Return the chunk of a trainer that is a pure step of its state: one compiled, donated scan."""
    import jax

    held = [jax.jit(init)(jax.random.PRNGKey(0))]  # of the old kind, which EvoRL asks for

    def chunk(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (step(s), None), state, length=work.iterations)[0]

    program = jax.jit(chunk, donate_argnums=0)

    def run() -> int:
        held[0] = jax.block_until_ready(program(held[0]))
        return work.done

    return run


def each(init: Callable[[Any], Any], step: Callable[[Any], Any], population: int) -> tuple[Any, Any]:
    """Return ``init`` and ``step`` of a population; a single agent is not vmapped."""
    import jax

    if population == 1:
        return init, step
    return lambda key: jax.vmap(init)(jax.random.split(key, population)), jax.vmap(step)
