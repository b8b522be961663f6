"""Ranks by fitness: equals, and who has diverged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.evolution import cem, select
from popjax.evolution.ranking import best_first, ranks

FITNESS = jnp.array([3.0, jnp.nan, 5.0, jnp.inf, 1.0, 3.0])


def test_ranks_of_equals_and_of_those_who_have_diverged():
    assert ranks(FITNESS).tolist() == [1, 4, 0, 5, 3, 2]
    ties = jnp.array([0.9, 0.8, 0.5, 0.1, 0.5, 0.2])
    assert ranks(FITNESS, ties).tolist() == [2, 5, 0, 4, 3, 1]
    assert best_first(jnp.array([1.0, jnp.nan, 3.0, 3.0, -jnp.inf])).tolist() == [2, 3, 0, 4, 1]
    assert best_first(jnp.array([jnp.nan, jnp.nan])).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nobody_who_has_diverged_is_selected_before_others(bad):
    """The elite is the best other; of two parents the other is the fitter; an outsider takes its slot."""
    fitness = jnp.array([2.0, bad, 1.0, 0.0])
    keys = jax.random.split(jax.random.key(0), 8)
    selection = jax.jit(jax.vmap(lambda key: select.select(key, fitness, 1, 3)))(keys)
    assert selection.elites.tolist() == [[True, False, False, False]] * 8
    pair = select.Selection(
        jnp.arange(4),
        jnp.zeros(4, bool),
        jnp.zeros(4, bool),
        jnp.array([1]),
        jnp.array([3, -1]),
        jnp.array([2]),
    )
    first, second = select.parents(pair, fitness, jnp.ones((4, 4)))
    assert (first.tolist(), second.tolist()) == ([3], [1])
    assert int(select.replaceable(fitness, jnp.array(2))) == 1
    hyper, config = cem.Hyper(), cem.Config(4, 2, antithetic=False)
    state = cem.init(jnp.zeros(3), hyper)
    people = cem.ask(state, jax.random.key(0), config).at[1].set(jnp.nan)
    after = cem.tell(state, people, fitness, hyper, config)
    expected = cem.weights(2) @ people[jnp.array([0, 2])]
    np.testing.assert_allclose(after.mean, expected, rtol=1e-6)
