"""The compiled programs of a run, made before anything is allocated.

A run needs three: ``init``, a chunk of generations and an evaluation. They are compiled ahead of time for the
exact shapes of the State, so nothing is compiled later, and compile time and memory are known before
training. The programs of the latest runs are kept for others of the same method, shapes and options.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from popjax import tree
from popjax.core import Env, Method
from popjax.host import garbage
from popjax.host.runs.options import Options, chunk_length
from popjax.host.scaling import memory
from popjax.host.scaling.processes import fetch
from popjax.host.scaling.shard import SWEEP, Placement, spread
from popjax.host.signals import Stop, beside, ready
from popjax.host.training.compile_cache import CPU_OPTIONS, identity
from popjax.host.training.evaluation import evaluator
from popjax.host.training.program_store import Store
from popjax.remember import Remembered
from popjax.replay import packed


class Programs(NamedTuple):
    """The compiled programs of one run.

    init:            (keys [S], hypers [S, ...]) -> State [S, ...]; None if the State will be restored.
    chunk:           State -> (State, rows); donates its argument. Rows are the generation [S, C], env_steps
                     [S, C] and metrics [S, C, ...] after each generation.
    evaluate:        (State, keys [S], generations [S], places [n], Stop) -> returns [n, E], lengths [n, E];
                     NumPy. Raises ``signals.Left`` if a signal arrives while it waits.
    policy:          State -> parameters [S, ...] of all members' policies; compiled at the first call.
    compile_seconds: time to trace and compile the programs, or to find them.
    total_bytes:     peak memory of the most demanding program, with the State.
    """

    init: Callable[..., Any] | None
    chunk: Callable[[Any], tuple[Any, Any]]
    evaluate: Callable[..., tuple[np.ndarray, np.ndarray]]
    policy: Callable[[Any], Any]
    compile_seconds: float
    total_bytes: int


def chunk_function(method: Method, length: int) -> Callable[[Any], tuple[Any, Any]]:
    """Return the function ``State -> (State, (generation [C], env_steps [C], metrics [C, ...]))`` that runs
    ``length`` generations of one member."""

    def one(state: Any, _: None) -> tuple[Any, Any]:
        state = method.step(state)
        return state, packed.bundle((state.generation, state.env_steps, state.metrics), lead=())

    def chunk(state: Any) -> tuple[Any, Any]:
        state, rows = jax.lax.scan(one, state, length=length)
        return state, packed.unbundle(rows)

    return chunk


_KEPT: Remembered[Programs] = Remembered(8)


@garbage.paused()
def compile_programs(
    method: Method,
    env: Env,
    start: tuple[Any, Any],
    state: Any,
    options: Options,
    placement: Placement,
    store: Store = Store(),
    *,
    fresh: bool,
) -> Programs:
    """Return the programs of a run, reusing those of an equal run in this process or in the store.

    ``start`` has the keys [S] and hypers [S, ...], ``state`` the shapes of the State. With ``fresh``, the
    State is not restored, so ``init`` is compiled too.
    """
    begun = time.perf_counter()
    leaves, structure = jax.tree.flatten((start, state))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    counts = chunk_length(options, method.steps_bound), options.eval_episodes
    key = identity(method, env), structure, shapes, counts, placement
    fresh = fresh or (key, True) in _KEPT  # a fresh run's programs also serve a restored one
    compile_them = partial(_compile, method, env, start, state, options, placement, store, fresh=fresh)
    programs = _KEPT.get((key, fresh), compile_them)
    return programs._replace(compile_seconds=store.seconds + time.perf_counter() - begun)


def _compile(
    method: Method,
    env: Env,
    start: tuple[Any, Any],
    state: Any,
    options: Options,
    placement: Placement,
    store: Store,
    *,
    fresh: bool,
) -> Programs:
    members, length = len(start[0]), chunk_length(options, method.steps_bound)
    by_member, by_state = placement.members(), placement.state(state)
    play = evaluator(method, env, options.eval_episodes)
    lower: dict[str, Callable[[], Any]] = {
        "chunk": partial(lower_chunk, method, state, length, placement),
        "evaluation": partial(_lower_evaluation, play, start[0], state, placement),
    }
    if fresh:
        init = jax.jit(placement.lift(method.init, members), in_shardings=by_member, out_shardings=by_state)
        lower["init"] = partial(init.lower, *start)
    chunk, whole, *first = _found(lower, placement, store)
    garbage.give_back()
    needed = [
        memory.compiled_bytes(chunk),
        # A program counts only the arguments that it reads.
        memory.argument_bytes(chunk) + memory.compiled_bytes(whole) - memory.argument_bytes(whole),
        *map(memory.compiled_bytes, first),
        # Putting a stopped member back needs room for it beside the State.
        memory.argument_bytes(chunk) + memory.lane_bytes(state),
    ]
    copies = placement.local if placement.devices[0].platform == "cpu" else 1  # CPU devices share memory
    policy = jax.jit(placement.lift(method.policy, members), in_shardings=(by_state,))
    evaluate = _evaluation(whole, play, start[0], state, placement)
    return Programs(first[0] if fresh else None, chunk, evaluate, policy, 0.0, copies * max(needed))


def _found(lower: Mapping[str, Callable[[], Any]], placement: Placement, store: Store) -> list[Any]:
    """Return the programs that ``lower`` names: loaded from the store if it has them, otherwise lowered and
    compiled."""
    lowered = {name: make() for name, make in lower.items() if name not in store.loaded}
    made = (
        partial(store.compiled, name, program, partial(_compiled, program, placement))
        for name, program in lowered.items()
    )
    programs = {**store.loaded, **dict(zip(lowered, beside(*made), strict=True))}
    return [programs[name] for name in lower]


def lower_chunk(method: Method, state: Any, length: int, placement: Placement) -> Any:
    """Return the lowered program of a chunk of ``length`` generations for a State of shapes ``state`` [S,
    ...]; see ``Programs``.

    The devices may be descriptions from ``jax.experimental.topologies``.
    """
    by_state = placement.state(state)
    chunk = jax.jit(
        placement.lift(chunk_function(method, length), state.generation.shape[0]),
        in_shardings=(by_state,),
        out_shardings=(by_state, placement.members()),
        donate_argnums=0,
    )
    return chunk.lower(state)


def _compiled(lowered: Any, placement: Placement) -> Any:
    """Compile a lowered program so that a member's results do not depend on the other members."""
    if placement.devices[0].platform != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "ynn" not in str(error):  # some versions lack this option
            raise
        return lowered.compile()


