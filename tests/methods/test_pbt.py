"""Searches over hyperparameters in training: what is copied, what evolves, and what stays without one."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli, tree
from popjax.agents import a2c, ddpg, dqn, drq, ppo, sac, sac2018, td3
from popjax.cli import building
from popjax.core import as_arrays
from popjax.envs import make
from popjax.evolution import search
from popjax.host.checkpoints import checkpoint
from popjax.intrinsic import diayn, rnd
from popjax.methods import independent, onpolicy, pbt
from popjax.population import counterfactual
from tests.support import Case, close, out_of_step, same

P = 4


def on_policy(**choices):
    own = {"lanes": 2, "steps": 5, "interval": 10, "episodes": 4, "population": P, "rounds": 6}
    return pbt.configured(a2c.Config(hidden=(8,)), **(own | choices))


def off_policy(**choices):
    own = {
        "batch": 8,
        "capacity": 62,
        "warmup": 2,
        "interval": 2,
        "episodes": 2,
        "population": P,
        "rounds": 6,
    }
    return pbt.configured(td3.Config(hidden=(8, 8)), **(own | choices))


CONFIGS = {
    "on": (on_policy(), "probe/corridor-discrete"),
    "off": (off_policy(search=search.Pbt(fraction=0.5), copy_replay=True), "probe/corridor"),
    "fresh": (on_policy(search=search.Halving(freed="fresh")), "probe/corridor-discrete"),
}


@lru_cache
def compiled(name):
    config, task = CONFIGS[name]
    method = pbt.build(make(task), config)
    return method, jax.jit(method.init), jax.jit(method.step)


@lru_cache
def history(name, iterations, seed=0):
    method, init, step = compiled(name)
    states = [init(jax.random.key(seed), method.hyper)]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


@pytest.mark.parametrize(
    ("make_config", "module", "kind", "task"),
    [
        pytest.param(on_policy, onpolicy, onpolicy.Config, "probe/corridor-discrete", id="on"),
        pytest.param(
            off_policy, independent, independent.Config, "probe/corridor", id="off", marks=pytest.mark.slow
        ),
    ],
)
def test_without_exploit_it_is_the_plain_population_with_its_numbers(make_config, module, kind, task):
    """Bit for bit, ready points included: the search draws from keys of its own."""
    config = make_config(search=search.Random(), explore=False)
    shared = {field.name: getattr(config, field.name) for field in fields(kind)}
    method, plain = pbt.build(make(task), config), module.build(make(task), kind(**shared))
    state = jax.jit(method.init)(jax.random.key(3), method.hyper)
    own = {field.name: getattr(state.hyper, field.name) for field in fields(plain.hyper)}
    other = jax.jit(plain.init)(jax.random.key(3), replace(plain.hyper, **own))
    steps = jax.jit(method.step), jax.jit(plain.step)
    for _ in range(5):
        state, other = steps[0](state), steps[1](other)
    assert int(state.metrics.ready) > 1
    assert [x.shape for x in jax.tree.leaves(own)].count((P,)) == len(state.metrics.numbers)
    lanes = replace(state.lanes, account=replace(state.lanes.account, recent=None))
    names = ("key", "env_steps", "agents", *(["replay"] if module is independent else ["trajectory"]))
    assert same([getattr(state, name) for name in names], [getattr(other, name) for name in names])
    assert same(lanes, other.lanes)


def test_a_ready_point_copies_whole_agents_and_explores_their_numbers():
    """Half of four take over; lanes stay, returns and replays go with the agent. Nobody else's numbers
    move."""
    before, after = history("off", 2)[1:]
    source = np.asarray(after.metrics.parents[:, 0])
    taken = source != np.arange(P)
    assert taken.sum() == 2
    assert set(source[taken]) <= set(np.argsort(-np.asarray(after.lineage.fitness[after.metrics.ready]))[:2])
    recent = after.lanes.account.recent
    handed = (after.agents, after.replay, recent.returns, recent.count)
    assert same(handed, tree.take(handed, source))
    np.testing.assert_array_equal(recent.whole[:, 0], ~taken)
    assert not same(after.lanes.env, tree.take(after.lanes.env, source))
    assert same(np.asarray(after.metrics.transfers).sum(1), taken.astype(np.int32))
    parent = {name: np.asarray(getattr(before.hyper, name))[source] for name in after.metrics.numbers}
    for name, moved in after.metrics.numbers.items():
        np.testing.assert_array_equal(np.asarray(moved)[~taken], parent[name][~taken])
        np.testing.assert_array_equal(moved, getattr(after.hyper, name))
    moved = np.stack([np.asarray(after.metrics.numbers[name]) != parent[name] for name in parent])
    assert moved[:, taken].any(0).all()


def test_agents_with_discounts_of_their_own_share_a_replay():
    config = off_policy(shared_replay=True, evolve=("hyper.discount=0.9:0.99",))
    method = pbt.build(make("probe/corridor"), config)
    state, step = jax.jit(method.init)(jax.random.key(0), method.hyper), jax.jit(method.step)
    for _ in range(3):
        state = step(state)
    assert int(state.metrics.ready) > 0
    assert len(set(np.asarray(state.metrics.numbers["discount"]).tolist())) > 1
    alike = state.replace(hyper=state.hyper.replace(discount=jnp.full(P, 0.9)))
    moved = [jax.tree.leaves(step(s).agents) for s in (state, alike)]
    assert not same(*moved), "an agent learns with its own discount"


def test_between_ready_points_nobody_is_copied():
    """Every two iterations, once all have played their warm-up; on-policy here in every iteration."""
    assert [int(s.metrics.ready) for s in history("on", 3)] == [0, 1, 2, 3]
    off = history("off", 3)
    assert [int(s.metrics.ready) for s in off] == [0, 0, 1, 1]
    assert same(off[1].hyper, off[0].hyper)
    assert not off[3].metrics.transfers.any()


def test_newcomers_begin_anew_and_are_as_old_as_that():
    """At the first rung half of them make room; a newcomer has moments of zero steps and no episodes."""
    state = history("fresh", 1)[-1]
    fresh = np.asarray(state.metrics.parents[:, 0]) == -1
    assert fresh.sum() == P // 2
    np.testing.assert_array_equal(state.agents.updates, np.where(fresh, 0, 1))
    np.testing.assert_array_equal(state.born, np.where(fresh, 1, 0))
    recent = state.lanes.account.recent
    assert (np.asarray(recent.count)[fresh] == 0).all()
    assert not np.asarray(recent.whole)[fresh].any(), "it enters amid an episode of its predecessor"
    assert not state.metrics.transfers.any()


@pytest.mark.parametrize("scoring", [0, 2])
def test_the_winner_has_been_judged_and_has_not_diverged(scoring):
    """Among equals it is neither a newcomer nor one with NaN, nor if these are shown a higher fitness."""
    config, task = CONFIGS["fresh"]
    method, state = pbt.build(make(task), replace(config, scoring=scoring)), history("fresh", 1)[-1]
    fresh = np.asarray(state.metrics.parents[:, 0]) == -1
    first, second = np.flatnonzero(~fresh)
    poisoned = jax.tree.map(lambda x: x.at[first].set(jnp.nan) if x.dtype == jnp.float32 else x, state.agents)
    for bonus in (0.0, 1.0):
        for agents, winner in ((state.agents, first), (poisoned, second)):
            shown = jnp.float32(5.0 + bonus * (fresh | (np.arange(P) < winner)))
            now = state.replace(agents=agents, metrics=replace(state.metrics, fitness=shown))
            assert method.schedule.tell(method.schedule.read(now))["winner"] == winner
            assert same(method.policy(now), tree.take(method.individuals(now), winner))


def test_who_has_diverged_is_replaced_for_good():
    """NaN parameters, observations and experience of the best of four end with the next ready point."""
    step = compiled("off")[2]
    state = history("off", 3)[-1]
    best = int(state.metrics.fitness.argmax())

    def poisoned(x):
        return x.at[best].set(jnp.nan) if x.dtype == jnp.float32 and x.shape[:1] == (P,) else x

    parts = {name: jax.tree.map(poisoned, getattr(state, name)) for name in ("agents", "lanes", "replay")}
    state = step(state.replace(**parts))
    assert int(state.metrics.diverged) == 1
    assert int(state.metrics.parents[best, 0]) != best
    assert np.isneginf(state.lineage.fitness[2, best])
    for _ in range(5):
        numbers = jax.tree.leaves((state.agents, state.lanes, state.replay, state.metrics))
        assert all(np.isfinite(x).all() for x in numbers if x.dtype == jnp.float32)
        state = step(state)
        assert int(state.metrics.diverged) == 0


def test_halving_follows_lines_through_takeovers():
    config = on_policy(lanes=1, steps=1, interval=1, search=search.Halving(), explore=False)
    method, line = pbt.build(make("probe/constant"), config), np.arange(P)
    step, state = jax.jit(method.step), jax.jit(method.init)(jax.random.key(0), method.hyper)
    for left in (2, 1, 1):
        state = step(state)
        line = line[np.asarray(state.metrics.parents[:, 0])]
        assert state.line.tolist() == line.tolist()
        assert len(set(line)) == left


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [search.Pbt(fraction=0.25), search.Halving(factor=2)], ids=["pbt", "halving"]
)
def test_permuted_individuals_end_permuted(kind):
    """Every episode here returns 1, and at a rate of 0 the actions that are drawn change no network: a step
    depends on the individuals alone, whichever slots they have."""
    config = on_policy(lanes=1, steps=1, interval=1, episodes=8, search=kind, explore=False)
    method, order = pbt.build(make("probe/constant"), config), np.array([2, 0, 3, 1])
    step, state = jax.jit(method.step), jax.jit(method.init)(jax.random.key(0), method.hyper)
    recent = state.lanes.account.recent
    returns = jnp.broadcast_to(jnp.array([30.0, 10.0, 40.0, 20.0])[:, None, None], recent.returns.shape)
    recent = replace(recent, returns=returns, count=jnp.full_like(recent.count, 8))
    lanes = replace(state.lanes, account=replace(state.lanes.account, recent=recent))
    state = state.replace(lanes=lanes, hyper=state.hyper.replace(lr=jnp.zeros(P)))
    entropy = state.hyper.entropy_weight
    agents, lanes = tree.take((state.agents, state.lanes), order)
    hyper = state.hyper.replace(entropy_weight=entropy[order])
    plain, permuted = step(state), step(state.replace(agents=agents, lanes=lanes, hyper=hyper))
    source, moved = (np.asarray(s.metrics.parents[:, 0]) for s in (plain, permuted))
    assert (source != np.arange(P)).sum() == (1 if isinstance(kind, search.Pbt) else 2)
    np.testing.assert_array_equal(moved, np.argsort(order)[source[order]])

    def outcome(s):
        facts = s.agents.actor, s.agents.value, s.lanes.account, s.hyper.entropy_weight, s.metrics.fitness
        return *facts, s.lineage.fitness[1], s.lineage.numbers[1]

    assert same(tree.take(outcome(plain), order), outcome(permuted))
    assert not same(outcome(plain), outcome(permuted))


@pytest.mark.slow
@pytest.mark.parametrize("drive", ["rnd", "diayn"])
def test_a_drives_module_goes_with_its_agent(drive):
    """And one with NaN is replaced for good."""
    config = on_policy(drive=DRIVES[drive], search=search.Pbt(fraction=0.5), rounds=12)
    method = pbt.build(make("probe/corridor-discrete"), config)
    state, step = jax.jit(method.init)(jax.random.key(0), method.hyper), jax.jit(method.step)

    def poisoned(x):
        return x.at[0].set(jnp.nan) if x.dtype == jnp.float32 else x

    for turn in range(6):
        if turn == 3:
            state = state.replace(drive=jax.tree.map(poisoned, state.drive))
        state = step(state)
        source = np.asarray(state.metrics.parents[:, 0])
        assert (source != np.arange(P)).sum() == 2
        lanes = {"running"} if drive == "diayn" else set()
        modules = [getattr(state.drive, x.name) for x in fields(state.drive) if x.name not in lanes]
        assert same((state.agents, modules), tree.take((state.agents, modules), source))
        assert (source != 0).all() or turn != 3
        assert not tree.nan((state.agents, state.drive)).any()


@pytest.mark.slow
def test_the_memory_of_anothers_network_is_not_gone_on_with():
    agent = a2c.Config(hidden=(8,), lstm=4)
    config = replace(on_policy(search=search.Pbt(fraction=0.5)), agent=agent, steps=3, interval=6)
    method = pbt.build(make("probe/corridor-discrete"), config)
    state = jax.jit(method.step)(jax.jit(method.init)(jax.random.key(0), method.hyper))
    memory = np.concatenate([x.reshape(P, -1) for x in jax.tree.leaves(state.lanes.memory)], 1)
    taken = np.asarray(state.metrics.parents[:, 0]) != np.arange(P)
    np.testing.assert_array_equal(~memory.any(1), taken)


@pytest.mark.slow
def test_who_has_diverged_leaves_nothing_in_a_shared_replay():
    """It acts at random until the next ready point, at which it is replaced."""
    method = pbt.build(make("probe/corridor"), off_policy(shared_replay=True, interval=4))
    step = jax.jit(method.step)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    for _ in range(5):
        state = step(state)
    slot = int(state.metrics.fitness.argmax())
    poisoned = jax.tree.map(lambda x: x.at[slot].set(jnp.nan) if x.dtype == jnp.float32 else x, state.agents)
    state, turns = state.replace(agents=poisoned), int(state.metrics.ready)
    while int(state.metrics.ready) == turns:
        state = step(state)
        held = jax.tree.leaves((state.replay, state.lanes))
        assert all(np.isfinite(x).all() for x in held if x.dtype == jnp.float32)
    assert np.isneginf(state.lineage.fitness[turns + 1, slot])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agents) if x.dtype == jnp.float32)


def test_an_individuals_own_exploration_reaches_its_actions():
    """Of two DQN agents with one network, the one whose epsilon is 1 acts at random and the other never."""
    small = {"batch": 8, "capacity": 64, "warmup": 0, "population": 2, "interval": 8, "steps": 32}
    config = pbt.configured(dqn.Config(hidden=(8,)), search=search.Random(), updates=1, **small)
    method = pbt.build(make("probe/corridor-discrete"), config)
    numbers = {"exploration": jnp.array([0.0, 1.0]), "exploration_start": jnp.array([0.0, 1.0])}
    state = jax.jit(method.init)(jax.random.key(0), as_arrays(method.hyper).replace(**numbers))
    same_networks = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), state.agents)
    after = jax.jit(method.step)(state.replace(agents=same_networks))
    greedy = jax.vmap(method.act, (None, None, 0, None, None))
    policy = tree.take(method.individuals(state.replace(agents=same_networks)), 0)
    for slot, share in ((0, 1.0), (1, 0.5)):
        rows = tree.take(after.replay.rows, slot)
        best = greedy(policy, (), rows.obs[:32], jax.random.key(0), 0.0).action
        agree = float((best == rows.action[:32]).mean())
        assert agree == 1.0 if share == 1.0 else agree < 0.95
    np.testing.assert_array_equal(after.metrics.numbers["exploration"], numbers["exploration"])


DRIVES = {"rnd": rnd.Config(hidden=(8,)), "diayn": diayn.Config(skills=3, hidden=(8,))}


@pytest.mark.parametrize(
    "config",
    [off_policy(drive=drive) for drive in DRIVES.values()]
    + [on_policy(drive=drive) for drive in DRIVES.values()]
    + [off_policy(shared_replay=True), on_policy(search=search.Random())],
    ids=["off_rnd", "off_diayn", "on_rnd", "on_diayn", "shared", "random"],
)
def test_every_drive_and_replay_fits_a_search(config):
    """Shapes only: what a step returns is what it takes."""
    method = pbt.build(make("probe/corridor"), config)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    forms = [
        jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (state, jax.eval_shape(method.step, state))
    ]
    assert forms[0] == forms[1]
    assert ("discount" in state.metrics.numbers) == isinstance(config, pbt.OffPolicyConfig)


AGENTS = {
    "ddpg": ddpg.Config((8,), critic_branch=8, critic_hidden=8),
    "td3": td3.Config((8,)),
    "sac": sac.Config((8,)),
    "sac2018": sac2018.Config((8,)),
    "drq": drq.Config((8,), latent=5, shift=2),
    "dqn": dqn.Config(hidden=(8,)),
    "ppo": ppo.Config((8,), policy_epochs=8, value_epochs=2),
    "a2c": a2c.Config((8,)),
}
OTHER = {
    "discount": 0.5,
    "trace_decay": 0.5,
    "target_period": 1.0,
    "max_grad_norm": 1e-3,
    "critic_l2": 0.1,
    "clip": 1e-5,
    "target_noise_clip": 1e-3,
    "target_kl": 1e-9,
    "anneal_updates": 2.0,
}
"""Values that change an update; of other hyperparameters twice the default and a bit."""
NOT_IN_AN_UPDATE = {"exploration", "exploration_start", "exploration_steps"}


def as_images(env):
    """The task, its observation as the brightness of an image."""
    shape = (31, 31, 3)

    def image(obs):
        return jnp.broadcast_to(jnp.uint8(jnp.clip(60 * obs + 100, 0, 255)), shape)

    def reset(key):
        state, obs = env.reset(key)
        return state, image(obs)

    def step(state, action):
        state, timestep = env.step(state, action)
        return state, replace(timestep, obs=image(timestep.obs), next_obs=image(timestep.next_obs))

    spec = env.spec._replace(obs_shape=shape, obs_dtype=jnp.uint8)
    return env._replace(reset=reset, step=step, spec=spec)


@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x != "a2c")) for x in AGENTS])
def test_a_mutated_number_reaches_the_update(name, tmp_path):
    """For every number: an update behind the mutation is, bit for bit, that of agents built with it from the
    same State and batch; and again from a checkpoint. It differs from the update without."""
    discrete = name in ("dqn", "a2c", "ppo")
    small = {"lanes": 2, "steps": 4, "population": 2, "interval": 8}
    small |= {} if name in ("ppo", "a2c") else {"batch": 8, "capacity": 16, "warmup": 2}
    config = pbt.configured(AGENTS[name], search=search.Random(), **small)
    env = make("probe/corridor-discrete" if discrete else "probe/corridor")
    method = pbt.build(as_images(env) if name == "drq" else env, config)
    plain = (onpolicy if name in ("ppo", "a2c") else independent).build(
        method.built.env,
        {True: onpolicy.Config, False: independent.Config}[name in ("ppo", "a2c")](
            agent=AGENTS[name], **{k: v for k, v in small.items() if k != "interval"}
        ),
    )
    step, plain_step = jax.jit(method.step), jax.jit(plain.step)
    numbers = [field.name for field in fields(plain.hyper)]
    once = {field.name: field.metadata["instead"] for field in fields(plain.hyper)}
    wide = {name: jnp.full(2, getattr(plain.hyper, name), jnp.float32) for name in numbers}
    state = step(jax.jit(method.init)(jax.random.key(1), as_arrays(method.hyper).replace(**wide)))
    bare = jax.eval_shape(plain.init, jax.random.key(0), plain.hyper)
    shared = {
        x.name: getattr(state, x.name) for x in fields(bare) if x.name not in ("hyper", "metrics", "lanes")
    }
    shared["lanes"] = replace(state.lanes, account=replace(state.lanes.account, recent=None))
    shared["metrics"] = type(bare.metrics)(
        **{x.name: getattr(state.metrics, x.name) for x in fields(bare.metrics)}
    )
    unchanged = step(state)
    for saved, number in enumerate(numbers):
        default = float(getattr(plain.hyper, number))
        value = OTHER.get(number, 2 * default + 0.001 if np.isfinite(default) else 0.5)
        value = min(value, 1.0) if number in ("polyak", "exploration", "exploration_start") else value
        mutated = state.replace(hyper=state.hyper.replace(**{number: jnp.full(2, value, jnp.float32)}))
        built_with = type(bare)(**shared, hyper=as_arrays(replace(plain.hyper, **{number: value})))
        after, expected = step(mutated), plain_step(built_with)
        assert same(after.agents, expected.agents), number
        moved = not same(after.agents, unchanged.agents)
        assert (number in NOT_IN_AN_UPDATE) or moved == (once[number] is None), number
        checkpoint.save(tmp_path, saved, jax.tree.map(lambda x: x[None], mutated), {"env_steps": [saved]})
        shapes = jax.eval_shape(lambda s: jax.tree.map(lambda x: x[None], s), mutated)
        restored = tree.take(checkpoint.restore(tmp_path / str(saved), shapes)[0], 0)
        assert same(restored, mutated), number
        assert same(step(restored), after), number


def trained(tmp_path, name, *arguments, code=0):
    """Run the command line in this process; return the summary and the schedule of what it leaves."""
    root = tmp_path / name
    assert cli.run([*arguments, "--run-dir", str(root)]) == code
    files = (root / "summary.json", root / "schedule.json")
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


SMALL = [
    *(
        "--env",
        "probe/corridor-discrete",
        "--env-steps",
        "200",
        "--eval-every",
        "100",
        "--eval-episodes",
        "1",
    ),
    *("--config.agent", "a2c", "--config.agent.hidden", "8", "--config.lanes", "2", "--config.steps", "5"),
]
SEARCH = ["pbt", *SMALL, "--config.population", "4", "--config.interval", "10", "--config.episodes", "4"]
KEPT = ["--checkpoint-every", "40", "--keep-checkpoints", "9"]


def test_a_schedule_is_read_off_replayed_followed_and_changed(tmp_path, capsys):
    summary, schedule = trained(tmp_path, "run", *SEARCH, *KEPT)
    (told,) = schedule["members"]
    assert told["agent"] == "a2c"
    assert [row["env_steps"] for row in told["line"]] == [0, 10, 20, 30, 40, 50]
    assert told["line"][-1]["slot"] == told["winner"]
    for row, behind in zip(told["line"], told["line"][1:], strict=False):
        assert behind["parent"] == row["slot"]
    # The run's own selections end in its State, bit for bit.
    again, _ = trained(tmp_path, "again", *SEARCH, *KEPT, "--replay", str(tmp_path / "run"))
    assert again["state_sha256"] == summary["state_sha256"]
    lists = ["--hyper.entropy-weight", "0.1,0.2,0.3,0.4"]
    four = ["onpolicy", *SMALL, "--config.population", "4"]
    for command in ([*SEARCH, *KEPT, "--replay"], [*four, "--schedule"]):
        trained(tmp_path, "own", *command, str(tmp_path / "run"), *lists, code=2)
        assert "hyper.entropy_weight would not be used" in capsys.readouterr().err
    # A single agent has the winner's numbers at their times, and is told which others differ.
    assert set(told["fixed"]) == {field.name for field in fields(a2c.Hyper)} - set(told["names"])
    heavy = ["--hyper.value-weight", "1"]
    trained(tmp_path, "alone", "onpolicy", *SMALL, *heavy, "--schedule", str(tmp_path / "run"))
    assert "had --hyper.value-weight 0.5, but here it is 1" in capsys.readouterr().err
    alone = building.load(tmp_path / "alone")
    for name, value in told["line"][-1]["numbers"].items():
        assert getattr(alone.state.hyper, name)[0] == np.float32(value)
    # From the checkpoint before the third ready point, the same end; and another with one selection changed.
    source = told["selections"]["source"][3]
    slot = next((i for i, parent in enumerate(source) if parent != i), 0)
    start = f"{tmp_path / 'run'}@2"
    for parent, same_end in ((source[slot], True), (slot, False)):
        change = ["--from", start, "--intervene", f"{slot}={parent}"]
        other, changed = trained(tmp_path, f"other{parent}{same_end}", *SEARCH, *KEPT, *change)
        assert changed["members"][0]["selections"]["source"][3][slot] == parent
        assert (other["state_sha256"] == summary["state_sha256"]) == (same_end or source[slot] == slot)
    # A change needs environment steps after it.
    capsys.readouterr()
    trained(tmp_path, "end", *SEARCH, *KEPT, "--from", str(tmp_path / "run"), "--intervene", "0=1", code=2)
    assert "has already trained for 200 environment steps there" in capsys.readouterr().err
    assert not (tmp_path / "end").exists()


@pytest.mark.slow
def test_every_command_takes_its_runs_and_a_resumed_one_ends_alike(tmp_path, capsys):
    """Two seeds with each of two probabilities of a new draw; the schedule of every member is told."""
    members = [*SEARCH, *KEPT, "--seeds", "2", "--sweep", "hyper.search.resample=0.0,1.0"]
    longer = ["400" if word == "200" else word for word in members]
    whole, schedule = trained(tmp_path, "whole", *longer)
    trained(tmp_path, "parts", *members)
    parts, _ = trained(tmp_path, "parts", *longer, "--resume")
    assert parts["state_sha256"] == whole["state_sha256"]
    told = [(member["seed"], member["hyper.search.resample"]) for member in schedule["members"]]
    assert told == [(0, 0.0), (1, 0.0), (0, 1.0), (1, 1.0)]
    lines = [json.dumps(member["selections"]["numbers"]) for member in schedule["members"]]
    assert len(set(lines)) == 4
    root = str(tmp_path / "whole")
    assert cli.evaluate([root, "--episodes", "1"]) == 0
    assert cli.evaluate([root, "--episodes", "1", "--member", "1", "--individual", "3"]) == 0
    assert cli.export([root, "--out", str(tmp_path / "out")]) == 0
    assert cli.report([root, "--out", str(tmp_path / "report")]) == 0
    capsys.readouterr()


@pytest.mark.slow
def test_a_replay_beside_another_seed_is_the_run_to_rounding(tmp_path):
    """The program of two members is another one; the winner's parameters agree."""
    trained(tmp_path, "run", *SEARCH)
    trained(tmp_path, "two", *SEARCH, "--seeds", "2", "--replay", f"{tmp_path / 'run'}:0")
    one, two = building.load(tmp_path / "run"), building.load(tmp_path / "two")
    first, beside = tree.take(one.state, 0), tree.take(two.state, 0)
    close(one.method.policy(first), two.method.policy(beside), rtol=1e-4, atol=1e-5)
    assert same(first.lineage.source, beside.lineage.source)


