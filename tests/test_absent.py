"""Promises of programs for accelerators, which are compiled here and need not be there to run them."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator_programs
from popjax.agents import sac
from popjax.envs import make
from popjax.host.recipes import METHODS
from popjax.host.runs.options import Options
from popjax.host.scaling import sweep
from popjax.host.scaling.shard import SWEEP, Placement
from popjax.host.training.compiled_programs import compile_programs
from popjax.methods import independent
from tests import absent, hlo

ROOT = Path(__file__).parents[1]
ENV = make("gymnax/Pendulum-v1")
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(absent.missing(kind)), reason=absent.missing(kind)))
    for kind in absent.NEEDS
]
LARGE = 1_000_000


def method(capacity):
    """Agents large enough that a copy of any one of their large leaves is noticed."""
    agent = sac.Config(hidden=(128, 128))
    config = independent.Config(agent=agent, population=64, capacity=capacity, warmup=64, batch=64)
    return independent.build(ENV, config)


@lru_cache
def compiled(kind, capacity=20_000):
    return absent.lower(method(capacity), kind).compile()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_written_in_place(kind):
    memory = compiled(kind).memory_analysis()
    assert memory.alias_size_in_bytes == memory.argument_size_in_bytes > 0


@pytest.mark.parametrize("kind", KINDS)
def test_no_loop_copies_what_is_large(kind):
    """With replays that are larger than the fast memory of a TPU."""
    main = hlo.read(compiled(kind, 200_000).as_text()).main()
    kernels = [kernel for loop in main.loops for inner in loop.walk() for kernel in inner.kernels]
    assert len(kernels) > 50
    assert [each.instruction.name for each in kernels if each.copies and each.bytes > 2 * LARGE] == []


@pytest.mark.parametrize("kind", KINDS)
def test_temporaries_do_not_grow_with_the_replay(kind):
    small, large = (
        compiled(kind, capacity).memory_analysis().temp_size_in_bytes for capacity in (20_000, 200_000)
    )
    assert large < 1.05 * small


@pytest.mark.parametrize("kind", KINDS)
def test_members_on_four_devices_never_speak(kind):
    """All programs of a run are compiled, the evaluation's and ``init`` too."""
    one = independent.build(
        ENV, independent.Config(agent=sac.Config(hidden=(16, 16)), capacity=1_000, warmup=64, batch=32)
    )
    start = absent.start(one, 4)
    placement = Placement(absent.devices(kind), SWEEP)
    options = Options(env_steps=1_000, seeds=4)
    with absent.described(kind):
        shapes = jax.eval_shape(sweep.lift(one.init, 4), *start)
        programs = compile_programs(one, ENV, start, shapes, options, placement, fresh=True)
    text = programs.chunk.as_text()
    assert not any(f" {name}" in text for name in hlo.COLLECTIVES)
    assert "callback" not in text
    assert "f64[" not in text


def test_programs_of_every_method_keep_what_the_documentation_says():
    """As ``benchmarks/accelerator_programs.py`` has recorded them."""
    for row in recorded():
        check(row, row)
    compiled = {accelerator_programs.CASES[row["case"]][0] for row in recorded() if row["device"] == "h100"}
    assert compiled >= METHODS.keys() - {"align", "distil"}  # these begin with finished runs


def test_the_check_notices_a_replay_that_is_laid_out_anew_in_every_step():
    """As a TPU does with rows apart from one another, by recorded programs; with rows in whole lines the
    capacity costs nothing."""
    rows = recorded("replay-programs-v5e.json")
    found = {(row["case"], row["rows"], row["capacity"]): row for row in rows}
    for case in ("sac-1", "sac-8"):
        small = found[case, "own", 100_000]
        check(found[case, "own", 1_000_000], small)
        for capacity in (100_000, 1_000_000):
            with pytest.raises(AssertionError, match="temporaries"):
                check(found[case, "apart", capacity], small)


def recorded(name="programs.json"):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())["rows"]


def check(row, before):
    """Check a program; ``before`` is what has been recorded of it, or the same row to check the record."""
    case = row["case"]
    found = row["collectives"], row["callbacks"], row["float64"]
    assert found == ({}, 0, 0), case
    assert row["alias_megabytes"] == row["argument_megabytes"] > 0, case
    assert row["temporary_megabytes"] <= 1.2 * before["temporary_megabytes"] + 1, f"temporaries of {case}"
    # PBT copies its agents at ready points.
    bound = {"h100": 46.1, "v5e": 12.6}[row["device"]] if case == "pbt" else 6.3
    assert row["iteration"]["large_copy_megabytes"] <= bound, case


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", accelerator_programs.CASES)
def test_programs_keep_it_as_they_are_now(case, kind):
    """Each is compiled in a process of its own, from seconds to minutes."""
    command = [sys.executable, accelerator_programs.__file__, "--one", case, kind, "100000", "own"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    before = next(row for row in recorded() if (row["case"], row["device"]) == (case, kind))
    check(json.loads(told.splitlines()[-1]), before)


def test_a_program_is_read():
    """On the CPU: five turns of a product [8, 16] x [16, 16], one row of which is written in place."""

    def turn(carry, _):
        x, store = carry
        x = jnp.tanh(x @ jnp.full((16, 16), 0.1))
        return (x, store.at[3].set(x[0])), None

    start = jnp.ones((8, 16)), jnp.zeros((1_000, 16))
    program = jax.jit(lambda carry: jax.lax.scan(turn, carry, length=5)[0], donate_argnums=0)
    main = hlo.read(program.lower(start).compile().as_text()).main()
    (loop,) = main.loops
    assert loop.turns == 5
    assert sum(kernel.flops for kernel in loop.kernels) == 2 * 8 * 16 * 16
    assert sum(kernel.bytes for kernel in loop.kernels) < 16_000  # of 64,000 in the store


@pytest.mark.parametrize(
    ("there", "back", "copies"),
    [
        ("f32[8,3]{1,0:T(8,128)S(1)}", "f32[8,3]{1,0:T(8,128)}", False),
        ("f32[8,3]{1,0:T(8,128)}", "f32[8,3]{1,0:T(8,128)S(1)}", False),
        ("f32[8,3]{0,1:T(8,128)}", "f32[8,3]{1,0:T(8,128)}", True),
    ],
)
def test_what_is_brought_into_fast_memory_is_no_copy(there, back, copies):
    fetch = hlo.Instruction("copy-start.1", f"({there}, {back}, u32[]{{:S(2)}})", "copy-start", ["x"], "")
    assert hlo.Kernel(fetch, 0, 0, 0).copies is copies


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,3]{1,0:T(8,128)}", 96),
        ("(bf16[4]{0}, pred[], u8[2,2]{1,0})", 13),
        ("(s32[], token[])", 4),
        ("f8e4m3fn[3]", 3),
    ],
)
def test_shapes_have_sizes(shape, expected):
    assert hlo.size(shape) == expected
