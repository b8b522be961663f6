"""Episodes and collection against plain loops, and that they do no more work than they must."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import rollout, tree
from popjax.core import Env, Spec, Timestep, transition
from popjax.envs import make
from popjax.envs.episodic import episodic
from tests.support import equal


def stride(carry, obs, key):
    """Walks by a size of its own and counts how often it was asked: the carry is (size, turns)."""
    size, turns = carry
    return (size, turns + 1), size[None]


def walker(size):
    return jnp.float32(size), jnp.int32(0)


def walk(size, limit=50):
    """The corridor in plain Python: [(obs, action, reward, next obs, terminated, truncated)]."""
    steps, obs = [], np.float32(0)
    for t in range(limit):
        after = obs + np.float32(size)
        steps.append((obs, np.float32(size), np.float32(size), after, after > 1, t + 1 >= limit))
        obs = after
        if after > 1:
            break
    return steps


@pytest.mark.parametrize("size", [2.0, 0.5, 0.3, 0.04, -0.1])
@pytest.mark.parametrize("block", [1, 7, 25, 100])
def test_an_episode_equals_a_loop(size, block, key):
    env = make("probe/corridor")
    played = jax.jit(lambda k: rollout.episode(env, stride, walker(size), k, block=block))(key)
    expected = walk(size)
    length = len(expected)
    assert int(played.length) == int(played.valid.sum()) == length
    assert played.valid.tolist() == [True] * length + [False] * (50 - length)
    assert float(played.total) == pytest.approx(sum(step[2] for step in expected), rel=1e-5)
    obs, action, timestep = tree.take(played.steps, slice(0, length))
    for i, got in enumerate((obs, action, timestep.reward, timestep.next_obs)):
        np.testing.assert_allclose(got.reshape(length), [step[i] for step in expected], rtol=1e-5, atol=1e-6)
    assert timestep.terminated.tolist() == [bool(step[4]) for step in expected]
    assert timestep.truncated.tolist() == [step[5] for step in expected]
    assert int(played.carry[1]) == length  # the policy's carry advanced on played steps only


def test_lanes_equal_single_episodes_and_stop_at_their_own_end():
    keys = jax.random.split(jax.random.key(1), 6)
    sizes = jnp.linspace(-1, 1, 6)
    for name in ("context", "corridor"):

        def play(size, k, env=make(f"probe/{name}")):
            return rollout.episode(env, stride, (size, jnp.int32(0)), k, block=4)

        together = jax.jit(jax.vmap(play))(sizes, keys)
        single = jax.jit(play)
        for i in range(6):
            alone = single(sizes[i], keys[i])
            lane = tree.take(together, i)
            mask = np.asarray(alone.valid)
            np.testing.assert_array_equal(lane.valid, mask)
            for field in ("total", "length", "carry"):
                equal(getattr(lane, field), getattr(alone, field))
            kept = jax.tree.map(lambda x, mask=mask: x[mask], (lane.steps, alone.steps))
            equal(*kept)


def test_record_chooses_what_is_kept(key):
    env = make("probe/corridor")
    played = rollout.episode(
        env, stride, walker(0.5), key, record=lambda obs, action, timestep: timestep.reward
    )
    assert played.steps.shape == (50,)
    np.testing.assert_allclose(played.steps[:3], 0.5)


def test_a_time_limit_is_truncation_and_an_end_is_termination(key):
    endless = rollout.episode(make("probe/endless"), stride, walker(0), key)
    assert endless.steps[2].truncated.tolist() == [False] * 4 + [True]
    assert not endless.steps[2].terminated.any()
    delay = rollout.episode(make("probe/delay"), stride, walker(0), key)
    assert delay.steps[2].terminated.tolist() == [False, True]
    assert float(delay.total) == 1


def counting(length, limit=200):
    """An environment that ends after ``length(key)`` steps, and lists of what was really computed."""
    resets, steps = [], []  # an entry for every lane in which it was computed

    def reset(key):
        left = length(key)
        jax.debug.callback(lambda _: resets.append(1), left)
        return left, left[None].astype(jnp.float32)

    def step(left, action):
        jax.debug.callback(lambda _: steps.append(1), left)
        return left - 1, (left - 1)[None].astype(jnp.float32), 1.0, left <= 1

    env = episodic(Spec("counting", (1,), 1, limit), reset, step)
    return env, resets, steps


def test_an_episode_stops_when_every_lane_is_done():
    """Four lanes of 3 to 12 steps, block 5, limit 200: 15 steps a lane are computed, not 200."""
    env, _, steps = counting(lambda key: jax.random.randint(key, (), 3, 13))
    keys = jax.random.split(jax.random.key(3), 4)
    play = jax.jit(jax.vmap(lambda k: rollout.episode(env, stride, walker(0), k, block=5)))
    compiled = play.lower(keys).compile()
    steps.clear()
    played = jax.block_until_ready(compiled(keys))
    jax.effects_barrier()
    longest = int(played.length.max())
    assert len(set(played.length.tolist())) > 1
    assert len(steps) == 4 * 5 * -(-longest // 5)


def test_the_length_of_a_block_need_not_divide_the_limit(key):
    env = make("probe/endless")
    for block in (2, 3, 4, 9):
        played = rollout.episode(env, stride, walker(0), key, block=block)
        assert played.valid.tolist() == [True] * 5
        assert int(played.carry[1]) == 5


def collected(env, size, key, length):
    env = rollout.autoreset(env)
    lane = rollout.start(env, walker(size), key)
    return rollout.collect(env, stride, lane, key, length)


def test_collect_crosses_episode_ends_with_the_true_successor(key):
    _, (obs, _, timestep) = jax.jit(lambda k: collected(make("probe/delay"), 0, k, 6))(key)
    assert obs[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert timestep.next_obs[:, 0].tolist() == [1, 1, 1, 1, 1, 1]  # not the 0 of the next episode
    assert timestep.obs[:, 0].tolist() == [1, 0, 1, 0, 1, 0]
    assert timestep.terminated.tolist() == [False, True] * 3
    assert not timestep.truncated[::2].any()

    _, (_, _, timestep) = jax.jit(lambda k: collected(make("probe/endless"), 0, k, 12))(key)
    assert np.flatnonzero(timestep.truncated).tolist() == [4, 9]
    assert not timestep.terminated.any()


def test_collect_equals_a_loop_over_the_corridor(key):
    lane, (obs, _, timestep) = jax.jit(lambda k: collected(make("probe/corridor"), 0.4, k, 11))(key)
    expected = [step for _ in range(4) for step in walk(0.4)][:11]
    np.testing.assert_allclose(obs[:, 0], [step[0] for step in expected], rtol=1e-6)
    np.testing.assert_allclose(timestep.next_obs[:, 0], [step[3] for step in expected], rtol=1e-6)
    assert timestep.terminated.tolist() == [bool(step[4]) for step in expected]
    assert int(lane.carry[1]) == 11


def test_collecting_twice_is_collecting_once_for_longer():
    env = rollout.autoreset(make("probe/corridor"))
    lane = rollout.start(env, walker(0.3), jax.random.key(0))
    first, (obs_1, *_) = rollout.collect(env, stride, lane, jax.random.key(1), 5)
    _, (obs_2, *_) = rollout.collect(env, stride, first, jax.random.key(2), 6)
    _, (obs, *_) = rollout.collect(env, stride, lane, jax.random.key(3), 11)
    np.testing.assert_array_equal(jnp.concatenate([obs_1, obs_2]), obs)


def test_every_automatic_reset_draws_anew():
    _, (obs, _, timestep) = collected(make("probe/context"), 0, jax.random.key(0), 200)
    assert 60 < int((obs > 0).sum()) < 140
    np.testing.assert_array_equal(timestep.obs[:-1], obs[1:])
    np.testing.assert_array_equal(timestep.next_obs, obs)  # the context stays as it is within a step


def test_collecting_lanes_equal_single_lanes():
    env = rollout.autoreset(make("probe/corridor"))
    keys = jax.random.split(jax.random.key(1), 5)

    def run(size, key):
        lane = rollout.start(env, (size, jnp.int32(0)), key)
        return rollout.collect(env, stride, lane, key, 20)[1]

    sizes = jnp.linspace(0.1, 1.5, 5)
    together, single = jax.jit(jax.vmap(run))(sizes, keys), jax.jit(run)
    for i in range(5):
        equal(tree.take(together, i), single(sizes[i], keys[i]))


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_a_reset_is_computed_only_in_steps_in_which_a_lane_ends(monkeypatch, platform):
    """Lanes of 20 steps each, 50 steps: one reset at the start and one branch at steps 20 and 40; on
    accelerators, too, since this reset calls back."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda **cases: cases[platform]())
    env, resets, _ = counting(lambda key: jax.random.randint(key, (), 20, 21))
    env = rollout.autoreset(env)

    @jax.jit
    @jax.vmap
    def run(key):
        lane = rollout.start(env, walker(0), key)
        return rollout.collect(env, stride, lane, key, 50)[1][2].terminated

    keys = jax.random.split(jax.random.key(0), 4)
    compiled = run.lower(keys).compile()
    resets.clear()
    ended = jax.block_until_ready(compiled(keys))
    jax.effects_barrier()
    assert np.argwhere(ended[0]).ravel().tolist() == [19, 39]
    assert len(resets) == 3 * 4


