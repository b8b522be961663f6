"""Collaborative Exploration, with every kind of agent and every form of collaboration."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import cli, tree
from popjax.agents import ddpg, dqn, sac, sac2018, td3
from popjax.envs import make
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import ce
from popjax.population.learners import Multihead
from tests.support import Case, close, same

COLLAB = contrastive.Config(hidden=(8,), features=8, bank_size=20, neighbours=3)
DDPG = ddpg.Config(hidden=(8,), critic_branch=8, critic_hidden=8)
SMALL = ce.Config(
    learner=sac.Config(hidden=(16,)), drive=COLLAB, batch=12, capacity=400, warmup=40, q_horizon=5
)
VARIANTS = {
    "ce": {},
    "all": {"col_unroll": "eps_collab", "col_eval": "softmax"},
    "q": {"col_eval": "q"},
    "lanes": {"lanes": 3},
    "steps": {"steps": 2, "updates_per_step": 0.5},
    "replica": {"drive": None},
    "sac": {"population": 1, "drive": None},
    "alone": {"population": 1},
    "rnd": {"drive": rnd.Config(hidden=(8,))},
    "rnd_ce": {"drive": rnd.Config(hidden=(8,), modules="one", scale="return")},
    "diayn": {"drive": diayn.Config(skills=3, hidden=(8,))},
    "multihead": {"learner": Multihead(hidden=(8,)), "col_unroll": "eps_collab"},
    "eps_greedy": {"col_unroll": "eps_greedy"},
    "softmax": {"col_unroll": "softmax"},
    "ucb": {"col_unroll": "ucb"},
    "ddpg": {"learner": DDPG},
}
OFTEN = ("ce", "all", "steps", "sac")


@lru_cache
def compiled(name, env="probe/corridor"):
    """(method, init, steps(state, count) in one program)."""
    method = ce.build(make(env), replace(SMALL, **VARIANTS[name]))

    @jax.jit
    def steps(state, count):
        return jax.lax.fori_loop(0, count, lambda _, s: method.step(s), state)

    return method, jax.jit(method.init), steps


def played(name, count, seed=0):
    method, init, steps = compiled(name)
    return steps(init(jax.random.key(seed), method.hyper), count)


# What every variant does


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in OFTEN)) for name in VARIANTS]
)
def test_the_step_that_ends_the_warm_up_and_every_later_one_pay_their_updates(name):
    config = replace(SMALL, **VARIANTS[name])
    taken = config.population * config.lanes * config.steps
    first = -(-config.warmup // taken)  # the iteration that reaches the warm-up
    method, init, steps = compiled(name)
    fresh = init(jax.random.key(0), method.hyper)
    before = steps(fresh, first - 1)
    if config.learner != DDPG:  # whose statistics of observations are no gradient step
        assert same(before.agents, fresh.agents)
    after = steps(before, 3)
    assert gradient_steps(after) == 3 * round(taken * config.updates_per_step)
    assert int(after.env_steps) == int(after.replay.size) == (first + 2) * taken
    assert not same(after.agents, fresh.agents)
    for leaf in jax.tree.leaves(after.metrics):
        assert jnp.isfinite(leaf).all()
    choice = method.act(method.policy(after), method.memory, jnp.zeros(1), jax.random.key(0), 0.0)
    assert jax.tree.structure(choice.memory) == jax.tree.structure(method.memory)
    assert choice.action.shape == (1,)
    assert float(jnp.abs(choice.action).max()) <= 1


def gradient_steps(state):
    """Gradient steps that every agent's critics have taken, by Adam's count."""
    (count,) = set(optax.tree_utils.tree_get(state.agents.critic_optimizer, "count").tolist())
    return count


def test_the_papers_numbers_of_updates():
    """Worked example 10 from the configuration: nothing before 10,000 steps, four updates a step then."""
    config = ce.Config()
    assert config.warmup // config.population == 2500
    assert config.sizes(config.learner).updates * (1000 + 1) == 4004
    assert config.drive.steps == 1


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("corridor", {"drive": replace(COLLAB, encoder="random"), "lanes": 2}),
        ("corridor", {"drive": replace(COLLAB, encoder="identity")}),
        ("corridor", {"drive": rnd.Config(scale="return", modules="each"), "lanes": 2}),
        ("corridor", {"learner": Multihead(hidden=(8,)), "col_unroll": "ucb", "col_eval": "q", "lanes": 2}),
        ("corridor", {"learner": td3.Config(hidden=(8,)), "col_unroll": "ucb", "col_eval": "softmax"}),
        ("corridor", {"learner": sac2018.Config(hidden=(8,)), "drive": diayn.Config(hidden=(8,))}),
        ("corridor", {"learner": replace(DDPG, normalize=True), "col_unroll": "softmax"}),
        ("corridor", {"learner": sac.Config(hidden=(8,), normalize_obs=True), "col_unroll": "ucb"}),
        ("corridor-discrete", {"learner": dqn.Config(hidden=(8,)), "col_unroll": "eps_greedy"}),
        ("corridor-discrete", {"learner": dqn.Config(hidden=(8,)), "col_unroll": "ucb", "col_eval": "q"}),
        ("corridor-discrete", {"learner": dqn.Config(hidden=(8,)), "drive": diayn.Config(hidden=(8,))}),
    ],
)
def test_combinations_fit_together(env, options):
    """Shapes only: what a step returns is what it takes, and the policy acts on one observation."""
    fits(ce.build(make(f"probe/{env}"), replace(SMALL, **options)), (1,), (1,) if env == "corridor" else ())


@pytest.mark.parametrize("drive", [COLLAB, rnd.Config(), None])
def test_dqn_explores_minatar(drive):
    options = {"population": 2, "steps": 2, "updates_per_step": 0.25, "col_eval": "softmax"}
    config = replace(SMALL, learner=dqn.Config(), drive=drive, col_unroll="eps_greedy", **options)
    env = make("gymnax/Breakout-MinAtar")
    fits(ce.build(env, config), env.spec.obs_shape, ())


def fits(method, obs_shape, action_shape):
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    form = [
        jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, jax.eval_shape(method.step, state))
    ]
    assert form[0] == form[1]
    params = jax.eval_shape(method.policy, state)
    obs = jnp.zeros(obs_shape)
    action = jax.eval_shape(method.act, params, method.memory, obs, jax.random.key(0), 0.0).action
    assert action.shape == action_shape


# The reward


@pytest.mark.parametrize("learner", [SMALL.learner, pytest.param(DDPG, marks=pytest.mark.slow)])
def test_agents_learn_from_the_tasks_reward_plus_their_own_novelty(learner):
    """Where all observations are 1 the novelty of the identity is -1: CE is Replica with rewards less by the
    weight of each agent."""
    weights = jnp.array([0.0, 0.2, 0.4, 0.8])
    config = replace(SMALL, learner=learner, drive=replace(COLLAB, encoder="identity"))
    env = make("probe/endless")
    method = ce.build(env, config)
    hyper = replace(method.hyper, drive=replace(method.hyper.drive, weight=weights))
    final = ran(method, hyper)
    np.testing.assert_allclose(final.metrics.bonus, -weights, atol=1e-6)

    @jax.jit
    def replicas(less):
        def step(state, action):
            state, timestep = env.step(state, action)
            return state, replace(timestep, reward=timestep.reward - less)

        replica = ce.build(env._replace(step=step), replace(config, drive=None))
        return ran(replica, replica.hyper).agents

    for i in range(4):
        expected = replicas(weights[i])
        close(tree.take(final.agents, i), tree.take(expected, i), atol=1e-5)
        assert i == 3 or not same(tree.take(final.agents, 3), tree.take(expected, 3))


def ran(method, hyper, count=13):
    steps = jax.jit(lambda s: jax.lax.fori_loop(0, count, lambda _, s: method.step(s), s))
    return steps(jax.jit(method.init)(jax.random.key(0), hyper))


@pytest.mark.slow
def test_weight_zero_equals_no_drive():
    """Replica is CE with lambda 0 but for the encoder beside it; alone, that is plain SAC."""
    for name, plain in (("ce", "replica"), ("alone", "sac")):
        method, init, steps = compiled(name)
        quiet = replace(method.hyper, drive=replace(method.hyper.drive, weight=0.0))
        final = steps(init(jax.random.key(0), quiet), 45)
        close(played(plain, 45).agents, final.agents, atol=2e-6)
    assert not same(played("ce", 45).agents, played("replica", 45).agents)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_encoder_takes_its_steps_with_every_update(count):
    method = ce.build(make("probe/corridor"), replace(SMALL, drive=replace(COLLAB, steps=count)))
    state = ran(method, method.hyper, 15)
    moments = optax.tree_utils.tree_get(state.drive.optimizer, "count")
    assert int(moments) == count * gradient_steps(state) == count * 6 * 4


def test_each_agent_may_have_numbers_of_its_own():
    """With exploration 0 an agent acts by its mean."""
    method, init, steps = compiled("all")
    scales = jnp.array([0.0, 1.0, 1.0, 1.0])
    hyper = replace(method.hyper, acting=replace(method.hyper.acting, epsilon=0.0))
    hyper = replace(hyper, learner=replace(hyper.learner, exploration=scales))
    state = steps(init(jax.random.key(0), hyper), 12)
    after = steps(state, 1)
    actions = after.replay.rows.action[48:52]
    outputs = sac.build(make("probe/corridor").spec, SMALL.learner).outputs
    mean = jnp.tanh(jax.vmap(outputs)(state.agents.actor, state.lanes.obs)[0])[:, 0]
    np.testing.assert_allclose(actions[0], mean[0], atol=1e-6)
    assert (jnp.abs(actions[1:] - mean[1:]) > 1e-4).all()


def test_each_agent_may_have_a_discount_of_its_own():
    """The rows of all, also of one without foresight, are learned from with the learner's discount."""
    method = ce.build(make("probe/endless"), replace(SMALL, drive=None))
    hyper = method.hyper

    @jax.jit
    def agents_after(discounts):
        own = replace(hyper, learner=replace(hyper.learner, discount=discounts))
        state = method.init(jax.random.key(0), own)
        return jax.lax.fori_loop(0, 13, lambda _, s: method.step(s), state).agents

    discounts = jnp.array([0.0, 0.5, 0.9, 0.99])
    mixed = agents_after(discounts)
    for i, discount in enumerate(discounts):
        alike = agents_after(jnp.full(4, discount))
        close(tree.take(mixed, i), tree.take(alike, i), atol=1e-5)
        assert i == 3 or not same(tree.take(mixed, 3), tree.take(alike, 3))


