"""Acting by a distribution: greedy actions, drawn or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import distributions

LOGITS = jnp.array([[0.1, 2.0, -1.0], [0.5, 0.4, 0.3]])
GAUSSIAN = (jnp.array([[-0.4, 1.7], [0.0, 0.2]]), jnp.array([[0.1, -2.0], [0.5, 0.0]]))
FAMILIES = {
    "categorical": LOGITS,
    "epsilon_greedy": LOGITS,
    "deterministic": jnp.array([[0.3, -1.0], [1.0, 0.0]]),
    "gaussian": GAUSSIAN,
    "squashed": GAUSSIAN,
    "squashed_mean": GAUSSIAN[0],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_scale_of_zero_draws_nothing_where_it_is_a_number(name, key):
    """The choice is that of an array of 0, under which the noise is drawn and multiplied by 0."""
    family = getattr(distributions, name)()

    def choose(key, scale):
        return distributions.choose(family, (), FAMILIES[name], key, scale)

    number, array = choose(key, 0.0), choose(key, jnp.float32(0))
    for one, other in zip(number[1:], array[1:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert one.dtype == other.dtype
    assert "random_bits" not in str(jax.make_jaxpr(lambda key: choose(key, 0.0))(key))
    assert "random_bits" in str(jax.make_jaxpr(lambda key: choose(key, 1.0))(key))
