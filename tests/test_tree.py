"""The algebra of trees, and that ``any_lane`` keeps a branch a branch under vmap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from tests.support import equal


def test_leaves_are_named_by_their_dotted_path():
    named = dict(tree.named({"a": {"b": 1, "c": (2, 3)}, "d": None}))
    assert named == {"a.b": 1, "a.c.0": 2, "a.c.1": 3}


@pytest.fixture
def rows():
    return {"a": jnp.arange(12.0).reshape(4, 3), "b": (jnp.arange(4),)}


def test_take_and_put_are_inverse_on_the_rows_they_name(rows):
    index = jnp.array([2, 0])
    taken = tree.take(rows, index)
    np.testing.assert_array_equal(taken["a"], rows["a"][np.array([2, 0])])
    zeroed = tree.put(rows, index, jax.tree.map(jnp.zeros_like, taken))
    assert zeroed["b"][0].tolist() == [0, 1, 0, 3]
    restored = tree.put(zeroed, index, taken)
    equal(restored, rows)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_that_are_not_finite_are_found(dtype):
    numbers = {"loss": jnp.array([0.0, jnp.nan, 1.0], dtype), "size": jnp.ones((3, 2), jnp.int32)}
    assert tree.finite(numbers).tolist() == [True, False, True]
    numbers["weights"] = jnp.array([[1.0, jnp.inf], [0.0, 0.0], [0.0, 0.0]], dtype)
    assert tree.finite(numbers).tolist() == [False, False, True]
    assert not tree.finite(numbers, 0)
    assert tree.nan(numbers).tolist() == [False, True, False]
    assert tree.finite({"updates": jnp.arange(3), "nothing": jnp.zeros((3, 0))}).tolist() == [True] * 3


def test_take_of_an_int_drops_the_axis(rows):
    assert tree.take(rows, 1)["a"].shape == (3,)


def test_concat_and_stack(rows):
    assert tree.concat([rows, rows])["a"].shape == (8, 3)
    assert tree.concat([rows, rows])["b"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert tree.stack([rows, rows, rows])["a"].shape == (3, 4, 3)


def test_where_matches_the_condition_to_leading_axes(rows):
    zero = jax.tree.map(jnp.zeros_like, rows)
    chosen = tree.where(jnp.array([True, False, True, False]), rows, zero)
    assert chosen["b"][0].tolist() == [0, 0, 2, 0]
    np.testing.assert_array_equal(chosen["a"].sum(1), [3, 0, 21, 0])
    equal(tree.where(jnp.bool_(True), rows, zero), rows)


def test_where_lets_no_nan_through_from_the_side_not_chosen():
    nan = {"x": jnp.full(3, jnp.nan)}
    chosen = tree.where(jnp.bool_(False), nan, {"x": jnp.ones(3)})
    assert chosen["x"].tolist() == [1, 1, 1]


def test_flatten():
    x = {"a": jnp.arange(24).reshape(2, 3, 4), "b": jnp.arange(6).reshape(2, 3)}
    flat = tree.flatten(x)
    assert flat["a"].shape == (6, 4)
    assert flat["b"].tolist() == list(range(6))
    assert tree.flatten({"a": x["a"]}, axes=3)["a"].shape == (24,)


def test_normal_like_is_independent_across_leaves_of_equal_shape(key):
    noise = tree.normal_like(key, {"x": jnp.zeros(1000), "y": jnp.zeros(1000), "z": jnp.zeros((2, 3))})
    assert noise["z"].shape == (2, 3)
    assert abs(np.corrcoef(noise["x"], noise["y"])[0, 1]) < 0.1
    assert abs(float(noise["x"].mean())) < 0.1
    assert abs(float(noise["x"].std()) - 1) < 0.1


def test_keys_like_a_tree_without_leaves_is_empty(key):
    assert tree.keys_like(key, ()) == ()


def test_polyak():
    target, online = {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([1.0, 0.0])}
    assert tree.polyak(target, online, 0.25)["w"].tolist() == [0.25, 3.0]
    assert tree.polyak(target, online, 0)["w"].tolist() == target["w"].tolist()
    assert tree.polyak(target, online, 1)["w"].tolist() == online["w"].tolist()


def branch(condition, x):
    """A branch on whether any lane needs it, and then only where it does."""
    return jax.lax.cond(
        tree.any_lane(condition), lambda: jnp.where(condition, jnp.sin(x), x), lambda: jnp.asarray(x)
    )


def repeated(condition, x):
    """The branch inside a scan."""
    return jax.lax.scan(lambda y, _: (branch(condition, y), None), x, length=3)[0]


def primitives(jaxpr, found=None):
    """Every equation of a jaxpr and of those inside it."""
    found = [] if found is None else found
    for equation in jaxpr.eqns:
        found.append(equation)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


def branches(function, *args):
    """The shapes of all predicates of ``cond`` in a function; a branch that became a select is not there."""
    equations = primitives(jax.make_jaxpr(function)(*args).jaxpr)
    return [equation.invars[0].aval.shape for equation in equations if equation.primitive.name == "cond"]


CONDITION = jnp.array([[False, True, False], [False, False, False]])
X = jnp.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("lift", "args"),
    [
        (branch, (jnp.bool_(True), jnp.float32(1))),
        (jax.vmap(branch), (CONDITION[0], X[0])),
        (jax.vmap(jax.vmap(branch)), (CONDITION, X)),
        (jax.vmap(jax.vmap(branch, in_axes=(None, 0)), in_axes=(0, 0)), (CONDITION[:, 1], X)),
        (
            jax.vmap(lambda c, x: jax.lax.scan(lambda y, _: (branch(c, y), None), x, length=3)[0]),
            (CONDITION[0], X[0]),
        ),
        (jax.jit(jax.vmap(jax.jit(branch))), (CONDITION[0], X[0])),
    ],
    ids=["single", "vmap", "nested", "partly mapped", "scan", "jit"],
)
def test_a_branch_on_any_lane_stays_one_branch(lift, args):
    assert branches(lift, *args) == [()]
    assert "conditional" in jax.jit(lift).lower(*args).compile().as_text()


def test_without_it_the_branch_becomes_a_select():
    """The reason for ``any_lane``, and that the test above can fail."""

    def naive(condition, x):
        return jax.lax.cond(condition, jnp.sin, lambda x: x, x)

    assert branches(jax.vmap(naive), CONDITION[0], X[0]) == []


def test_any_lane_is_any_over_all_lanes():
    nested = jax.vmap(jax.vmap(tree.any_lane))
    assert nested(CONDITION).tolist() == [[True] * 3] * 2
    assert not nested(jnp.zeros_like(CONDITION)).any()
    assert not bool(tree.any_lane(jnp.zeros(3, bool)))
    assert bool(tree.any_lane(jnp.array([False, True])))
    assert jax.vmap(branch)(CONDITION[0], X[0]).tolist() == pytest.approx([0, float(jnp.sin(1.0)), 2])


def test_a_while_loop_steered_by_any_lane_runs_as_often_as_its_longest_lane():
    """Every lane counts the turns of the loop: all see the same number, and the loop has one predicate."""

    def turns(limit):
        def body(carry):
            return carry[0] + 1, carry[1] + 1

        return jax.lax.while_loop(lambda c: tree.any_lane(c[0] < limit), body, (jnp.int32(0), jnp.int32(0)))[
            1
        ]

    limits = jnp.array([[1, 4], [7, 0]])
    lifted = jax.vmap(jax.vmap(turns))
    assert lifted(limits).tolist() == [[7, 7], [7, 7]]
    (loop,) = [e for e in primitives(jax.make_jaxpr(lifted)(limits).jaxpr) if e.primitive.name == "while"]
    assert loop.params["cond_jaxpr"].out_avals[0].shape == ()
    assert "select_n" not in str(loop.params["body_jaxpr"])
