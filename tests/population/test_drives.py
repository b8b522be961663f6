"""Drives of a population: what each agent is paid and what each module learns from."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from popjax import agents, tree
from popjax.agents import dqn, drq, sac
from popjax.core import Choice, Env, Spec, Timestep, Transition, as_arrays
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.methods import ce, independent, pbt, pderl
from popjax.nets import images
from popjax.population import drives, offpolicy
from popjax.replay.ring import ring
from tests.support import close, equal, same, slow_except

P, N, B, D = 3, 2, 5, 2
SPEC = Spec("task", (D,), 1, 10)
CONFIGS = {
    "collab": contrastive.Config(hidden=(8,), features=4, bank_size=6, neighbours=2, bank_every=2),
    "rnd": rnd.Config(hidden=(8,), features=4),
    "rnd_each": rnd.Config(hidden=(8,), features=4, modules="each"),
    "rnd_one": rnd.Config(hidden=(8,), features=4, modules="one", scale="return"),
    "diayn": diayn.Config(skills=3, hidden=(8,)),
}
every_drive = pytest.mark.parametrize("name", CONFIGS)


@struct.dataclass
class Numbers:
    """A ``hyper`` with the numbers of a drive."""

    drive: Any


def numbers(name, **changes):
    return Numbers(as_arrays(replace(drives.default_hyper(CONFIGS[name]), **changes)))


@lru_cache
def built(config):
    """A drive whose functions are compiled."""
    drive = drives.build(SPEC, config, P, N)
    learn = jax.jit(drive.learn, static_argnums=3)
    init, observe, pay = map(jax.jit, (drive.init, drive.observe, drive.pay))
    return drive._replace(init=init, observe=observe, pay=pay, learn=learn)


def rows_of(key, *shape, skills=0):
    keys = jax.random.split(key, 4)
    obs, next_obs = jax.random.normal(keys[0], (2, *shape, D))
    if skills:
        skill = jax.random.randint(keys[2], shape, 0, skills)
        obs, next_obs = (diayn.with_skill(x, skill, skills) for x in (obs, next_obs))
    action, reward = jnp.zeros((*shape, 1)), jax.random.normal(keys[3], shape)
    return Transition(obs, action, reward, jnp.ones(shape), next_obs)


def pairs(key):
    anchors, positives = jax.random.normal(key, (2, 8, D))
    return anchors, positives, jnp.ones(8, bool)


def begun(name, key, **changes):
    """A drive, its rows, and its state after it has seen some steps and learned once."""
    drive, hyper = built(CONFIGS[name]), numbers(name, **changes)
    skills = 3 if name == "diayn" else 0
    stream = rows_of(key, 8, P, N, skills=skills)
    yes = jnp.ones((8, P, N), bool)
    state = drive.observe(drive.init(key), stream, yes.at[:-1].set(False), yes, hyper)
    common = rows_of(key, B, skills=skills)
    state, _ = drive.learn(state, common, jnp.ones((P, B), bool), pairs, hyper, key)
    return drive, state, common, hyper


@every_drive
def test_common_rows_and_everyones_own_pay_alike(name, key):
    """[B] rows are [P, B] rows that are all the same; the task's reward stays in."""
    drive, state, common, hyper = begun(name, key)
    paid, bonus = drive.pay(state, common, hyper)
    assert paid.reward.shape == paid.obs.shape[:2] == (P, B)
    np.testing.assert_allclose((paid.reward - common.reward).mean(1), bonus, atol=1e-6)
    again, bonus_again = drive.pay(state, tree.repeat(common, P), hyper)
    close((again, bonus_again), (paid, bonus), atol=1e-6)


@every_drive
def test_the_weight_may_differ_from_agent_to_agent(name, key):
    drive, state, common, hyper = begun(name, key)
    one = drive.pay(state, common, hyper)[0].reward - common.reward
    weights = jnp.array([0.0, 0.4, 0.1])
    scaled = drive.pay(state, common, numbers(name, weight=weights))[0].reward - common.reward
    np.testing.assert_allclose(scaled, one / hyper.drive.weight * weights[:, None], atol=1e-5)