@pytest.mark.slow
def test_a_run_with_a_discount_for_each_agent_goes_on_and_is_evaluated(tmp_path):
    sizes = {"learner.hidden": 4, "batch": 8, "capacity": 400, "warmup": 40}
    options = [word for name, size in sizes.items() for word in (f"--config.{name}", str(size))]
    run = [
        "ce",
        "--env",
        "probe/endless",
        "--config.drive",
        "none",
        *options,
        "--run-dir",
        str(tmp_path / "run"),
    ]
    run += ["--hyper.learner.discount", "0.9,0.97,0.99,0.995"]
    assert cli.run([*run, "--env-steps", "80"]) == 0
    assert cli.run([*run, "--env-steps", "160", "--resume"]) == 0
    assert cli.evaluate([str(tmp_path / "run"), "--episodes", "2"]) == 0


# Replay, banks and evaluation


def test_the_replay_exists_once_whatever_the_population():
    one, many = compiled("sac")[0], compiled("ce")[0]
    shapes = [jax.eval_shape(m.init, jax.random.key(0), m.hyper).replay for m in (one, many)]
    assert shapes[0].rows.obs.shape == shapes[1].rows.obs.shape
    assert all({x.shape[0] for x in jax.tree.leaves(shape.rows)} == {400} for shape in shapes)


