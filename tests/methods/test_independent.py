"""Agents side by side: one is the plain algorithm, and nobody knows of the others but through the replay."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.agents import ddpg, dqn, sac, td3
from popjax.core import as_arrays
from popjax.envs import make
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import independent
from popjax.replay.ring import latest
from tests.support import Case, close, out_of_step, same

TINY = independent.Config(agent=td3.Config(hidden=(8, 8)), batch=8, capacity=64, warmup=5)
CONFIGS = {
    "one": TINY,
    "three": replace(TINY, population=3, lanes=2, updates=2),
    "shared": replace(
        TINY,
        population=3,
        shared_replay=True,
        steps=4,
        agent=ddpg.Config((8,), critic_branch=8, critic_hidden=8),
    ),
}


@lru_cache
def compiled(name):
    method = independent.build(make("probe/corridor"), CONFIGS[name])
    return method, jax.jit(method.init), jax.jit(method.step)


def history(name, iterations, edit=lambda s: s, hyper=None):
    method, init, step = compiled(name)
    states = [edit(init(jax.random.key(0), hyper or method.hyper))]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


def test_one_agent_is_the_plain_algorithm():
    """DDPG in a Python loop on the recorded actions. A replay of one row makes every batch known."""
    env = make("probe/corridor")
    config = replace(TINY, agent=CONFIGS["shared"].agent, batch=1, capacity=1)
    method, agent = independent.build(env, config), ddpg.build(env.spec, config.agent)
    init, step, learn, env_step = map(jax.jit, (method.init, method.step, agent.learn, env.step))
    got, hyper = [init(jax.random.key(0), method.hyper)], as_arrays(method.hyper)
    learner = tree.take(got[0].agents, 0)
    (_, env_state, *_), obs = tree.take(got[0].lanes.env, (0, 0)), got[0].lanes.obs[0, 0]
    episodes, total = 0, 0.0
    for t in range(1, 15):
        got.append(step(got[-1]))
        row, account = tree.take(got[t].replay.rows, (0, 0)), tree.take(got[t].lanes.account, (0, 0))
        _, timestep = env_step(env_state, row.action)
        expected = (obs, row.action, timestep.reward, 1.0 - timestep.terminated, timestep.next_obs)
        close(tuple(vars(row).values()), expected)
        obs, total = timestep.next_obs, total + float(timestep.reward)
        if timestep.done:
            episodes, total = episodes + 1, 0.0
        (_, env_state, *_), obs = tree.take(got[t].lanes.env, (0, 0)), got[t].lanes.obs[0, 0]
        if t >= 5:
            batch = jax.tree.map(lambda x: x[None], replace(row, discount=0.99 * row.discount))
            learner, _ = learn(learner, batch, hyper, jax.random.key(t))
        assert int(got[t].env_steps) == int(got[t].generation) == t
        assert int(got[t].metrics.episodes[0]) == episodes
        close(tree.take(got[t].agents, 0), learner)
        assert float(account.running) == pytest.approx(total, abs=1e-5)
    assert episodes > 0


@pytest.mark.parametrize("name", ["three", "shared"])
def test_warm_up_is_random_and_without_updates(name):
    config = CONFIGS[name]
    states = history(name, 4)
    per_iteration = config.population * config.lanes * config.steps
    for before, after in pairwise(states):
        assert int(after.env_steps) - int(before.env_steps) == per_iteration
        learning = int(after.env_steps) >= 5 * config.population
        assert same(before.agents, after.agents) != learning
        assert (after.metrics.losses.critic_loss != 0).all() == learning


def test_warm_up_actions_are_uniform(chance):
    method = independent.build(make("probe/corridor"), replace(TINY, capacity=4000, steps=4000, warmup=4000))
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    step = jax.jit(method.step)
    actions = np.asarray(step(state).replay.rows.action).ravel()
    assert len(actions) == 4000
    assert chance(np.histogram(actions, 20, (-1, 1))[0]) > 0.001


def test_agents_do_not_know_of_each_other():
    """Other parameters and experience for agent 1 leave agents 0 and 2 as they are."""

    def disturb(state):
        others = tree.take(state.agents, jnp.array([0, 0, 2]))
        return state.replace(agents=others)

    plain, disturbed = history("three", 5)[-1], history("three", 5, disturb)[-1]
    for field in ("agents", "lanes", "replay"):
        a, b = (tree.take(getattr(t, field), jnp.array([0, 2])) for t in (plain, disturbed))
        assert same(a, b), field
    assert not same(tree.take(plain.agents, 1), tree.take(disturbed.agents, 1))


def test_a_replay_of_ones_own_holds_ones_own_rows():
    state = history("three", 6)[-1]
    assert state.replay.size.tolist() == [12, 12, 12]
    rows = np.asarray(state.replay.rows.action)[:, :12]
    assert len(np.unique(rows)) == 36


def test_a_shared_replay_holds_everyones_rows_step_by_step_and_agent_by_agent():
    states = history("shared", 3)
    state = states[-1]
    assert int(state.replay.size) == 36
    rows, _ = latest(state.replay, 36)
    obs, after = (np.asarray(x)[:, 0].reshape(12, 3) for x in (rows.obs, rows.next_obs))
    ended = np.asarray(rows.discount).reshape(12, 3) == 0
    for agent in range(3):  # each agent's steps follow one another, through iterations
        o, n, e = obs[:, agent], after[:, agent], ended[:, agent]
        np.testing.assert_allclose(o[1:], np.where(e[:-1], 0, n[:-1]), atol=1e-6)


def test_a_number_for_each_agent():
    """Rates [P]: the agent with rate 0 stands still, the others move."""
    method = compiled("three")[0]
    rates = jnp.array([0.0, 1e-3, 1e-2])
    hyper = method.hyper.replace(actor_lr=rates, critic_lr=rates, polyak=jnp.array([0.0, 0.5, 0.5]))
    states = history("three", 6, hyper=hyper)
    first, last = states[0].agents, states[-1].agents
    moved = [
        not same(tree.take((first.actor, first.critics), i), tree.take((last.actor, last.critics), i))
        for i in range(3)
    ]
    assert moved == [False, True, True]
    assert states[-1].hyper.actor_lr.shape == (3,)


def test_the_best_agent_is_deployed(key):
    method = compiled("three")[0]
    state = history("three", 2)[-1]
    state = state.replace(metrics=replace(state.metrics, fitness=jnp.array([0.0, 3.0, 1.0])))
    assert same(method.policy(state), tree.take(state.agents.actor, 1))
    obs = jnp.ones(1)
    np.testing.assert_array_equal(
        method.act(method.policy(state), (), obs, key, 0.0)[1],
        method.act(method.policy(state), (), obs, jax.random.key(8), 0.0)[1],
    )


COLLAB = contrastive.Config(hidden=(8,), features=4, bank_size=6, neighbours=2)
DRIVES = {
    "collab": COLLAB,
    "rnd": rnd.Config(hidden=(8,), features=4),
    "rnd_one": rnd.Config(hidden=(8,), modules="one", scale="return"),
    "diayn": diayn.Config(skills=3, hidden=(8,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_agents_learn_from_the_tasks_reward_plus_the_drives(shared):
    """Where all observations are 1 the novelty of the identity is -1: rewards are less by the weight."""
    env, config = make("probe/endless"), replace(CONFIGS["three"], shared_replay=shared)

    def less(state, action):
        state, timestep = env.step(state, action)
        return state, replace(timestep, reward=timestep.reward - 0.25)

    def ran(env, drive, **weight):
        method = independent.build(env, replace(config, drive=drive))
        hyper = method.hyper.replace(drive=replace(method.hyper.drive, **weight)) if weight else method.hyper
        state, step = jax.jit(method.init)(jax.random.key(0), hyper), jax.jit(method.step)
        for _ in range(6):
            state = step(state)
        return state

    final = ran(env, replace(COLLAB, encoder="identity", bank_every=1), weight=0.25)
    np.testing.assert_allclose(final.metrics.bonus, [-0.25] * 3, atol=1e-6)
    close(final.agents, ran(env._replace(step=less), None).agents, atol=1e-5)
    assert not same(final.agents, ran(env, None).agents)
    assert (final.metrics.fitness == ran(env, None).metrics.fitness).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", DRIVES)
@pytest.mark.parametrize("task", ["corridor", "corridor-discrete"])
def test_every_drive_fits_every_agent_and_replay(task, name, shared):
    """Shapes only: what a step returns is what it takes, and the policy acts on the task's observations."""
    agent = dqn.Config(hidden=(8,)) if "discrete" in task else TINY.agent
    options = {"population": 3, "lanes": 2, "steps": 2, "shared_replay": shared}
    method = independent.build(
        make(f"probe/{task}"), replace(TINY, agent=agent, drive=DRIVES[name], **options)
    )
    fits(method, (1,))


