"""The console: games of the Arcade Learning Environment as functions of their serialised state, in NumPy.

Any emulator can do the work and keeps nothing between calls: a state is restored, played and serialised
again. The screen is not part of a state: it is stale between a restoration and the next frame. Bellemare et
al., 2013; https://github.com/Farama-Foundation/Arcade-Learning-Environment
"""

from __future__ import annotations

import atexit
import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

NOOP, FIRE = 0, 1
HIDDEN_FRAMES = 4
"""Frames for which each of the actions that start a life is held."""
_TRUE, _FALSE = (0xFAB1FAB2).to_bytes(4, "little"), (0xBAD1BAD2).to_bytes(4, "little")
"""A flag in a serialised state."""
_OF_GAME = 64
"""Last bytes of a state, among which are the flags that ALE keeps of a game, such as that it is over."""


class Played(NamedTuple):
    """Frames that were played.

    ale:     uint8 [K] the state after them.
    screens: uint8 [..., H, W] grey, or [..., H, W, 3] after the action. If hidden frames can follow a lost
             life, [2, ...]: after the action and after those frames.
    reward:  of all frames, float32.
    lost:    a life was lost, and the game goes on.
    over:    the game is over.
    """

    ale: np.ndarray
    screens: np.ndarray
    reward: np.float32
    lost: bool
    over: bool


@functools.cache
def games() -> dict[str, Any]:
    """Return the ROM path of every game that the installed ale-py supports, by name.

    Raises:
        ValueError: ale-py is missing.
    """
    ale_py = _library()
    paths = {name: ale_py.roms.get_rom_path(name) for name in ale_py.roms.get_all_rom_ids()}
    # An emulator ends the process if it loads an unsupported game.
    return {name: path for name, path in sorted(paths.items()) if ale_py.ALEInterface.isSupportedROM(path)}


def _library() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as absent:
        raise ValueError(f"atari needs ale-py: pip install 'popjax[atari]' ({absent})") from absent
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return ale_py


