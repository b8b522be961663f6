"""Collaborative Exploration and what it is compared with."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import tree
from popjax.agents import sac
from popjax.core import Transition, as_arrays
from popjax.envs import make
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import ce
from popjax.methods.ce import acting, drives, experience, learners
from popjax.methods.ce.experience import Lanes, Row
from popjax.replay.ring import ring
from tests.support import Case, close, same

SMALL = ce.Config(
    batch=12,
    capacity=400,
    warmup=40,
    sac=sac.Config(hidden=(16,)),
    contrastive=contrastive.Config(hidden=(8,), features=8, bank_size=20, neighbours=3),
    q_horizon=5,
    skills=4,
    pretraining=60,
)
VARIANTS = {
    "ce": {},
    "all": {"col_unroll": True, "col_eval": True},
    "q": {"col_eval": True, "eval_classifier": "q"},
    "lanes": {"lanes": 3},
    "replica": {"col_training": False},
    "sac": {"population": 1, "col_training": False},
    "alone": {"population": 1},
    "rnd": {"population": 1, "intrinsic": "rnd"},
    "rnd_replica": {"intrinsic": "rnd_replica"},
    "rnd_ce": {"intrinsic": "rnd_ce"},
    "dice": {"learner": "dice", "col_training": False},
    "sunrise": {"learner": "sunrise", "col_training": False},
    "diayn": {"population": 1, "intrinsic": "diayn"},
    "multihead": {"learner": "multihead", "col_unroll": True},
    "eps_greedy": {"col_unroll": True, "unroll_mode": "eps_greedy"},
    "softmax": {"col_unroll": True, "unroll_mode": "softmax"},
    "ucb": {"col_unroll": True, "unroll_mode": "ucb"},
}
RARE = (
    "q",
    "lanes",
    "replica",
    "alone",
    "rnd",
    "rnd_replica",
    "rnd_ce",
    "dice",
    "diayn",
    "multihead",
    "sunrise",
    "ucb",
    "eps_greedy",
    "softmax",
)
ALL_VARIANTS = [pytest.param(name, marks=pytest.mark.slow if name in RARE else ()) for name in VARIANTS]


@lru_cache
def compiled(name):
    """(method, init, steps(state, count) in one program)."""
    method = ce.build(make("probe/corridor"), replace(SMALL, **VARIANTS[name]))

    @jax.jit
    def steps(state, count):
        return jax.lax.fori_loop(0, count, lambda _, s: method.step(s), state)

    return method, jax.jit(method.init), steps


def played(name, count, seed=0):
    method, init, steps = compiled(name)
    return steps(init(jax.random.key(seed), method.hyper), count)


# What every variant does


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_the_step_that_ends_the_warm_up_and_every_later_one_pay_their_updates(name):
    config = replace(SMALL, **VARIANTS[name])
    per_step = config.actors * config.lanes
    first = -(-config.warmup // per_step)  # the synchronous step that reaches the warm-up
    method, init, steps = compiled(name)
    fresh = init(jax.random.key(0), method.hyper)
    before = steps(fresh, first - 1)
    assert int(before.metrics.gradient_steps) == 0
    assert same(before.agents, fresh.agents)
    after = steps(before, 3)
    assert int(after.metrics.gradient_steps) == 3 * per_step
    assert int(after.env_steps) == int(after.replay.size) == (first + 2) * per_step
    assert not same(after.agents, fresh.agents)
    for leaf in jax.tree.leaves(after.metrics):
        assert jnp.isfinite(leaf).all()


def test_the_papers_numbers_of_updates():
    """Worked example 10 from the configuration: nothing before 10,000 steps, four updates a step then."""
    config = ce.Config()
    steps_of_warmup = config.warmup // config.actors
    assert steps_of_warmup == 2500
    assert config.updates * (1000 + 1) == 4004
    assert config.encoder_steps == 1


@pytest.mark.parametrize("name", ALL_VARIANTS)
def test_the_deployed_policy_acts(name):
    method, *_ = compiled(name)
    state = played(name, 45)
    memory, action = method.act(method.policy(state), method.memory, jnp.zeros(1), jax.random.key(0), 0.0)[:2]
    assert jax.tree.structure(memory) == jax.tree.structure(method.memory)
    assert action.shape == (1,)
    assert float(jnp.abs(action).max()) <= 1


def one_update_by_hand(name, state, store, rewards_of):
    """The agents after the update that follows acting, put together from the pieces."""
    config = replace(SMALL, **(VARIANTS[name] if isinstance(name, str) else name))
    order, learner = Lanes(config.actors, config.lanes), learner_of(name)

    @jax.jit
    def update(state, store):
        key_acted = jax.random.split(state.key, 5)[0]
        key_learn = jax.random.split(key_acted)[1]
        key_update = jax.random.split(key_learn, config.updates)[0]
        key_batch, key_agents, *_ = jax.random.split(key_update, 4)
        batch = experience.batch(store, key_batch, config.batch, order, False)
        return learner.learn(state.agents, batch, rewards_of(state, batch), state.hyper, key_agents)[0]

    return update(state, store)


def learner_of(name):
    config = replace(SMALL, **(VARIANTS[name] if isinstance(name, str) else name))
    spec = make("probe/corridor").spec
    if config.drive == "diayn":
        spec = spec._replace(obs_shape=(1 + config.skills,))
    return learners.build(spec, config.learner, config.sac, config.population)


@pytest.mark.parametrize("name", ["sac", "alone"])
def test_one_agent_without_an_effective_drive_is_plain_sac_bit_for_bit(name):
    """Without a drive, and with one of weight 0, the next update is that of popjax.agents.sac on the task."""
    method, init, steps = compiled(name)
    state = steps(init(jax.random.key(0), replace(method.hyper, intrinsic_weight=0.0)), 45)
    after = steps(state, 1)
    agent = sac.build(make("probe/corridor").spec, SMALL.sac)

    @jax.jit
    def by_hand(agents, store, key):
        key_batch, key_agents, *_ = jax.random.split(jax.random.split(jax.random.split(key)[1], 1)[0], 4)
        rows = experience.batch(store, key_batch, SMALL.batch, Lanes(1, 1), False).transition
        keys = jax.random.split(key_agents, 1)
        return jax.vmap(agent.learn, (0, None, None, 0))(agents, rows, state.hyper.sac, keys)[0]

    assert same(by_hand(state.agents, after.replay, jax.random.split(state.key, 5)[0]), after.agents)


def test_agent_i_trains_on_the_tasks_reward_plus_its_own_novelty():
    """Equations 2 and 3 written out, for a step with a single update."""
    config = replace(SMALL, updates_per_step=0.25)
    method = ce.build(make("probe/corridor"), config)
    steps = jax.jit(lambda s, n: jax.lax.fori_loop(0, n, lambda _, s: method.step(s), s))
    state = steps(jax.jit(method.init)(jax.random.key(0), method.hyper), 30)
    after = steps(state, 1)
    network = contrastive.encoder(1, config.contrastive)
    banks, counts, encoder = after.drive.banks, after.drive.banks.count.tolist(), state.drive.encoder

    def rewards_of(state, batch):
        rows = batch.transition
        embedded = network.apply(encoder, rows.next_obs)
        r = []
        for agent in range(4):
            keys = network.apply(encoder, banks.states[agent][: counts[agent]])
            similar = embedded @ keys.T / jnp.outer(*(jnp.linalg.norm(x, axis=1) for x in (embedded, keys)))
            r.append(-jnp.sort(similar, axis=1)[:, -config.contrastive.neighbours])
        bonus = [0.5 * r[i] + 0.5 * sum(r[j] for j in range(4) if j != i) / 3 for i in range(4)]
        return jnp.stack([rows.reward + 0.2 * b for b in bonus])

    by_hand = one_update_by_hand({"updates_per_step": 0.25}, state, after.replay, rewards_of)
    close(by_hand, after.agents, atol=1e-6)
    wrong = one_update_by_hand(
        {"updates_per_step": 0.25}, state, after.replay, lambda s, b: rewards_of(s, b)[::-1]
    )
    assert any(
        float(jnp.abs(a - b).max()) > 1e-5
        for a, b in zip(*map(jax.tree.leaves, (wrong, by_hand)), strict=True)
    )


@pytest.mark.parametrize("encoder_steps", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_encoder_takes_its_steps_with_every_update(encoder_steps):
    method = ce.build(make("probe/corridor"), replace(SMALL, encoder_steps=encoder_steps))
    steps = jax.jit(lambda s: jax.lax.fori_loop(0, 15, lambda _, s: method.step(s), s))
    state = steps(jax.jit(method.init)(jax.random.key(0), method.hyper))
    count = optax.tree_utils.tree_get(state.drive.optimizer, "count")
    assert int(count) == encoder_steps * int(state.metrics.gradient_steps) == encoder_steps * 6 * 4


def test_no_gradient_leaves_the_drive():
    """Worked example 11: the reward does not move the encoder."""
    state = played("ce", 20)
    drive = drives.collab(1, SMALL.contrastive, 4, 1)
    batch = experience.batch(state.replay, jax.random.key(0), 12, Lanes(4, 1), False)

    def total(encoder):
        return drive.reward(replace(state.drive, encoder=encoder), batch, state.hyper).sum()

    assert float(total(state.drive.encoder)) != 0
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(total)(state.drive.encoder)))


@pytest.mark.slow
def test_rnd_replica_modules_learn_their_own_agents_transitions_and_rnd_each_all(key):
    batch, _ = random_batch(key, 4)
    alone = replace(batch, owner=jnp.full(12, 2))
    for kind, moved in (("rnd_replica", [False, False, True, False]), ("rnd_each", [True] * 4)):
        drive = drives.distillation(1, kind, SMALL.rnd, 4, 1)
        state = drive.init(key)
        after, _ = drive.learn(state, alone, None, as_arrays(ce.Hyper()), key)
        changed = [not same(tree.take(after.predictor, i), tree.take(state.predictor, i)) for i in range(4)]
        assert changed == moved
    assert drives.distillation(1, "rnd_ce", SMALL.rnd, 4, 1).init(key).observations.count.shape == (1,)


@pytest.mark.slow
def test_rnds_return_scale_waits_until_observations_are_whitened(key):
    drive = drives.distillation(1, "rnd_ce", rnd.Config(hidden=(8,), scale="return"), 4, 2)
    hyper, state = as_arrays(ce.Hyper()), drive.init(key)
    seen, done = jax.random.normal(key, (4, 2, 1)), jnp.zeros((4, 2), bool)
    assert int(drive.remember(state, seen, done, 1, hyper).magnitudes.count[0]) == 0
    state, _ = drive.learn(state, random_batch(key, 4)[0], None, hyper, key)
    assert int(drive.remember(state, seen, done, 2, hyper).magnitudes.count[0]) == 8


@pytest.mark.parametrize(
    "options",
    [
        {"contrastive": contrastive.Config(encoder="random", similarity="mean"), "lanes": 2},
        {"contrastive": contrastive.Config(encoder="identity")},
        {"intrinsic": "rnd_each", "rnd": rnd.Config(scale="return"), "lanes": 2},
        {"learner": "dice", "lanes": 2},
        {
            "learner": "sunrise",
            "col_training": False,
            "lanes": 2,
            "unroll_mode": "softmax",
            "col_unroll": True,
        },
        {"intrinsic": "diayn", "population": 1, "lanes": 2},
        {"learner": "multihead", "lanes": 2, "col_unroll": True, "col_eval": True, "eval_classifier": "q"},
        {"learner": "dice", "col_unroll": True, "unroll_mode": "ucb", "col_eval": True},
    ],
)
def test_combinations_fit_together(options):
    """Shapes only: what a step returns is what it takes, and the policy acts on one observation."""
    method = ce.build(make("probe/corridor"), replace(SMALL, **options))
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(method.step, state)) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    params = jax.eval_shape(method.policy, state)
    _, action = jax.eval_shape(method.act, params, method.memory, jnp.zeros(1), jax.random.key(0), 0.0)[:2]
    assert action.shape == (1,)


def test_weight_zero_equals_no_drive():
    """Replica is CE with lambda 0 but for the encoder beside it."""
    method, init, steps = compiled("ce")
    quiet = steps(init(jax.random.key(0), replace(method.hyper, intrinsic_weight=0.0)), 45)
    loud = steps(init(jax.random.key(0), method.hyper), 45)
    plain_method, plain_init, plain_steps = compiled("replica")
    plain = plain_init(jax.random.key(0), plain_method.hyper)
    start = init(jax.random.key(0), method.hyper)
    assert same(plain.agents, start.agents)
    plain = plain_steps(plain, 45)
    close(plain.agents, quiet.agents, atol=2e-6)
    assert not same(loud.agents, quiet.agents)


def test_agents_alone_in_a_population_stay_what_they_are_alone(key):
    """An agent's update depends on the common batch and its own reward only."""
    method, *_ = compiled("replica")
    learner = learners.build(make("probe/corridor").spec, "sac", SMALL.sac, 3)
    hyper = jax.tree.map(jnp.float32, method.hyper)
    agents = learner.init(key, hyper)
    batch, rewards = random_batch(key, 3)
    other = rewards.at[1].add(1.0)
    one, _ = learner.learn(agents, batch, rewards, hyper, key)
    two, _ = learner.learn(agents, batch, other, hyper, key)
    assert same(tree.take(one, 0), tree.take(two, 0))
    assert not same(tree.take(one, 1), tree.take(two, 1))