@every_drive
def test_a_module_goes_with_its_agent_and_a_newcomer_has_a_new_one(name, key):
    """One that all share stays. DIAYN's returns in episodes that another began are nobody's."""
    if name in ("collab", "rnd_one"):
        assert built(CONFIGS[name]).hand_over is None
        return
    drive, state, _, _ = begun(name, key)
    source, fresh = jnp.array([1, 1, 2]), jnp.array([False, False, True])
    state = tree.take(state, jnp.array([0, 1, 1]))
    after = drive.hand_over(state, source, fresh, jnp.array([True, False, True]), jax.random.key(7))
    if name == "diayn":
        assert np.isneginf(after.running).all(1).tolist() == [True, False, True]
        after = after.replace(
            running=jnp.where(jnp.isneginf(after.running), state.running[source], after.running)
        )
        after = after.replace(running=after.running.at[2].set(0))
    anew = drive.init(jax.random.key(7))
    equal(after, tree.where(fresh, anew, tree.take(state, source)))
    assert not same(after, state)


def test_the_return_of_an_episode_that_another_began_is_no_skills(key):
    drive, hyper = built(CONFIGS["diayn"]), numbers("diayn")
    own = jnp.arange(P)
    state = drive.hand_over(drive.init(key), own, own < 0, own == 0, key)
    rows, yes = rows_of(key, 1, P, N, skills=3), jnp.ones((1, P, N), bool)
    once = drive.observe(state, rows, yes, yes, hyper)
    assert np.isneginf(once.returns[0]).all()
    assert np.isfinite(once.returns[1:]).any(1).all()
    assert not once.running.any()
    again = drive.observe(once, rows, yes, yes, hyper)
    assert np.isfinite(again.returns[0]).any()


@every_drive
def test_a_drive_keeps_structure_and_stays_finite(name, key):
    drive, state, common, hyper = begun(name, key)
    own = tree.repeat(common, P)
    for rows, mine in ((common, jnp.ones((P, B), bool)), (own, None)):
        after, losses = drive.learn(state, rows, mine, pairs, hyper, key)
        form = [jax.tree.map(lambda x: (x.shape, x.dtype), s) for s in (state, after)]
        assert form[0] == form[1]
        assert not same(after, state)
        assert all(x.shape == () and jnp.isfinite(x) for x in jax.tree.leaves(losses))


def test_the_collaborative_bonus_is_equations_2_and_3_written_out(key):
    drive, state, common, hyper = begun("collab", key)
    network = contrastive.encoder(SPEC, CONFIGS["collab"])
    assert state.bank.size.tolist() == [6] * P
    embedded, r = network.apply(state.encoder, common.next_obs), []
    for agent in range(P):
        keys = network.apply(state.encoder, state.bank.rows[agent])
        similar = embedded @ keys.T / jnp.outer(*(jnp.linalg.norm(x, axis=1) for x in (embedded, keys)))
        r.append(-jnp.sort(similar, axis=1)[:, -CONFIGS["collab"].neighbours])
    own = [0.5 * r[i] + 0.5 * sum(r[j] for j in range(P) if j != i) / (P - 1) for i in range(P)]
    paid = drive.pay(state, common, hyper)[0].reward
    np.testing.assert_allclose(paid, common.reward + 0.2 * jnp.stack(own), atol=1e-5)


def test_own_rows_are_paid_for_by_their_agent_alone(key):
    """Row b of agent i is worth what it would be among common rows, to agent i."""
    for name in ("collab", "rnd", "rnd_one"):
        drive, state, _, hyper = begun(name, key)
        own = rows_of(key, P, B)
        paid = drive.pay(state, own, hyper)[0].reward
        for i in range(P):
            alike = drive.pay(state, tree.take(own, i), hyper)[0].reward
            np.testing.assert_allclose(paid[i], alike[i], atol=1e-5)


