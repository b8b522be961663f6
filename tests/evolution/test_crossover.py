"""Crossover: ERL's exchange of rows against the sequential original, and distillation as a learner."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import nets, tree
from popjax.agents import ddpg, dqn, sac, td3
from popjax.core import Network, Spec
from popjax.distillation import better_action, imitation_loss
from popjax.evolution.crossover import Distillation, distil, distillation_steps, n_point
from popjax.replay.ring import Ring
from tests.support import close, equal

ACTOR = nets.tanh_actor(2, 1, (8,), activation="tanh", norm="erl")
CRITIC = Network(lambda key: jnp.zeros(1), lambda best, obs, action: -((action - best) ** 2).sum(-1))
SMALL = Distillation(batch=16, epochs=4)


def judged_by(critic):
    """An agent of deterministic actors whose state is the critic's parameters."""
    agent = ddpg.build(Spec("task", (2,), 1, 10))
    return agent._replace(outputs=ACTOR.apply, value=critic.apply)


def two_parents(key):
    key_x, key_y = jax.random.split(key)
    return ACTOR.init(key_x), ACTOR.init(key_y)


def memory(obs, capacity=None):
    """A ring that holds ``obs`` [n, D], the rest of it garbage that no operator may read."""
    n, dim = obs.shape
    rows = jnp.full((capacity or n, dim), 1e3).at[:n].set(obs)
    return Ring(rows=_Rows(rows), position=jnp.int32(n % rows.shape[0]), size=jnp.int32(n))


@jax.tree_util.register_pytree_node_class
class _Rows:
    def __init__(self, obs):
        self.obs = obs

    def tree_flatten(self):
        return (self.obs,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_crossing_identical_parents_changes_nothing(key):
    x, _ = two_parents(key)
    for child in n_point(key, x, x):
        equal(child, x)


def test_rows_are_exchanged_whole_and_become_common(key):
    """Every unit's weights come from one parent at the same place; hit rows are equal in both children."""
    x = {"w": jnp.zeros((3, 5)) + jnp.arange(5.0), "b": jnp.arange(4.0)}
    y = {"w": jnp.zeros((3, 5)) + 10 + jnp.arange(5.0), "b": 10 + jnp.arange(4.0)}
    a, b = jax.jit(jax.vmap(lambda k: n_point(k, x, y)))(jax.random.split(key, 300))
    for name in ("w", "b"):
        first, second = np.asarray(a[name]), np.asarray(b[name])
        from_y, second_from_y = first >= 10, second >= 10
        np.testing.assert_array_equal(first, np.where(from_y, y[name], x[name]))
        np.testing.assert_array_equal(second, np.where(second_from_y, y[name], x[name]))
        if name == "w":
            assert (from_y == from_y[:, :1]).all()
            assert (second_from_y == second_from_y[:, :1]).all()
        hit = first == second
        assert (~from_y[~hit]).all()  # rows that were not hit stay where they are
        assert second_from_y[~hit].all()
        assert hit.any()
        assert (~hit).any()


def sequential(shape, chance):
    """ERL's loop on [rows, ...]: which rows end up common, and from y."""
    rows = shape[0]
    a, b = np.zeros(rows), np.ones(rows)
    for _ in range(chance.integers(2 * rows if len(shape) == 2 else rows)):
        receiver, row = chance.random() < 0.5, chance.integers(rows)
        if receiver:
            a[row] = b[row]
        else:
            b[row] = a[row]
    return (a == b).sum(), a.sum(), b.sum()


@pytest.mark.parametrize("shape", [(6, 3), (6,)])
def test_the_exchange_is_distributed_as_the_sequential_original(shape, key, chance):
    rows = shape[0]
    x, y = jnp.zeros(shape[::-1]), jnp.ones(shape[::-1])
    a, b = jax.jit(jax.vmap(lambda k: n_point(k, x, y)))(jax.random.split(key, 20_000))
    a, b = (np.asarray(z).reshape(20_000, -1, rows)[:, 0] for z in (a, b))
    random = np.random.default_rng(0)
    expected = np.array([sequential(shape, random) for _ in range(20_000)], int)
    got = np.stack([(a == b).sum(1), a.sum(1), b.sum(1)], 1).astype(int)
    for column in range(3):
        counts = [np.bincount(z[:, column], minlength=rows + 1) for z in (got, expected)]
        share = (counts[0] + counts[1]) / 40_000
        present = share > 0.001
        # Two samples: the statistic of the difference has twice the variance of a single one.
        statistic = ((counts[0] - counts[1])[present] ** 2 / (40_000 * share[present])).sum()
        assert statistic < 3 * present.sum() + 6


@pytest.mark.parametrize(
    ("size", "steps"), [(4010, 372), (8000, 744), (70, 12), (0, 0), (128, 12), (255, 12)]
)
def test_worked_example_8_gradient_steps(size, steps):
    assert int(distillation_steps(jnp.int32(size), 128, 12)) == steps


@partial(jax.jit, static_argnames=("config", "active"))
def child_of(x, y, critic, obs, key, config=SMALL, lr=1e-2, active=True):
    return distil(judged_by(CRITIC), critic, x, y, obs, key, config, lr, jnp.bool_(active))


def test_worked_example_10_parents_and_critic_get_no_gradient(key):
    x, y = two_parents(key)
    obs = jax.random.normal(key, (16, 2))

    def loss(x, y, best):
        actions = ACTOR.apply(x, obs), ACTOR.apply(y, obs)
        values = (CRITIC.apply(best, obs, action) for action in actions)
        return imitation_loss(jnp.ones((16, 1)), *better_action(*values, *actions), jnp.ones(16, bool))

    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2)))(x, y, jnp.zeros(1))):
        assert not np.any(gradient)


