"""Crossover of two individuals' parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from popjax import tree
from popjax.checks import check_least, check_types
from popjax.core import Agent, Key, Params, PyTree
from popjax.distillation import better_action, imitation_loss, regularization
from popjax.evolution.blocks import mapped
from popjax.optimize import adam, descend
from popjax.replay.ring import Ring, draw


def n_point(key: Key, x: Params, y: Params) -> tuple[Params, Params]:
    """Copy random rows (the weights into one unit; single entries of vectors) from one parent to the other.
    ERL's crossover.

    For each tensor, n ~ U{0 .. 2 rows - 1} times (vectors: U{0 .. length - 1}) a random row is chosen and a
    coin decides whose row is copied to the other parent. After its first copy a row is the same in both and
    further copies change nothing, so it suffices to know which rows were hit and to toss one coin for each.
    """

    def cross(key: Key, x: Array, y: Array) -> tuple[Array, Array]:
        rows = x.shape[-1]  # kernels are [in, out]: a unit's weights are a column
        bound = 2 * rows if x.ndim >= 2 else rows
        key_count, key_row, key_coin = jax.random.split(key, 3)
        count = jax.random.randint(key_count, (), 0, bound)
        row = jax.random.randint(key_row, (bound,), 0, rows)
        hit = (
            jnp.zeros(rows, jnp.bool_)
            .at[jnp.where(jnp.arange(bound) < count, row, rows)]
            .set(True, mode="drop")
        )
        common = jnp.where(jax.random.bernoulli(key_coin, shape=(rows,)), x, y)
        return jnp.where(hit, common, x), jnp.where(hit, common, y)

    both = jax.tree.map(cross, tree.keys_like(key, x), x, y)
    return tuple(jax.tree.transpose(jax.tree.structure(x), jax.tree.structure((0, 0)), both))


@dataclass(frozen=True)
class Distillation:
    """Options of training a child.

    As in the authors' code, the child starts from the less fit parent and imitates that parent if both
    actions have equal values, and the regulariser is a mean over action components, too.
    """

    batch: int = 128  # states per gradient step
    epochs: int = 12  # passes over the child's memory, each of (memory size // batch) gradient steps
    # imitate the greedy action (mode) or the whole distribution (kl) of a stochastic parent
    imitate: Literal["mode", "kl"] = "mode"

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "batch", "epochs")


def distil(
    agent: Agent,
    learner: PyTree,
    x: Params,
    y: Params,
    memory: Ring,
    key: Key,
    config: Distillation,
    learning_rate: Array | float,
    active: Array,
) -> Params:
    """Return a child that acts in each state of ``memory`` as the parent whose action the critic prefers.

    agent, learner: the agent whose policies these are, and a state whose critic compares their actions.
    x, y:           policies of the fitter and of the other parent.
    memory:         the child's, of rows with a field ``obs`` [*obs]; its size decides the number of steps.
    learning_rate:  Adam's.
    active:         bool [], False skips the training (and its time, if no lane of a ``vmap`` is active).

    Bodnar et al., algorithm 1 and the loss below it. A discrete action is imitated by its cross-entropy under
    the softmax of the child's values, without a regulariser. Parents and critic are fixed, so targets are
    computed once for the whole memory and not again in every batch.
    """
    actions = agent.actions

    def played(params: Params, obs: Array) -> Array:
        return actions.bounded(actions.mode(agent.outputs(params, obs)))

    def lesson(obs: Array) -> tuple[Any, Array]:
        """Return the action to imitate in a state, and whether there is one."""
        value_x, value_y = (agent.value(learner, obs, played(parent, obs)) for parent in (x, y))
        said = agent.outputs if config.imitate == "kl" else played
        return better_action(value_x, value_y, said(x, obs), said(y, obs))

    obs = memory.unpacked().obs  # [capacity, *obs]
    discrete = jnp.issubdtype(jax.eval_shape(played, x, obs).dtype, jnp.integer)

    def imitation(params: Params, rows: tuple[Array, Any, Array], valid: Array) -> Array:
        obs, target, imitate = rows
        outputs = agent.outputs(params, obs)
        if config.imitate == "mode" and not discrete:
            return imitation_loss(actions.vector(outputs), target, imitate, valid)
        if config.imitate == "kl" and actions.kl is not None:
            distance = actions.kl(target, outputs)
        else:
            distance = -actions.log_prob(outputs, target)
        pulled = 0.0 if discrete else regularization(actions.vector(outputs), valid)
        return jnp.where(valid, imitate * distance, 0.0).sum() + pulled

    # All states at once would need more memory than the population.
    lessons = mapped(lesson, obs, cpu=64, accelerator=1024)
    curriculum = memory.holding((obs, *lessons))

    optimizer = adam(learning_rate, jnp.inf)
    steps = jnp.where(active, distillation_steps(memory.size, config.batch, config.epochs), 0)

    def step(i: Array, carry: tuple[Params, Params]) -> tuple[Params, Params]:
        rows, valid = draw(curriculum, jax.random.fold_in(key, i), config.batch)
        return descend(optimizer, lambda params: (imitation(params, rows, valid), None), *carry)[:2]

    return jax.lax.fori_loop(0, steps, step, (y, optimizer.init(y)))[0]


def distillation_steps(size: Array, batch: int, epochs: int) -> Array:
    """Return the gradient steps for a memory of ``size`` rows: ``epochs * (size // min(batch, size))``."""
    return epochs * (size // jnp.maximum(jnp.minimum(batch, size), 1))
