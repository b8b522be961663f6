"""Compiled programs, timed one after another in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class Program:
    """A compiled, donated chunk with its state; a call advances the state and returns the seconds taken."""

    def __init__(self, init: Callable[[Any], Any], step: Callable[[Any], Any], length: int) -> None:
        self.state = jax.jit(init)(jax.random.key(0))

        def chunk(state: Any) -> Any:
            return jax.lax.scan(lambda s, _: (step(s), None), state, length=length)[0]

        begun = time.perf_counter()
        self.compiled = jax.jit(chunk, donate_argnums=0).lower(self.state).compile()
        self.compile_seconds = time.perf_counter() - begun

    def __call__(self) -> float:
        begun = time.perf_counter()
        self.state = jax.block_until_ready(self.compiled(self.state))
        return time.perf_counter() - begun


def in_turn(programs: Mapping[str, Program], repeats: int) -> dict[str, list[float]]:
    """Advance every program once a round, so that a noisy machine is noisy for all; return the seconds per
    environment step of each in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            before = int(program.state.env_steps)
            elapsed = program()
            seconds[name].append(elapsed / (int(program.state.env_steps) - before))
    return seconds
