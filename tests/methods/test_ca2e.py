"""CA2E: the specification's examples, and what the actors, the learner and their replay owe each other."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import ddpg, dqn, td3
from popjax.core import Choice, Pretrained, as_arrays
from popjax.counting import none, on_host
from popjax.envs import make
from popjax.methods import ca2e, ca2e_config
from popjax.methods.ca2e_config import scales
from popjax.methods.ca2e_priors import Retirement, after_check, compare, threshold
from tests.support import Case, equal, out_of_step, same

DDPG = replace(ddpg.BASELINES, hidden=(4,), critic_layers=(4, 4))
SMALL = replace(
    ca2e.default_config(DDPG),
    nature_actors=2,
    prior_actors=2,
    n_step=3,
    batch=8,
    capacity=300,
    local_buffer=5,
    sync_every=7,
    learning_starts=40,
    check_every=20,
    checks=3,
    return_source="nature",
    return_window=4,
    exploration=(0.1, 0.2),
)
PLAYED = 0.625  # what the prior policy of the tests does: no noise ever hits it exactly


def constant(env, action=PLAYED):
    """A policy that always does the same; its one parameter is the action."""
    value = jnp.int32(action) if env.spec.discrete else jnp.full(env.spec.action_dim, action)

    def act(params, memory, obs, key, scale):
        return memory, params

    return Pretrained("runs/constant", env.spec, act, value)


@lru_cache
def played(task="probe/corridor", steps=40, baseline=None, **options):
    """All States of a run, stacked [steps, ...], with a prior policy if it has a ``baseline``."""
    env = make(task)
    priors = () if baseline is None else (ca2e.Prior(constant(env), baseline),)
    method = ca2e.build(env, replace(SMALL, **options), priors)
    hyper = method.hyper.replace(replacement_factor=1.05)

    @jax.jit
    def run(key):
        def body(state, _):
            state = method.step(state)
            return state, state

        return jax.lax.scan(body, method.init(key, hyper), length=steps)[1]

    return run(jax.random.key(0))


def test_worked_example_5_thresholds():
    for baseline, factor, bar in ((300, 1.05, 315), (-5, 1.2, -4), (20, 1.05, 21)):
        np.testing.assert_allclose(threshold(jnp.float32(baseline), factor), bar, rtol=1e-6)
    for baseline in (-5.0, 0.0, 5.0):
        assert threshold(jnp.float32(baseline), jnp.float32(np.inf)) == np.inf


def test_a_bar_that_is_just_reached_counts():
    """Pong: 5% above 20 are 21, the most that can be won."""
    start = Retirement(jnp.full(1, 20.0), jnp.zeros(1, jnp.int32), jnp.full(1, -1.0))
    config, hyper = ca2e.Config(), as_arrays(ca2e.default_hyper(ca2e.Config()))
    assert hyper.replacement_factor == jnp.float32(1.05)
    for average, last in ((21.0, 3), (20.99, 0)):
        state = start
        for check in range(1, 4):
            told = jnp.float32(average), jnp.bool_(True), jnp.bool_(True), none() + check * 10_000
            state = after_check(state, config, hyper, *told)
        assert state.successes.tolist() == [last]
        assert state.retired_at.tolist() == [30_000 if last else -1]


def test_worked_example_6_successes_in_a_row():
    state = Retirement(jnp.zeros(2), jnp.zeros(2, jnp.int32), jnp.full(2, -1.0))
    for check, surpassed in enumerate((True, True, False, True, True, True, False), start=1):
        state = compare(state, jnp.array([surpassed, False]), jnp.float32(check), 3)
        assert list(state.retired_at) == [6 if check >= 6 else -1, -1]


def test_gradient_steps_read_the_rows_of_the_replay_and_do_not_carry_them():
    """Of all loops, only that in which full local buffers are flushed writes rows."""

    def loops(program):
        for each in program.eqns:
            if each.primitive.name == "while":
                constants = each.params["cond_nconsts"] + each.params["body_nconsts"]
                yield [x.aval.shape for x in each.invars[constants:]]
            for part in jax.tree.leaves(each.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
                inner = getattr(part, "jaxpr", part)
                yield from loops(inner) if hasattr(inner, "eqns") else ()

    method = ca2e.build(make("probe/corridor"), SMALL)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    rows, nodes = state.replay.ring.rows.reward.shape, state.replay.nodes.shape
    carried = list(loops(jax.make_jaxpr(method.step)(state).jaxpr))
    assert sum(nodes in shapes for shapes in carried) == 2
    assert sum(rows in shapes for shapes in carried) == 1


def test_worked_example_7_the_first_flush():
    """Three steps make the first return, so that the fiftieth is complete with step 52."""
    options = {
        "nature_actors": 1,
        "prior_actors": 0,
        "local_buffer": 50,
        "learning_starts": 1_000,
        "exploration": (0.1,),
    }
    stored = played("gymnax/Pendulum-v1", 104, **options).metrics.stored
    assert list(stored[:51]) == [0] * 51
    assert list(stored[51:]) == [50] * 50 + [100] * 3


def test_worked_example_8_prior_episodes_leave_the_average_alone():
    """On this probe an episode is one step and the prior action returns exactly 1 - 0.125^2."""
    states = played("probe/action", 40, baseline=1e9)
    theirs = np.float32(1 - (PLAYED - 0.5) ** 2)
    assert (states.metrics.fitness[:, 2:] == theirs).all()
    assert not (states.recent.rows == theirs).any()
    assert int(states.recent.size[-1]) == 4
    for t in (0, 1, 39):
        held = states.recent.rows[t][: int(states.recent.size[t])]
        np.testing.assert_allclose(states.metrics.average_return[t], held.mean(), rtol=1e-6)
        assert set(np.asarray(states.metrics.fitness[t, :2])) <= set(np.asarray(states.recent.rows[t]))


def test_who_plays_what():
    states = played(steps=40, baseline=1e9)
    rows = states.replay.ring.rows
    size = int(states.replay.size[-1])
    mine = np.asarray(rows.action[-1][:size, 0] == PLAYED)
    assert 0.4 < mine.mean() < 0.6
    assert states.guided[:, 2:].all()
    assert not states.guided[:, :2].any()
    assert (states.metrics.retired_at == -1).all()


def test_a_prior_actor_retires_for_good_after_its_episode():
    """Every episode of ``endless`` returns 5 after five steps, and both priors are worth 4."""
    states = played("probe/endless", 60, baseline=4.0)
    at = states.metrics.retired_at[:, 0]
    # Four actors make 4 steps; four returns are known from step 10 on; checks come every 5th step.
    assert list(np.unique(at)) == [-1, 80]
    retired = int(jnp.argmax(at == 80))
    assert int(on_host(states.env_steps)[retired]) == 80
    assert (states.retirement.successes[:, 0] == np.clip((np.arange(60) + 1) // 5 - 1, 0, 3)).all()
    assert (states.metrics.compared == np.where(np.arange(60) < 9, 0, 5)).all()
    # Step 20 ended an episode, before the check: the next one, to step 25, is the prior policy's still.
    guided = states.guided[:, 2, 0]
    assert list(guided) == [True] * 24 + [False] * 36
    stays = played("probe/endless", 60, baseline=5.0)
    assert (stays.metrics.retired_at == -1).all()
    assert stays.guided[:, 2:].all()


def test_retired_actors_count_and_explore():
    states = played("probe/action", 60, baseline=-1e9)
    last = states.metrics.fitness[-1]
    assert (last != np.float32(1 - (PLAYED - 0.5) ** 2)).all()
    assert (states.metrics.retired_at[-1] == 60).all()  # with the third check: returns are known at once
    assert (states.guided[15:] == False).all()  # noqa: E712
    finals = states.recent.rows[-1]
    assert set(np.asarray(finals)) <= {float(x) for x in states.metrics.fitness[-2:].reshape(-1)}


@pytest.mark.slow
def test_greedy_episodes_stand_for_the_return():
    assert ca2e.default_config().return_source == "greedy"
    states = played("probe/endless", 20, baseline=4.0, return_source="greedy")
    assert (states.metrics.retired_at[-1] == 60).all()  # no waiting for episodes to finish


@pytest.mark.slow
def test_nothing_is_compared_once_all_prior_actors_are_retired():
    states = played("probe/action", 40, baseline=-1e9, return_source="greedy", checks=1)
    assert (states.metrics.retired_at[4:] == 20).all()
    assert len(set(np.asarray(states.metrics.compared[4:]))) == 1
    assert states.metrics.gradient_steps[-1] > 0  # so that the learner's return changes


@pytest.mark.slow
def test_prior_data_alone_may_fill_the_replay():
    states = played("probe/endless", 30, baseline=1e9, prior_until=48)
    assert (states.metrics.retired_at[-1] == 48).all()


def test_rewards_are_clipped_one_by_one_for_learning_alone():
    """Three a step, of five steps: a return adds up to three ones, but an episode is worth 15."""
    plain = make("probe/endless")

    def step(state, action):
        state, timestep = plain.step(state, action)
        return state, replace(timestep, reward=3 * timestep.reward)

    config = replace(SMALL, nature_actors=2, prior_actors=0, n_step=3, clip_rewards=True)
    method = ca2e.build(plain._replace(step=step), config)
    state = method.init(jax.random.key(0), method.hyper)
    last = jax.jit(lambda state: jax.lax.fori_loop(0, 30, lambda _, s: method.step(s), state))(state)
    stored = np.asarray(last.replay.ring.rows.reward[: int(last.replay.size)])
    sums = np.cumsum(last.hyper.agent.discount ** np.arange(3))
    assert set(np.round(stored, 4)) == set(np.round(np.float32(sums), 4))
    assert float(last.metrics.average_return) == 15


def test_gradient_steps_are_owed_exactly():
    """One per environment step of any actor from ``learning_starts`` on; every second with a ratio of 2."""
    taken = np.cumsum(played(steps=40, baseline=1e9).metrics.gradient_steps)
    assert taken.tolist() == [max(0, 4 * t - 40) for t in range(1, 41)]
    slow = np.cumsum(
        played("probe/action", 40, env_steps_per_update=6, learning_starts=50).metrics.gradient_steps
    )
    assert slow.tolist() == [max(0, 4 * t - 50) // 6 for t in range(1, 41)]


def test_the_copy_of_the_policy_is_stale():
    states = played(steps=40, baseline=1e9)
    kernel = lambda params: np.asarray(params["mlp"]["Dense_0"]["linear"]["kernel"])  # noqa: E731
    copies, learned = kernel(states.copy[0]), kernel(states.learner.agent.actor)
    for t in range(40):
        made = (t + 1) // 7 * 7 - 2  # copied in step 7k, from the learner as step 7k - 1 left it
        if made >= 0:
            np.testing.assert_array_equal(copies[t], learned[made])
    assert list(states.copy_age[:8]) == [1, 2, 3, 4, 5, 6, 0, 1]
    assert (copies[-1] != learned[-1]).any()


def test_statistics_have_seen_what_is_stored():
    """Observations of prior actors, too, each once, and none that waits in a buffer."""
    states = played(steps=40, baseline=1e9)
    assert (states.learner.statistics.count == states.metrics.stored).all()
    size = int(states.replay.size[-1])
    assert size < 300  # nothing was overwritten
    obs = np.asarray(states.replay.ring.rows.obs[-1][:size])
    np.testing.assert_allclose(states.learner.statistics.mean[-1], obs.mean(0), rtol=1e-4)


def test_first_priorities_are_those_of_the_flush():
    """Before learning begins the masses are |TD error|^0.6 under the statistics of their flush; after it the
    rows that were learned from have others."""
    states = played(steps=40, baseline=1e9)
    agent = ddpg.build(make("probe/corridor").spec, DDPG)
    first = int(jnp.argmax(states.metrics.stored > 0))
    state = jax.tree.map(lambda x: x[first], states)
    rows = jax.tree.map(lambda x: x[: int(state.replay.size)], state.replay.ring.rows)
    expected = (jnp.abs(agent.td_error(state.learner, rows)) + 1e-6) ** 0.6
    np.testing.assert_allclose(state.replay.masses[: len(expected)], expected, rtol=1e-4)
    later = jax.tree.map(lambda x: x[-1], states.replay).masses[: len(expected)]
    assert (np.abs(later - expected) > 1e-4).mean() > 0.5


def test_every_step_is_stored_once():
    """Each step that was played is in the replay, in a local buffer or in a window, and only once."""
    states = played(steps=40, baseline=1e9)
    waiting = states.locals.count.sum((1, 2)) + states.locals.window.count.sum((1, 2))
    assert (states.metrics.stored + waiting == on_host(states.env_steps)).all()


def counting(env, sign):
    """A policy that remembers how many steps its episode has, and plays a tenth of that."""

    def act(params, memory, obs, key, scale):
        return memory + 1, jnp.full(1, sign * 0.1 * (memory + 1))

    return Pretrained("runs/counting", env.spec, act, (), jnp.int32(0))


@pytest.mark.slow
def test_several_lanes_and_policies_with_a_memory():
    """Each prior actor plays its own policy, from the beginning of each episode of each of its lanes."""
    env = make("probe/endless")
    priors = (ca2e.Prior(counting(env, 1), 1e9), ca2e.Prior(counting(env, -1), 1e9))
    config = replace(SMALL, lanes=2, prior_actors=3, learning_starts=10_000)
    method = ca2e.build(env, config, priors)

    @jax.jit
    def run(key):
        body = lambda state, _: (method.step(state), state.prior_memories)  # noqa: E731
        return jax.lax.scan(body, method.init(key, method.hyper), length=23)

    state, memories = run(jax.random.key(0))
    assert state.guided.shape == (5, 2)
    np.testing.assert_array_equal(
        memories[0], np.broadcast_to((np.arange(23) % 5)[:, None, None], (23, 3, 2))
    )
    size = int(state.replay.size)
    actions = np.round(np.asarray(state.replay.ring.rows.action[:size, 0], np.float64), 4)
    planned = {round(0.1 * k, 4) for k in range(1, 6)}
    forward = np.isin(actions, list(planned)).mean()
    backward = np.isin(-actions, list(planned)).mean()
    np.testing.assert_allclose([forward, backward], [0.4, 0.2], atol=0.05)  # two actors of five, and one
    waiting = int(state.locals.count.sum()) + int(state.locals.window.count.sum())
    assert size + waiting == int(state.env_steps) == 23 * 10


@lru_cache
def learned(**options):
    """A DQN learner's States, with one update in a step of four actors."""
    env = make("probe/corridor-discrete")
    config = replace(
        SMALL,
        agent=dqn.Config(hidden=(4,)),
        schedule="anneal",
        exploration=(1.0, 0.5),
        env_steps_per_update=4,
        target_every=20,
        **options,
    )
    method = ca2e.build(env, config, (ca2e.Prior(constant(env, 1), 1e9),))
    hyper = ca2e.default_hyper(config)

    @jax.jit
    def run(key):
        def body(state, _):
            state = method.step(state)
            return state, state

        return jax.lax.scan(body, method.init(key, hyper), length=40)[1]

    return run(jax.random.key(0)), config, hyper