def test_the_bank_of_an_agent_holds_every_fifth_state_of_its_own_lanes():
    state = played("ce", 27)
    rows = state.replay.rows.next_obs[:108].reshape(27, 4)
    for agent in range(4):
        np.testing.assert_array_equal(np.ravel(state.drive.bank.rows[agent])[:5], rows[4::5, agent])
    assert (state.drive.bank.size == 5).all()


def test_rows_are_written_in_the_order_of_time():
    """Also with several vector steps in an iteration: a lane's rows are a stride apart and follow on."""
    state = played("steps", 20)
    rows = jax.tree.map(lambda x: x[:160].reshape(40, 4, *x.shape[1:]), state.replay.rows)
    same_episode = rows.episode[1:] == rows.episode[:-1]
    assert same_episode.any()
    assert not same_episode.all()
    np.testing.assert_array_equal(rows.obs[1:][same_episode], rows.next_obs[:-1][same_episode])


@pytest.mark.slow
def test_the_q_classifier_keeps_its_choice_for_its_horizon():
    method = compiled("q")[0]
    policies, opinion = method.policy(played("q", 45))
    memory, chosen = method.memory, []
    for t in range(11):
        # Another opinion at every step: what is done with it shows when it is asked.
        voted = jax.tree.map(jnp.zeros_like, opinion)
        last = sorted(voted)[-1]
        voted[last]["linear"]["bias"] = voted[last]["linear"]["bias"].at[t % 4].set(1.0)
        memory = method.act((policies, voted), memory, jnp.zeros(1), jax.random.key(0), 0.0).memory
        chosen.append(int(memory[0]))
    assert chosen == [0] * 5 + [1] * 5 + [2]


