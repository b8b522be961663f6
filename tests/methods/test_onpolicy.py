"""On-policy agents side by side: each is the plain algorithm, and its rollouts run across episodes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import rollout, tree
from popjax.agents import a2c, sac
from popjax.cli.program import understand
from popjax.core import Trajectory, as_arrays
from popjax.envs import make
from popjax.host.errors import Refused
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import onpolicy
from tests.support import Case, close, same

TINY = onpolicy.Config(agent=a2c.Config(hidden=(8,)), population=3, lanes=2, steps=5)


@lru_cache
def compiled(probe):
    method = onpolicy.build(make(f"probe/{probe}"), TINY)
    return method, jax.jit(method.init), jax.jit(method.step)


def history(probe, iterations, edit=lambda s: s, hyper=None):
    method, init, step = compiled(probe)
    states = [edit(init(jax.random.key(0), hyper or replace(method.hyper, lr=0.05)))]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


@pytest.mark.parametrize("probe", ["corridor-discrete", "endless"])
def test_every_agent_is_the_plain_algorithm(probe):
    """A2C in a Python loop on the recorded actions. Terminations, resets and truncations fall into the
    rollouts at different steps."""
    env = make(f"probe/{probe}")
    agent = a2c.build(env.spec, TINY.agent)
    step, learn, outputs = map(jax.jit, (env.step, agent.learn, agent.outputs))
    states = history(probe, 4)
    for before, after in pairwise(states):
        for i in range(3):
            learner, rows = tree.take(before.agents, i), tree.take(after.trajectory, i)  # [T, N]
            for n in range(2):
                (_, env_state, *_), obs = tree.take(before.lanes.env, (i, n)), before.lanes.obs[i, n]
                for t in range(5):
                    row = tree.take(replace(rows, memory=()), (t, n))
                    env_state, timestep = step(env_state, row.action)
                    close((row.obs, row.next_obs), (obs, timestep.next_obs))
                    said = outputs(agent.policy(learner), row.obs)
                    close(row.log_prob, agent.actions.log_prob(said, row.action))
                    close(row.discount, 0.99 * (1 - timestep.terminated))
                    assert (row.reward, row.done) == (timestep.reward, timestep.done)
                    obs = timestep.next_obs
                    if row.done:  # probes reset to one state
                        env_state, obs = env.reset(jax.random.key(0))
            learned, losses = learn(learner, rows, before.hyper, jax.random.key(i))
            close(tree.take((after.agents, after.metrics.losses), i), (learned, losses))


def test_steps_and_episodes_are_counted_exactly():
    """Episodes of the delay take two steps: of 5 + 5 + 5 in each lane, 2, 5 and 7 have ended."""
    states = history("delay", 3)
    assert compiled("delay")[0].steps_bound == 30
    assert [int(s.env_steps) for s in states] == [0, 30, 60, 90]
    assert [int(s.generation) for s in states] == [0, 1, 2, 3]
    assert [s.metrics.episodes.tolist() for s in states[1:]] == [[4] * 3, [10] * 3, [14] * 3]
    assert states[-1].metrics.fitness.tolist() == [1, 1, 1]


def test_a_termination_inside_a_rollout_does_not_leak():
    """The rows of five steps of the delay, and of the five that follow: nothing is lost between them."""
    states = history("delay", 2)
    names = ("obs", "reward", "discount", "next_obs", "done")
    rows = [np.asarray(getattr(states[1].trajectory, x))[1, :, 0] for x in names]
    obs, reward, discount, next_obs, done = rows
    assert obs.ravel().tolist() == [0, 1, 0, 1, 0]
    assert reward.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(discount, [0.99, 0, 0.99, 0, 0.99])
    assert next_obs.ravel().tolist() == [1, 1, 1, 1, 1]
    assert done.tolist() == [False, True, False, True, False]
    after = states[2].trajectory
    assert after.obs[1, :, 0].ravel().tolist() == [1, 0, 1, 0, 1]
    assert after.done[1, :, 0].tolist() == [True, False, True, False, True]


def test_what_follows_an_episode_teaches_nothing_about_it(key):
    """Other rewards after the end: the gradient of the network at the observations before it is as it was.

    The agent sees the two steps before the end under observations of their own, and has a table for a
    network: one weight for each observation."""
    spec = make("probe/delay").spec._replace(obs_shape=(4,))
    agent = a2c.build(spec, a2c.Config(hidden=()))
    hyper = as_arrays(a2c.Hyper(max_grad_norm=1e9, lr=0.1))
    state = jax.jit(agent.init)(key, hyper)
    eye, zero = jnp.eye(4)[:, None], jnp.zeros((4, 1))
    done = jnp.array([False, True, False, False])[:, None]
    rows = Trajectory(eye, zero[..., None] + 0.5, zero + 1, jnp.where(done, 0, 0.9), eye, done, zero)
    other = rows.replace(reward=rows.reward.at[2:].add(100.0))
    a, b = (jax.jit(agent.learn)(state, x, hyper, key)[0] for x in (rows, other))
    for x, y in zip(*map(jax.tree.leaves, ((a.actor, a.value), (b.actor, b.value))), strict=True):
        if x.ndim == 2:
            np.testing.assert_array_equal(x[:2], y[:2])
            assert (x[2:] != y[2:]).all()


def test_a_time_limit_keeps_its_bootstrap():
    rows = history("endless", 1)[-1].trajectory
    np.testing.assert_allclose(rows.discount, 0.99 * np.ones((3, 5, 2)), rtol=1e-6)
    assert rows.done[0, :, 0].tolist() == [False] * 4 + [True]


def test_agents_do_not_know_of_each_other():
    """Other parameters for agent 1 leave agents 0 and 2 as they are."""

    def disturb(state):
        return state.replace(agents=tree.take(state.agents, jnp.array([0, 0, 2])))

    plain, disturbed = history("corridor-discrete", 5)[-1], history("corridor-discrete", 5, disturb)[-1]
    for field in ("agents", "trajectory"):
        a, b = getattr(plain, field), getattr(disturbed, field)
        assert same(tree.take(a, jnp.array([0, 2])), tree.take(b, jnp.array([0, 2])))
    assert not same(tree.take(plain.agents, 1), tree.take(disturbed.agents, 1))


def test_a_number_for_each_agent():
    """Rates [P]: the agent with rate 0 stands still, the others move."""
    method = compiled("corridor-discrete")[0]
    states = history("corridor-discrete", 2, hyper=replace(method.hyper, lr=jnp.array([0.0, 1e-3, 1e-2])))
    first, last = states[0].agents, states[-1].agents
    moved = [not same(tree.take(first.actor, i), tree.take(last.actor, i)) for i in range(3)]
    assert moved == [False, True, True]


def test_the_best_agent_is_deployed_greedily(key):
    method = compiled("corridor-discrete")[0]
    state = history("corridor-discrete", 1)[-1]
    state = state.replace(metrics=replace(state.metrics, fitness=jnp.array([0.0, 3.0, 1.0])))
    assert same(method.policy(state), tree.take(state.agents.actor, 1))
    actions = [method.act(method.policy(state), (), jnp.ones(1), k, 0.0)[1] for k in jax.random.split(key)]
    np.testing.assert_array_equal(*actions)


def test_a_policy_with_a_memory_begins_every_episode_without_any(key):
    config = replace(TINY, agent=a2c.Config(hidden=(8,), lstm=4))
    method = onpolicy.build(make("probe/corridor-discrete"), config)
    state = jax.jit(method.init)(key, method.hyper)
    assert [x.shape for x in jax.tree.leaves(state.lanes.memory)] == [(3, 2, 4)] * 4
    assert not any(x.any() for x in jax.tree.leaves((state.lanes.memory, method.memory)))
    act, params = jax.jit(method.act), method.policy(state)
    assert same(params, tree.take((state.agents.actor, state.agents.value), 0))
    once = act(params, method.memory, jnp.ones(1), key, 0.0).memory
    twice = act(params, once, jnp.ones(1), key, 0.0).memory
    assert all(x.all() for x in jax.tree.leaves(once))
    assert not same(once, twice)
    assert same(once, act(params, method.memory, jnp.ones(1), key, 0.0)[0])


COLLAB = contrastive.Config(hidden=(8,), features=4, bank_size=6, neighbours=2)
DRIVES = {
    "collab": COLLAB,
    "rnd": rnd.Config(hidden=(8,), scale="return"),
    "rnd_one": rnd.Config(hidden=(8,), modules="one"),
    "diayn": diayn.Config(skills=3, hidden=(8,)),
}


@pytest.mark.slow
def test_agents_learn_from_the_tasks_reward_plus_the_drives():
    """Where all observations are 1 the novelty of the identity is -1: rewards are less by the weight."""
    env, drive = make("probe/endless"), replace(COLLAB, encoder="identity")

    def less(state, action):
        state, timestep = env.step(state, action)
        return state, replace(timestep, reward=timestep.reward - 0.25)

    def ran(env, drive, **weight):
        method = onpolicy.build(env, replace(TINY, drive=drive))
        hyper = method.hyper.replace(drive=replace(method.hyper.drive, **weight)) if weight else method.hyper
        state, step = jax.jit(method.init)(jax.random.key(0), hyper), jax.jit(method.step)
        return state, step(state)

    fresh, state = ran(env, drive, weight=0.25)
    np.testing.assert_allclose(state.trajectory.reward, jnp.full((3, 5, 2), 0.75), atol=1e-6)
    np.testing.assert_allclose(state.metrics.bonus, [-0.25] * 3, atol=1e-6)
    assert (state.metrics.fitness == 5).all(), "fitness is the task's"
    # The drive draws from a key of its own, behind the play: given these rewards agents learn as they would.
    plain, after = ran(env._replace(step=less), None)
    close(state.trajectory, after.trajectory, atol=1e-6)
    close(state.metrics.losses, after.metrics.losses, atol=1e-5)
    assert same(fresh.agents, plain.agents)


@pytest.mark.parametrize("name", ["collab", "rnd_one"])
def test_who_has_diverged_spoils_no_drive_that_all_share(name):
    """Its rows are not counted as states of zeros, either: two agents of three have ten in each rollout."""
    method = onpolicy.build(make("probe/corridor"), replace(TINY, drive=DRIVES[name]))
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    lost = jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.agents.actor)
    state = replace(state, agents=replace(state.agents, actor=lost))
    step = jax.jit(method.step)
    after = step(step(state))
    assert not np.isfinite(after.trajectory.action[0]).all()
    if name == "collab":
        assert after.drive.bank.size.tolist() == [0, 4, 4]  # every fifth state
    else:
        assert int(after.drive.observations.count) == 2 * 20
    sound = after.trajectory.reward[1:], tree.take(after.agents.actor, slice(1, None)), after.drive
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(sound) if x.dtype == jnp.float32)


@pytest.mark.parametrize("name", DRIVES)
@pytest.mark.parametrize("task", ["corridor", "corridor-discrete"])
@pytest.mark.parametrize("lstm", [0, 4])
def test_every_drive_fits_every_agent(task, name, lstm):
    """Shapes only: what a step returns is what it takes, and the policy acts on the task's observations."""
    config = replace(TINY, agent=a2c.Config(hidden=(8,), lstm=lstm), drive=DRIVES[name])
    method = onpolicy.build(make(f"probe/{task}"), config)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    both = state, jax.eval_shape(method.step, state)
    forms = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in both]
    assert forms[0] == forms[1]
    policy, given = (
        jax.eval_shape(method.policy, state),
        (method.memory, jnp.zeros(1), jax.random.key(0), 0.0),
    )
    assert jax.eval_shape(method.act, policy, *given).action.shape == (() if "discrete" in task else (1,))


