"""The worked examples of the losses, and that a masked batch is a smaller batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.distillation import alignment_loss, better_action, imitation_loss, softened_kl
from tests.support import close

# PDERL, worked example 2.
ACTION = jnp.array([[0.1, 0.2], [-0.3, 0.4]])
ACTION_X = jnp.array([[0.5, 0.0], [0.2, 0.2]])
ACTION_Y = jnp.array([[-0.5, 0.5], [-0.4, 0.6]])
Q_X, Q_Y = jnp.array([2.0, 1.0]), jnp.array([1.0, 1.0])
ALL = jnp.ones(2, bool)

# CDRL, worked examples 3 and 4.
TEACHER = jnp.array([[2.0, 0.0, -1.0]])
STUDENT = jnp.array([[0.5, 0.5, 0.0]])


def test_the_better_action_and_ties_to_y():
    target, imitate = better_action(Q_X, Q_Y, ACTION_X, ACTION_Y, "y")
    np.testing.assert_array_equal(target, [ACTION_X[0], ACTION_Y[1]])
    assert imitate.tolist() == [1, 1]
    assert better_action(Q_X, Q_Y, ACTION_X, ACTION_Y, "drop")[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("tie", "regularizer", "loss"),
    [("y", "mean_all", 0.325), ("y", "paper", 0.40), ("drop", "paper", 0.35), ("drop", "mean_all", 0.275)],
)
def test_imitation_loss_of_the_worked_example(tie, regularizer, loss):
    target, imitate = better_action(Q_X, Q_Y, ACTION_X, ACTION_Y, tie)
    assert float(imitation_loss(ACTION, target, imitate, ALL, regularizer)) == pytest.approx(loss, abs=1e-6)


def test_parents_and_critic_receive_no_gradient():
    def loss(q_x, q_y, action_x, action_y):
        return imitation_loss(ACTION, *better_action(q_x, q_y, action_x, action_y), ALL)

    for gradient in jax.grad(loss, (0, 1, 2, 3))(Q_X, Q_Y, ACTION_X, ACTION_Y):
        assert not np.any(gradient)


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
@pytest.mark.parametrize("regularizer", ["mean_all", "paper"])
def test_a_masked_imitation_batch_is_a_smaller_batch(regularizer, garbage):
    chance = np.random.default_rng(0)
    action, target = chance.normal(size=(2, 16, 3)).astype(np.float32)
    imitate = (chance.random(16) < 0.7).astype(np.float32)
    valid = chance.random(16) < 0.5
    value = jax.value_and_grad(imitation_loss)
    loss, gradient = value(action[valid], target[valid], imitate[valid], valid[valid], regularizer)
    action[~valid], target[~valid], imitate[~valid] = garbage, garbage, garbage
    masked_loss, masked_gradient = value(action, target, imitate, valid, regularizer)
    close((masked_loss, masked_gradient[valid]), (loss, gradient))
    assert not np.any(masked_gradient[~valid])


def test_an_empty_batch_costs_nothing():
    nobody = jnp.zeros(2, bool)
    loss, gradient = jax.value_and_grad(imitation_loss)(ACTION, ACTION_X, jnp.ones(2), nobody)
    assert float(loss) == 0
    assert not np.any(gradient)
    assert float(softened_kl(ACTION, ACTION_X, 1.0, nobody)) == 0


@pytest.mark.parametrize(("temperature", "loss"), [(1.0, 0.454759), (2.0, 0.122183), (0.01, 0.958020)])
def test_softened_kl_of_the_worked_example(temperature, loss):
    assert float(softened_kl(TEACHER, STUDENT, temperature)) == pytest.approx(loss, abs=1e-5)


def test_softened_kl_pulls_the_student_and_leaves_the_teacher():
    gradient = jax.grad(softened_kl, 1)(TEACHER, STUDENT)
    np.testing.assert_allclose(gradient, [[-0.460143, 0.269457, 0.190686]], atol=1e-5)
    assert not np.any(jax.grad(softened_kl, 0)(TEACHER, STUDENT))
    rows = jax.grad(softened_kl, 1)(jnp.tile(TEACHER, (4, 1)), jnp.tile(STUDENT, (4, 1)))
    np.testing.assert_allclose(rows, np.tile(gradient / 4, (4, 1)), rtol=1e-5)


def test_an_equal_teacher_pulls_by_nothing_at_all():
    """Not by rounding either: an Adam would make a whole step of 1e-9."""
    logits = jax.random.normal(jax.random.key(0), (50, 7))
    loss, gradient = jax.jit(jax.value_and_grad(softened_kl, 1))(logits, logits)
    assert float(loss) == 0
    assert not np.any(gradient)


@pytest.mark.parametrize(
    ("direction", "loss", "gradient"),
    [
        ("code", 0.454759, [0.281334, -0.190316, -0.091018]),
        ("paper", 0.560871, [0.460143, -0.269457, -0.190686]),
    ],
)
def test_alignment_loss_of_the_worked_example(direction, loss, gradient):
    assert float(alignment_loss(TEACHER, STUDENT, direction)) == pytest.approx(loss, abs=1e-5)
    np.testing.assert_allclose(jax.grad(alignment_loss)(TEACHER, STUDENT, direction), [gradient], atol=1e-5)
    assert not np.any(jax.grad(alignment_loss, 1)(TEACHER, STUDENT, direction))


def test_the_temperature_of_the_worked_example_is_the_students_and_the_papers_alone():
    """KL(softmax(z_b / 2) || softmax(z_a))."""
    for direction, loss in (("paper", 0.638290), ("code", 0.454759)):
        found = alignment_loss(TEACHER, STUDENT, direction, temperature=2.0)
        assert float(found) == pytest.approx(loss, abs=1e-5)


def kl_forms():
    yield lambda a, b, valid=None: softened_kl(a, b, 1.0, valid)
    yield lambda a, b, valid=None: alignment_loss(a, b, "code", valid)
    yield lambda a, b, valid=None: alignment_loss(a, b, "paper", valid)


@pytest.mark.parametrize("form", kl_forms(), ids=["softened", "code", "paper"])
def test_equal_policies_cost_nothing_and_pull_nowhere(form):
    loss, gradients = jax.value_and_grad(form, (0, 1))(TEACHER, TEACHER + 7)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    close(gradients, jax.tree.map(jnp.zeros_like, gradients))


@pytest.mark.parametrize("form", kl_forms(), ids=["softened", "code", "paper"])
def test_logits_whose_exponentials_overflow_are_fine(form):
    """exp(1000) is infinite; the KL of logits (1000, 0) from (0, 0) is ln 2, the other way about 500."""
    big, flat = jnp.array([[1000.0, 0.0]]), jnp.zeros((1, 2))
    for a, b in ((big, flat), (flat, big), (big, -big)):
        loss, gradients = jax.value_and_grad(form, (0, 1))(a, b)
        assert np.isfinite(float(loss))
        assert all(np.isfinite(g).all() for g in gradients)
    assert float(softened_kl(big, flat)) == pytest.approx(np.log(2), rel=1e-5)
    assert float(softened_kl(flat, big)) == pytest.approx(500 - np.log(2), rel=1e-5)


@pytest.mark.parametrize("form", kl_forms(), ids=["softened", "code", "paper"])
def test_actions_that_both_exclude_change_nothing(form):
    """Two tasks padded to one number of actions: logits of minus infinity."""

    def padded(x):
        return jnp.concatenate([x, jnp.full((1, 1), -jnp.inf)], -1)

    short, long = (jax.value_and_grad(form, (0, 1))(f(TEACHER), f(STUDENT)) for f in (lambda x: x, padded))
    close(long[0], short[0])
    close(tuple(g[:, :3] for g in long[1]), short[1])
    assert all(np.isfinite(g).all() for g in long[1])


@pytest.mark.parametrize("form", kl_forms(), ids=["softened", "code", "paper"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_a_masked_batch_of_logits_is_a_smaller_batch(form, garbage):
    chance = np.random.default_rng(1)
    a, b = chance.normal(size=(2, 4, 5, 6)).astype(np.float32)
    valid = chance.random((4, 5)) < 0.5
    value = jax.value_and_grad(form, (0, 1))
    loss, gradients = value(a[valid], b[valid])
    a[~valid], b[~valid] = garbage, garbage
    masked_loss, masked_gradients = value(a, b, valid)
    close((masked_loss, tuple(g[valid] for g in masked_gradients)), (loss, gradients))
    assert not any(np.any(g[~valid]) for g in masked_gradients)


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="'x'"):
        better_action(Q_X, Q_Y, ACTION_X, ACTION_Y, "x")
    with pytest.raises(ValueError, match="'none'"):
        imitation_loss(ACTION, ACTION_X, Q_X, ALL, "none")
    with pytest.raises(ValueError, match="'both'"):
        alignment_loss(TEACHER, STUDENT, "both")
