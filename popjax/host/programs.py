"""The compiled programs of a run, made before anything is allocated.

A run needs three: ``init``, one chunk of generations and one evaluation. They are compiled ahead of time for
the exact shapes of the State, so nothing can be compiled again later, the seconds it took are known apart
from those of training, and so is the memory it will take.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from popjax.core import Env, Method
from popjax.host import memory, sweep
from popjax.host.evaluate import evaluator
from popjax.host.options import Options, chunk_length


class Programs(NamedTuple):
    """Compiled for the shapes of one run.

    init:            (keys [S], hyper) -> State [S, ...]; ``None`` where a State is going to be restored
    chunk:           State -> (State, rows); donates its argument. Rows are the generation [S, C], env_steps
                     [S, C] and metrics [S, C, ...] after each of its generations
    evaluate:        (State, keys [S], generation [], which [n]) -> returns [n, E], lengths [n, E]
    compile_seconds: time it took to trace and compile them
    total_bytes:     the most memory that any of them needs, with the State
    """

    init: Callable[..., Any] | None
    chunk: Callable[[Any], tuple[Any, Any]]
    evaluate: Callable[..., tuple[Array, Array]]
    compile_seconds: float
    total_bytes: int


def init_function(method: Method, seeds: int) -> Callable[[Array, Any], Any]:
    """``(keys [S], hyper) -> State [S, ...]``."""

    def init(keys: Array, hyper: Any) -> Any:
        return sweep.lift(lambda key: method.init(key, hyper), seeds)(keys)

    return init


def chunk_function(method: Method, length: int, seeds: int) -> Callable[[Any], tuple[Any, Any]]:
    """``State [S, ...] -> (State, (generation [S, C], env_steps [S, C], metrics [S, C, ...]))``: ``length``
    generations of every seed."""

    def one(state: Any, _: None) -> tuple[Any, Any]:
        state = method.step(state)
        return state, (state.generation, state.env_steps, state.metrics)

    return sweep.lift(lambda state: jax.lax.scan(one, state, length=length), seeds)


def compile_programs(
    method: Method, env: Env, keys: Array, hyper: Any, state: Any, options: Options, *, fresh: bool
) -> Programs:
    """Compiles what a run needs; ``state`` is the State's shapes, ``fresh`` if it is not restored."""
    begun = time.perf_counter()
    length = chunk_length(options, method.steps_bound)
    init = jax.jit(init_function(method, options.seeds)).lower(keys, hyper).compile() if fresh else None
    chunk = jax.jit(chunk_function(method, length, options.seeds), donate_argnums=0).lower(state).compile()
    evaluate = jax.jit(evaluator(method, env, options.seeds, options.eval_episodes))
    all_seeds = evaluate.lower(state, keys, jnp.int32(0), jnp.arange(options.seeds)).compile()
    needed = [
        memory.compiled_bytes(chunk),
        memory.tree_bytes(state) + _beyond_arguments(all_seeds),
        memory.compiled_bytes(init) if init is not None else 0,
    ]

    def evaluate_some(state: Any, keys: Array, generation: Array, which: Array) -> tuple[Array, Array]:
        # Seeds that count steps at different rates are due at different times, one by one.
        return (all_seeds if len(which) == options.seeds else evaluate)(state, keys, generation, which)

    return Programs(init, chunk, evaluate_some, time.perf_counter() - begun, max(needed))


def _beyond_arguments(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return memory.compiled_bytes(compiled) - (analysis.argument_size_in_bytes if analysis else 0)
