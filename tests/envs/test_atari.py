"""Games equal ALE's own, whichever emulator plays them; screens, sticky actions, starts and lost lives."""

from __future__ import annotations

import errno
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageSequence

from popjax import envs, remember, rollout
from popjax.contract import check_env
from popjax.core import Method, transition
from popjax.host.deploy import reference_envs, video
from popjax.host.errors import Refused
from tests.support import equal, slow_except

ale_py = pytest.importorskip("ale_py")

from popjax.envs import atari  # noqa: E402
from popjax.envs.atari import crew  # noqa: E402
from popjax.envs.atari.console import Console, games  # noqa: E402
from popjax.envs.atari.screen import area_weights, grey84  # noqa: E402

GAMES = ("asterix", "beam_rider", "bowling", "breakout", "pong", "space_invaders")
FEW = {"noops": 2, "episode_length": 60}
GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue."""


def playing_on(game):
    """ALE itself, which nobody restores."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 0)
    ale.loadROM(games()[game])
    ale.reset_game()
    return ale


@pytest.mark.parametrize("game", slow_except(["beam_rider", "breakout", "pong"], GAMES))
def test_one_emulator_serves_lanes_as_emulators_of_their_own_would(game):
    """Also of lives, and as far as games that are over."""
    lanes, chance = 4, np.random.default_rng(0)
    console = Console(game, grey=True, full_actions=False, starts_lives=False)
    states = np.repeat(console.starts([0], fire=False)[0], lanes, 0)
    own = [playing_on(game) for _ in range(lanes)]
    for _ in range(200):
        codes = np.repeat(console.codes[chance.integers(len(console.codes), size=lanes)][:, None], 4, 1)
        states, screens, rewards, lost, over = console.play(states, codes, np.full(lanes, 4))
        for lane, ale in enumerate(own):
            if ale.game_over(with_truncation=False):
                assert (rewards[lane], lost[lane], over[lane]) == (0, False, True)
                continue
            reward, last, before = 0.0, [], ale.lives()
            for code in codes[lane]:
                reward += ale.act(int(code))
                last.append(ale.getScreenGrayscale())
            assert rewards[lane] == reward
            np.testing.assert_array_equal(screens[lane], np.maximum(*last[-2:]))
            assert over[lane] == ale.game_over(with_truncation=False)
            assert lost[lane] == (0 < ale.lives() < before and not over[lane])
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


def test_a_step_plays_the_frames_that_its_key_draws():
    """Their number and which of them keep the action in force, that of the step before at first."""
    env = envs.make("atari/bowling", preset="universe")
    (state, _), step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    ale, chance, in_force, counts, kept = playing_on("bowling"), np.random.default_rng(0), 0, set(), 0
    codes = [action.value for action in ale.getMinimalActionSet()]
    assert state.ale.tobytes() == ale.cloneState(include_rng=False).serialize()
    for _ in range(60):
        action, reward = int(chance.integers(len(codes))), 0.0
        _, key_count, key_sticky = jax.random.split(state.key, 3)
        count = int(jax.random.randint(key_count, (), 2, 5))
        counts.add(count)
        for u in jax.random.uniform(key_sticky, (4,))[:count]:
            kept += u < 0.25 and action != in_force
            in_force = in_force if u < 0.25 else action
            reward += ale.act(codes[in_force])
        state, timestep = step(state, jnp.int32(action))
        assert int(state.last) == in_force
        assert float(timestep.reward) == reward
        assert state.ale.tobytes() == ale.cloneState(include_rng=False).serialize()
    assert counts == {2, 3, 4}
    assert kept > 0


def test_a_start_shows_the_last_frame_of_waiting_and_the_larger_two_of_a_first_step():
    """As after Baselines' and Gymnasium's no-ops. Asterix, which has no FIRE, draws objects in turn."""
    for game, codes, chosen in (
        ("asterix", [0] * 5, lambda last: last[-1]),
        ("breakout", [0] * 5 + [1] * 4 + [3] * 4, lambda last: np.maximum(*last)),
    ):
        console = Console(game, grey=True, full_actions=False, starts_lives=False)
        assert console.codes[:3].tolist() == ([0, 1, 3] if game == "breakout" else [0, 2, 3])
        ale, screens = playing_on(game), []
        for code in codes:
            ale.act(code)
            screens.append(ale.getScreenGrayscale().copy())
        assert (screens[-1] != screens[-2]).any()
        _, found = console.starts([5], fire=True)
        np.testing.assert_array_equal(found[0], chosen(screens[-2:]))


