"""Games equal ALE's own, whichever emulator plays them; screens, sticky actions, starts and lost lives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs, rollout
from popjax.contract import check_env
from tests.support import equal

ale_py = pytest.importorskip("ale_py")

from popjax.envs import atari  # noqa: E402
from popjax.envs.atari.console import Console, games  # noqa: E402
from popjax.envs.atari.screen import area_weights, grey84  # noqa: E402

GAMES = ("asterix", "beam_rider", "bowling", "breakout", "pong", "space_invaders")
FEW = {"noops": 2, "episode_length": 60}


def playing_on(game):
    """ALE itself, which nobody restores."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    ale.loadROM(games()[game])
    ale.reset_game()
    return ale


@pytest.mark.parametrize("game", GAMES)
def test_one_emulator_serves_lanes_as_emulators_of_their_own_would(game):
    lanes, chance = 3, np.random.default_rng(0)
    console = Console(game, grey=True, full_actions=False, starts_lives=False)
    states = np.repeat(console.starts([0], fire=False)[0], lanes, 0)
    own = [playing_on(game) for _ in range(lanes)]
    for _ in range(60):
        codes = np.repeat(console.codes[chance.integers(len(console.codes), size=lanes)][:, None], 4, 1)
        states, screens, rewards, _, over = console.play(states, codes, np.full(lanes, 4))
        for lane, ale in enumerate(own):
            reward, last = 0.0, []
            for code in codes[lane]:
                reward += ale.act(int(code))
                last.append(ale.getScreenGrayscale())
            assert rewards[lane] == reward
            np.testing.assert_array_equal(screens[lane], np.maximum(*last[-2:]))
            assert over[lane] == ale.game_over(with_truncation=False)
            assert states[lane].tobytes() == ale.cloneState(include_rng=False).serialize()


def test_resizing_by_area_has_known_answers():
    def first(rows, columns):
        screen = np.zeros((210, 160), np.uint8)
        screen[rows, columns] = 255
        return np.asarray(grey84(screen))

    everything = slice(None)
    assert first(everything, 0)[0, :3].tolist() == [134, 0, 0]
    assert first(everything, 1)[0, :3].tolist() == [121, 13, 0]
    assert first(0, everything)[:2, 0].tolist() == [102, 0]
    assert first(2, everything)[:3, 0].tolist() == [51, 51, 0]
    for height in (210, 214, 250):
        assert (grey84(np.full((2, height, 160), 77, np.uint8)) == 77).all()
        assert (area_weights(height).sum(1) == area_weights(height)[0].sum()).all()


def test_a_sticky_action_stays_in_force_until_a_frame_takes_the_new_one():
    kept = jnp.array([0.1, 0.3, 0.2, 0.9]) < 0.25
    assert atari.in_force(kept, jnp.int32(2), jnp.int32(3)).tolist() == [2, 3, 3, 3]
    assert atari.in_force(jnp.ones(4, bool), jnp.int32(2), jnp.int32(3)).tolist() == [2, 2, 2, 2]
    assert atari.in_force(jnp.zeros(4, bool), jnp.int32(2), jnp.int32(3)).tolist() == [3, 3, 3, 3]


def test_starts_are_the_game_after_as_many_frames_without_action():
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    states, screens = console.starts(range(31), fire=False)
    assert len({state.tobytes() for state in states}) == 31
    ale = playing_on("pong")
    for count in range(1, 31):
        ale.act(0)
        assert states[count].tobytes() == ale.cloneState(include_rng=False).serialize()
        if count == 1:
            np.testing.assert_array_equal(screens[count], ale.getScreenGrayscale())


def play(name, length, lead=(2,), **options):
    """What random play of lanes [*lead] shows: (obs, action, timestep), [*lead, T, ...]."""
    env = rollout.autoreset(envs.make(name, **options))

    def act(carry, obs, key):
        return carry, jax.random.randint(key, (), 0, env.spec.action_dim)

    def one(key):
        return rollout.collect(env, act, rollout.start(env, (), key), key, length)[1]

    for _ in lead:
        one = jax.vmap(one)
    return jax.jit(one)(jax.random.split(jax.random.key(0), int(np.prod(lead))).reshape(lead))


