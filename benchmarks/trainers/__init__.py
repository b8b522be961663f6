"""Other libraries' trainers, and ours, reduced to the loop that is compared.

Each module has ``ALGORITHMS`` and ``build(work) -> Training``. What cannot be built raises ``Cannot``.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

PEERS = ("rejax", "sbx", "qdax", "brax", "evorl", "evosax", "purejaxrl")
"""Modules of the other trainers."""
EPISODE = 200  # environment steps of Pendulum
MADE_UP = "made-up/HalfCheetah"
ABSENT = "not installed"
"""Beginning of the reason why a trainer whose library is absent cannot be measured."""
OBS, ACTION = 17, 6  # numbers in an observation and in an action of HalfCheetah


@dataclass(frozen=True)
class Work:
    """The same work for every trainer, on Pendulum-v1, CartPole-v1, Breakout-MinAtar or brax/hopper, which is
    Brax's Hopper with positional physics as each library wraps it; or on ``MADE_UP`` batches alone.

    SAC, TD3: each agent has its own replay, and an iteration is one environment step in each of ``lanes`` and
    as many gradient steps, of which TD3's actor takes every second one. On ``MADE_UP``, an iteration is a
    gradient step, nothing is played and no replay is drawn from.
    PPO: an iteration is a rollout of ``steps`` in each of ``lanes``, learned from in ``epochs`` of
    ``minibatches``.
    ES: OpenAI's strategy. An iteration is a generation of ``population`` individuals, who play an episode of
    ``EPISODE`` steps each in Pendulum; observations are normalized.
    """

    algorithm: str = "sac"
    task: str = "Pendulum-v1"
    population: int = 1
    iterations: int = 100
    calls: int = 1  # calls of the compiled program of ``iterations`` in a timed chunk
    hidden: tuple[int, ...] = (256, 256)
    batch: int = 256
    capacity: int = 131_072
    lanes: int = 1
    steps: int = 64
    epochs: int = 4
    minibatches: int = 4
    seed: int = 0
    learning_rate: float = 3e-4
    discount: float = 0.99
    trace_decay: float = 0.95
    polyak: float = 0.005
    entropy_weight: float = 0.0  # of PPO

    @property
    def action_scale(self) -> int:
        """Factor from a policy's actions to the task's; in Pendulum they go from [-1, 1] to [-2, 2]."""
        return 2 if self.task == "Pendulum-v1" else 1

    @property
    def done(self) -> int:
        """Units of work in a call."""
        each = {"ppo": self.lanes * self.steps, "es": EPISODE}.get(self.algorithm, self.lanes)
        return self.iterations * each * self.population


@dataclass(frozen=True)
class Training:
    """A trainer that stays compiled."""

    chunk: Callable[[], int]
    """Train for ``work.iterations``; return what was done, summed over agents: gradient steps of SAC and TD3,
    environment steps of PPO and ES."""
    act: Callable[[Any], Any] | None = None
    """Observations [P, B, ...] of every agent -> its most likely actions: torques [P, B, A] or int
    [P, B]."""


class Cannot(Exception):
    """The trainer cannot do the work; the message says why."""


def sent(amount: dict[str, Any]) -> Work:
    """Return the work that was sent as JSON, which has no tuples."""
    return Work(**amount | {"hidden": tuple(amount["hidden"])})


@contextmanager
def answering() -> Iterator[Callable[..., None]]:
    """Provide a function that prints its arguments as a line of JSON; from here on, nothing else goes to
    standard output. An error inside is printed as such a line, too: why the trainer cannot do the work."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep what libraries print out of the answers

    def answer(**said: Any) -> None:
        print(json.dumps(said), file=answers, flush=True)

    try:
        yield answer
    except Cannot as error:
        answer(cannot=str(error))
    except ImportError as error:
        answer(cannot=f"{ABSENT}: {error}")
    except Exception as error:  # such as a device without enough memory
        answer(cannot=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")


def build(name: str, work: Work) -> Training:
    """Return the trainer ``name`` for ``work``.

    Raises:
        Cannot: it cannot do the work.
        ImportError: it is not installed.
    """
    module = importlib.import_module(f"benchmarks.trainers.{name}")
    if work.algorithm not in module.ALGORITHMS:
        raise Cannot(f"has no {work.algorithm.upper()}")
    return module.build(work)


def task_class(name: str) -> Any:
    """Return gymnax's class of a task; frames of Breakout are vectors, so that all have the same layers."""
    from gymnax.environments import spaces
    from gymnax.environments.classic_control import cartpole, pendulum
    from gymnax.environments.minatar import breakout

    class Breakout(breakout.MinBreakout):
        """MinAtar's Breakout with observations [400]."""

        def get_obs(self, *state: Any, **further: Any) -> Any:
            return super().get_obs(*state, **further).reshape(-1)

        def observation_space(self, params: Any) -> Any:
            return spaces.Box(0, 1, (400,))

    known = {"Pendulum-v1": pendulum.Pendulum, "CartPole-v1": cartpole.CartPole}
    return (known | {"Breakout-MinAtar": Breakout})[name]


def strong(state: Any) -> Any:
    """Return the state without the weak types that Brax's Hopper and some trainers leave in it, so that a
    second chunk need not be compiled."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)


def scanned(
    init: Callable[[Any], Any],
    step: Callable[..., Any],
    work: Work,
    act: Callable[[Any, Any], Any] | None = None,
    each: int = 1,
    batches: tuple[Any, ...] = (),
) -> Training:
    """Return the trainer whose chunk is one compiled, donated scan of a pure ``step`` of its state.

    ``act`` is ``Training.act`` with the state as first argument; ``each`` is the number of iterations of a
    step. If there are ``batches`` (one tree [steps, ...]), a step gets its batch as second argument.
    """
    import jax

    # Keys of the old kind, which EvoRL asks for.
    held = [jax.jit(lambda key: strong(init(key)))(jax.random.PRNGKey(work.seed))]
    turns = -(-work.iterations // each)
    done = replace(work, iterations=turns * each).done

    def chunk(state: Any, batches: tuple[Any, ...]) -> Any:
        return strong(jax.lax.scan(lambda s, own: (step(s, *own), None), state, batches, length=turns)[0])

    program = jax.jit(chunk, donate_argnums=0)

    def run() -> int:
        held[0] = jax.block_until_ready(program(held[0], batches))
        return done

    if act is None:
        return Training(run)
    choose = jax.jit(act)
    return Training(run, lambda obs: choose(held[0], obs))


def every(
    init: Callable[[Any], Any],
    step: Callable[..., Any],
    work: Work,
    act: Callable[[Any, Any], Any],
    each: int = 1,
    batches: tuple[Any, ...] = (),
) -> Training:
    """Return the trainer of ``work.population`` agents from these functions of one agent; a single agent is
    not vmapped.

    ``act`` is (state, observations [B, ...]) -> the most likely actions; ``each`` and ``batches``
    [steps, P, ...] as in ``scanned``.
    """
    import jax

    if work.population == 1:
        alone = jax.tree.map(lambda x: x[:, 0], batches)
        return scanned(init, step, work, lambda state, obs: act(state, obs[0])[None], each, alone)

    def begin(key: Any) -> Any:
        return jax.vmap(init)(jax.random.split(key, work.population))

    return scanned(begin, jax.vmap(step), work, jax.vmap(act), each, batches)


def made_up(work: Work, each: int = 1) -> dict[str, Any]:
    """Return batches of transitions drawn uniformly from [0, 1), none of which ends an episode, like those on
    which fastpbrl times its updates: ``obs`` and ``next_obs`` [steps, P, B, OBS], ``action`` [steps, P, B,
    ACTION], ``reward`` and ``done`` [steps, P, B]. With ``each`` above 1, a step has ``each`` batches,
    [steps, P, each, B, ...].
    """
    import jax
    import jax.numpy as jnp

    shape = (work.iterations // each, work.population, *((each,) if each > 1 else ()), work.batch)
    ends = {"obs": (OBS,), "next_obs": (OBS,), "action": (ACTION,), "reward": ()}
    keys = jax.random.split(jax.random.key(work.seed), len(ends))
    drawn = {
        name: jax.random.uniform(key, shape + end)
        for key, (name, end) in zip(keys, ends.items(), strict=True)
    }
    return drawn | {"done": jnp.zeros(shape)}