def at(states, step):
    return jax.tree.map(lambda x: x[step], states)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"clip_rewards": True}, marks=pytest.mark.slow)], ids=str
)
def test_new_priorities_are_the_errors_before_the_gradient_step(options):
    states, config, _ = learned(**options)
    agent = dqn.build(make("probe/corridor-discrete").spec, config.agent)
    changed = 0
    for step in range(12, 39):
        before, after = at(states, step), at(states, step + 1)
        if int(before.replay.size) != int(after.replay.size):
            continue  # a flush came between
        drawn = np.asarray(before.replay.masses != after.replay.masses)
        rows = jax.tree.map(lambda x, drawn=drawn: x[drawn], before.replay.ring.rows)
        error = agent.td_error(before.learner, rows)
        np.testing.assert_allclose(
            after.replay.masses[drawn], (jnp.abs(error) + 1e-6) ** 0.6, rtol=2e-3, atol=1e-5
        )
        changed += drawn.sum()
    assert changed > 50
    assert int(states.metrics.gradient_steps.sum()) == 30


def test_the_target_is_copied_by_environment_steps():
    """Every 20 of all four actors: in every fifth step, after its gradient step."""
    states, _, _ = learned()
    online, target = (
        np.asarray(x["Dense_0"]["linear"]["kernel"]) for x in (states.learner.online, states.learner.target)
    )
    for step in range(1, 40):
        source = online[step] if (step + 1) % 5 == 0 else target[step - 1]
        np.testing.assert_array_equal(target[step], source)
    assert (online[-2] != target[-2]).any()