def test_a_bank_takes_every_second_state_of_its_own_agents_lanes(key):
    drive, hyper = built(CONFIGS["collab"]), numbers("collab")
    stream, yes = rows_of(key, 4, P, N), jnp.ones((4, P, N), bool)
    state = drive.observe(drive.init(key), stream, ~yes, yes, hyper)
    for agent in range(P):
        seen = stream.next_obs[1::2, agent].reshape(-1, D)
        np.testing.assert_array_equal(state.bank.rows[agent, :4], seen)
    assert state.bank.size.tolist() == [4] * P


def test_the_encoder_takes_the_steps_of_its_config_and_the_banks_stay(key):
    config = replace(CONFIGS["collab"], steps=3)
    drive, hyper = built(config), numbers("collab")
    state, rows = drive.init(key), rows_of(key, B)
    after, _ = drive.learn(state, rows, None, pairs, hyper, key)
    counts = [x for x in jax.tree.leaves(after.optimizer) if x.dtype == jnp.int32]
    assert [int(x) for x in counts] == [3]
    equal((after.bank, after.clock), (state.bank, state.clock))


@pytest.mark.parametrize("encoder", ["random", "identity"])
def test_an_encoder_that_is_not_trained_asks_for_no_pairs(encoder, key):
    drive = built(replace(CONFIGS["collab"], encoder=encoder))
    state = drive.init(key)
    after, losses = drive.learn(state, rows_of(key, B), None, None, numbers("collab"), key)
    equal(after, state)
    assert drive.horizon == 0
    assert float(losses.encoder_loss) == 0


def test_modules_learn_their_own_agents_transitions_or_all(key):
    mine = jnp.zeros((P, B), bool).at[1].set(True)
    for name, moved in (("rnd", [False, True, False]), ("rnd_each", [True] * 3)):
        drive, hyper = built(CONFIGS[name]), numbers(name)
        state = drive.init(key)
        after, _ = drive.learn(state, rows_of(key, B), mine, None, hyper, key)
        changed = [not same(*(tree.take(x.predictor, i) for x in (after, state))) for i in range(P)]
        assert changed == moved
    one = built(CONFIGS["rnd_one"]).init(key)
    assert one.observations.count.shape == ()
    assert one.returns.shape == (P, N)


def test_a_module_for_each_batch_learns_from_that(key):
    module, hyper = rnd.build(SPEC, CONFIGS["rnd"], (N,)), numbers("rnd")
    drive, own = built(CONFIGS["rnd"]), rows_of(key, P, B)
    state = drive.init(key)
    after, _ = drive.learn(state, own, None, None, hyper, key)
    for i in range(P):
        alone, _ = jax.jit(module.learn)(*tree.take((state, own), i), jnp.ones(B), hyper.drive, key)
        close(tree.take(after, i), alone, atol=1e-6)


def test_steps_that_did_not_happen_leave_no_trace(key):
    for name in CONFIGS:
        drive, state, _, hyper = begun(name, key)
        stream = rows_of(key, 4, P, N, skills=3 if name == "diayn" else 0)
        no = jnp.zeros((4, P, N), bool)
        equal(drive.observe(state, stream, ~no, no, hyper), state)


def test_agents_with_skills_are_deployed_with_the_best_of_their_own(key):
    drive = built(CONFIGS["diayn"])
    state = drive.init(key)
    state = replace(state, returns=jnp.array([[1.0, 2, 0], [5, 4, 3], [0, -jnp.inf, 1]]))
    policies, skills = drive.deploy(state, jnp.arange(P))
    assert skills.tolist() == [1, 0, 2]
    seen = []

    def act(params, memory, obs, key, scale):
        seen.append((params, obs))
        return Choice(memory, obs[:1], obs[:1], jnp.float32(0))

    drive.act(act)(tree.take((policies, skills), 2), (), jnp.array([7.0, 8.0]), key, 0.0)
    ((params, obs),) = seen
    assert int(params) == 2
    assert obs.tolist() == [7, 8, 0, 0, 1]


