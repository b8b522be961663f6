"""Checks of your own methods and environments: those that pass can be used wherever the built-in ones can.

    from popjax import testing

    def test_my_method():
        env = popjax.make("my_package.my_env:make")
        testing.check_env(env)
        testing.check_method(my_method.build(env, my_method.Config(hidden=(4,))), env)

Small shapes do: every check compiles. What is wrong is a ValueError of one line that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import contract, tree
from popjax.core import (
    Agent,
    Choice,
    Env,
    Method,
    OnPolicyAgent,
    PyTree,
    Spec,
    Timestep,
    Trajectory,
    Transition,
    as_arrays,
    stacked_fields,
)


def check_method(method: Method, env: Env, *, steps: int = 5, members: bool = True) -> None:
    """Check that ``method``, built for ``env``, keeps the contract of ``Method``.

    A State has the fields that the host reads and keeps structure, shapes and types. ``steps`` steps are one
    trace, count what they play, accept a donated State, and repeat with equal keys, also when every State
    goes to the host and back. The policy acts. With ``members``, also ``check_members``.

    Raises:
        ValueError: one of these does not hold; the text says which, and where.
    """
    shapes = jax.eval_shape(method.init, _key_shape(), method.hyper)
    _check_fields(shapes)
    _check_stacked(shapes)
    _check_same_form(shapes, jax.eval_shape(method.step, shapes))
    traces: list[None] = []

    def step(state: Any) -> Any:
        traces.append(None)
        return method.step(state)

    init, compiled = jax.jit(method.init), jax.jit(step, donate_argnums=0)
    state = _check_steps(method, init, compiled, steps)
    if len(traces) != 1:
        raise ValueError(f"{steps} steps were traced {len(traces)} times; return every leaf as it was given")
    _check_policy(method, env.spec, state)
    if members:
        _check_members(method, init, compiled, steps)


def check_env(env: Env, *, steps: int = 100) -> None:
    """Check that ``env`` keeps the contract of ``Env``, also in an episode of up to ``steps`` random actions.

    Shapes and types are those of its Spec. Equal keys give equal episodes, alone and in lanes side by side;
    every number is finite, and no step resets.

    Raises:
        ValueError: one of these does not hold; the text names the environment and the field.
    """
    contract.check_env(env)
    name, keys = env.spec.name, jax.random.split(jax.random.key(0), 3)
    play = partial(_random_episode, contract.checked(env), steps)
    alone, lanes = jax.jit(play), jax.jit(jax.vmap(play))
    rows, played = alone(keys[0])
    if not _same(rows, alone(keys[0])[0]):
        raise ValueError(f"{name}: the same key gives another episode; keep everything in the state")
    for field, x in vars(rows).items():
        for step in range(int(played)):
            if not np.isfinite(np.asarray(x[step], np.float64)).all():
                raise ValueError(f"{name}: {field} is not finite in step {step + 1} of random actions")
    if not _same(*(jax.tree.map(lambda x: x[: int(played)], y) for y in (rows.obs, rows.next_obs))):
        raise ValueError(f"{name}: obs differs from next_obs; let no step reset, popjax does that")
    side_by_side = tree.take(lanes(keys)[0], 0)
    both = (jax.tree.map(lambda x: np.asarray(x[: int(played)], np.float64), y) for y in (rows, side_by_side))
    if not all(np.allclose(x, y, 1e-3, 1e-3) for x, y in zip(*map(jax.tree.leaves, both), strict=True)):
        raise ValueError(f"{name}: an episode differs beside others; let every lane follow its own state")


def _random_episode(env: Env, steps: int, key: Array) -> tuple[Timestep, Array]:
    """Return timesteps [T] of random actions after a reset, and how many of them are of the first episode."""
    spec, (key_reset, *keys) = env.spec, jax.random.split(key, steps + 1)

    def one(state: PyTree, key: Array) -> tuple[PyTree, Timestep]:
        if spec.discrete:
            return env.step(state, jax.random.randint(key, (), 0, spec.action_dim))
        return env.step(state, jax.random.uniform(key, (spec.action_dim,), minval=-1.0, maxval=1.0))

    rows = jax.lax.scan(one, env.reset(key_reset)[0], jnp.stack(keys))[1]
    ended = jnp.cumsum(rows.done) - rows.done
    return rows, (ended == 0).sum()


def check_agent(agent: Agent | OnPolicyAgent, spec: Spec, hyper: Any) -> None:
    """Check that ``agent``, built for ``spec``, keeps the contract of ``Agent`` or ``OnPolicyAgent``.

    It acts as the task wants, at scale 0 always alike. A gradient step on random experience changes the state
    and keeps its form. ``adopt`` is the inverse of ``policy``. Values are one number for each observation.

    Raises:
        ValueError: one of these does not hold; the text says which.
    """
    hyper, keys = as_arrays(hyper), jax.random.split(jax.random.key(0), 4)
    state, other = (jax.jit(agent.init)(key, hyper) for key in keys[:2])
    obs = jax.random.normal(keys[2], (6, 4, *spec.obs_shape)).astype(spec.obs_dtype)

    def act(state: Any, key: Array, scale: float = 0.0) -> Any:
        return jax.jit(agent.act)(agent.policy(state), agent.memory, obs[0, 0], key, scale)

    _check_choice(act(state, keys[2]), agent.memory, spec)
    _check_choice(act(state, keys[2], 1.0), agent.memory, spec)
    if not _same(act(state, keys[2]).action, act(state, keys[3]).action):
        raise ValueError("act draws at random at scale 0; act greedily there")
    rows = _random_rows(agent, spec, obs, keys[3])
    after, losses = jax.jit(agent.learn)(state, rows, hyper, keys[3])
    _check_same_form(*(jax.eval_shape(lambda s: s, s) for s in (state, after)))
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(losses)):
        raise ValueError(f"learn gives losses that are not finite: {losses}")
    if _same({**vars(after), "key": ()}, {**vars(state), "key": ()}):
        raise ValueError("learn returns the state as it was; take a gradient step")
    if not _same(agent.policy(agent.adopt(state, agent.policy(other))), agent.policy(other)):
        raise ValueError("adopt(state, policy) does not act by that policy; let policy(adopt(s, p)) be p")
    value = agent.value(state, rows.obs[0], rows.action[0])
    if value.shape != rows.reward[0].shape:
        raise ValueError(f"value gives {_told(value)} for {list(rows.reward[0].shape)} observations")


def _random_rows(agent: Agent | OnPolicyAgent, spec: Spec, obs: Array, key: Array) -> Any:
    """Return transitions [B], or a Trajectory [T, N], of random actions on ``obs`` [T, N, ...]."""
    shape = obs.shape[:2]
    if spec.discrete:
        action = jax.random.randint(key, shape, 0, spec.action_dim)
    else:
        action = jax.random.uniform(key, (*shape, spec.action_dim), minval=-1.0, maxval=1.0)
    rows = Transition(obs, action, jax.random.normal(key, shape), jnp.full(shape, 0.9), obs[::-1])
    if isinstance(agent, Agent):
        return tree.flatten(rows)
    memory = tree.repeat(tree.repeat(agent.memory, shape[1]), 1)
    nothing = jnp.zeros(shape)
    return Trajectory(**vars(rows), done=nothing > 0, log_prob=nothing - 1, memory=memory)


def check_members(method: Method, *, steps: int = 5) -> None:
    """Check that the members of a sweep equal single runs, and that ``steps`` steps depend on ``Hyper``.

    There are two members; one has half of every number.

    Raises:
        ValueError: they do not; the text names the leaf that differs.
    """
    _check_members(method, jax.jit(method.init), jax.jit(method.step, donate_argnums=0), steps)


def check_in_place(method: Method, share: float) -> None:
    """Check that a step writes a donated State in place and needs less than ``share`` of its size beside it.

    A replay that is copied would double the size. Compiles for the method's own sizes and computes nothing.

    Raises:
        ValueError: it does not.
    """
    state = jax.eval_shape(method.init, _key_shape(), method.hyper)
    memory: Any = jax.jit(method.step, donate_argnums=0).lower(state).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(_numbers, state)))
    if memory.alias_size_in_bytes < 0.99 * size:
        raise ValueError(
            f"a step writes {memory.alias_size_in_bytes:,} of the State's {size:,} bytes in place; return"
            " every leaf in the shape and type in which it was given"
        )
    if memory.temp_size_in_bytes >= share * size:
        raise ValueError(
            f"a step needs {memory.temp_size_in_bytes:,} bytes beside a State of {size:,}, of which {share:g}"
            " is allowed; a large leaf is copied: update it with .at[...].set or a replay's add, outside of"
            " lax.cond"
        )


def _key_shape() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _told(x: Any) -> str:
    return f"{'weak ' if x.weak_type else ''}{x.dtype} {list(x.shape)}"


def _where(path: Any) -> str:
    return f"State{jax.tree_util.keystr(path)}"


def _check_fields(state: Any) -> None:
    """Check the fields that the host reads; it refuses a budget that ``env_steps`` cannot count."""
    fields = vars(state)
    for name in ("key", "hyper", "env_steps", "generation", "metrics"):
        if name not in fields:
            raise ValueError(f"State has no field {name}; the host reads it")
    if (state.generation.shape, state.generation.dtype) != ((), jnp.int32):
        raise ValueError(f"State.generation must be int32 [], got {_told(state.generation)}")
    steps = jax.tree.leaves(state.env_steps)
    if [(x.shape, x.dtype) for x in steps] not in ([((), jnp.int32)], [((), jnp.uint32)] * 2):
        found = ", ".join(map(_told, steps))
        raise ValueError(
            f"State.env_steps must be a counting.Count, or int32 [] for budgets below 2^31; got {found}"
        )
    if not jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"State.key must be a typed key of jax.random.key, got {_told(state.key)}")
    for path, x in jax.tree.leaves_with_path(state.hyper):
        if x.dtype != jnp.float32:
            raise ValueError(
                f"State.hyper{jax.tree_util.keystr(path)} must be float32, got {_told(x)}; use core.as_arrays"
            )
    if "fitness" not in vars(state.metrics) or state.metrics.fitness.ndim != 1:
        raise ValueError("State.metrics must have a field fitness [P]: how well each individual does")


def _check_same_form(before: Any, after: Any) -> None:
    """Check that a step keeps structure, shapes and types, all of them strong."""
    if not _alike(before, after):
        old, new = ({_where(path) for path, _ in jax.tree.leaves_with_path(s)} for s in (before, after))
        raise ValueError(
            "a step changes the structure of the State:"
            f" it adds {sorted(new - old) or 'nothing'} and removes {sorted(old - new) or 'nothing'}"
        )
    both = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, x), y in both:
        if x.weak_type or x.dtype == jnp.float64:
            raise ValueError(f"init makes {_where(path)} {_told(x)}; give it a dtype, as in jnp.float32(0)")
        if (x.shape, x.dtype, x.weak_type) != (y.shape, y.dtype, y.weak_type):
            raise ValueError(f"{_where(path)} is {_told(x)} before a step and {_told(y)} after it")


def _check_stacked(state: Any) -> None:
    """Check that fields declared with ``stacked()`` lead with the population."""
    population, fields = len(state.metrics.fitness), stacked_fields(state)
    if population > 1 and not fields:
        raise ValueError(
            f"no field of State is declared with core.stacked(), though fitness has {population} individuals;"
            " mark those whose leaves lead with them"
        )
    for path, x in jax.tree.leaves_with_path(fields):
        if x.shape[:1] != (population,):
            raise ValueError(
                f"State{jax.tree_util.keystr(path)} is {_told(x)}; as a stacked() field it must lead with the"
                f" {population} individuals of metrics.fitness"
            )


def _check_steps(method: Method, init: Callable[..., Any], step: Callable[[Any], Any], steps: int) -> Any:
    """Check that steps are pure and counted, and return a State after ``steps`` of them. ``step`` donates its
    argument."""

    def run(seed: int, interrupted: bool = False) -> Any:
        state = init(jax.random.key(seed), method.hyper)
        for _ in range(steps):
            before = int(state.env_steps)
            state = step(state)
            if not 0 <= int(state.env_steps) - before <= method.steps_bound:
                raise ValueError(
                    f"a step counted {int(state.env_steps) - before} environment steps, which must be 0 to"
                    f" steps_bound {method.steps_bound}"
                )
            if interrupted:
                state = jax.tree.map(_through_the_host, state)
        return state

    state = run(0)
    if int(state.generation) != steps:
        raise ValueError(f"State.generation is {int(state.generation)} after {steps} steps; add 1 in each")
    if int(state.env_steps) < 1:
        raise ValueError(f"State.env_steps is still 0 after {steps} steps; count what is played")
    if not _same(state, run(0, interrupted=True)):
        raise ValueError("the same key gives another State in a second run; keep everything in the State")
    if _same(state.replace(key=()), run(1).replace(key=())):
        raise ValueError("another key gives the same State; draw from state.key")
    return state


def _check_members(method: Method, init: Callable[..., Any], step: Callable[[Any], Any], steps: int) -> None:
    keys = jnp.stack([jax.random.key(4)] * 2)
    hyper = jax.tree.map(lambda x: jnp.stack([jnp.float32(x), jnp.float32(x) / 2]), method.hyper)
    sweep = jax.jit(jax.vmap(method.init))(keys, hyper)
    sweep_step = jax.jit(jax.vmap(method.step), donate_argnums=0)
    for count in range(steps):
        sweep = sweep_step(sweep)
        for i in range(2 if count == 0 else 0):
            single = step(init(keys[i], tree.take(hyper, i)))
            _require_close(tree.take(sweep, i), single, f"member {i} of a sweep")
    first, second = ({**vars(tree.take(sweep, i)), "hyper": ()} for i in range(2))
    if _same(first, second):
        raise ValueError(
            f"half of every number of hyper changes nothing in {steps} steps; read numbers from state.hyper,"
            " which a sweep fills, and let the case learn within these steps"
        )


def _check_choice(choice: Any, before: PyTree, spec: Spec) -> None:
    """Check that ``act`` answers as the task wants."""
    if not isinstance(choice, Choice):
        raise ValueError(f"act must return a core.Choice, got a {type(choice).__name__}")
    if not _alike(choice.memory, before):
        raise ValueError("act returns a memory of another structure than it begins with")
    action = choice.action
    shape, dtype = ((), jnp.int32) if spec.discrete else ((spec.action_dim,), jnp.float32)
    if (action.shape, action.dtype) != (shape, dtype):
        takes = f"{dtype.__name__} {list(shape)}"
        raise ValueError(f"act gives an action {_told(action)}, where {spec.name} takes {takes}")
    low, high = (0, spec.action_dim - 1) if spec.discrete else (-1, 1)
    if not low <= action.min() <= action.max() <= high:
        raise ValueError(f"act gives the action {action}, which must be in {low} to {high}")


def _check_policy(method: Method, spec: Spec, state: Any) -> None:
    """Check that the policy acts as the task wants, and that all individuals' policies are like it."""
    params, key, obs = method.policy(state), jax.random.key(0), jnp.zeros(spec.obs_shape, spec.obs_dtype)
    _check_choice(jax.jit(method.act)(params, method.memory, obs, key, 0.0), method.memory, spec)
    if method.individuals is None:
        return
    everybody, population = jax.eval_shape(method.individuals, state), len(state.metrics.fitness)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct((population, *x.shape), x.dtype), params)
    if not _alike(everybody, wanted):
        raise ValueError("individuals gives parameters of another structure than policy")
    for (path, x), y in zip(jax.tree.leaves_with_path(everybody), jax.tree.leaves(wanted), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            raise ValueError(
                f"individuals gives {jax.tree_util.keystr(path) or 'parameters'} {_told(x)}, where policies"
                f" of {population} are {y.dtype} {list(y.shape)}"
            )


def _through_the_host(x: Array) -> Array:
    """Return a leaf as a checkpoint gives it back."""
    if _is_key(x):
        numbers = np.array(jax.random.key_data(x))
        return jax.random.wrap_key_data(jnp.array(numbers), impl=jax.random.key_impl(x))
    return jnp.array(np.array(x))


def _alike(a: PyTree, b: PyTree) -> bool:
    structures: Any = jax.tree.structure(a), jax.tree.structure(b)
    return structures[0] == structures[1]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(state: PyTree) -> PyTree:
    """Return keys as the integers that they are."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _same(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(_numbers(a)), jax.tree.leaves(_numbers(b)), strict=True)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def _require_close(found: PyTree, expected: PyTree, who: str) -> None:
    """Check that integers and keys agree exactly, numbers up to the order of summation."""
    leaves = jax.tree.leaves_with_path(_numbers(expected))
    for (path, x), y in zip(leaves, jax.tree.leaves(_numbers(found)), strict=True):
        rtol, atol = (2e-3, 2e-4) if jnp.issubdtype(x.dtype, jnp.floating) else (0.0, 0.0)
        if not np.allclose(y, x, rtol, atol, equal_nan=rtol > 0):
            apart = np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)))
            raise ValueError(
                f"{_where(path)} of {who} is {apart:g} from that of a single run after a step; let no member"
                " read another's numbers, and steer branches and loops by tree.any_lane"
            )