@lru_cache
def normalizing():
    """Four actors and a learner that normalizes observations; it takes one gradient step or two at a time."""
    config = replace(
        learned()[1],
        agent=dqn.Config(hidden=(4,), normalize_obs=True),
        nature_actors=4,
        prior_actors=0,
        local_buffer=2,
        learning_starts=24,
        env_steps_per_update=3,
    )
    method = ca2e.build(make("probe/corridor-discrete"), config)
    return method, jax.jit(method.init), jax.jit(method.step)


@pytest.mark.slow
def test_a_member_takes_its_own_number_of_gradient_steps():
    """Also beside one that is ahead and owes another number: none beside one, and one beside two."""
    out_of_step(*normalizing(), ahead=7)


def test_the_target_is_copied_with_the_statistics_of_observations():
    method, init, step = normalizing()
    state = init(jax.random.key(0), method.hyper)
    for _ in range(10):
        state = step(state)
    equal(state.learner.agent.online, state.learner.agent.target)
    after = step(state).learner.agent
    assert not same(after.online, after.target)


def test_importance_weights_reach_the_loss():
    env = make("probe/corridor-discrete")
    _, config, _ = learned()
    method = ca2e.build(env, config, (ca2e.Prior(constant(env, 1), 1e9),))
    state = at(learned()[0], 20)
    step = jax.jit(method.step)
    without = state.replace(hyper=state.hyper.replace(importance_exponent=jnp.float32(0)))
    plain, weighted = step(without), step(state)
    assert float(plain.metrics.losses.loss) > float(weighted.metrics.losses.loss) > 0


