"""Play Pong at random in another library's vector environment, a round for every line on standard input.

``atari.py`` starts this with an interpreter that has the library and measures it from outside. Libraries are
set to the same work: four frames a step, of which the last two are combined, 84 x 84 grey, four of them
stacked, up to 30 no-ops at a start, no sticky actions, every lane stepped before any is read. With one no-op
and the same actions, ale-py 0.12.1 and EnvPool 1.2.5 give equal rewards and pictures, except that ale-py
fills the first stack of a game with black frames, EnvPool with the first frame.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks import trainers


def ale(lanes: int, threads: int) -> Any:
    """Return ale-py's vector environment, whose defaults are the settings above."""
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv("pong", num_envs=lanes, num_threads=threads)


def envpool(lanes: int, threads: int) -> Any:
    """Return EnvPool's vector environment, which has the same defaults and an emulator of its own."""
    import envpool

    return envpool.make("Pong-v5", env_type="gymnasium", num_envs=lanes, num_threads=threads)


LIBRARIES = {"ale-py": ale, "envpool": envpool}


def work(name: str, lanes: int, threads: int, steps: int) -> None:
    """Answer with the version after the first round, then with a line after each further round."""
    with trainers.answering() as answer:
        env = LIBRARIES[name](lanes, threads)
        obs, chance = env.reset()[0], np.random.default_rng(0)
        assert (obs.shape, obs.dtype, env.single_action_space.n) == ((lanes, 4, 84, 84), np.uint8, 6)

        def play() -> None:
            for _ in range(steps):
                env.step(chance.integers(6, size=lanes))

        play()
        answer(version=version(name))
        for _ in sys.stdin:
            play()
            answer()


if __name__ == "__main__":
    work(sys.argv[2], *map(json.loads, sys.argv[3:]))