def test_accelerators_compute_cheap_resets_in_every_step(key, monkeypatch):
    """A branch would make them wait for the host. A long reset, such as that of physics, stays one."""
    cheap = make("probe/context")

    def longer(change):
        def reset(key):
            state, obs = cheap.reset(key)
            return state, change(obs)

        return cheap._replace(reset=reset)

    def until_small(obs):
        return jax.lax.while_loop(lambda x: x.sum() > 1, jnp.sin, obs)

    def branches(env, platform):
        env = rollout.autoreset(env)
        state, _ = jax.eval_shape(env.reset, key)
        traced = jax.jit(env.step).trace(state, jax.ShapeDtypeStruct((1,), jnp.float32))
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.case")

    long = longer(lambda obs: jax.lax.fori_loop(0, rollout.CHEAP, lambda _, x: jnp.sin(x), obs))
    for accelerator in ("cuda", "tpu"):  # cases of the platform, which the compiler resolves, count as well
        assert branches(cheap, accelerator) == branches(cheap, "cpu") - 1
        for slow in long, longer(until_small):
            assert branches(slow, accelerator) == branches(slow, "cpu") == 1

    branched = collected(cheap, 0, key, 40)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    equal(collected(cheap, 0, key, 40), branched)


def with_lives(lives=3, each=2):
    """Loses a life every ``each`` steps and ends with the last; a lost life is a cut, and is seen as 100."""

    def reset(key):
        return jnp.int32(0), jnp.zeros(1)

    def step(t, action):
        t = t + 1
        over, lost = t >= lives * each, t % each == 0
        seen = t[None].astype(jnp.float32)
        cut = lost & ~over
        obs = jnp.where(cut, 100.0, seen)
        return t, Timestep(obs, seen, jnp.float32(1), over, jnp.bool_(False), cut)

    return Env(reset, step, Spec("lives", (1,), 1, 50))


def test_a_cut_stops_the_bootstrap_and_not_the_episode(key):
    def collected(key):
        env = rollout.autoreset(with_lives())
        lane = rollout.start(env, walker(0), key)
        return rollout.collect(env, stride, lane, key, 8)[1]

    obs, action, timestep = jax.jit(collected)(key)
    assert obs[:, 0].tolist() == [0, 1, 100, 3, 100, 5, 0, 1]
    assert timestep.next_obs[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 1, 2]  # the true successors
    assert timestep.cut.tolist() == [False, True, False, True, False, False, False, True]
    assert np.flatnonzero(timestep.done).tolist() == [5]
    rows = transition(obs, action, timestep, 0.9)
    np.testing.assert_allclose(rows.discount, [0.9, 0, 0.9, 0, 0.9, 0, 0.9, 0], rtol=1e-6)
    played = jax.jit(lambda key: rollout.episode(with_lives(), stride, walker(0), key))(key)
    assert (int(played.length), float(played.total)) == (6, 6)
    assert played.steps[0][:6, 0].tolist() == [0, 1, 100, 3, 100, 5]