def test_the_ladders_of_exploration():
    spec = make("probe/action-discrete").spec
    agent, hyper = dqn.build(spec), as_arrays(ca2e.default_hyper(ca2e.Config()))

    def of(steps, **options):
        return np.asarray(scales(agent, replace(ca2e.Config(), **options), hyper, jnp.int32(steps)))

    np.testing.assert_allclose(of(0), [1, 0.8, 0.6, 0.4, 0.2, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(of(250_000)[[2, 5]], [0.475, 0.775], rtol=1e-6)
    np.testing.assert_allclose(of(2_000_000), [0.1] * 8, rtol=1e-5)
    apex = [0.4, 0.080476, 0.016191, 0.003257, 0.000655]
    np.testing.assert_allclose(of(9, schedule="apex"), apex + apex[:3], rtol=1e-3)
    constant_ = of(9e5, schedule="constant", nature_actors=6, prior_actors=0)
    np.testing.assert_allclose(constant_, [1, 0.8, 0.6, 0.4, 0.2, 1], rtol=1e-6)
    settings = ca2e.default_config(ddpg.BASELINES)
    noise = ddpg.build(make("probe/action").spec, ddpg.BASELINES)
    found = scales(noise, settings, as_arrays(ca2e.default_hyper(settings)), jnp.int32(10**6))
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.5, 0.2, 0.2, 0.2], rtol=1e-6)


