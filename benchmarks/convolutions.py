"""A convolution with a separate kernel for each individual: four ways to compute the same gradient.

    python benchmarks/convolutions.py

times the gradient of DQN's network (for MinAtar and Atari, batch 32) for populations of 1, 4 and, on MinAtar,
16: ``vmap`` of XLA's convolution, which becomes a grouped one; ``lax.map`` over it; and the matrix product of
``popjax.nets`` over patches, under ``vmap`` and under ``lax.map``. It writes the milliseconds of a gradient
of the whole population, the least of several rounds in which the ways take turns, to
``convolutions-BACKEND.json`` in ``benchmarks/results``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax.nets.images import TORSOS, as_floats
from popjax.nets.layers import patches

RESULTS = Path(__file__).parent / "results"
SHAPES = {"minatar": (10, 10, 4), "atari": (84, 84, 4)}
POPULATIONS = {"minatar": (1, 4, 16), "atari": (1, 4)}
BATCH, ACTIONS, ROUNDS = 32, 4, 5


def grouped(x: jax.Array, kernel: jax.Array, side: int, stride: int) -> jax.Array:
    """Return XLA's convolution."""
    shape = side, side, x.shape[-1], kernel.shape[-1]
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel.reshape(shape), (stride, stride), "VALID", dimension_numbers=layout
    )


def product(x: jax.Array, kernel: jax.Array, side: int, stride: int) -> jax.Array:
    """Return the matrix product of ``popjax.nets`` over patches."""
    return patches(x, side, stride) @ kernel


def network(torso: str, key: jax.Array) -> list[jax.Array]:
    """Return random kernels [in, out] of convolutions and dense layers."""
    height, _, features = SHAPES[torso]
    sizes = []
    for out, side, stride in TORSOS[torso][0]:
        sizes.append((side * side * features, out))
        height, features = (height - side) // stride + 1, out
    hidden = TORSOS[torso][1][0]
    sizes += [(height * height * features, hidden), (hidden, ACTIONS)]
    return [
        0.05 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key, len(sizes)), sizes, strict=True)
    ]


def gradient(torso: str, convolve: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Return the gradient of the mean squared output of one individual."""

    def loss(kernels: list[jax.Array], images: jax.Array) -> jax.Array:
        x = as_floats(images)
        for kernel, (_, side, stride) in zip(kernels, TORSOS[torso][0], strict=False):
            x = jax.nn.relu(convolve(x, kernel, side, stride))
        x = jax.nn.relu(x.reshape(len(x), -1) @ kernels[-2]) @ kernels[-1]
        return jnp.mean(jnp.square(x))

    return jax.grad(loss)


def timed(torso: str, population: int) -> dict[str, float]:
    """Return the milliseconds of each way."""
    key = jax.random.key(0)
    kernels = jax.vmap(lambda k: network(torso, k))(jax.random.split(key, population))
    images = jax.random.bernoulli(key, 0.3, (population, BATCH, *SHAPES[torso])).astype(jnp.uint8)
    ways = {}
    for name, convolve in (("convolution", grouped), ("product", product)):
        one = gradient(torso, convolve)
        ways[f"{name}, vmap"] = jax.jit(jax.vmap(one))
        ways[f"{name}, map"] = jax.jit(lambda k, x, one=one: lax.map(lambda pair: one(*pair), (k, x)))
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS + 1):  # the first compiles
        for name, way in ways.items():
            begun = time.perf_counter()
            jax.block_until_ready(way(kernels, images))
            best[name] = min(best[name], 1e3 * (time.perf_counter() - begun))
    return {name: round(value, 3) for name, value in best.items()}


def main() -> None:
    """Measure, print and write."""
    rows = []
    for torso, populations in POPULATIONS.items():
        for population in populations:
            row = {"torso": torso, "population": population, "milliseconds": timed(torso, population)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    path = RESULTS / f"convolutions-{jax.default_backend()}.json"
    record.write(path, batch=BATCH, rows=rows)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