@pytest.mark.slow
def test_what_decisions_were_worth():
    """Undoing what was not done changes nothing; continuations one by one are those side by side."""
    method, state = compiled("on")[0], history("on", 2)[-1]
    found = counterfactual.worth(method, state, 3)
    stayed = np.asarray(found.source) == np.arange(P)
    assert not stayed.all()
    np.testing.assert_allclose(found.mean[stayed], 0, atol=1e-6)
    np.testing.assert_allclose(found.best[stayed], 0, atol=1e-6)
    slot = int(np.flatnonzero(~stayed)[0])
    begun = state.replace(intervene=jnp.array([slot, slot], jnp.int32))
    for _ in range(3):
        begun = compiled("on")[2](begun)
    close(found.undone[slot], begun.metrics.fitness)
    assert int(begun.lineage.source[3, slot]) == slot
    assert (begun.intervene == -1).all()


def test_the_worth_of_decisions_needs_a_ready_point():
    """Off-policy here they are two iterations apart; the State has room for six."""
    method, state = compiled("off")[0], history("off", 3)[-1]
    with pytest.raises(ValueError, match="no ready point within 0 iterations; raise iterations"):
        counterfactual.worth(method, state, 0)
    full = replace(state, lineage=replace(state.lineage, count=jnp.int32(7)))
    with pytest.raises(ValueError, match="had all 6 ready points that it has room for; raise rounds"):
        counterfactual.worth(method, full, 2)


