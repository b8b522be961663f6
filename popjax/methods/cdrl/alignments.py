"""Alignment networks that were trained before: whether a finished run has one for this task and teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax.core import Params, Pretrained, PyTree, Spec
from popjax.methods.cdrl import offline
from popjax.methods.cdrl.config import Config
from popjax.methods.cdrl.learning import AlignedTeacher
from popjax.methods.cdrl.teachers import Finished


def of_runs(spec: Spec, policies: Sequence[Pretrained]) -> tuple[Finished, ...]:
    """Runs of ``align`` in the student's task.

    Raises:
        ValueError: one is of another method or another task.
    """
    for policy in policies:
        require_of(spec, policy)
    return tuple(map(Finished, policies))


def require_of(spec: Spec, policy: Pretrained) -> None:
    """That ``policy`` is of a run of ``align`` in the task of ``spec``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(policy.config, offline.Config):
        raise ValueError(f"{policy.name} is no run of align: train one with run.py align")
    here, there = ((s.name, tuple(s.obs_shape), s.action_dim) for s in (spec, policy.spec))
    if here != there:
        raise ValueError(
            f"{policy.name} aligns actions for {there[0]} with observations {there[1]} and {there[2]}"
            f" actions, not for {here[0]} with {here[1]} and {here[2]}"
        )


def initial(
    spec: Spec, sources: Sequence[AlignedTeacher], given: Sequence[Finished | Params], config: Config
) -> Sequence[Params | None]:
    """The alignment network that each teacher of a student of ``spec`` begins with; None: a fresh one, or
    none at all.

    Raises:
        ValueError: there are too many or too few, or one is for another task, teacher, activation or shape.
    """
    needed = len(sources) if config.align == "offline" else 0
    if len(given) != needed:
        raise ValueError(
            f"{len(given)} trained alignment networks for align {config.align} with {len(sources)} teachers:"
            " offline takes one from a run of align for each teacher, in order; the others take none"
        )
    if not needed:
        return [None] * len(sources)
    return [_one(spec, source, x, config) for source, x in zip(sources, given, strict=True)]


def _one(spec: Spec, source: AlignedTeacher, given: Finished | Params, config: Config) -> Params:
    params = given
    if isinstance(given, Finished):
        require_of(spec, given.policy)
        _require_made_for(source, given.policy, config)
        params = given.policy.params["alignment"]
    shapes = jax.eval_shape(source.alignment.init, jax.random.key(0))
    here, there = (jax.tree.map(jnp.shape, x) for x in (shapes, params))
    if here != there:
        raise ValueError(f"the alignment network has shapes {there}; align_hidden and tasks need {here}")
    return jax.tree.map(jnp.asarray, params)


def _require_made_for(source: AlignedTeacher, policy: Pretrained, config: Config) -> None:
    """That a network of a run of ``align`` was trained with this teacher and this activation."""
    if policy.config.align_act != config.align_act:
        raise ValueError(
            f"the alignment network of {policy.name} was trained with align_act {policy.config.align_act},"
            f" not {config.align_act}"
        )
    if not _same(source.teacher.params, policy.params["teacher"]):
        raise ValueError(
            f"the alignment network of {policy.name} was trained with another teacher than that of"
            f" {source.teacher.spec.name} in its place: give the same run and seed, in the same order"
        )


def _same(a: PyTree, b: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(a), jax.tree.structure(b)]
    return structures[0] == structures[1] and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