def test_starts_are_the_game_after_as_many_frames_without_action():
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    states, screens = console.starts(range(31), fire=False)
    assert len({state.tobytes() for state in states}) == 31
    ale = playing_on("pong")
    np.testing.assert_array_equal(screens[0], ale.getScreenGrayscale())
    for count in range(1, 31):
        ale.act(0)
        assert states[count].tobytes() == ale.cloneState(include_rng=False).serialize()
        np.testing.assert_array_equal(screens[count], ale.getScreenGrayscale())
    reset = jax.jit(jax.vmap(envs.make("atari/pong", fire="never").reset))
    seeds = jax.random.split(jax.random.key(0), 300)
    drawn = {state.tobytes() for state in np.asarray(reset(seeds)[0].ale)}
    assert drawn == {state.tobytes() for state in states[1:]}
    equal(reset(seeds), reset(seeds))


def test_a_game_that_ends_before_it_begins_starts_over():
    """Pong without action is lost after some 3,500 frames."""
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    ale, length = playing_on("pong"), 0
    while not ale.game_over(with_truncation=False):
        ale.act(0)
        length += 1
    first, ended, later, seventh = zip(*console.starts([0, length, length + 7, 7], fire=False), strict=True)
    equal(ended, first)
    equal(later, seventh)


RANDOM = {
    "asterix": 210,
    "beam_rider": 364,
    "bowling": 23,
    "breakout": 1.7,
    "pong": -20.7,
    "space_invaders": 148,
}
"""Mean returns of random play in Mnih et al., 2015."""


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_random_play_returns_what_it_is_known_to(game):
    lanes, chance = 12, np.random.default_rng(0)
    console = Console(game, grey=True, full_actions=False, starts_lives=True)
    states, over = console.starts(range(1, lanes + 1), fire=True)[0], np.zeros(lanes, bool)
    total = np.zeros(lanes)
    while not over.all():
        codes = np.repeat(console.codes[chance.integers(len(console.codes), size=lanes)][:, None], 4, 1)
        states, _, rewards, _, over = console.play(states, codes, np.full(lanes, 4))
        total += rewards
    assert abs(total.mean() - RANDOM[game]) < abs(RANDOM[game]) / 2


def play(name, length, lead=(2,), **options):
    """Play lanes [*lead] at random; return (obs, action, timestep), [*lead, T, ...]. Without ``lead``, return
    the function that plays the lane of a key."""
    env = rollout.autoreset(envs.make(name, **options))

    def act(carry, obs, key):
        return carry, jax.random.randint(key, (), 0, env.spec.action_dim)

    def one(key):
        return rollout.collect(env, act, rollout.start(env, (), key), key, length)[1]

    if lead is None:
        return jax.jit(one)
    for _ in lead:
        one = jax.vmap(one)
    return jax.jit(one)(jax.random.split(jax.random.key(0), int(np.prod(lead))).reshape(lead))


def test_lanes_do_not_know_of_each_other_however_they_are_lifted():
    flat = play("atari/breakout", 40, (8,), **FEW)
    nested = play("atari/breakout", 40, (2, 2, 2), **FEW)
    equal(nested, jax.tree.map(lambda x: x.reshape(2, 2, 2, *x.shape[1:]), flat))
    assert float(flat[2].reward.sum()) > 0
    one, keys = play("atari/breakout", 40, None, **FEW), jax.random.split(jax.random.key(0), 8)
    for lane in range(8):  # which nothing has lifted
        equal(one(keys[lane]), jax.tree.map(lambda x: x[lane], flat))


def test_two_games_are_played_in_one_program():
    """As a teacher's and a student's, each by its own emulator."""
    pong, breakout = (envs.make(f"atari/{game}", **FEW) for game in ("pong", "breakout"))
    first, second = (jax.jit(env.reset)(jax.random.key(0))[0] for env in (pong, breakout))

    def both(first, second):
        return pong.step(first, jnp.int32(1)), breakout.step(second, jnp.int32(1))

    equal(jax.jit(both)(first, second), (pong.step(first, jnp.int32(1)), breakout.step(second, jnp.int32(1))))