def _lower_evaluation(play: Callable[..., Any], keys: Any, state: Any, placement: Placement) -> Any:
    """Return the lowered program that evaluates all members."""
    members = len(keys)
    function = jax.jit(
        placement.lift(play, members),
        in_shardings=(placement.state(state), placement.members(), placement.members()),
        out_shardings=placement.members(),
    )
    # Use a shape, since an array would lie on a device, possibly not the program's.
    return function.lower(state, keys, jax.ShapeDtypeStruct((members,), jnp.int32))


def _evaluation(
    whole: Any, play: Callable[..., Any], keys: Any, state: Any, placement: Placement
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return the function that evaluates the members that are due: with ``whole`` if all are due or members
    are spread over devices, otherwise one by one with a program that is compiled when first needed."""
    members = len(keys)

    @lru_cache(maxsize=1)
    def single() -> Any:
        def chosen(state: Any, keys: Any, generation: Any, place: Any) -> Any:
            return play(*tree.take((state, keys), place), generation)

        number = jax.ShapeDtypeStruct((), jnp.int32)
        lowered = jax.jit(chosen).lower(state, keys, number, number)
        (program,) = beside(partial(_compiled, lowered, placement))
        return program

    def some(
        state: Any, keys: Any, generations: np.ndarray, places: Sequence[int], stop: Stop | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        numbers = generations.astype(np.int32)
        if len(places) == members or placement.axis == SWEEP:
            answer = whole(state, keys, spread(numbers, placement.members()))
            returns, lengths = fetch(ready(answer, stop))
            return returns[list(places)], lengths[list(places)]
        # Members that count steps at different rates are due at different times.
        each = [
            fetch(ready(single()(state, keys, numbers[place], np.int32(place)), stop)) for place in places
        ]
        return np.stack([returns for returns, _ in each]), np.stack([lengths for _, lengths in each])

    return some