def test_an_inactive_child_is_the_less_fit_parent(key):
    x, y = two_parents(key)
    born = child_of(x, y, jnp.zeros(1), memory(jax.random.normal(key, (40, 2))), key, active=False)
    equal(born, y)


def test_a_child_starts_as_the_less_fit_parent(key):
    x, y = two_parents(key)
    empty = memory(jnp.zeros((1, 2)), 4).replace(size=jnp.int32(0))  # nothing to learn from
    equal(child_of(x, y, jnp.zeros(1), empty, key), y)


def by_hand(x, y, best, obs, lr, config):
    """The same child of a full-batch memory, where nothing is left to chance; Adam written out."""
    child = jax.tree.map(np.asarray, y)
    moments = jax.tree.map(np.zeros_like, child), jax.tree.map(np.zeros_like, child)
    target_x, target_y = ACTOR.apply(x, obs), ACTOR.apply(y, obs)
    prefer_x = CRITIC.apply(best, obs, target_x) > CRITIC.apply(best, obs, target_y)
    target = jnp.where(prefer_x[:, None], target_x, target_y)

    def loss(params):
        action = ACTOR.apply(params, obs)
        return ((action - target) ** 2).sum() + (action**2).mean()

    slope = jax.jit(jax.grad(loss))
    for t in range(1, config.epochs + 1):
        gradient = jax.tree.map(np.asarray, slope(child))
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, moments[1], gradient)
        moments = m, v

        def move(p, m, v, t=t):
            return p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

        child = jax.tree.map(move, child, m, v)
    return child


@pytest.mark.parametrize("capacity", [10, 50])
def test_distillation_equals_adam_by_hand_also_where_memory_is_less_than_a_batch(capacity, key):
    """10 states and a batch of 16: sums and means run over the 10, whatever else the ring holds."""
    x, y = two_parents(key)
    obs, best = jax.random.normal(key, (10, 2)), jnp.array([0.3])
    born = child_of(x, y, best, memory(obs, capacity), key)
    close(born, by_hand(x, y, best, obs, 1e-2, SMALL), rtol=1e-3, atol=2e-5)