class Console:
    """An emulator with a game in it; calls from several threads wait for each other.

    ``merged`` screens have the larger values of the last two frames; by default those in grey do.

    codes:      ALE's number of every action, [A].
    fires:      whether a life has to be started, by FIRE and the action after it.

    With ``starts_lives`` a no-op follows each lost life and, if ``fires``, then FIRE and the action after it.
    """

    def __init__(
        self, game: str, *, grey: bool, full_actions: bool, starts_lives: bool, merged: bool | None = None
    ) -> None:
        self._lock, self._grey = threading.Lock(), grey
        self._merged = grey if merged is None else merged
        self._ale = ale = _library().ALEInterface()
        atexit.register(self._switch_off)
        ale.setFloat("repeat_action_probability", 0.0)  # a state does not hold the action that sticks
        ale.setInt("random_seed", 0)
        ale.setInt("max_num_frames_per_episode", 0)
        ale.loadROM(games()[game])
        ale.reset_game()
        self._first = self._state(), self._screen()  # a restored state has no screen
        chosen = ale.getLegalActionSet() if full_actions else ale.getMinimalActionSet()
        self.codes = np.array([action.value for action in chosen], np.int32)
        self.fires = len(self.codes) >= 3 and self.codes[1] == FIRE
        self._begin_life = self.codes[[FIRE, 2]] if self.fires else self.codes[:0]
        self._hidden = (NOOP, *self._begin_life) if starts_lives else ()
        self.shape = (*((2,) if len(self._hidden) else ()), *self._screen().shape)
        self.state_size = len(self._first[0])

    def starts(self, noops: Sequence[int], fire: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return states uint8 [S, K] and screens uint8 [S, H, W(, 3)] after numbers of frames without action.

        If ``fire``, the actions that begin a life follow these frames. A game that ends in them starts over.
        """
        begun = np.repeat(self._begin_life, HIDDEN_FRAMES) if fire else self.codes[:0]
        with self._lock:
            found = [self._begin([NOOP] * count, begun.tolist()) for count in noops]
        return np.stack([np.frombuffer(ale, np.uint8) for ale, _ in found]), np.stack([s for _, s in found])

    def _begin(self, waited: list[int], begun: list[int]) -> tuple[bytes, np.ndarray]:
        """Return the state and the screen after the frames ``waited`` and ``begun`` of a new game.

        As in Baselines and Gymnasium, the screen after waiting is that of the last frame. Frames that begin a
        life are steps in Baselines, so the screen after them has the larger values of two.
        """
        self._restore(self._first[0])
        shown = begun[-2:] or waited[-1:]
        codes = [*waited, *begun]
        for code in codes[: len(codes) - len(shown)]:
            self._ale.act(code)
            if self._ale.game_over(with_truncation=False):
                self._restore(self._first[0])
        screen = self._frames(shown)[1] if shown else self._first[1]
        return self._first if self._ale.game_over(with_truncation=False) else (self._state(), screen)

    def play(self, ale: np.ndarray, codes: np.ndarray, count: np.ndarray) -> list[np.ndarray]:
        """Play ``count`` int [...] of the frames ``codes`` int [..., F] from states ``ale`` uint8 [..., K].

        Returns the fields of ``Played``, with the same leading axes.
        """
        ale, codes, count = np.asarray(ale), np.asarray(codes), np.asarray(count)
        lead = count.shape
        lanes = zip(
            ale.reshape(-1, ale.shape[-1]), codes.reshape(-1, codes.shape[-1]), count.ravel(), strict=True
        )
        with self._lock:
            played = [self._play(*lane) for lane in lanes]
        fields = (np.stack([np.asarray(x) for x in field]) for field in zip(*played, strict=True))
        return [field.reshape((*lead, *field.shape[1:])) for field in fields]

    def _play(self, ale: np.ndarray, codes: np.ndarray, count: int) -> Played:
        self._restore(ale.tobytes())
        if self._ale.game_over(with_truncation=False):
            return Played(ale, np.zeros(self.shape, np.uint8), np.float32(0), False, True)
        before = self._ale.lives()
        reward, screen = self._frames(codes[:count])
        over = self._ale.game_over(with_truncation=False)
        lost, screens = 0 < self._ale.lives() < before and not over, [screen]
        if len(self._hidden):
            for code in self._hidden if lost else ():
                if not over:
                    more, screen = self._frames([code] * HIDDEN_FRAMES)
                    reward, over = reward + more, self._ale.game_over(with_truncation=False)
            screens.append(screen)
        after = np.frombuffer(self._state(), np.uint8)
        if len(after) != len(ale):
            raise RuntimeError(
                f"a state of {len(ale)} bytes became one of {len(after)}: the game cannot be played"
            )
        shown = np.stack(screens) if len(self._hidden) else screen
        return Played(after, shown, np.float32(reward), lost and not over, over)

    def after_end(self, ale: np.ndarray, code: int) -> list[np.ndarray]:
        """Return the screen that follows the end of a game, for films; none if the end's flag is not found.

        ALE plays no frame of a game that is over, but Pong, for one, draws the last point only in the next.
        """
        whole, at = ale.tobytes(), len(ale)
        with self._lock:
            while (at := whole.rfind(_TRUE, len(ale) - _OF_GAME, at)) >= 0:
                self._restore(whole[:at] + _FALSE + whole[at + len(_TRUE) :])
                if not self._ale.game_over(with_truncation=False):
                    return [self._frames([code, code])[1]]
        return []

    def _frames(self, codes: Sequence[int] | np.ndarray) -> tuple[float, np.ndarray]:
        """Return the reward of frames, until the game is over, and the last screen.

        Merged screens have the larger values of the last two: some games draw an object only in every other
        frame. A game that is over earlier shows its last screen alone.
        """
        reward, screens = 0.0, []
        for f, code in enumerate(codes):
            reward += self._ale.act(int(code))
            over = self._ale.game_over(with_truncation=False)
            if over or f >= len(codes) - (2 if self._merged else 1):
                screens.append(self._screen())
            if over:
                break
        return reward, np.maximum.reduce(screens[-2:]) if self._merged else screens[-1]

    def _screen(self) -> np.ndarray:
        return np.array(self._ale.getScreenGrayscale() if self._grey else self._ale.getScreenRGB(), np.uint8)

    def _state(self) -> bytes:
        return self._ale.cloneState(include_rng=False).serialize()

    def _switch_off(self) -> None:
        """Release the emulator, which ale-py would otherwise report as leaked, since compiled programs keep
        this object."""
        self._ale = None

    def _restore(self, ale: bytes) -> None:
        try:
            self._ale.restoreState(_library().ALEState(ale))
        except (SystemError, RuntimeError, ValueError) as failure:
            raise RuntimeError("the emulator cannot restore this state of another game") from failure