def test_lanes_do_not_know_of_each_other_however_they_are_lifted():
    flat = play("atari/breakout", 40, (4,), **FEW)
    equal(
        play("atari/breakout", 40, (2, 2), **FEW), jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), flat)
    )
    assert float(flat[2].reward.sum()) > 0
    key = jax.random.split(jax.random.key(0), 4)[1]
    env = envs.make("atari/breakout", **FEW)
    state, obs = jax.jit(env.reset)(key)
    _, timestep = jax.jit(env.step)(state, jnp.int32(3))  # a lane that nothing has lifted
    assert timestep.next_obs.shape == obs.shape
    assert (timestep.next_obs[..., :3] == obs[..., 1:]).all()


def test_a_lost_life_of_breakout_is_cut_and_starts_the_next():
    obs, _, timestep = play("atari/breakout", 60, (3,), **FEW)
    cut, done = np.asarray(timestep.cut), np.asarray(timestep.done)
    assert cut.any()
    assert not (cut & np.asarray(timestep.terminated)).any()
    lane, t = np.argwhere(cut[:, :-1] & ~done[:, :-1])[0]
    after = np.asarray(obs[lane, t + 1])
    assert (after == after[..., :1]).all(), "the stack begins anew, with one frame four times"
    followed = np.asarray(timestep.next_obs[lane, t])
    assert (followed[..., :3] == np.asarray(obs[lane, t])[..., 1:]).all(), "the true successor goes on"
    plain = play("atari/breakout", 60, (3,), **FEW, cut_lives=False)[2]
    assert not plain.cut.any()
    np.testing.assert_array_equal(plain.reward, timestep.reward)


def test_a_game_that_is_over_costs_and_changes_nothing():
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    state, over = console.starts([0], fire=False)[0], [False]
    while not over[0]:
        state, _, _, _, over = console.play(state, np.zeros((1, 400), np.int32), np.array([400]))
    again, screen, reward, lost, over = console.play(state, np.zeros((1, 4), np.int32), np.array([4]))
    np.testing.assert_array_equal(again, state)
    assert (reward[0], lost[0], over[0], screen.max()) == (0, False, True, 0)


@pytest.mark.parametrize(
    ("name", "options", "shape", "actions", "limit"),
    [
        ("breakout", {}, (84, 84, 4), 4, 27_000),
        ("pong", {"preset": "universe"}, (42, 42, 1), 6, 100_000),
        ("bowling", {"preset": "universe"}, (42, 42, 1), 6, 10_000),
        ("asterix", {"preset": "machado"}, (84, 84, 4), 18, 27_000),
        ("asterix", {"frame_skip": [2, 5], "noops": 0, "sticky": 0.5}, (84, 84, 4), 9, 27_000),
    ],
)
def test_presets_and_options(name, options, shape, actions, limit):
    env = envs.make(f"atari/{name}", **options)
    spec = env.spec
    assert (spec.obs_shape, spec.action_dim, spec.episode_length) == (shape, actions, limit)
    assert spec.stack == (4 if shape[0] == 84 else 1)
    check_env(env)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Breakout", {}, "no task 'Breakout'; did you mean 'atari/breakout'"),
        ("combat", {}, "no task 'combat'"),
        ("qbert", {}, "atari/qbert: .*pass inexact=True"),
        ("pong", {"sticky": 1.0}, r"sticky must be in \[0, 1\), got 1.0"),
        ("pong", {"frame_skip": 0}, "frame_skip must be at least 1.*got 0"),
        ("pong", {"frame_skip": (4, 2)}, r"frame_skip must be at least 1.*got \(4, 2\)"),
        ("pong", {"noops": -1}, "noops must be at least 0, got -1"),
        ("pong", {"view": "grey"}, "view must be one of grey84, field42, got 'grey'"),
        ("pong", {"preset": "dqm"}, "preset must be one of dqn, universe, machado, got 'dqm'"),
        ("pong", {"cut_lives": 1}, "cut_lives must be True or False, got 1"),
        ("pong", {"colour": True}, "atari/pong has no option 'colour'"),
        ("carnival", {"view": "field42"}, r"view field42 needs screens of \(210, 160\), got \(214, 160\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        envs.make(f"atari/{name}", **options)
    assert "\n" not in str(refusal.value)


def test_a_state_of_another_game_is_named():
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    with pytest.raises(RuntimeError, match="cannot restore this state"):
        console.play(np.zeros((1, 9), np.uint8), np.zeros((1, 4), np.int32), np.array([4]))