def test_a_drive_learns_about_once_from_every_step():
    """A gradient step for each 256 of an agent's steps, at least one."""
    for lanes, steps, expected in ((2, 5, 1), (4, 150, 3)):
        config = replace(TINY, population=1, lanes=lanes, steps=steps, drive=DRIVES["rnd_one"])
        method = onpolicy.build(make("probe/corridor"), config)
        state = jax.jit(method.step)(jax.jit(method.init)(jax.random.key(0), method.hyper))
        counts = [int(x) for x in jax.tree.leaves(state.drive.optimizer) if x.dtype == jnp.int32]
        assert counts == [expected]
        assert int(state.drive.observations.count) == expected * min(256, lanes * steps)


def test_the_defaults_are_those_of_baselines():
    method = onpolicy.build(make("probe/delay"))
    assert method.steps_bound == 20
    assert method.hyper.anneal_updates * 20 == 10**7


def test_the_command_line_offers_it():
    argv = ["--env=probe/context", "--env-steps=9", "--config.agent.hidden", "16"]
    for given, kinds in (([], ("a2c", "none")), (["--config.drive", "rnd"], ("a2c", "rnd"))):
        program = understand("onpolicy", [*argv, *given])
        assert tuple(program.kinds.values()) == kinds
        assert program.arguments.config.agent.hidden == (16,)
        assert program.arguments.hyper.lr == a2c.Hyper().lr
        assert (program.arguments.config.drive is None) == (kinds[1] == "none")
    more = [*argv, "--config.drive=rnd", "--config.drive.modules=one", "--hyper.drive.weight=0.5"]
    arguments = understand("onpolicy", more).arguments
    assert (arguments.config.drive.modules, arguments.hyper.drive.weight) == ("one", 0.5)
    with pytest.raises(Refused, match="unknown agent 'sac'"):
        understand("onpolicy", [*argv, "--config.agent", "sac"])


