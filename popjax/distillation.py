"""Losses by which one policy learns from others: imitation of the better action, softened KL, alignment.

Every loss takes a mask. Loss and gradient of a masked batch equal those of its valid rows alone, even if
masked rows hold NaN.

Sources: Q-filtered imitation from "Proximal Distilled Evolutionary Reinforcement Learning" (Bodnar, Day &
Lio, AAAI 2020); softened KL and alignment from "Collaborative Deep Reinforcement Learning" (Lin, Wang &
Zhou, 2017). Unlike in the latter's code, ``sum p ln(1e-10 + p/q)`` is computed from differences of
log-softmaxes, which gives the exact KL even if a probability underflows.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.core import PyTree

Tie = Literal["y", "drop"]
Regularizer = Literal["mean_all", "paper"]
Direction = Literal["code", "paper"]


def better_action(
    q_x: Array, q_y: Array, action_x: PyTree, action_y: PyTree, tie: Tie = "y"
) -> tuple[PyTree, Array]:
    """Return for every state the action of the parent that the critic prefers.

    q_x, q_y:           [B]       values of the two actions.
    action_x, action_y: [B, ...]  actions of the parents, or the outputs of their policies.
    tie:                action for equal values: imitate ``y`` (PDERL's code) or none (its paper).

    Returns the target [B, ...] and ``imitate`` float32 [B], 0 where no parent is imitated. Neither parents
    nor critic receive gradients.
    """
    _require(tie in ("y", "drop"), f"tie must be 'y' or 'drop', got {tie!r}")
    target = tree.where(q_x > q_y, action_x, action_y)
    imitate = jnp.ones_like(q_x, jnp.float32) if tie == "y" else (q_x != q_y).astype(jnp.float32)
    return jax.lax.stop_gradient((target, imitate))


def imitation_loss(
    action: Array, target: Array, imitate: Array, valid: Array, regularizer: Regularizer = "mean_all"
) -> Array:
    """Return the loss of behaviour cloning plus a penalty on large actions, which would saturate tanh. PDERL,
    section 4.A.

    action:      [B, A]  actions of the policy that learns.
    target:      [B, A]  actions to imitate.
    imitate:     [B]     weight of each row's imitation.
    valid:       [B]     bool; the other rows are ignored.
    regularizer: "mean_all", mean over rows and components (the code); "paper", mean over rows of the squared
                 norm, larger by a factor A.

    Returns [] ``sum_i imitate_i |a_i - target_i|^2 + regulariser``. The imitation is a sum over the batch,
    not a mean, so that it dominates by design.
    """
    _require(
        regularizer in ("mean_all", "paper"),
        f"regularizer must be 'mean_all' or 'paper', got {regularizer!r}",
    )
    valid = jnp.asarray(valid, jnp.bool_)
    action, target = _masked(action, valid), _masked(target, valid)
    imitate = jnp.where(valid, imitate, 0.0)
    imitation = (imitate * jnp.square(action - target).sum(-1)).sum()
    return imitation + regularization(action, valid, regularizer)


def regularization(action: Array, valid: Array, regularizer: Regularizer = "mean_all") -> Array:
    """Return [] the mean square of actions [B, A] over the ``valid`` rows, and over components if
    "mean_all"."""
    rows = jnp.maximum(valid.sum(), 1)
    components = action.shape[-1] if regularizer == "mean_all" else 1
    return jnp.square(_masked(action, valid)).sum() / (rows * components)


def softened_kl(
    teacher_logits: Array, logits: Array, temperature: Array | float = 1.0, valid: Array | None = None
) -> Array:
    """Return the KL divergence of a student's policy from a teacher's softened one, the mean of
    ``sum_a p (ln p - ln q)``.

    teacher_logits: [..., A]  ``p = softmax(teacher_logits / temperature)``; constant, receives no gradient.
    logits:         [..., A]  ``q = softmax(logits)``; the temperature applies to the teacher only.
    valid:          bool [...]  rows that count in the mean; all if not given.

    Returns []. The gradient with respect to ``logits`` is computed in the form ``(q - p) / rows``, which is
    exactly 0 where the policies are equal. Adam ignores the scale of gradients and would otherwise
    follow rounding errors. CDRL, equation 3.
    """
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(_masked(teacher_logits, valid) / temperature))
    logits = _masked(logits, valid)
    log_q = jax.lax.stop_gradient(jax.nn.log_softmax(logits))
    # A term of value 0 that carries the gradient.
    pull = ((jnp.exp(log_q) - jnp.exp(log_p)) * jnp.where(logits > -jnp.inf, logits, 0.0)).sum(-1)
    return _mean(_kl(log_p, log_q) + pull - jax.lax.stop_gradient(pull), valid)


def alignment_loss(
    aligned_logits: Array,
    student_logits: Array,
    direction: Direction = "code",
    valid: Array | None = None,
    *,
    temperature: Array | float = 1.0,
) -> Array:
    """Return the divergence between a teacher's policy, mapped by an alignment network, and a student's on
    the same observations.

    aligned_logits: [..., A]  the teacher's logits after the alignment network, which receives the gradient.
    student_logits: [..., A]  the student's own policy; constant, receives no gradient.
    direction:      "code", KL(aligned || student), which seeks a mode; "paper", KL(student || aligned), which
                    covers all modes (CDRL, algorithm 1, line 28).
    valid:          bool [...]  rows that count in the mean; all if not given.
    temperature:    divides the student's logits in the direction "paper"; the authors' code has none.

    Returns [].
    """
    _require(direction in ("code", "paper"), f"direction must be 'code' or 'paper', got {direction!r}")
    aligned = jax.nn.log_softmax(_masked(aligned_logits, valid))
    softened = student_logits / temperature if direction == "paper" else student_logits
    student = jax.nn.log_softmax(jax.lax.stop_gradient(_masked(softened, valid)))
    return _mean(_kl(aligned, student) if direction == "code" else _kl(student, aligned), valid)


def _kl(log_p: Array, log_q: Array) -> Array:
    """Return the divergence [...] of log-probabilities [..., A]; an action with p = 0 contributes 0 whatever
    its q."""
    possible = log_p > -jnp.inf
    difference = jnp.where(possible, log_p, 0.0) - jnp.where(possible, log_q, 0.0)
    return (jnp.exp(log_p) * difference).sum(-1)


def _masked(rows: Array, valid: Array | None) -> Array:
    """Return rows [..., A] with 0 where not valid.

    Masking the inputs of a loss instead of its result keeps a NaN in an invalid row out of the gradient, too.
    """
    return rows if valid is None else jnp.where(valid[..., None], rows, 0.0)


def _mean(rows: Array, valid: Array | None) -> Array:
    if valid is None:
        return rows.mean()
    return (rows * valid).sum() / jnp.maximum(valid.sum(), 1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