def test_a_lost_life_of_breakout_is_cut_and_starts_the_next():
    obs, action, timestep = play("atari/breakout", 60, (3,), **FEW)
    cut, done = np.asarray(timestep.cut), np.asarray(timestep.done)
    assert cut.any()
    assert not (cut & np.asarray(timestep.terminated)).any()
    rows = transition(obs, action, timestep, 0.9)
    np.testing.assert_allclose(rows.discount, np.where(cut | np.asarray(timestep.terminated), 0, 0.9))
    lane, t = np.argwhere(cut[:, :-1] & ~done[:, :-1])[0]
    assert not done[lane, : t + 2].any(), "the episode goes on, and its return with it"
    after = np.asarray(obs[lane, t + 1])
    assert (after == after[..., :1]).all(), "the stack begins anew, with one frame four times"
    followed = np.asarray(timestep.next_obs[lane, t])
    assert (followed[..., :3] == np.asarray(obs[lane, t])[..., 1:]).all(), "the true successor goes on"
    plain = play("atari/breakout", 60, (3,), **FEW, cut_lives=False)[2]
    assert not plain.cut.any()
    np.testing.assert_array_equal(plain.reward, timestep.reward)
    same = (np.asarray(plain.obs) == np.asarray(plain.next_obs)).all((2, 3, 4))
    np.testing.assert_array_equal(same, ~done, "hidden frames are frames of the step where no life is cut")


def test_a_game_that_ends_while_a_life_starts_ends_with_its_last_frame(monkeypatch):
    """The successor of the step is the screen behind the hidden frames, in which the game ended."""

    def ended(crew):
        screens = jnp.stack([jnp.full(crew.console.shape[1:], grey, jnp.uint8) for grey in (100, 200)])
        return lambda ale, codes, count: (ale, screens, jnp.float32(0), jnp.bool_(False), jnp.bool_(True))

    monkeypatch.setattr(atari, "_emulation", ended)
    env = atari.make("breakout", **FEW)
    timestep = env.step(env.reset(jax.random.key(0))[0], jnp.int32(0))[1]
    assert bool(timestep.terminated)
    assert not bool(timestep.cut)
    assert (np.asarray(timestep.next_obs[..., -1]) == 200).all()
    equal(timestep.obs, timestep.next_obs)


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
    ("task", "preset", "values"),
    [
        ("pong", "dqn", ((4, 4), 0.0, 30, True, "life")),
        ("pong", "universe", ((4, 4), 0.0, 0, False, "never")),
        ("bowling", "universe", ((2, 4), 0.25, 0, False, "never")),
        ("pong", "machado", ((4, 4), 0.25, 0, False, "never")),
    ],
)
def test_the_options_of_presets(task, preset, values):
    found = atari.settings(task, {"preset": preset})
    assert tuple(found[name] for name in ("frame_skip", "sticky", "noops", "cut_lives", "fire")) == values


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Breakout", {}, "no task 'Breakout'; did you mean 'atari/breakout'"),
        ("combat", {}, "no task 'combat'"),
        ("qbert", {}, "atari/qbert: .*pass inexact=True"),
        ("pong", {"sticky": 1.0}, r"sticky must be in \[0, 1\), got 1.0"),
        ("pong", {"frame_skip": 0}, "frame_skip must be at least 1.*got 0"),
        ("pong", {"frame_skip": (4, 2)}, r"frame_skip must be at least 1.*got \(4, 2\)"),
        ("pong", {"frame_skip": (2.5, 4)}, r"frame_skip must be .* integers \(low, high\).*got \(2.5, 4\)"),
        ("pong", {"noops": -1}, "noops must be at least 0, got -1"),
        ("pong", {"view": "grey"}, "view must be one of grey84, field42, got 'grey'"),
        ("pong", {"preset": "dqm"}, "preset must be one of dqn, universe, machado, got 'dqm'"),
        ("pong", {"cut_lives": 1}, "cut_lives must be True or False, got 1"),
        ("pong", {"colour": True}, "atari/pong has no option 'colour'"),
        (
            "carnival",
            {"view": "field42"},
            r"needs screens of \(210, 160\), got \(214, 160\): set view to grey84",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        envs.make(f"atari/{name}", **options)
    assert "\n" not in str(refusal.value)


def test_without_ale_py_its_extra_is_named(monkeypatch):
    remember.forget()
    games.cache_clear()
    monkeypatch.setitem(sys.modules, "ale_py", None)
    for call in (lambda: envs.make("atari/pong"), lambda: envs.tasks("atari"), lambda: atari.make("pong")):
        with pytest.raises(ValueError, match=r"atari needs ale-py: pip install 'popjax\[atari\]'") as refusal:
            call()
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="did you mean 'probe/corridor'"):
        envs.make("corridor")  # other suites are found