def test_the_paper_s_constants():
    config, numbers = ca2e.Config(), ca2e.default_hyper(ca2e.Config())
    assert (config.nature_actors, config.prior_actors, config.n_step, config.batch, config.capacity) == (
        5,
        3,
        3,
        32,
        10**6,
    )
    assert (config.local_buffer, config.sync_every, config.learning_starts) == (50, 100, 50_000)
    assert (config.env_steps_per_update, numbers.agent.target_period) == (4, np.inf)
    assert (numbers.agent.lr, numbers.agent.max_grad_norm, numbers.agent.discount) == (1e-4, 10, 0.99)
    assert (numbers.priority_exponent, numbers.importance_exponent) == (0.6, 0.4)
    other = ca2e.default_config(ddpg.BASELINES)
    other_agent = ca2e.default_hyper(other).agent
    assert (other.batch, other.learning_starts, other.env_steps_per_update) == (128, 10_000, 1)
    assert (other_agent.actor_lr, other_agent.critic_lr) == (1e-4, 1e-3)
    assert (other_agent.polyak, other_agent.critic_l2) == (1e-3, 1e-2)


def test_a_policy_s_return_is_measured():
    env = make("probe/action")
    better, worse = ca2e.measure(env, [constant(env, 0.5), constant(env, 0.0)], jax.random.key(0), episodes=3)
    assert (better.mean_return, worse.mean_return) == (1.0, 0.75)
    assert ca2e.measure(env, [], jax.random.key(0)) == ()