def test_no_drive_leaves_rewards_as_they_are(key):
    drive, rows = drives.build(SPEC, None, P, N), rows_of(key, B)
    paid, bonus = drive.pay((), rows, None)
    equal(paid, tree.repeat(rows, P))
    assert bonus is drive.init(key) is None
    assert drive.learn(None, rows, None, None, None, key) == (None, None)


def test_the_numbers_of_a_drive_join_an_agents():
    hyper = drives.with_drive(sac.Hyper(actor_lr=0.1), CONFIGS["rnd"])
    assert isinstance(hyper, sac.Hyper)
    assert (hyper.actor_lr, hyper.drive) == (0.1, rnd.Hyper())
    assert type(hyper) is type(drives.with_drive(sac.Hyper(), CONFIGS["diayn"]))
    assert drives.with_drive(sac.Hyper(), None) == sac.Hyper()
    assert len(jax.tree.leaves(hyper)) == len(jax.tree.leaves(sac.Hyper())) + len(
        jax.tree.leaves(rnd.Hyper())
    )


def pictures(shape=(4, 4, 1), discrete=True, limit=100):
    """A task of random images."""

    def step(state, action):
        obs, no = jax.random.uniform(state, shape), jnp.bool_(False)
        after = jax.random.fold_in(state, jnp.int32(action.sum()))
        return after, Timestep(obs, obs, jnp.float32(0), no, no)

    return Env(
        reset=lambda key: (key, jax.random.uniform(key, shape)),
        step=step,
        spec=Spec("pictures", shape, 2, limit, discrete=discrete),
    )


SEEING = replace(CONFIGS["collab"], encoder="critic", horizon=2)


def test_an_encoder_looks_through_the_eyes_of_the_first_agents_critic():
    """Its convolutions are those of that agent before each gradient step, and only that agent's count."""
    agent = dqn.Config(hidden=(4,), norm="none")
    sizes = {"population": 2, "batch": 4, "capacity": 60, "warmup": 4, "shared_replay": True}
    config = offpolicy.Config(agent, drive=SEEING, **sizes)
    hyper = drives.hyper_of(config)
    base = offpolicy.build(pictures(), config)
    start = offpolicy.State(**base.fields(jax.random.key(0), hyper))
    collect, learn, sample = map(jax.jit, (base.collect, base.learn, base.sample))
    for _ in range(8):
        start = collect(start)
    eyes = base.crew.eyes(start.agents)
    after = learn(start)
    assert same(after.drive.eyes, eyes)
    assert not same(after.drive.encoder, start.drive.encoder)
    assert not same(base.crew.eyes(after.agents), eyes)
    assert same(learn(after).drive.eyes, base.crew.eyes(after.agents))

    def rewards(which, change):
        online = jax.tree.map(lambda x: x.at[which].set(change(x[which])), start.agents.online)
        return sample(replace(start, agents=replace(start.agents, online=online)), jax.random.key(1)).reward

    as_it_is = rewards(0, lambda x: x)
    assert np.abs(as_it_is).max() > 0
    assert np.abs(rewards(0, lambda x: x + 1) - as_it_is).max() > 1e-3
    np.testing.assert_array_equal(rewards(1, lambda x: x + 1), as_it_is)
    assert np.isfinite(rewards(0, lambda x: x * jnp.nan)).all()


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        pytest.param(dqn.Config(hidden=(4,), norm="none"), pictures().spec, id="dqn"),
        pytest.param(
            drq.Config(hidden=(4,), latent=3),
            Spec("pixels", (31, 31, 3), 1, 100, obs_dtype=jnp.uint8),
            id="drq",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_eyes_are_the_convolutions_of_the_critic(config, spec, key):
    """They have the shapes of the network that looks, and no gradient of a reward reaches them."""
    agent = agents.build(spec, config)
    state = agent.init(key, as_arrays(agents.default_hyper(config)))
    eyes = agent.eyes.of(state)
    critic = state.online if isinstance(config, dqn.Config) else state.critics["convolutions"]
    assert eyes
    assert all(x is critic[name] for name, x in eyes.items())
    shapes = jax.eval_shape(agent.eyes.network.init, key)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, eyes)
    drive = drives.build(spec, SEEING, 2, 1, agent.eyes)
    held = drive.see(drive.init(key), eyes)
    images = (255 * jax.random.uniform(key, (6, *spec.obs_shape))).astype(spec.obs_dtype)
    bank = ring(SEEING.bank_size).add(tree.take(held.bank, 0), images[:4], jnp.ones(4, bool))
    held, none = replace(held, bank=tree.repeat(bank, 2)), jnp.zeros(6)
    rows = Transition(images, none, none, none, images)

    def paid(eyes):
        return drive.pay(replace(held, eyes=eyes), rows, numbers("collab"))[0].reward

    assert np.abs(paid(eyes)).max() > 0
    slopes = jax.grad(lambda eyes: paid(eyes).sum())(eyes)
    assert not any(x.any() for x in jax.tree.leaves(slopes))


