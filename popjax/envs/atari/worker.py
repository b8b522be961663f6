"""Program of a worker process: a console that plays the lanes found in shared memory.

    python worker.py SETTINGS

A byte on standard input gives the number of lanes to play. The answer on standard output is a byte, 0, or 1
and a line with the reason why they cannot be played. The process keeps no state between requests and ends
when its input does. It is started by its path, so that it imports only NumPy and ale-py.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np

Part: TypeAlias = tuple[tuple[int, ...], Any]
"""Shape and dtype of an array."""


def layout(lanes: int, frames: int, state_size: int, shape: tuple[int, ...]) -> list[Part]:
    """Return shapes and dtypes of the inputs (states, codes, counts) and outputs (``Played``) of lanes."""
    inward = [((lanes, state_size), np.uint8), ((lanes, frames), np.int32), ((lanes,), np.int32)]
    outward = [((lanes, state_size), np.uint8), ((lanes, *shape), np.uint8), ((lanes,), np.float32)]
    return [*inward, *outward, ((lanes,), np.bool_), ((lanes,), np.bool_)]


def views(memory: mmap.mmap, parts: list[Part]) -> list[np.ndarray]:
    """Return arrays in ``memory``, one after the other."""
    found, offset = [], 0
    for shape, dtype in parts:
        found.append(np.ndarray(shape, dtype, memory, offset))
        offset += padded(shape, dtype)
    return found


def padded(shape: tuple[int, ...], dtype: Any) -> int:
    """Return the bytes of an array, up to where the next may begin."""
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 8) * 8


def main() -> None:
    """Play until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the trainer, which saves first
    settings = json.loads(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # the emulator's output is not part of the answers
    from console import Console

    console = Console(settings["game"], **settings["options"])
    parts = layout(settings["lanes"], settings["frames"], console.state_size, console.shape)
    memory = mmap.mmap(settings["memory"], sum(padded(*part) for part in parts))
    arrays = views(memory, parts)
    while asked := os.read(0, 1):
        given, answered = ([x[: asked[0]] for x in half] for half in (arrays[:3], arrays[3:]))
        try:
            played = console.play(*given)
        except RuntimeError as failure:
            os.write(answers, b"\1" + str(failure).encode() + b"\n")
            continue
        for place, x in zip(answered, played, strict=True):
            place[:] = x
        os.write(answers, b"\0")


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the trainer has gone
        main()
