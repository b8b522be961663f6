"""Frames by reference show what the environment has shown, and methods learn from them as from plain rows."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.agents import dqn
from popjax.core import Env, Spec, Timestep, example_transition
from popjax.envs import make
from popjax.host.scaling import memory
from popjax.intrinsic import contrastive
from popjax.methods import ca2e, ce, independent
from popjax.replay import frames
from popjax.replay.ring import ring
from tests.support import close, equal, slow_except

GAME = Spec("game", (84, 84, 4), 4, 100, discrete=True, obs_dtype=jnp.uint8, stack=4)
SMALL = Spec("small", (3, 2, 8), 4, 100, discrete=True, obs_dtype=jnp.uint8, stack=4)


def test_ids_of_two_lanes():
    spec = SMALL._replace(obs_shape=(3, 2, 4))
    sight = frames.sight(spec, capacity=10, lanes=2, in_flight=1)
    held = sight.start(jnp.zeros((2, 3, 2, 4), jnp.uint8))
    assert held.ids.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    obs = jnp.zeros((2, 2, 3, 2, 4), jnp.uint8)
    anew = jnp.array([[False, True], [False, False]])
    held, before, after = sight.see(held, obs, obs, obs[0], anew)
    assert before[0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert after[0].tolist() == [[0, 0, 0, 2], [1, 1, 1, 3]]
    assert before[1].tolist() == [[0, 0, 0, 2], [4, 4, 4, 4]]
    assert after[1].tolist() == held.ids.tolist() == [[0, 0, 2, 5], [4, 4, 4, 6]]
    assert int(held.count) == 7


def kept(capacity, ends, begun=False):
    """Store 500 steps of three lanes, of which a share ``ends`` episodes; numbers of frames begin anew below
    2^30, which is the same for a run that has ``begun`` long ago."""
    lanes, block, chance = 3, 5, np.random.default_rng(0)
    sight, plain = frames.sight(SMALL, capacity, lanes, block), ring(capacity)

    def frame(count):
        return chance.integers(0, 256, (count, 3, 2, 2), np.uint8)

    def alike(frames):
        return np.tile(frames, (1, 1, 1, 4))

    obs = alike(frame(lanes))
    held = sight.start(jnp.asarray(obs))
    size = len(held.pixels)
    earlier = begun * (2**30 // size - 2) * size
    held = replace(held, count=held.count + earlier, ids=held.ids + earlier)
    store, wanted = plain.init(sight.example), plain.init(example_transition(SMALL))

    @jax.jit
    def write(held, store, wanted, rows, after, anew):
        held, kept = frames.keep(sight, held, rows, after, anew)
        valid = jnp.ones(block * lanes, bool)
        return held, plain.add(store, tree.flatten(kept), valid), plain.add(wanted, tree.flatten(rows), valid)

    for _ in range(100):
        shown, followed, new = [], [], []
        for _ in range(block):
            next_obs = np.concatenate([obs[..., 2:], frame(lanes)], -1)
            anew = chance.random(lanes) < ends
            shown.append(obs), followed.append(next_obs), new.append(anew)
            obs = np.where(anew[:, None, None, None], alike(frame(lanes)), next_obs)
        rows = tree.repeat(tree.repeat(example_transition(SMALL), lanes), block)
        rows = replace(rows, obs=jnp.asarray(np.stack(shown)), next_obs=jnp.asarray(np.stack(followed)))
        held, store, wanted = write(held, store, wanted, rows, jnp.asarray(obs), jnp.asarray(np.stack(new)))
    return sight, held, store, wanted


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_looked_up_is_what_was_seen_also_after_the_ring_has_wrapped(begun):
    capacity = 40  # of 1,500 rows
    sight, held, store, wanted = kept(capacity, 1 / 9, begun)
    size = len(held.pixels)
    assert int(held.count) > (3 if begun else 5) * size
    assert int(held.count) < 2**30 // size * size
    equal(frames.looked(sight, held, store.rows), wanted.rows)
    assert int(sight.lost(held, store)) == 0
    lost = store.holding(replace(store.rows, obs=store.rows.obs - size))
    assert int(sight.lost(held, lost)) == 42  # of 40 rows, in steps of three


def test_small_frames_are_kept_however_short_episodes_are():
    """Every step ends one."""
    sight, held, store, wanted = kept(400, 1.0)
    assert int(held.count) > 3 * len(held.pixels)
    equal(frames.looked(sight, held, store.rows), wanted.rows)
    assert int(sight.lost(held, store)) == 0


AGENT = dqn.Config(hidden=(8,))
DENSE = replace(AGENT, torso="dense")
SHORT = {
    "independent": (
        independent,
        independent.Config(DENSE, lanes=3, steps=2, batch=4, capacity=300, warmup=90),
        2,
    ),
    "ca2e": (
        ca2e,
        ca2e.Config(
            DENSE, n_step=1, nature_actors=2, prior_actors=1, batch=4, capacity=600, local_buffer=4,
            learning_starts=90,
        ),
        5,
    ),
}  # fmt: skip
SHORT["ca2e of 3 steps"] = (ca2e, replace(SHORT["ca2e"][1], n_step=3), 7)


def flashes(length):
    """Make an environment of ``length`` steps in random colours, whose rewards tell the three colours seen
    when acting."""

    def colour(key):
        return jnp.full((3, 3, 1), jax.random.randint(key, (), 0, 256), jnp.uint8)

    def reset(key):
        key, key_first = jax.random.split(key)
        obs = jnp.repeat(colour(key_first), 3, -1)
        return (key, obs, jnp.int32(0)), obs

    def step(state, action):
        key, obs, steps = state
        key, key_next = jax.random.split(key)
        seen = jnp.concatenate([obs[..., 1:], colour(key_next)], -1)
        over = steps + 1 >= length
        return (key, seen, steps + 1), Timestep(seen, seen, told(obs), jnp.bool_(False), over)

    return Env(reset, step, Spec("flashes", (3, 3, 3), 2, 9, True, jnp.uint8, stack=3))


def told(obs):
    return obs[..., 0, 0, :] @ jnp.array([1.0, 256.0, 65_536.0])


@pytest.mark.parametrize("name", slow_except(["independent", "ca2e of 3 steps"], SHORT))
def test_no_row_that_is_stored_has_lost_a_frame_however_short_episodes_are(name, monkeypatch):
    """Episodes of 1, 2, 3 and 5 steps with too little room; after every iteration, all rows are whole."""
    monkeypatch.setattr(frames, "SMALL", 0)
    monkeypatch.setattr(frames, "SPARE", 0)
    module, config, in_flight = SHORT[name]

    @jax.jit
    @jax.vmap
    def run(length):
        env = flashes(length)
        method = module.build(env, config)
        sight = frames.sight(env.spec, config.capacity, 3, in_flight)

        def one(_, carry):
            s, wrong, _ = carry
            s = method.step(s)
            seen, memory = s.frames, s.replay
            if name == "independent":
                seen, memory = tree.take((seen, memory), 0)
            weighed = 0
            if name != "independent":
                memory, masses = memory.ring, memory.masses
                weighed = ((masses > 0) != memory.stores(jnp.arange(config.capacity))).sum()
            slots, stored = memory.oldest(config.capacity)
            rows = frames.looked(sight, seen, memory.take(slots))
            return s, wrong + (stored & (told(rows.obs) != rows.reward)).sum() + weighed, memory.size

        hyper = method.hyper
        agent = hyper.agent if name != "independent" else hyper
        agent = replace(agent, discount=0.0)  # the sum of n rewards is the first
        hyper = replace(hyper, agent=agent) if name != "independent" else agent
        start = method.init(jax.random.key(0), hyper), jnp.int32(0), jnp.int32(0)
        return jax.lax.fori_loop(0, 600, one, start)[1:]

    wrong, size = run(jnp.array([1, 2, 3, 5]))
    assert wrong.tolist() == [0, 0, 0, 0]
    assert (size >= config.capacity / 2).all()
    assert (jnp.diff(size) > 0).all()
    assert (size < config.capacity).all()


def test_a_million_transitions_of_a_game_fit_into_8_gigabytes():
    assert frames.slots(1_000_000, 8) * 84 * 84 == pytest.approx(7.5e9, rel=1e-3)
    state, obs = jnp.int32(0), jnp.zeros(GAME.obs_shape, jnp.uint8)
    blank = Timestep(obs, obs, jnp.float32(0), jnp.bool_(False), jnp.bool_(False))
    env = Env(lambda key: (state, obs), lambda state, action: (state, blank), GAME)

    def size(env):
        method = independent.build(env, independent.Config(agent=dqn.Config()))
        return memory.tree_bytes(jax.eval_shape(method.init, jax.random.key(0), method.hyper))

    assert 7.5e9 < size(env) < 7.6e9
    assert size(env._replace(spec=GAME._replace(stack=1))) > 56e9


def test_observations_that_are_no_such_stack_are_refused():
    with pytest.raises(
        ValueError, match="not a stack of 3 frames along the last axis; correct stack of the Spec"
    ):
        frames.sight(SMALL._replace(stack=3), 10, 1, 1)


METHODS = {
    "independent": (
        independent,
        independent.Config(AGENT, population=2, steps=2, batch=4, capacity=30, warmup=8),
    ),
    "shared": (
        independent,
        independent.Config(
            AGENT,
            population=2,
            lanes=2,
            batch=4,
            capacity=40,
            warmup=8,
            shared_replay=True,
            drive=contrastive.Config(hidden=(8,), features=4, bank_size=10, neighbours=3),
        ),
    ),
    "ce": (
        ce,
        ce.Config(
            learner=AGENT,
            drive=contrastive.Config(hidden=(8,), features=4, bank_size=10, neighbours=3),
            population=2,
            batch=4,
            capacity=60,
            warmup=20,
            col_eval="q",
            q_horizon=4,
        ),
    ),
    "ca2e": (
        ca2e,
        ca2e.Config(
            AGENT, nature_actors=2, prior_actors=1, batch=4, capacity=40, local_buffer=4, learning_starts=30
        ),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("shared", "ce"))) for name in METHODS]
)
def test_a_method_learns_from_references_as_from_plain_rows(name):
    module, config = METHODS[name]
    env = make("probe/corridor-discrete", frame_stack=3)
    assert env.spec.stack == 3

    def trained(env):
        method = module.build(env, config)

        @jax.jit
        def run(key):
            return jax.lax.fori_loop(0, 60, lambda _, s: method.step(s), method.init(key, method.hyper))

        return run(jax.random.key(0))

    by_reference, plain = trained(env), trained(env._replace(spec=env.spec._replace(stack=1)))
    assert plain.frames is None
    learner = "learner" if name == "ca2e" else "agents"
    close(getattr(by_reference, learner), getattr(plain, learner))
    close(by_reference.metrics, plain.metrics)
    equal(by_reference.lanes, plain.lanes)