def test_a_state_of_another_game_is_named():
    console = Console("pong", grey=True, full_actions=False, starts_lives=False)
    with pytest.raises(RuntimeError, match="cannot restore this state"):
        console.play(np.zeros((1, 9), np.uint8), np.zeros((1, 4), np.int32), np.array([4]))


# Worker processes

OPTIONS = {"grey": True, "full_actions": False, "starts_lives": True}


def worked(monkeypatch, workers, lanes=5, steps=4, kill=()):
    """Play lanes of Breakout at random, shared among workers of which the first is killed before
    some steps."""
    monkeypatch.setenv(crew.VARIABLE, str(workers))
    team, found, chance = crew.Crew("breakout", OPTIONS, 4), [], np.random.default_rng(0)
    states = np.repeat(team.console.starts([1], True)[0], lanes, 0)
    try:
        for t in range(steps):
            if t in kill:
                team._workers[0]._process.kill()
            codes = np.repeat(team.console.codes[chance.integers(4, size=lanes)][:, None], 4, 1)
            found.append(team.play(states, codes, np.full(lanes, 4, np.int32)))
            states = found[-1][0]
        return found, len(team._workers)
    finally:
        team.stop()


def test_the_number_of_workers_changes_nothing_and_one_that_dies_is_replaced(monkeypatch):
    alone, none = worked(monkeypatch, 0)
    single, still_none = worked(monkeypatch, 1)  # one process is as fast as another
    shared, three = worked(monkeypatch, 3)
    replaced, two = worked(monkeypatch, 2, kill=[2])
    assert (none, still_none, three, two) == (0, 0, 3, 2)
    equal(single, alone)
    equal(shared, alone)
    equal(replaced, alone)


def test_a_worker_that_dies_twice_is_given_up(monkeypatch):
    with pytest.raises(RuntimeError, match="an Atari worker died a second time, with exit status -9"):
        worked(monkeypatch, 2, kill=[1, 3])


def test_many_lanes_are_given_to_workers_in_turn(monkeypatch):
    monkeypatch.setattr(crew, "_AT_ONCE", 2)
    equal(worked(monkeypatch, 2, lanes=9, steps=1)[0], worked(monkeypatch, 0, lanes=9, steps=1)[0])


def test_workers_ignore_what_is_for_the_trainer_and_end_with_it(monkeypatch):
    """Ctrl-C and SIGTERM reach the trainer, which saves first."""
    monkeypatch.setenv(crew.VARIABLE, "2")
    team = crew.Crew("pong", OPTIONS, 4)
    state = np.repeat(team.console.starts([1], True)[0], 2, 0)
    step = (np.zeros((2, 4), np.int32), np.full(2, 4, np.int32))
    team.play(state, *step)
    processes = [worker._process for worker in team._workers]
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in processes:
            process.send_signal(number)
    team.play(state, *step)
    assert all(process.poll() is None and os.getsid(process.pid) == process.pid for process in processes)
    with pytest.raises(RuntimeError, match="cannot restore this state"):
        team.play(np.zeros_like(state), *step)
    assert all(process.wait(10) == 0 for process in processes), "what fails lets all of them go"


def test_the_memory_of_workers_is_reserved_before_they_write_to_it(monkeypatch):
    """A container's 64 MB of /dev/shm are soon full, and a page without room would end the process."""
    reserve, full = os.posix_fallocate, []

    def fallocate(handle, offset, size):
        if full:
            raise OSError(errno.ENOSPC, full.pop())
        reserve(handle, offset, size)
        assert os.fstat(handle).st_blocks * 512 >= size

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    alone, _ = worked(monkeypatch, 0, steps=1)
    equal(worked(monkeypatch, 2, steps=1)[0], alone)
    full += ["No space left"]  # in the first place
    equal(worked(monkeypatch, 2, steps=1)[0], alone)
    assert not full
    full += ["No space left"] * 2
    with pytest.raises(
        RuntimeError,
        match=r"worker's [\d,]+ bytes of shared memory do not fit into .*\(No space left\): free some, or"
        " set POPJAX_ATARI_WORKERS to fewer workers",
    ):
        worked(monkeypatch, 2)


def test_a_number_of_workers_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv(crew.VARIABLE, "many")
    with pytest.raises(
        ValueError, match="POPJAX_ATARI_WORKERS must be a whole number of processes, 0 or more, got 'many'"
    ):
        crew.workers()


