"""SUNRISE: trust in targets, masks of transitions, and acting as one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.agents import sac
from popjax.envs import make
from popjax.methods import sunrise
from popjax.replay.ring import full
from tests.agents.by_hand import stepped
from tests.methods import written_out
from tests.methods.written_out import APART, actor_gradient, learn_critics, learn_temperature
from tests.support import Case, close, same

SMALL = sunrise.Config(agent=sac.Config(hidden=(8,)), population=3, batch=12, capacity=200, warmup=10)


@lru_cache
def compiled():
    method = sunrise.build(make("probe/corridor"), SMALL)
    return method, jax.jit(method.init), jax.jit(method.step)


def played(count):
    method, init, step = compiled()
    state = init(jax.random.key(0), method.hyper)
    for _ in range(count):
        state = step(state)
    return state


def test_a_step_written_out(monkeypatch):
    """Losses are sums over an agent's own transitions, divided by one more than their number; only the
    critics' errors count by the trust in their targets."""
    written_out.leave_nothing_to_chance(monkeypatch)
    method = sunrise.build(written_out.task(), replace(SMALL, batch=16, warmup=48))
    step = jax.jit(method.step)
    before = jax.jit(method.init)(jax.random.key(0), sunrise.Hyper(APART, trust_temperature=2.0))
    for _ in range(55):
        before = step(before)
    after = step(before)
    rows = tree.take(before.replay.rows, np.arange(0, 48, 3))
    assert set(np.asarray(rows.discount)) == {0, 1}
    agents = [tree.take(before.agents, i) for i in range(3)]

    @jax.jit
    def target_values(agent):
        action, _ = written_out.sampled(*written_out.policy(agent.actor, rows.next_obs))
        return written_out.twins(agent.target_critics, rows.next_obs, action)

    @jax.jit
    def climb(agent, critics, weight):
        return actor_gradient(agent, rows.obs, partial(written_out.mean_value, critics), weight)

    spread = np.concatenate([target_values(agent) for agent in agents]).std(0)  # of 6 values
    trust = 1 / (1 + np.exp(2 * spread)) + 0.5
    assert np.ptp(trust) > 0.1
    for i, agent in enumerate(agents):
        own = np.asarray(rows.mask[:, i], np.float32)
        weight = own * 16 / (own.sum() + 1)
        critics, targets = learn_critics(agent, rows, weight * trust)
        gradient, entropy = climb(agent, critics, weight)
        actor = stepped(agent.actor, gradient, APART.actor_lr, APART.max_grad_norm, agent.actor_optimizer)
        now = tree.take(after.agents, i)
        found = now.actor, now.critics, now.target_critics, now.log_temperature
        close(found, (actor, critics, targets, learn_temperature(agent, entropy)), **written_out.ROUNDING)


def test_the_worked_example_of_the_weight():
    np.testing.assert_allclose(sunrise.target_weight(jnp.array([0.0, 0.1]), 20.0), [1.0, 0.619203], atol=1e-6)


def test_every_row_counts_for_an_agent():
    state = played(60)
    mask = np.asarray(state.replay.rows.mask[:60])
    assert mask.any(1).all()
    assert 0.4 < mask.mean() < 0.7
    assert int(state.env_steps) == int(state.replay.size) == 60


def test_an_agent_learns_only_from_its_own_transitions():
    """Rewards of the others' rows are nothing to it, and without any row it stands still."""
    state, step = played(12), compiled()[2]
    rows = tree.take(state.replay.rows, jnp.arange(200) % 12)
    mask = jnp.zeros((200, 3), bool).at[::2, 0].set(True).at[1::2, 1].set(True)
    rows = rows.replace(mask=mask)
    other = rows.replace(reward=rows.reward.at[1::2].add(5.0))
    one, two = (step(state.replace(replay=full(x))) for x in (rows, other))
    # The row that the step itself adds is the first, which belongs to agent 0 in both.
    assert not same(tree.take(one.agents, 1), tree.take(two.agents, 1))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(one.agents))
    nobody = full(rows.replace(mask=jnp.zeros((200, 3), bool)))
    # At most one row of a batch can count for an agent then: the new one.
    still = step(state.replace(replay=nobody))
    new = np.asarray(still.replay.rows.mask[0])
    for i in np.flatnonzero(~new):
        assert same(tree.take(still.agents, i), tree.take(state.agents, i))


def test_masks_are_drawn_with_their_probability(key):
    drawn = sunrise.draw_mask(key, 0.5, (4000, 3))
    assert drawn.any(-1).all()
    # Of 8 equally likely rows the empty one becomes one of three: (12 + 1) / 24.
    assert float(drawn.mean()) == pytest.approx(13 / 24, abs=0.02)


def test_the_ensemble_deploys_its_mean_action():
    method, state = compiled()[0], played(20)
    outputs = sac.build(make("probe/corridor").spec, SMALL.agent).outputs
    obs = jnp.full(1, 0.3)
    means = jnp.tanh(jax.vmap(outputs, (0, None))(state.agents.actor, obs)[0])
    action = method.act(method.policy(state), (), obs, jax.random.key(0), 0.0).action
    np.testing.assert_allclose(action, means.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population must be at least 1"),
        ({"updates_per_step": 0.3}, "updates_per_step 0.3 times 1 environment steps"),
        ({"capacity": 100}, "capacity 100 is less than a batch of 256"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sunrise.Config(**options)


CASES = {
    "sunrise": Case(
        lambda: sunrise.build(
            make("probe/delay"),
            sunrise.Config(agent=sac.Config(hidden=(4,)), population=3, batch=6, capacity=60, warmup=3),
        ),
        3,
        alone=False,
        slow_members=True,
    )
}
