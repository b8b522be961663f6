"""DiCE: equal shares of every agent, and actors that climb the bisector of two gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from popjax import tree
from popjax.agents import sac
from popjax.core import as_arrays
from popjax.envs import make
from popjax.methods import dice
from popjax.replay.ring import full
from tests.agents.by_hand import blend, stepped
from tests.methods import written_out
from tests.methods.written_out import APART, actor_gradient, learn_critics, learn_temperature
from tests.support import Case, close, same

SMALL = dice.Config(sac=sac.Config(hidden=(16,)), population=2, batch=12, capacity=200, warmup=20)


@lru_cache
def compiled():
    method = dice.build(make("probe/corridor"), SMALL)
    return method, jax.jit(method.init), jax.jit(method.step)


def played(count, **numbers):
    method, init, step = compiled()
    state = init(jax.random.key(0), replace(method.hyper, sac=sac.Hyper(**numbers)))
    for _ in range(count):
        state = step(state)
    return state


def test_a_step_written_out(monkeypatch):
    """The critic of diversity has a soft TD target of its own, paid for the distance from the others' slow
    copies, and the actor climbs the bisector."""
    written_out.leave_nothing_to_chance(monkeypatch)
    config = dice.Config(
        sac=sac.Config(hidden=(8,)), population=3, batch=15, capacity=90, warmup=48, updates_per_step=1 / 3
    )
    method = dice.build(written_out.task(), config)
    step = jax.jit(method.step)
    before = jax.jit(method.init)(jax.random.key(0), dice.Hyper(APART))
    for _ in range(23):
        before = step(before)
    after = step(before)
    # Of steps 0 to 14 every agent in turn contributes five.
    rows = tree.take(before.replay.rows, 3 * np.arange(15) + np.repeat(np.arange(3), 5))
    assert set(np.asarray(rows.discount)) == {0, 1}
    agents = [tree.take(before.agents, i) for i in range(3)]

    @jax.jit
    def acts(actor):
        return jnp.tanh(written_out.policy(actor, rows.obs)[0])

    @jax.jit
    def diversity_gradient(agent, bonus):
        y = written_out.target(agent.sac, rows, bonus, partial(written_out.value, agent.target_critic))

        def loss(critic):
            return ((written_out.value(critic, rows.obs, rows.action) - y) ** 2).mean()

        return jax.grad(loss)(agent.critic)

    @jax.jit
    def climb(agent, critics, critic):
        task, entropy = actor_gradient(agent, rows.obs, partial(written_out.mean_value, critics))
        diversity, _ = actor_gradient(agent, rows.obs, partial(written_out.value, critic))
        return task, diversity, entropy

    for i, agent in enumerate(agents):
        inner = agent.sac
        critics, targets = learn_critics(inner, rows)
        others = [acts(agents[j].slow_actor) for j in range(3) if j != i]
        bonus = np.mean([((acts(inner.actor) - other) ** 2).mean(-1) for other in others], 0)
        gradient = diversity_gradient(agent, bonus)
        critic = stepped(agent.critic, gradient, APART.critic_lr, APART.max_grad_norm, agent.optimizer)
        task, diversity, entropy = climb(inner, critics, critic)
        actor = stepped(inner.actor, bisector(task, diversity), APART.actor_lr, 40, inner.actor_optimizer)
        target, slow = (
            blend(*pair, APART.polyak) for pair in ((agent.target_critic, critic), (agent.slow_actor, actor))
        )
        now = tree.take(after.agents, i)
        found = now.sac.actor, now.sac.critics, now.sac.target_critics, now.sac.log_temperature
        close(found, (actor, critics, targets, learn_temperature(inner, entropy)), **written_out.ROUNDING)
        found = now.critic, now.target_critic, now.slow_actor
        close(found, (critic, target, slow), **written_out.ROUNDING)


def bisector(task, diversity):
    """Of gradients too short to be clipped."""
    (g, unravel), (d, _) = ravel_pytree(task), ravel_pytree(diversity)
    way = g / np.linalg.norm(g) + d / np.linalg.norm(d)
    way = way / np.linalg.norm(way)
    lengths = np.linalg.norm(g * way), np.linalg.norm(d * way)
    return unravel(way * (lengths[0] + min(lengths)) / 2)


@pytest.mark.parametrize("shape", [(4, 1), (3, 2)])
def test_a_batch_has_equal_shares_of_every_agent(shape, key):
    owner = jnp.broadcast_to(jnp.arange(shape[0])[:, None], (10, *shape)).reshape(-1)  # [T, P, N]
    slots = dice.equal_shares(full(owner), key, 12, shape=shape)
    np.testing.assert_array_equal(np.bincount(owner[slots], minlength=shape[0]), [12 // shape[0]] * shape[0])
    drawn = dice.equal_shares(full(owner), key, 6000, shape=shape)
    assert len(np.unique(drawn)) == len(owner)


def test_an_actor_climbs_the_tasks_gradient_where_its_critic_of_diversity_is_flat():
    """Critics stand still and entropy counts nothing: the mean moves the way in which its value rises, and
    otherwise where the critic of diversity has an opinion."""
    still = {"critic_lr": 0.0, "init_temperature": 0.0, "temperature_lr": 0.0, "polyak": 0.0}
    state = played(9, **still)
    blank = replace(state.agents, critic=jax.tree.map(jnp.zeros_like, state.agents.critic))
    # Twins that grow with the action everywhere, whatever its noise.
    critics = jax.tree.map(jnp.zeros_like, state.agents.sac.critics)
    first, last = (critics["mlp"][name]["linear"] for name in ("Dense_0", "Dense_1"))
    first["kernel"] = first["kernel"].at[..., 1, :].set(1.0)  # the action's row
    first["bias"] = first["bias"] + 2.0
    last["kernel"] = last["kernel"] + 1.0
    rising = replace(state.agents.sac, critics=critics, target_critics=critics)

    def moved(agents):
        before = state.replace(agents=agents)
        after = compiled()[2](before).agents.sac.actor
        return jax.tree.map(lambda a, b: a - b, after, agents.sac.actor)

    up = moved(replace(blank, sac=rising))
    assert (up["mlp"]["Dense_1"]["linear"]["bias"] > 0).all()
    falling = jax.tree.map(jnp.copy, rising)
    falling.critics["mlp"]["Dense_1"]["linear"]["kernel"] = -last["kernel"]
    assert (moved(replace(blank, sac=falling))["mlp"]["Dense_1"]["linear"]["bias"] < 0).all()
    assert not same(moved(replace(state.agents, sac=rising)), up)


def test_an_actor_is_followed_by_its_slow_copy():
    state = played(11)
    later = state
    for _ in range(6):
        later = compiled()[2](later)
    gap = [
        sum(float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in (
            (later.agents.slow_actor, state.agents.slow_actor),
            (later.agents.sac.actor, state.agents.sac.actor),
        )
    ]
    assert 0 < gap[0] < gap[1]


def test_the_warm_up_ends_in_time():
    assert same(played(9).agents, played(0).agents)
    state = played(10)
    assert not same(state.agents, played(0).agents)
    assert int(state.env_steps) == int(state.replay.size) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population must be at least 2, got 1"),
        ({"batch": 10}, "make batch 10 a multiple of population 4"),
        ({"capacity": 100}, "capacity 100 is less than a batch"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dice.Config(**options)


def test_every_agent_is_deployed_alone():
    method, state = compiled()[0], played(3)
    everyone = method.individuals(state)
    assert same(method.policy(state), tree.take(everyone, 0))
    assert same(everyone, state.agents.sac.actor)
    assert as_arrays(method.hyper).sac.discount == jnp.float32(0.99)


CASES = {
    "dice": Case(
        lambda: dice.build(
            make("probe/delay"),
            dice.Config(sac=sac.Config(hidden=(4,)), population=3, batch=6, capacity=60, warmup=3),
        ),
        3,
        slow_members=True,
    )
}