def test_what_is_told_of_prior_policies():
    env, config = make("gymnax/CartPole-v1"), ca2e.Config(schedule="constant")
    hyper = ca2e.default_hyper(config)

    def told(mean_return, factor=1.05):
        prior = ca2e.Prior(constant(env, 1), mean_return)
        return ca2e.remarks(env, config, hyper.replace(replacement_factor=factor), 999, [prior])

    assert told(470) == ["prior policy of runs/constant: mean return 470"]
    assert told(480) == [
        "prior policy of runs/constant: mean return 480; it is replaced at 504, but returns of"
        " gymnax/CartPole-v1 are at most 500"
    ]
    assert "at most" in told(470, 1.1)[0]
    assert "at most" not in told(480, np.inf)[0]
    assert "no prior policies were given" in ca2e.remarks(env, config, hyper, 999)[0]


def test_only_the_learner_s_own_default_of_exploration_may_go_unused():
    noise, chance = ca2e_config.DEVIATIONS, ca2e_config.PROBABILITIES
    assert ca2e.Config(schedule="apex", nature_actors=2).exploration == chance
    for given in (noise, (0.5,)):
        with pytest.raises(ValueError, match=r"sets the exploration itself, got \(.*; leave out exploration"):
            ca2e.Config(schedule="apex", exploration=given)
    assert replace(SMALL, exploration=noise).nature_actors == 2
    for learner, other in ((DDPG, chance), (dqn.Config(), noise)):
        with pytest.raises(ValueError, match="5 numbers for 2 nature actors; leave out 3"):
            replace(SMALL, agent=learner, exploration=other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_starts": 10}, "learning_starts 10 is less than 24: the local buffers"),
        ({"nature_actors": 0}, "nature_actors must be at least 1, got 0"),
        ({"schedule": "slow"}, "schedule must be one of 'anneal', 'constant', 'apex', got 'slow'"),
        ({"batch": 400}, "batch 400 exceeds the replay's capacity 300; lower batch or raise capacity"),
        ({"exploration": ()}, r"numbers >= 0, got \(\); give one per nature actor"),
        ({"exploration": (0.1,) * 4}, "4 numbers for 2 nature actors; leave out 2 or raise nature_actors"),
        ({"schedule": "apex"}, "schedule apex is for dqn's probabilities; ddpg's noise is constant"),
        ({"agent": td3.Config()}, "the learner of CA2E must be dqn or ddpg, not popjax.agents.td3"),
        ({"prior_actors": 0}, "1 prior policies for 0 prior actors; raise prior_actors to 1"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_cannot_be_is_refused(changes, message):
    env = make("probe/action")
    with pytest.raises(ValueError, match=message):
        ca2e.build(env, replace(SMALL, **changes), [ca2e.Prior(constant(env), 1.0)])


def test_a_policy_of_clipped_rewards_is_measured_by_those_of_the_task():
    clipped, bare = make("probe/action", reward_clip=0.25), make("probe/action")
    env = bare._replace(spec=bare.spec._replace(highest_return=1.0))
    found = [ca2e.measure(task, [constant(clipped)], jax.random.key(0), 2)[0] for task in (env, clipped)]
    assert found[0].mean_return == found[1].mean_return > 0.25


def test_a_learner_of_clipped_rewards_is_compared_by_those_of_the_task():
    """As its prior policies are; returns in training would be clipped."""
    env, config = make("probe/action", reward_clip=0.25), replace(SMALL, checks=1, return_source="greedy")
    method = ca2e.build(env, config, ca2e.measure(env, [constant(env)], jax.random.key(0), 2))
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    compared = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), s.metrics.compared), s, length=8))
    assert float(compared(state)[1][-1]) > 0.25
    with pytest.raises(ValueError, match="set return_source greedy or leave these options out"):
        ca2e.build(env, replace(config, return_source="nature"), [ca2e.Prior(constant(env), 1.0)])
    assert ca2e.build(env, replace(config, return_source="nature"))