def test_drq_has_numbers_that_evolve():
    names = [prior.name for prior in pbt.evolved(pbt.configured(drq.Config()))]
    assert names == ["actor_lr", "critic_lr", "discount"]


@pytest.mark.parametrize(
    ("config", "ready"),
    [
        (pbt.configured(ppo.Config(), population=32), 50),
        (pbt.configured(a2c.Config(), lanes=3, steps=7, interval=50), 50),  # intervals of 63 steps
        (pbt.configured(sac.Config()), 50),
        (pbt.configured(td3.Config(), search=search.Random(), lanes=2, interval=5), 50),
        (pbt.configured(a2c.Config(), search=search.Halving()), 16),
        (pbt.configured(a2c.Config(), search=search.Halving(), population=128), 128),
        (pbt.configured(a2c.Config(), search=search.MultipleFrequencies()), 100),
    ],
)
def test_a_run_without_a_budget_is_a_whole_search(config, ready):
    method, budget = pbt.build(make("probe/corridor"), config), pbt.METHOD.budget(config)
    iteration = method.steps_bound
    interval = -(-config.interval * config.population // iteration) * iteration
    ends = interval * np.arange(1, budget // interval + 1)
    assert (ends >= method.learning_starts).sum() == ready
    assert ends[-1] == budget
    method.accepts(budget)


BASE = ["pbt", "--env", "probe/corridor", "--env-steps", "1e6"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [*BASE, "--evolve", "hyper.actor_rl=1:2"],
            "evolve hyper.actor_rl: there is no such hyperparameter; did you mean",
        ),
        ([*BASE, "--evolve", "hyper.hidden=1:2"], "evolve hyper.hidden: that is a shape"),
        ([*BASE, "--evolve", "hyper.batch=1:2"], "evolve hyper.batch: that is a shape"),
        ([*BASE, "--evolve", "hyper.discount=0.9:2"], "hyper.discount=0.9:2 must stay in [0, 1]"),
        ([*BASE, "--evolve", "hyper.actor_lr=0:1:log"], "a log scale needs hyper.actor_lr above 0"),
        ([*BASE, "--config.population", "1"], "population must be at least 2, got 1"),
        (
            [*BASE, "--config.interval", "1e6"],
            "takes 16000000 in all; shorten interval, or raise --env-steps to 16000000",
        ),
        (
            [*BASE, "--config.interval", "10"],
            "the State has room for fewer than 1000; raise rounds or interval",
        ),
        (
            [*BASE, "--config.search", "halving", "--config.population", "12"],
            "is a power of 2, got 12; use 16",
        ),
        ([*BASE, "--config.search", "mf", "--config.population", "8"], "divisible by 16, for quarters of 4"),
        ([*BASE, "--config.shared-replay", "--config.copy-replay"], "leave out copy_replay or shared_replay"),
        (
            [*BASE, "--evolve", "hyper.init_temperature=0.1:1"],
            "init_temperature is read once, at the start; evolve temperature_lr",
        ),
        (
            [*BASE, "--config.search", "halving"],
            "halving decides last at ready point 8, but this run has 6; raise --env-steps to 1280000",
        ),
        (
            [*BASE, "--config.search", "mf"],
            "the slowest subpopulation of mf first evolves at ready point 50, but this run has 6; raise",
        ),
        (
            [*BASE, "--config.interval", "100", "--config.warmup", "5000", "--env-steps", "16000"],
            "no ready point follows the warm-up of 80000 environment steps of all agents; lower warmup, or",
        ),
        (
            [*BASE, "--config.population", "2", "--hyper.polyak", "0.1,0.2"],
            "hyper.polyak does not evolve, so an agent that is handed over would lose its own value",
        ),
        (
            [*BASE, "--evolve", "hyper.polyak=0.01:0.1", "--config.evolve", "hyper.discount=0.9:0.99"],
            "--evolve and --config.evolve set the same option; use --evolve for all",
        ),
        ([*BASE, "--intervene", "0=1"], "--intervene continues a run: name it with --from"),
        ([*BASE, "--config.search", "greedy"], "unknown search 'greedy'"),
        ([*BASE, "--config.drive", "novelty"], "unknown drive 'novelty'"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, told, tmp_path, capsys):
    assert cli.run([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_schedules_of_others_are_refused(tmp_path, capsys):
    trained(tmp_path, "run", *SEARCH, *KEPT)
    run = str(tmp_path / "run")
    ppo_steps = ["--config.agent", "ppo", "--config.steps", "5"]
    for arguments, told in (
        (["onpolicy", *SMALL[:8], *ppo_steps, "--schedule", run], "is for a2c, but the agent here is ppo"),
        ([*SEARCH, "--config.interval", "20", "--replay", run], "of another interval: 10, here 20"),
        ([*SEARCH, "--config.population", "8", "--replay", run], "of another population: 4, here 8"),
        (
            [*SEARCH, "--config.search", "halving", "--replay", run],
            "of another search: Pbt(exploit='truncation', fraction=0.2), here Halving(",
        ),
        ([*SEARCH, "--config.no-explore", "--replay", run], "of another explore: True, here False"),
        (
            [*SEARCH, *KEPT, "--hyper.search.grow", "2", "--replay", run],
            "--hyper.search.grow 2 would not be used: as configured here, the method sets this",
        ),
        (
            [*(word.replace("corridor", "context") for word in SEARCH), "--replay", run],
            "of another task: probe/corridor-discrete, here probe/context-discrete",
        ),
        (
            [*SEARCH, "--env-steps", "400", "--replay", run],
            "has the selections of 5 ready points, but this run has 10; lower --env-steps to 200",
        ),
        (
            [*SEARCH, *KEPT, "--env-steps", "225", "--replay", run],
            "--env-steps 225, 240 in whole chunks of --checkpoint-every: ",
        ),
        ([*SEARCH, "--from", run + "@3", "--intervene", "9=0"], "individuals are numbered from 0 to 3"),
        ([*SEARCH, "--from", run + "@3", "--intervene", "0"], "--intervene needs SLOT=PARENT"),
        ([*SEARCH, "--from", run + "@77"], "no checkpoint of generation 77; it has"),
    ):
        capsys.readouterr()
        assert cli.run([*arguments, "--run-dir", str(tmp_path / "other")]) == 2, told
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert re.search(re.escape(told), lines[-1])


def a_case(config, env="probe/corridor", population=P, **marks):
    return Case(partial(pbt.build, make(env), config), population=population, **marks)


CASES = {
    "pbt": a_case(on_policy(), "probe/corridor-discrete"),
    "pbt_copy_replay": a_case(off_policy(copy_replay=True, search=search.Pbt("welch")), slow=True),
    "pbt_off_policy": a_case(off_policy(), slow=True),
    "pbt_scoring": a_case(on_policy(scoring=2, search=search.Pbt("tournament")), slow=True),
    "pbt_halving": a_case(off_policy(search=search.Halving(freed="fresh")), slow=True),
    "pbt_mf": a_case(
        on_policy(population=8, search=search.MultipleFrequencies((1, 2))), population=8, slow=True
    ),
}


def test_a_replay_whose_frames_belong_to_its_lanes_is_not_copied():
    with pytest.raises(ValueError, match="refer to frames of their own lanes; unset copy_replay"):
        pbt.build(make("probe/corridor", frame_stack=2), off_policy(copy_replay=True))


@pytest.mark.slow
def test_a_member_evolves_at_its_own_ready_points():
    out_of_step(*compiled("off"), ahead=1)