def random_batch(key, population, size=12):
    keys = jax.random.split(key, 5)
    obs, next_obs = jax.random.normal(keys[0], (2, size, 1))
    action = jnp.tanh(jax.random.normal(keys[1], (size, 1)))
    reward = jax.random.normal(keys[2], (population, size))
    rows = Transition(obs, action, reward[0], jnp.full(size, 0.9), next_obs)
    members = jax.random.bernoulli(keys[3], 0.5, (size, population)).at[:, 0].set(True)
    return learners.Batch(rows, jnp.arange(size) * population // size, members), reward


# Replay, banks and positives


def test_the_replay_exists_once_whatever_the_population():
    one, many = compiled("sac")[0], compiled("ce")[0]
    shapes = [jax.eval_shape(m.init, jax.random.key(0), m.hyper).replay for m in (one, many)]
    assert [x.shape for x in jax.tree.leaves(shapes[0])] == [x.shape for x in jax.tree.leaves(shapes[1])]


def filled(rows, order, capacity):
    """A ring whose obs tell time and lane, with episodes and rewards as given, [time, stride] each."""
    episodes, rewards = rows
    store, replay = None, ring(capacity)
    for time, (episode, reward) in enumerate(zip(episodes, rewards, strict=True)):
        obs = jnp.array([[100.0 * lane + time] for lane in range(order.stride)])
        step = Transition(obs, obs, jnp.float32(reward), jnp.ones(order.stride), obs)
        row = Row(step, jnp.int32(episode), ())
        store = store or replay.init(tree.take(row, 0))
        store = replay.add(store, row, jnp.ones(order.stride, bool))
    return store


def test_positives_stay_in_their_lane_and_episode_within_the_horizon_and_in_the_ring():
    order, time = Lanes(2, 2), np.arange(20)
    # Lanes have episodes of different lengths; the ring of ten steps has forgotten the first ten.
    episodes = np.stack([time // 20, time // 4, time // 7, time // 1], 1)
    store = filled((episodes, np.zeros((20, 4))), order, 40)
    anchors, positives, valid = experience.pairs(store, jax.random.key(0), 4000, order, 3)
    a, p, v = np.ravel(anchors), np.ravel(positives), np.asarray(valid)
    lane, when, other = a // 100, (a % 100).astype(int), (p % 100).astype(int)
    assert (v == (lane != 3)).all()  # episodes of one step have no positive, all others here have one
    assert (lane[v] == p[v] // 100).all()
    offset = other[v] - when[v]
    assert set(np.unique(offset)) == {-3, -2, -1, 1, 2, 3}
    assert (when >= 10).all()
    assert (other[v] >= 10).all()
    lanes = lane[v].astype(int)
    assert (episodes[when[v], lanes] == episodes[other[v], lanes]).all()


def test_all_valid_offsets_are_as_likely(chance):
    order = Lanes(1, 1)
    store = filled((np.zeros((30, 1)), np.zeros((30, 1))), order, 30)
    anchors, positives, valid = experience.pairs(store, jax.random.key(1), 20_000, order, 5)
    a, p = np.ravel(anchors), np.ravel(positives)
    middle = (a >= 5) & (a < 25)
    counts = np.unique(p[middle] - a[middle], return_counts=True)[1]
    assert len(counts) == 10
    assert chance(counts) > 1e-3
    assert valid.all()


def test_monte_carlo_returns():
    """Worked example 6: horizon 3, rewards 1 2 3 4 give 6 9 7 4, the last two because the episode ends."""
    episodes = np.array([[0], [0], [0], [0], [1], [1]])
    rewards = np.array([[1.0], [2], [3], [4], [50], [60]])
    order = Lanes(1, 1)
    store = filled((episodes, rewards), order, 8)
    returns, complete = experience.following(store, jnp.arange(6), order, 3)
    np.testing.assert_array_equal(returns[:4], [6, 9, 7, 4])
    np.testing.assert_array_equal(complete, [True] * 4 + [False] * 2)


def test_returns_are_found_across_the_end_of_the_ring():
    order = Lanes(1, 2)
    rewards = np.arange(24.0).reshape(12, 2)
    store = filled((np.zeros((12, 2)), rewards), order, 16)  # holds steps 4 to 11
    slots = jnp.arange(16)
    when = np.ravel(store.rows.transition.obs[:, 0] % 100).astype(int)
    lane = np.ravel(store.rows.transition.obs[:, 0] // 100).astype(int)
    returns, complete = experience.following(store, slots, order, 3)
    assert (np.asarray(complete) == (when <= 9)).all()
    for slot in np.flatnonzero(complete):
        assert returns[slot] == rewards[when[slot] : when[slot] + 3, lane[slot]].sum()


def test_the_bank_of_an_agent_holds_every_fifth_state_of_its_own_lanes():
    state = played("ce", 27)
    rows = state.replay.rows.transition.next_obs[:108].reshape(27, 4)
    for agent in range(4):
        held = np.ravel(state.drive.banks.states[agent])[:5]
        np.testing.assert_array_equal(held, rows[4::5, agent])
    assert (state.drive.banks.count == 5).all()


def test_dice_takes_equal_shares_of_every_agent():
    state = played("dice", 45)
    batch = experience.batch(state.replay, jax.random.key(3), 12, Lanes(4, 1), True)
    np.testing.assert_array_equal(np.bincount(batch.owner, minlength=4), [3] * 4)
    rows = np.ravel(state.replay.rows.transition.obs).reshape(-1, 4)
    for owner, obs in zip(batch.owner, np.ravel(batch.transition.obs), strict=True):
        assert obs in rows[:, owner]


# Acting


def test_the_worked_example_of_the_farthest_action():
    candidates = jnp.array([[0.0, 0], [1, 1], [-1, 0.5]])
    references = jnp.array([[[9.0, 9], [9, 9]], [[0.5, 0.5], [0.2, -0.1]], [[-0.5, 0], [0, 1]]])
    squares = jnp.square(candidates[:, None, None] - references[1:]).sum((1, 2, 3))
    np.testing.assert_allclose(squares, [1.8, 6.6, 5.8], atol=1e-6)
    assert int(acting.farthest(candidates, references, 0)) == 1


@pytest.mark.parametrize(
    ("inverse", "expected"), [(1.0, [0.331499, 0.546549, 0.121952]), (10.0, [0.006693, 0.993307, 0.0])]
)
def test_the_worked_example_of_the_softmax(inverse, expected, chance):
    values, keys = jnp.array([10.0, 10.5, 9.0]), jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.vmap(lambda k: acting.boltzmann(k, values, inverse, 1.0))(keys)
    shares = np.bincount(drawn, minlength=3) / len(keys)
    np.testing.assert_allclose(shares, expected, atol=0.01)
    modes = jax.vmap(lambda k: acting.boltzmann(k, values, inverse, 0.0))(keys[:50])
    assert (modes == 1).all()


def test_the_worked_example_of_the_upper_confidence():
    values = jnp.array([[1.0, 0.0], [1.2, 0.0], [0.8, 0.0], [1.4, 3.0]])
    assert float(values[:, 0].mean()) == pytest.approx(1.1)
    assert float(values[:, 0].std()) == pytest.approx(0.223607, abs=1e-6)
    assert int(acting.upper_confidence(values, 0.0)) == 0
    assert int(acting.upper_confidence(values, 1.0)) == 1  # 0.75 + 1.30 exceeds 1.1 + 0.22


def test_epsilon_zero_acts_as_without_collaboration_and_one_always_aside(key):
    learner = learners.build(make("probe/corridor").spec, "sac", SMALL.sac, 4)
    hyper = jax.tree.map(jnp.float32, ce.Hyper())
    agents = learner.init(key, hyper)
    obs, uniform = jax.random.normal(key, (4, 2, 1)), jnp.full((4, 2, 1), 0.77)
    aside = acting.actor(learner, "eps_greedy", 10, 4)
    assert (aside(agents, obs, uniform, replace(hyper, epsilon=jnp.float32(1)), key) == uniform).all()
    assert (aside(agents, obs, uniform, replace(hyper, epsilon=jnp.float32(0)), key) != uniform).all()
    apart = acting.actor(learner, "eps_collab", 10, 4)

    def distance(epsilon):
        hypers = replace(hyper, epsilon=jnp.float32(epsilon))
        act = jax.vmap(lambda k: apart(agents, jnp.zeros((4, 2, 1)), uniform, hypers, k))
        actions = act(jax.random.split(key, 200))  # [200, 4, 2, 1]
        return float(jnp.square(actions[:, :, None] - actions[:, None]).mean())

    assert distance(1.0) > 1.2 * distance(0.0)


@pytest.mark.parametrize("kind", ["sac", "multihead"])
def test_values_and_policies_agree_with_the_agents_own(kind, key):
    """What all say of one observation contains, on its diagonal, what each says of its own."""
    learner = learners.build(make("probe/corridor").spec, kind, SMALL.sac, 3)
    hyper = jax.tree.map(jnp.float32, ce.Hyper())
    agents = learner.init(key, hyper)
    obs = jax.random.normal(key, (3, 2, 1))
    everyone, own = learner.policies(agents, obs)[0], learner.own(agents, obs)[0]
    for i in range(3):
        np.testing.assert_allclose(everyone[i, i], own[i], atol=1e-6)
        greedy = learner.greedy(learner.deploy(agents, i), i, obs[0, 0])
        np.testing.assert_allclose(greedy, jnp.tanh(everyone[i, 0, 0]), atol=1e-6)
    actions = jnp.tanh(everyone)
    values = learner.values(agents, obs, actions)
    assert values.shape == (3, 2, 3, 2)
    assert acting.all_values(learner, agents, obs, actions).shape == (3, 2, 6, 3)
    best = acting.all_values(learner, agents, obs, actions)
    # Critic c of agent p, at its own proposal p, is what `values` has.
    np.testing.assert_allclose(best[1, 0, 2 * 2 + 1, 2], values[2, 1, 1, 0], atol=1e-6)


# Learners


def test_the_worked_example_of_sunrises_weight():
    np.testing.assert_allclose(
        learners.target_weight(jnp.array([0.0, 0.1]), 20.0), [1.0, 0.619203], atol=1e-6
    )


def test_a_sunrise_member_learns_only_from_its_own_transitions(key):
    learner = learners.build(make("probe/corridor").spec, "sunrise", SMALL.sac, 3)
    hyper = jax.tree.map(jnp.float32, ce.Hyper())
    agents = learner.init(key, hyper)
    batch, rewards = random_batch(key, 3)
    batch = replace(batch, members=jnp.zeros((12, 3), bool).at[:6, 0].set(True).at[6:, 1].set(True))
    changed = rewards.at[:, 6:].add(5.0)
    one, _ = learner.learn(agents, batch, rewards, hyper, key)
    two, _ = learner.learn(agents, batch, changed, hyper, key)
    assert same(tree.take(one, 0), tree.take(two, 0))
    assert not same(tree.take(one, 1), tree.take(two, 1))
    assert same(tree.take(one, 2), tree.take(agents, 2)), "no transition, nothing learned"
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(one))


def test_every_row_of_sunrise_has_a_member():
    members = np.asarray(played("sunrise", 60).replay.rows.members[:60])
    assert members.any(1).all()
    assert 0.4 < members.mean() < 0.7


@pytest.mark.slow
def test_multihead_agents_share_their_torso(key):
    learner = learners.build(make("probe/corridor").spec, "multihead", SMALL.sac, 3)
    hyper = jax.tree.map(jnp.float32, ce.Hyper())
    agents = learner.init(key, hyper)
    batch, rewards = random_batch(key, 3)
    after, losses = learner.learn(agents, batch, rewards, hyper, key)
    assert losses.temperature.shape == losses.entropy.shape == losses.critic_loss.shape == (3,)
    other, _ = learner.learn(agents, batch, rewards.at[1].add(1.0), hyper, key)
    heads = [x.critics["heads"]["Dense_0"]["linear"]["kernel"][0] for x in (after, other)]  # [2, 3, ...]
    assert (heads[0].shape[1]) == 3
    assert not same(after.critics["torso"], other.critics["torso"])
    assert not (heads[0][:, 1] == heads[1][:, 1]).all()


@pytest.mark.slow
def test_a_dice_actor_climbs_the_tasks_gradient_where_its_critic_of_diversity_is_flat(key):
    """Critics stand still, without entropy; a first step of Adam shows the signs of the gradient."""
    spec = make("probe/corridor").spec
    still = sac.Hyper(critic_lr=0.0, init_temperature=0.0, temperature_lr=0.0)
    hyper = jax.tree.map(jnp.float32, ce.Hyper(sac=still))
    learner = learners.build(spec, "dice", SMALL.sac, 2)
    agents = learner.init(key, hyper)
    batch, rewards = random_batch(key, 2, 64)
    blank = replace(agents, critic=jax.tree.map(jnp.zeros_like, agents.critic))
    parts = sac.parts(spec, SMALL.sac)

    def signs(agents):
        after, _ = learner.learn(agents, batch, rewards, hyper, key)
        moved = jax.tree.map(lambda a, b: a - b, after.sac.actor, agents.sac.actor)
        return np.concatenate([np.sign(x[0]).ravel() for x in jax.tree.leaves(moved)])

    first, key_actor = tree.take(agents.sac, 0), jax.random.split(jax.random.split(key, 2)[0], 3)[2]
    gradient = jax.grad(lambda p: parts.actor_loss(p, first, batch.transition.obs, key_actor)[0])(first.actor)
    downhill = np.concatenate([-np.sign(x).ravel() for x in jax.tree.leaves(gradient)])
    np.testing.assert_array_equal(signs(blank), downhill)
    assert (signs(agents) != downhill).any()


def test_a_dice_actor_is_followed_by_its_slow_copy(key):
    state, later = played("dice", 30), played("dice", 45)
    gap = [
        sum(float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in (
            (later.agents.slow_actor, state.agents.slow_actor),
            (later.agents.sac.actor, state.agents.sac.actor),
        )
    ]
    assert 0 < gap[0] < gap[1]


@pytest.mark.slow
def test_diayn_pays_skills_first_and_the_task_later():
    method, init, steps = compiled("diayn")
    state = steps(init(jax.random.key(0), method.hyper), 50)
    obs = state.replay.rows.transition.obs
    assert obs.shape[-1] == 1 + 4
    assert (obs[:50, 1:].sum(-1) == 1).all()
    drawn = [init(jax.random.key(seed), method.hyper).skills.item() for seed in range(8)]
    assert len(set(drawn)) > 1
    module = diayn.diayn(1, 4, SMALL.diayn)

    def skill(state, batch):
        return module.reward(state.drive, batch.transition)[None]

    def task(state, batch):
        return batch.transition.reward[None]

    for before, paid, unpaid in ((state, skill, task), (steps(state, 20), task, skill)):
        after = steps(before, 1)
        assert same(one_update_by_hand("diayn", before, after.replay, paid), after.agents)
        assert not same(one_update_by_hand("diayn", before, after.replay, unpaid), after.agents)


def test_diayn_goes_on_with_the_skill_that_returned_most():
    steps = compiled("diayn")[2]
    state = played("diayn", 59)
    known = replace(state, skill_returns=jnp.array([-jnp.inf, -50.0, -20.0, -jnp.inf]))
    later = steps(known, 120)
    assert (later.skills == 2).all()
    assert same(later.skill_returns, known.skill_returns) or float(later.skill_returns[2]) != -20.0
    assert same(steps(later, 60).skill_returns, later.skill_returns)


@pytest.mark.slow
def test_the_q_classifier_keeps_its_choice_for_its_horizon():
    method = compiled("q")[0]
    agents, opinion, numbers = method.policy(played("q", 45))
    memory, chosen = method.memory, []
    for t in range(11):
        # Another opinion at every step: what is done with it shows when it is asked.
        voted = jax.tree.map(jnp.zeros_like, opinion)
        last = sorted(voted)[-1]
        voted[last]["linear"]["bias"] = voted[last]["linear"]["bias"].at[t % 4].set(1.0)
        memory, _ = method.act((agents, voted, numbers), memory, jnp.zeros(1), jax.random.key(0), 0.0)[:2]
        chosen.append(int(memory[0]))
    assert chosen == [0] * 5 + [1] * 5 + [2]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"updates_per_step": 0.3}, "updates_per_step 0.3 times 4 environment steps must be a whole number"),
        ({"capacity": 40, "batch": 20}, "capacity 40 is less than a batch of 20 or the 44 transitions"),
        ({"population": 1, "col_unroll": True}, "nobody to differ from: population is 1"),
        ({"intrinsic": "rnd"}, "rnd is one agent's; with 4 say rnd_replica, rnd_ce or rnd_each"),
        ({"learner": "dice", "batch": 10}, "equal shares: batch 10 / population 4"),
        ({"learner": "dice", "population": 1}, "dice has nobody to differ from: population is 1"),
        ({"learner": "sunrise"}, "sunrise has one environment for all"),
        (
            {"learner": "sunrise", "col_training": False, "col_eval": True, "eval_classifier": "q"},
            "sunrise has one environment for all",
        ),
        ({"intrinsic": "diayn", "population": 1, "col_eval": True}, "evaluated by its best skill"),
        ({"learner": "multihead", "sac": sac.Config(hidden=())}, "sac.hidden is empty"),
        ({"skills": 0}, "skills must be at least 1, got 0"),
        ({"eval_agent": 4}, "eval_agent 4 is none of 4 agents"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        ce.Config(**options)


def test_discrete_tasks_are_refused():
    with pytest.raises(
        ValueError, match="ce needs continuous actions; probe/corridor-discrete has 2 discrete"
    ):
        ce.build(make("probe/corridor-discrete"))


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("ce", {"sac": {"discount": 4}}, "hyper.sac.discount is one number; got shape"),
        ("ce", {"epsilon": 4}, "hyper.epsilon is one number; got shape"),
        (
            "ce",
            {"intrinsic_weight": 3},
            "hyper.intrinsic_weight is one number, or one of each of 4 agents; got shape",
        ),
        ("multihead", {"sac": {"actor_lr": 4}}, "hyper.sac.actor_lr is one number; got shape"),
    ],
)
def test_numbers_of_a_wrong_shape_are_refused(name, hyper, message):
    method, *_ = compiled(name)
    changed = method.hyper
    for field, count in hyper.items():
        if isinstance(count, dict):
            inner = {key: jnp.full(value, 0.1) for key, value in count.items()}
            changed = replace(changed, **{field: replace(getattr(changed, field), **inner)})
        else:
            changed = replace(changed, **{field: jnp.full(count, 0.1)})
    with pytest.raises(ValueError, match=message):
        method.init(jax.random.key(0), changed)


def test_each_agent_may_have_numbers_of_its_own():
    """Without weight an agent learns as Replica's, with exploration 0 it acts by its mean."""
    method = compiled("all")[0]
    weights, scales = jnp.array([0.0, 0.2, 0.4, 0.8]), jnp.array([0.0, 1.0, 1.0, 1.0])
    hyper = replace(method.hyper, intrinsic_weight=weights, epsilon=0.0)
    hyper = replace(hyper, sac=replace(hyper.sac, exploration=scales))
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 12, lambda _, s: method.step(s), s))(
        jax.jit(method.init)(jax.random.key(0), hyper)
    )
    after = jax.jit(method.step)(state)
    actions = after.replay.rows.transition.action[48:52]
    mean = jnp.tanh(learner_of("all").own(state.agents, state.lanes.obs)[0])[:, 0]
    np.testing.assert_allclose(actions[0], mean[0], atol=1e-6)
    assert (jnp.abs(actions[1:] - mean[1:]) > 1e-4).all()


def a_case(alone=True, slow=False, **options):
    config = ce.Config(
        population=3,
        batch=6,
        capacity=60,
        warmup=3,
        sac=sac.Config(hidden=(4,)),
        contrastive=contrastive.Config(hidden=(4,), features=4, bank_size=6, neighbours=2, horizon=2),
        q_horizon=3,
        **options,
    )
    return Case(partial(ce.build, make("probe/delay"), config), population=3, alone=alone, slow=slow)


CASES = {
    "ce": a_case(),
    "ce_all": a_case(alone=False, slow=True, col_unroll=True, col_eval=True, eval_classifier="q", lanes=2),
}