# Gymnasium's own preprocessing


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("breakout", {}),
        pytest.param("pong", {"frame_skip": 3}, marks=pytest.mark.slow),
        pytest.param("asterix", {"fire": "episode"}, marks=pytest.mark.slow),
        ("asterix", {}),
        ("space_invaders", {"cut_lives": False, "fire": "never", "actions": "full", "frame_skip": 3}),
        ("bowling", {"preset": "machado", "sticky": 0.0}),
    ],
)
def test_a_game_is_the_one_of_gymnasium(game, options):
    """Rewards and ends of 250 steps exactly, pixels but for those whose mean lies between two numbers; also
    the first ones, behind no frame."""
    pytest.importorskip("cv2")
    env = envs.make(f"atari/{game}", noops=0, **options)
    copy = reference_envs.make("gymnasium", env, {"noops": 0, **options})
    (state, obs), step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    seen, chance = copy.reset(0), np.random.default_rng(0)
    total = 0.0
    for _ in range(250):
        off = np.abs(np.asarray(obs, int) - seen)
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-3
        action = chance.integers(env.spec.action_dim)
        state, timestep = step(state, jnp.int32(action))
        seen, reward, over, truncated = copy.step(action)
        assert (float(timestep.reward), bool(timestep.terminated)) == (reward, over)
        assert not truncated
        if over:  # theirs is the frame before the last
            break
        obs, total = timestep.obs, total + reward
    assert total != 0 or game == "breakout"  # which random play of so few steps seldom scores in


class Baselines:
    """MaxAndSkip, EpisodicLife, FireReset and WarpFrame of OpenAI Baselines' ``atari_wrappers.py``, around a
    game without no-ops. ``hidden`` are the rewards of frames that start a life, which Baselines drops."""

    def __init__(self, game):
        self.ale, self.lives, self.over = playing_on(game), 0, True
        self.actions = [action.value for action in self.ale.getMinimalActionSet()]

    def skip(self, action):
        total, screens = 0.0, []
        for _ in range(4):
            total += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale().copy())
            self.over = self.ale.game_over(with_truncation=False)
            if self.over:
                break
        self.screen = np.maximum.reduce(screens[-2:])
        return total

    def step(self, action):
        reward, lives = self.skip(action), self.ale.lives()
        done = self.over or 0 < lives < self.lives
        self.lives = lives
        return self.seen(), reward, done

    def reset(self):
        """Return the frame at the start of a life: a no-op unless the game is new, then FIRE and the next in
        games that have it."""
        if self.over:
            self.screen = self.ale.getScreenGrayscale()
        self.hidden = 0.0 if self.over else self.skip(0)
        self.over = False
        for action in (1, 2) if self.actions[1] == 1 else ():
            self.hidden += self.skip(action)
        self.lives = self.ale.lives()
        return self.seen()

    def seen(self):
        import cv2

        return cv2.resize(self.screen, (84, 84), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("game", ["asterix", "breakout", "space_invaders"])
def test_lives_are_those_of_baselines(game):
    """Every life is an episode there, whose last frame is that of the lost life here, too."""
    pytest.importorskip("cv2")
    env, copy = envs.make(f"atari/{game}", noops=0), Baselines(game)
    (state, obs), step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)

    def alike(ours, theirs):
        off = np.abs(np.asarray(ours[..., -1], int) - theirs)
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-3

    alike(obs, copy.reset())
    chance, lost = np.random.default_rng(1), 0
    for _ in range(300):
        action = int(chance.integers(env.spec.action_dim))
        state, timestep = step(state, jnp.int32(action))
        seen, reward, done = copy.step(action)
        assert bool(timestep.cut | timestep.terminated) == done
        if timestep.terminated:
            break
        alike(timestep.next_obs, seen)
        if done:
            alike(timestep.obs, copy.reset())
            assert (timestep.obs == timestep.obs[..., -1:]).all()
            lost, reward = lost + 1, reward + copy.hidden
        assert float(timestep.reward) == reward
    assert lost > 1


def test_what_gymnasium_does_not_play_is_refused():
    gymnasium = pytest.importorskip("gymnasium")
    assert gymnasium
    env = envs.make("atari/pong", preset="universe")
    with pytest.raises(Refused, match="needs view=grey84 and a frame_skip that is a single number"):
        reference_envs.make("gymnasium", env, {"preset": "universe"})