def test_policies_of_other_tasks_are_refused():
    env, other = make("probe/action"), make("probe/context")
    with pytest.raises(ValueError, match="runs/constant was trained on probe/context, not on probe/action"):
        ca2e.measure(env, [constant(other)], jax.random.key(0))
    with pytest.raises(ValueError, match=r"trained where episode_length of probe/action is 9, not 1"):
        ca2e.measure(
            env, [constant(env._replace(spec=env.spec._replace(episode_length=9)))], jax.random.key(0)
        )
    with pytest.raises(ValueError, match="was trained on probe/context"):
        ca2e.build(env, SMALL, [ca2e.Prior(constant(other), 1.0)])
    with pytest.raises(ValueError, match="dqn needs discrete actions"):
        ca2e.build(env, replace(SMALL, agent=dqn.Config()))


def a_case():
    config = replace(
        ca2e.default_config(replace(ddpg.BASELINES, hidden=(4,), critic_layers=(4, 4))),
        nature_actors=2,
        prior_actors=1,
        n_step=1,
        batch=4,
        capacity=50,
        local_buffer=1,
        sync_every=2,
        learning_starts=0,
        check_every=3,
        return_window=2,
    )
    env = make("probe/delay")
    policy = Pretrained(
        "constant", env.spec, lambda p, m, obs, key, scale: Choice(m, p, p, jnp.float32(0)), jnp.zeros(1)
    )
    return Case(lambda: ca2e.build(env, config, [ca2e.Prior(policy, 0.5)]), population=3, alone=False)


CASES = {"ca2e": a_case()}


def test_games_have_the_papers_constants():
    config, hyper, env_steps, options = ca2e.METHOD.preset("atari/breakout")
    assert not options, "rewards are clipped for the learner alone"
    assert config == replace(ca2e.Config(), agent=dqn.Config(eval_exploration=0.001), clip_rewards=True)
    assert env_steps == 10_000_000
    assert hyper.agent.exploration == pytest.approx(0.1)
    assert ca2e.METHOD.preset("gymnax/Breakout-MinAtar") is None
