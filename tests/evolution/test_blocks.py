"""Blocks of work: as many as asked for, and the same answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from popjax.evolution.blocks import mapped


def test_blocks_give_what_one_at_a_time_gives():
    xs = {"a": jnp.arange(7.0), "b": jnp.arange(14).reshape(7, 2)}
    found = mapped(lambda x: x["a"] * x["b"].sum(), xs, cpu=3, accelerator=100)
    np.testing.assert_array_equal(found, [0, 5, 18, 39, 68, 105, 150])


def test_the_device_decides_how_many_are_worked_on_at_once():
    """On a CPU seven in blocks of three are a loop; a block of more than there are is none."""

    def loops(cpu):
        program = jax.jit(lambda xs: mapped(jnp.sin, xs, cpu=cpu, accelerator=1))
        return program.lower(jnp.arange(7.0)).as_text().count("stablehlo.while")

    assert loops(3) == 1
    assert loops(100) == 0