def test_gymnasium_without_opencv_names_its_package(monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Refused, match=r"pip install opencv-python$"):
        reference_envs.make("gymnasium", envs.make("atari/pong"), {})


# Films


def test_a_film_shows_the_game_in_colour_at_its_own_speed(tmp_path):
    env = envs.make("atari/breakout", noops=1, episode_length=12)

    def act(params, memory, obs, key, scale):
        return memory, jnp.int32(2)

    nothing = None
    method = Method(nothing, nothing, lambda state: state, act, nothing, 1)
    path = tmp_path / "film.gif"
    subject = video.subject(env, {"noops": 1}, path)
    film = video.record(method, env, jnp.zeros((1, 1)), subject, path)
    assert (film.length, film.fps) == (12, 15.0)
    with Image.open(path) as shown:
        frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(shown)]
    assert len(frames) == 13
    assert frames[0].shape == (480, 640, 3)
    colours = {tuple(colour) for colour in frames[0][::4, ::4].reshape(-1, 3)}
    assert len(colours) > 5, "bricks of six colours"
    assert any((a != b).any() for a, b in pairwise(frames)), "the ball moves"


def test_a_film_shows_the_larger_of_the_last_frames_of_a_step_and_the_end_of_the_game():
    """Pong without action is lost after some 3,500 frames, of which a step has 60 here."""
    options = {"frame_skip": 60, "noops": 0, "fire": "never"}
    env, ale, written, nothing = envs.make("atari/pong", **options), playing_on("pong"), [], None
    method = Method(
        nothing, nothing, lambda state: state, lambda params, memory, *_: (memory, jnp.int32(0)), nothing, 1
    )
    subject = video.subject(env, options, Path("film.gif"))
    subject = subject._replace(write=lambda path, poses, seconds: written.append(poses))
    film = video.record(method, env, jnp.zeros((1, 1)), subject, Path("film.gif"))
    draw = atari.painter("pong", atari.settings("pong", options))
    *pictures, last = draw(written[0])
    assert len(pictures) == film.length + 1
    left = slice(0, 24), slice(0, 80)
    assert all((picture[left] != last[left]).any() for picture in pictures), "the first that shows 21"
    assert film.total == -21
    for step, picture in enumerate(pictures):
        screens = []
        while len(screens) < (60 if step else 2) and not ale.game_over():
            ale.act(0)
            screens.append(ale.getScreenRGB())
        np.testing.assert_array_equal(picture, np.maximum(*screens[-2:]))
        if not step:  # the first picture is of two frames of the first step
            ale = playing_on("pong")
    assert ale.game_over()


@pytest.mark.parametrize("game", ["boxing", "breakout", "space_invaders"])
def test_a_game_that_is_over_can_be_seen_going_on(game):
    console = Console(game, grey=False, full_actions=False, starts_lives=True, merged=True)
    (ale,), chance, over = console.starts([0], fire=True)[0], np.random.default_rng(0), False
    while not over:
        codes = np.repeat(console.codes[chance.integers(len(console.codes))], 16)
        ale, screens, _, _, over = console.play(ale, codes, np.int32(16))
    (after,) = console.after_end(ale, 0)
    latest = screens if screens.ndim == 3 else screens[-1]
    assert (after != latest).any(-1).mean() < 0.1, "the same scene"


@pytest.mark.parametrize(
    ("game", "options"),
    [
        pytest.param("space_invaders", {}, marks=pytest.mark.slow),
        ("ms_pacman", {"sticky": 0.25, "frame_skip": (2, 4)}),
        ("asterix", {"frame_skip": 1}),
    ],
)
def test_what_a_player_sees_is_in_the_film(game, options):
    """Of shots and ghosts that are drawn in every other frame, too."""
    env = envs.make(f"atari/{game}", **options)
    values = atari.settings(game, options)
    draw, step, chance = atari.painter(game, values), jax.jit(env.step), np.random.default_rng(0)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    for _ in range(100):
        before = state
        state, timestep = step(before, jnp.int32(chance.integers(env.spec.action_dim)))
        poses = jax.tree.map(lambda x: np.asarray(x)[None], atari.pose(values, before, state))
        assert poses[2] >= 2, "a film may leave out every other step"
        (picture,) = draw(poses)
        shown = np.asarray(grey84(np.rint(picture @ GREY).astype(np.uint8)), int)
        assert (shown >= np.asarray(timestep.obs[..., -1], int) - 3).all()