@pytest.mark.parametrize("name", ["collab", "rnd", "rnd_one"])
def test_drives_see_the_grids_of_minatar(name):
    env = make("gymnax/Breakout-MinAtar")
    config = independent.Config(agent=dqn.Config(), drive=DRIVES[name], capacity=300, batch=8)
    fits(independent.build(env, config), env.spec.obs_shape)


def fits(method, obs_shape):
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    both = state, jax.eval_shape(method.step, state)
    forms = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in both]
    assert forms[0] == forms[1]
    policy, obs = jax.eval_shape(method.policy, state), jnp.zeros(obs_shape)
    jax.eval_shape(method.act, policy, method.memory, obs, jax.random.key(0), 0.0)


@pytest.mark.slow
def test_skills_come_to_show_where_the_task_pays_nothing():
    """Alone with its drive an agent's discriminator tells the skills of its walk better than by chance."""
    config = independent.Config(
        agent=sac.Config(hidden=(32, 32)),
        lanes=4,
        updates=2,
        batch=128,
        capacity=20_000,
        warmup=500,
        drive=diayn.Config(skills=2, hidden=(32,)),
    )
    env = make("probe/corridor")

    def unpaid(state, action):
        state, timestep = env.step(state, action)
        return state, replace(timestep, reward=jnp.float32(0))

    method = independent.build(env._replace(step=unpaid), config)
    hyper = method.hyper.replace(init_temperature=0.1, temperature_lr=0.0)
    hyper = hyper.replace(drive=replace(hyper.drive, weight=1.0))
    state = jax.jit(method.init)(jax.random.key(0), hyper)
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 1500, lambda _, s: method.step(s), s))(state)
    assert float(state.metrics.drive.accuracy) > 0.7
    assert float(state.metrics.bonus[0]) > 0.1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"batch": 65, "capacity": 64}, "batch 65 exceeds the replay's capacity 64"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
    ],
)
def test_senseless_configs_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        independent.Config(agent=sac.Config(), **numbers)


