"""Counts beyond 32 bits: as Python's integers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import counting
from popjax.agents import dqn
from popjax.envs import make
from popjax.host.errors import Refused
from popjax.host.runs.options import Options, check_counter
from popjax.host.scaling import processes
from popjax.methods import independent

BUDGET = 2048 * 10**9  # environment steps of 2048 agents, a billion each


def count(number: int) -> counting.Count:
    return counting.Count(jnp.uint32(number >> 32), jnp.uint32(number % 2**32))


@pytest.mark.parametrize("number", [0, 5, 2**31 - 1, 2**31, 2**32 - 1, 2**32, BUDGET])
@pytest.mark.parametrize("more", [0, 1, 2**31 - 1, 2**32 - 1, 2**40 + 7])
def test_as_pythons_integers(number: int, more: int) -> None:
    assert int(count(number) + more) == number + more
    if more < 2**31:
        assert int(count(number) + jnp.int32(more)) == number + more
        assert bool(count(number) >= jnp.int32(more)) == (number >= more)
    assert bool(count(number) >= more) == (number >= more)
    assert bool(count(number) < more) == (number < more)
    for other in (more, count(more)):
        told = [count(number) == other, count(number) != other, count(number) > other, count(number) <= other]
        assert list(map(bool, told)) == [number == more, number != more, number > more, number <= more]
    np.testing.assert_allclose(count(number) / 3.0, number / 3, rtol=1e-6)


def test_compared_element_by_element() -> None:
    counts = jax.tree.map(lambda *x: jnp.stack(x), count(0), count(7), count(2**32 + 7))
    assert (counts == 7).tolist() == [False, True, False]
    assert (counts != counts).tolist() == [False] * 3
    assert (counts > jnp.int32([0, 6, 7])).tolist() == [False, True, True]
    with jax.enable_x64(True):
        assert (counts <= jnp.int64(2**32 + 6)).tolist() == [True, True, False]
    assert (counts <= np.int64(2**32 + 6)).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("other", "told"), [(jnp.float32(7e9), "float32"), (7e9, "float"), (-1, "-1"), (None, "NoneType")]
)
def test_what_is_no_integer_is_refused(other: object, told: str) -> None:
    with pytest.raises(ValueError, match=f"a count combines only with integers.*, got {told}"):
        count(5) >= other  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("number", [0, 5, 2**31 - 1, 2**32 - 1, 2**32, BUDGET, 2**63 - 1])
@pytest.mark.parametrize("divisor", [1, 3, 10_000, 2**16 + 1, 10**9 + 7, 2**31])
def test_divided_as_pythons_integers(number: int, divisor: int) -> None:
    assert (int(count(number) // divisor), int(count(number) % divisor)) == divmod(number, divisor)


@pytest.mark.parametrize("divisor", [0, 2**31 + 1])
def test_a_divisor_beyond_31_bits_is_refused(divisor: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 2,147,483,648, got {divisor:,}"):
        divmod(count(5), divisor)


@pytest.mark.parametrize(("number", "less"), [(5, 5), (2**32, 1), (BUDGET, 2**32 + 7), (2**40, 2**31 - 1)])
def test_differences_are_pythons(number: int, less: int) -> None:
    assert int(count(number) - less) == int(count(number) - count(less)) == number - less


def test_counted_in_a_compiled_program() -> None:
    @jax.jit
    @jax.vmap
    def counted(start: counting.Count, step: jax.Array) -> counting.Count:
        return jax.lax.fori_loop(0, 1000, lambda _, total: total + step, start)

    starts = jax.tree.map(lambda *x: jnp.stack(x), count(0), count(2**32 - 5), count(BUDGET))
    totals = processes.fetch({"steps": counted(starts, jnp.int32([2**31 - 1, 1, 12]))})["steps"]
    assert totals.dtype == np.int64
    assert totals.tolist() == [1000 * (2**31 - 1), 2**32 + 995, BUDGET + 12_000]


def test_a_large_population_has_room() -> None:
    env = make("probe/endless")
    method = independent.build(env, independent.Config(population=2048, lanes=16, capacity=300))
    options = Options(env_steps=BUDGET)
    shapes = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    check_counter(options, method.steps_bound, shapes.env_steps)
    with pytest.raises(Refused, match="--env-steps 2048000000000 exceeds 21474"):
        check_counter(options, method.steps_bound, jnp.int32(0))


def test_training_goes_on_behind_32_bits() -> None:
    """Neither the warm-up nor the exploration of the beginning comes back."""
    env = make("probe/context-discrete")
    small = independent.Config(agent=dqn.Config(hidden=(8,)), batch=4, capacity=50, warmup=10)
    method = independent.build(env, small)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    state = jax.jit(method.step)(state.replace(env_steps=count(2**32 - 1)))
    assert int(state.env_steps) == 2**32
    before, after = state.agents.online, jax.jit(method.step)(state).agents.online
    assert any((x != y).any() for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert float(method.exploration(state)) == pytest.approx(method.hyper.exploration)