DRQ, MINATAR = drq.Config(hidden=(4,), latent=3), dqn.Config(hidden=(4,), torso="minatar")
METHODS_FROM_PIXELS = {
    "independent": lambda agent, drive: (independent, independent.Config(agent, drive=drive, capacity=300)),
    "ce": lambda agent, drive: (ce, replace(ce.default_config(agent, drive), capacity=300)),
    "pbt": lambda agent, drive: (pbt, replace(pbt.configured(agent), drive=drive, capacity=300)),
    "pderl": lambda agent, drive: (pderl, pderl.Config(agent, drive=drive, capacity=700, memory=10)),
}
DRIVEN = [("independent", "rnd"), *((name, "collab") for name in METHODS_FROM_PIXELS)]


@pytest.mark.parametrize(("agent", "torso"), [(DRQ, "drq"), (MINATAR, "minatar")], ids=["drq", "dqn"])
@pytest.mark.parametrize("what", slow_except(DRIVEN[:2], DRIVEN), ids="-".join)
def test_convolutions_of_a_drive_are_of_the_shape_of_the_agents(what, agent, torso):
    """Whatever the method, unless told otherwise; these images alone would call for Atari's."""
    (name, drive), side = what, 36

    def convolutions(config):
        module, config = METHODS_FROM_PIXELS[name](agent, config)
        method = module.build(pictures((side, side, 3), discrete=torso == "minatar"), config)
        held = jax.eval_shape(method.init, jax.random.key(0), as_arrays(method.hyper)).drive
        layers = (held.encoder if drive == "collab" else held.predictor)["convolutions"]
        return [layers[key]["Dense_0"]["linear"]["kernel"].shape[-2:] for key in sorted(layers)]

    def of(torso):
        channels = 3
        for features, kernel, _ in images.TORSOS[torso][0]:
            yield kernel**2 * channels, features
            channels = features

    assert images.torso_for((side, side, 3)) == "atari"
    assert convolutions(CONFIGS[drive]) == list(of(torso))
    if name == "independent":
        assert convolutions(replace(CONFIGS[drive], torso="atari")) == list(of("atari"))


def test_an_encoder_of_evolutions_learner_looks_through_its_eyes():
    """Of the only learner, in each of its gradient steps."""
    sizes = {"population": 2, "memory": 20, "mutation_batch": 4, "batch": 2, "capacity": 60}
    agent = dqn.Config(hidden=(4,), norm="none")
    method = pderl.build(pictures(limit=6), pderl.Config(agent, drive=SEEING, **sizes))
    state = jax.jit(method.init)(jax.random.key(0), as_arrays(method.hyper))
    after = jax.jit(method.step)(state)
    assert not same(after.drive.eyes, state.drive.eyes)


@pytest.mark.parametrize("agent", [sac.Config(), dqn.Config(normalize_obs=True)], ids=["sac", "whitened"])
def test_an_encoder_needs_agents_with_eyes(agent):
    spec = SPEC if isinstance(agent, sac.Config) else pictures().spec
    with pytest.raises(ValueError, match="encoder critic needs agents with a replay whose critic has conv"):
        drives.build(spec, SEEING, P, N, agents.build(spec, agent).eyes)