def test_a_replay_for_less_than_a_step_of_its_lanes_is_refused():
    config = replace(TINY, population=2, lanes=3, batch=1, capacity=5, shared_replay=True)
    with pytest.raises(ValueError, match="capacity 5 holds less than one environment step of all 6 lanes"):
        independent.build(make("probe/corridor"), config)


def a_case(agent, env="probe/delay", slow=False, eager=False, **options):
    config = independent.Config(agent=agent, population=3, batch=4, capacity=50, warmup=1, **options)
    return Case(partial(independent.build, make(env), config), population=3, slow=slow, eager=eager)


CASES = {
    "sac_collab": a_case(sac.Config(hidden=(4,)), drive=COLLAB, slow=True),
    "dqn_rnd": a_case(dqn.Config(hidden=(4,)), env="probe/corridor-discrete", drive=DRIVES["rnd"], slow=True),
    "sac_diayn": a_case(sac.Config(hidden=(4,)), drive=DRIVES["diayn"], slow=True),
    "ddpg": a_case(ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4), slow=True),
    "ddpg_normalized": a_case(replace(ddpg.BASELINES, hidden=(4,), critic_layers=(4, 4)), slow=True),
    "dqn": a_case(dqn.Config(hidden=(4,)), env="probe/corridor-discrete"),
    "td3": a_case(td3.Config(hidden=(4,)), lanes=2, steps=2, slow=True),
    "sac": a_case(sac.Config(hidden=(4,)), eager=True),
    "shared": a_case(sac.Config(hidden=(4,)), shared_replay=True, slow=True),
}


def test_games_have_the_constants_of_dqn():
    config, hyper, _, options = independent.METHOD.preset("atari/pong")
    assert options == {"reward_clip": 1}
    assert (config.steps, config.updates, config.batch, config.warmup) == (4, 1, 32, 50_000)
    assert isinstance(config.agent, dqn.Config)
    assert config.steps * hyper.target_period == 10_000
    assert independent.METHOD.preset("gym/Hopper-v4") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "three"])
def test_a_member_in_its_warm_up_does_not_learn_beside_one_that_does(name):
    out_of_step(*compiled(name), ahead=4)