def test_the_softmax_deploys_the_agent_of_the_highest_value():
    method, *_ = compiled("all")
    policies, (states, softmax) = method.policy(played("all", 20))
    sure = policies, (states, replace(softmax, softmax_eps=jnp.float32(0)))
    obs, key = jnp.full(1, 0.3), jax.random.key(0)
    crew = sac.build(make("probe/corridor").spec, SMALL.learner)
    greedy = jax.vmap(crew.act, (0, None, None, None, None))(policies, (), obs, key, 0.0).action
    values = jax.vmap(crew.value, (0, None, 0))(states, obs, greedy)
    np.testing.assert_allclose(method.act(sure, (), obs, key, 0.0).action, greedy[values.argmax()], atol=1e-6)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"updates_per_step": 0.3}, "updates_per_step 0.3 times 4 environment steps of an iteration must be"),
        ({"capacity": 40, "batch": 20}, "capacity 40 is less than a batch of 20 or the 44 transitions"),
        (
            {"population": 1, "col_unroll": "eps_collab"},
            "eps_collab needs two or more agents, got population 1; raise population or unset col_unroll",
        ),
        ({"drive": diayn.Config(), "col_eval": "softmax"}, "agents of diayn have skills of their own"),
        ({"col_unroll": "eps"}, "col_unroll must be one of"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        ce.Config(**options)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (
            "corridor-discrete",
            {},
            "sac needs continuous actions; probe/corridor-discrete has 2 discrete ones: set --config.learner",
        ),
        ("corridor-discrete", {"learner": Multihead()}, "discrete ones: set --config.learner dqn"),
        ("corridor", {"learner": dqn.Config()}, "dqn needs discrete actions"),
        (
            "corridor-discrete",
            {"learner": dqn.Config(), "col_unroll": "eps_collab"},
            "eps_collab measures distances between continuous actions; set col_unroll to eps_greedy",
        ),
    ],
)
def test_agents_that_cannot_play_the_task_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        ce.build(make(f"probe/{env}"), replace(SMALL, **options))


@pytest.mark.parametrize(
    ("name", "part", "field", "count", "message"),
    [
        ("ce", "learner", "discount", 3, "discount must be one number for all, or one for each of 4 agents"),
        ("multihead", "learner", "discount", 4, "hyper.learner.discount must be one number, got shape"),
        ("ce", "acting", "epsilon", 4, "hyper.acting.epsilon must be one number, got shape"),
        ("ce", "drive", "weight", 3, "drive.weight must be one number for all, or one for each of 4 agents"),
        ("multihead", "learner", "actor_lr", 4, "hyper.learner.actor_lr must be one number, got shape"),
    ],
)
def test_numbers_of_a_wrong_shape_are_refused(name, part, field, count, message):
    hyper = compiled(name)[0].hyper
    changed = replace(getattr(hyper, part), **{field: jnp.full(count, 0.1)})
    with pytest.raises(ValueError, match=message):
        compiled(name)[0].init(jax.random.key(0), replace(hyper, **{part: changed}))


def a_case(env="probe/delay", *, slow=False, alone=True, **options):
    config = ce.Config(
        learner=sac.Config(hidden=(4,)),
        drive=contrastive.Config(hidden=(4,), features=4, bank_size=6, neighbours=2, horizon=2),
        population=3,
        batch=6,
        capacity=60,
        warmup=3,
        q_horizon=3,
    )
    return Case(lambda: ce.build(make(env), replace(config, **options)), 3, alone=alone, slow=slow)


CASES = {
    "ce": a_case(),
    "ce_all": a_case(alone=False, slow=True, col_unroll="eps_collab", col_eval="q", lanes=2),
    "ce_multihead": a_case(slow=True, learner=Multihead(hidden=(4,)), drive=None),
    "ce_dqn": a_case("probe/context-discrete", slow=True, learner=dqn.Config(hidden=(4,)), steps=2),
}


def test_agents_of_dqn_begin_with_the_numbers_of_atari():
    config = ce.default_config(ce.METHOD.agents["learner"]["dqn"])
    hyper = ce.default_hyper(config)
    assert (config.population, config.batch, config.warmup) == (2, 32, 20_000)
    assert config.sizes(config.learner).updates == 1
    assert config.population * config.lanes * config.steps == 4, "environment steps of all per gradient step"
    assert (hyper.learner.exploration, hyper.learner.exploration_steps) == (0.05, 250_000)
    assert 4 * hyper.learner.target_period == 10_000
    assert ce.METHOD.preset("atari/asterix") == (config, hyper, 5_000_000, {"reward_clip": 1})
    assert ce.default_config() == ce.Config()