def test_senseless_configs_are_refused():
    with pytest.raises(ValueError, match="lanes must be at least 1, got 0"):
        onpolicy.Config(lanes=0)
    with pytest.raises(ValueError, match="add it, or choose a2c or ppo"):
        onpolicy.build(make("probe/delay"), onpolicy.Config(agent=sac.Config()))


@pytest.mark.slow
def test_it_learns_to_balance_a_pole(key):
    """CartPole in 400,000 steps, then 64 greedy episodes of at most 500."""
    env = make("gymnax/CartPole-v1")
    method = onpolicy.build(env, onpolicy.Config(lanes=16))
    hyper = replace(method.hyper, lr=3e-3, anneal_updates=5000.0)

    @jax.jit
    def returns(key):
        state, _ = jax.lax.scan(lambda s, _: (method.step(s), None), method.init(key, hyper), length=5000)
        params = method.policy(state)

        def policy(memory, obs, key):
            return method.act(params, memory, obs, key, 0.0)[:2]

        play = jax.vmap(lambda key: rollout.episode(env, policy, (), key).total)
        return play(jax.random.split(key, 64))

    assert returns(key).mean() > 300


def a_case(slow=False, drive=None, env="probe/delay", **options):
    agent = a2c.Config(hidden=(4,), **options)
    config = onpolicy.Config(agent=agent, population=3, lanes=2, steps=3, drive=drive)
    return Case(partial(onpolicy.build, make(env), config), population=3, slow=slow)


CASES = {
    "onpolicy": a_case(),
    "onpolicy_lstm": a_case(lstm=4, slow=True),
    # Successors of the other probe are all alike: whitening would show how each program rounds.
    "onpolicy_rnd": a_case(drive=DRIVES["rnd"], env="probe/corridor", slow=True),
    "onpolicy_collab": a_case(drive=COLLAB, slow=True),
    "onpolicy_diayn": a_case(drive=DRIVES["diayn"], lstm=4, slow=True),
}