def test_a_child_of_identical_parents_is_moved_by_the_regulariser_only(key):
    x, _ = two_parents(key)
    obs = jax.random.normal(key, (16, 2))
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(lambda p: (ACTOR.apply(p, obs) ** 2).mean()))(x))
    born = child_of(x, x, jnp.zeros(1), memory(obs), key, config=Distillation(batch=16, epochs=1), lr=1e-3)
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), born, x)
    expected = jax.tree.map(lambda g: -1e-3 * g / (np.abs(g) + 1e-8), gradient)
    large = jax.tree.map(lambda g: np.abs(g) > 1e-4, gradient)
    jax.tree.map(
        lambda a, b, keep: np.testing.assert_allclose(a[keep], b[keep], rtol=2e-2, atol=1e-6),
        moved,
        expected,
        large,
    )


def test_a_child_takes_the_better_of_both(key):
    """The critic prefers x where the first observation is positive, and y elsewhere."""
    x, y = two_parents(key)
    obs = jax.random.normal(key, (256, 2))

    def judge(params, obs, action):
        return jnp.where(obs[..., 0] > 0, 1.0, -1.0) * ((action - ACTOR.apply(y, obs)) ** 2).sum(-1)

    critic = Network(CRITIC.init, judge)
    config = Distillation(batch=64, epochs=60)
    born = jax.jit(
        lambda: distil(judged_by(critic), 0.0, x, y, memory(obs), key, config, 1e-2, jnp.bool_(True))
    )()
    best = jnp.where(obs[:, :1] > 0, ACTOR.apply(x, obs), ACTOR.apply(y, obs))
    error = {
        name: float(((ACTOR.apply(p, obs) - best) ** 2).mean())
        for name, p in zip("xyz", (x, y, born), strict=True)
    }
    assert error["z"] < 0.25 * min(error["x"], error["y"])


@pytest.mark.parametrize("imitate", ["mode", "kl"])
@pytest.mark.parametrize("kind", [sac, td3, dqn])
def test_a_child_of_any_agent_acts_as_the_better_parent(kind, imitate, key):
    """The critic prefers x's actions where the first observation is positive, and y's elsewhere."""
    if (kind, imitate) == (td3, "kl"):
        pytest.skip("a deterministic policy has no density")
    agent = kind.build(Spec("task", (2,), 3, 10, discrete=kind is dqn), kind.Config(hidden=(16,)))
    init = jax.jit(lambda k: jax.tree.map(lambda w: 3 * w, agent.actor.init(k)))
    x, y = (init(k) for k in jax.random.split(key))
    obs = jax.random.normal(key, (256, 2))

    def played(params, obs):
        return agent.actions.bounded(agent.actions.mode(agent.outputs(params, obs)))

    def judge(learner, obs, action):
        unlike = jnp.abs(action - played(y, obs)).reshape(*obs.shape[:-1], -1).sum(-1)
        return jnp.where(obs[..., 0] > 0, 1.0, -1.0) * unlike

    config = Distillation(batch=64, epochs=80, imitate=imitate)
    judged = agent._replace(value=judge)
    born = jax.jit(lambda: distil(judged, 0.0, x, y, memory(obs), key, config, 1e-2, jnp.bool_(True)))()
    best = jnp.where((obs[:, 0] > 0).reshape(-1, *(1,) * (kind is not dqn)), played(x, obs), played(y, obs))
    if imitate == "mode":
        wrong = [float(jnp.abs(played(p, obs) - best).mean()) for p in (x, y, born)]
    else:
        said = [agent.outputs(p, obs) for p in (x, y, born)]
        target = tree.where(obs[:, 0] > 0, said[0], said[1])
        wrong = [float(agent.actions.kl(target, q).mean()) for q in said]
    assert wrong[2] < 0.5 * min(wrong[:2])


@pytest.mark.parametrize("numbers", [{"batch": 0}, {"epochs": 0}, {"imitate": "z"}])
def test_senseless_distillations_are_refused(numbers):
    with pytest.raises(ValueError, match=str(next(iter(numbers.values())))):
        Distillation(**numbers)
