"""Atari 2600 games on ale-py's emulator, as pure functions. Bellemare et al., 2013; Mnih et al., 2015.

The State carries the game's own serialised state, so that lanes can be vmapped, cut, selected and resumed
like those of any task. Emulation is a callback to the host, everything else is on the device: sticky actions,
frame skips, resizing, stacking. A reset draws from a table of starts and touches no emulator. Programs with
callbacks are compiled again in every process, since JAX does not store them. Lanes are shared among worker
processes, by default one less than the number of cores; the environment variable ``POPJAX_ATARI_WORKERS``
sets another number, which does not affect results.

| option | "dqn" (OpenAI Baselines) | "universe" (universe-starter-agent) | "machado" (Machado et al., 2018) |
|---|---|---|---|
| frame_skip | 4 | Pong 4, others 2 to 4 | 4 |
| sticky | 0 | Pong 0, others 0.25 | 0.25 |
| view | grey84: larger of two, 84 x 84, four of them | field42: last frame, 42 x 42 | grey84 |
| noops | 1 to 30 | 0 | 0 |
| cut_lives | True | False | False |
| fire | life | never | never |
| actions | minimal | minimal | full |
| episode_length, environment steps | 27,000 | Pong 100,000, others 10,000 | 27,000 |

Differs from Gymnasium's and ale-py's own environments: the last frame of a game is the real one, whereas
theirs is the frame before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from popjax.core import Env, Key, PyTree, Spec, Timestep
from popjax.envs.atari.console import Console, games
from popjax.envs.atari.crew import Crew
from popjax.envs.atari.screen import SIDE, grey84, playing_field
from popjax.envs.options import check

FRAMES_PER_SECOND = 60
STACK = 4
PRESETS = ("dqn", "universe", "machado")
INEXACT = ("miniature_golf", "pitfall2", "qbert", "tetris", "tic_tac_toe_3d")
"""Games that do not always continue exactly after a state is restored (ale-py 0.12.1)."""
_KINDS = {
    "frame_skip": int | tuple,
    "sticky": float,
    "view": str,
    "noops": int,
    "cut_lives": bool,
    "fire": str,
    "actions": str,
    "episode_length": int,
    "preset": str,
    "inexact": bool,
}
_WORDS = {
    "preset": PRESETS,
    "view": ("grey84", "field42"),
    "fire": ("life", "episode", "never"),
    "actions": ("minimal", "full"),
}


@struct.dataclass
class AtariState:
    """A game under way.

    ale:   uint8 [K] the emulator's state.
    stack: uint8 [84, 84, 4] frames that are seen, oldest first; () if an observation is one frame.
    last:  int32 [] the action in force.
    steps: int32 [] environment steps since the start.
    key:   random key for the sticky actions and frame skips of the episode.
    """

    ale: Array
    stack: PyTree
    last: Array
    steps: Array
    key: Key


def tasks() -> Sequence[str]:
    """Return the games that the installed ale-py supports.

    Raises:
        ValueError: ale-py is missing.
    """
    return tuple(games())


def make(task: str, **options: Any) -> Env:
    """Return a game; this module's table has the options and their values in every ``preset``, "dqn" by
    default.

    frame_skip: frames in an environment step, or (low, high) to draw from, both inclusive.
    sticky:     chance in [0, 1) that a frame keeps the action in force.
    noops:      an episode starts after 1 to this many frames without action; 0 for none.
    cut_lives:  whether losing a life ends bootstrapping.
    fire:       when FIRE and the next action are played automatically, in games that have them: at the
                start of every "life" or "episode", or never, which leaves them to the agent. With "life" a
                step without action follows each lost life, before FIRE and in games without it.
    inexact:    True to allow a game listed in ``INEXACT``.

    Raises:
        ValueError: ale-py is missing, there is no such option, or a value is out of range.
    """
    o = settings(task, options)
    low, high = o["frame_skip"]
    grey, renews = o["view"] == "grey84", o["fire"] == "life"
    crew = Crew(task, {"grey": grey, "full_actions": o["actions"] == "full", "starts_lives": renews}, high)
    console = crew.console
    side = console.shape[-2:] if grey else console.shape[-3:-1]
    if not grey and side != (210, 160):
        raise ValueError(
            f"atari/{task}: view field42 needs screens of (210, 160), got {console.shape[-3:-1]}: set view to"
            " grey84"
        )
    spec = Spec(
        name=f"atari/{task}",
        obs_shape=(SIDE, SIDE, STACK) if grey else (42, 42, 1),
        obs_dtype=jnp.uint8 if grey else jnp.float32,
        action_dim=len(console.codes),
        episode_length=o["episode_length"],
        discrete=True,
        dt=(low + high) / 2 / FRAMES_PER_SECOND,
        highest_return=21.0 if task == "pong" else None,
        stack=STACK if grey else 1,
    )
    states, screens = console.starts(range(min(1, o["noops"]), o["noops"] + 1), o["fire"] != "never")
    view = grey84 if grey else playing_field
    firsts = jax.jit(jax.vmap(view))(screens)
    emulate = _emulation(crew)

    def full(frame: Array) -> tuple[Any, PyTree]:
        """Return the observation and the stack of frames if ``frame`` is the first one seen."""
        stack = jnp.repeat(frame[..., None], STACK, -1) if grey else ()
        return (stack if grey else frame), stack

    def reset(key: Key) -> tuple[AtariState, Array]:
        key, key_start = jax.random.split(key)
        start = jax.random.randint(key_start, (), 0, len(states))
        obs, stack = full(jnp.asarray(firsts)[start])
        return AtariState(jnp.asarray(states)[start], stack, jnp.int32(0), jnp.int32(0), key), obs

    def step(state: AtariState, action: Array) -> tuple[AtariState, Timestep]:
        key, count, kept = _drawn(o, state)
        played = in_force(kept, state.last, jnp.asarray(action, jnp.int32))
        ale, screens, reward, lost, over = emulate(state.ale, jnp.asarray(console.codes)[played], count)
        frames = jax.vmap(view)(screens) if renews else view(screens)[None]
        # If a lost life ends bootstrapping, the frames that start the next life come after the cut; a game
        # that ends in them has no next life.
        cut = lost & o["cut_lives"]
        seen = jnp.where(cut, frames[0], frames[-1])
        stack = jnp.concatenate([state.stack[..., 1:], seen[..., None]], -1) if grey else ()
        next_obs: Any = stack if grey else seen
        obs, stack = jax.tree.map(partial(jnp.where, cut), full(frames[-1]), (next_obs, stack))
        steps = state.steps + 1
        timestep = Timestep(
            obs=obs,
            next_obs=next_obs,
            reward=reward,
            terminated=over,
            truncated=steps >= spec.episode_length,
            cut=cut,
        )
        return AtariState(ale, stack, played[count - 1], steps, key), timestep

    return Env(reset, step, spec)


def in_force(kept: Array, last: Array, action: Array) -> Array:
    """Return the action of each frame, int32 [F]: ``last`` where ``kept`` (bool [F]), else ``action``."""
    return jnp.where(jnp.cumsum(~kept) == 0, last, action)


def _emulation(crew: Crew) -> Any:
    """Return ``(ale [K], codes [F], count) -> the fields of Played``, a callback that ``vmap`` lifts."""
    answers = (
        jax.ShapeDtypeStruct((crew.console.state_size,), jnp.uint8),
        jax.ShapeDtypeStruct(crew.console.shape, jnp.uint8),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.bool_),
        jax.ShapeDtypeStruct((), jnp.bool_),
    )

    def emulate(ale: Array, codes: Array, count: Array) -> Any:
        return jax.pure_callback(crew.play, answers, ale, codes, count, vmap_method="broadcast_all")

    return emulate


def _drawn(o: Mapping[str, Any], state: AtariState) -> tuple[Key, Array, Array]:
    """Return the next key, and what a step from ``state`` draws: the number of its frames, and which keep the
    action in force, bool [F]."""
    low, high = o["frame_skip"]
    key, key_count, key_sticky = jax.random.split(state.key, 3)
    count = jax.random.randint(key_count, (), low, high + 1)
    return key, count, jax.random.uniform(key_sticky, (high,)) < o["sticky"]


def pose(options: Mapping[str, Any], before: AtariState, after: AtariState) -> tuple[Array, Array, Array]:
    """Return what a painter needs to draw the step between two states: the emulator's state before it, the
    actions of its frames int32 [F] and their number. ``options`` are those of ``settings``.

    The emulator's state has no screen, and a game that is over plays no further frame; so the frames of the
    step are played again. If ``before`` and ``after`` are the same, at the start of an episode, two frames
    are played with the action in force. A step of one frame also plays a second one, since some games draw an
    object only in every other frame.
    """
    _, count, kept = _drawn(options, before)
    # The action after frames that keep the one before is in force at the end of a step.
    played = jnp.append(in_force(kept, before.last, after.last), after.last)
    count = jnp.where(before.steps == after.steps, 0, count)
    return before.ale, played, jnp.maximum(count, 2)


def painter(task: str, options: Mapping[str, Any]) -> Callable[[Any], Iterator[np.ndarray]]:
    """Return a function from poses [T] to screens uint8 [H, W, 3], each with the larger values of two frames,
    and one more if the game is over at the end; ``options`` are those of ``settings``."""
    ways = {"full_actions": options["actions"] == "full", "starts_lives": options["fire"] == "life"}
    console = Console(task, grey=False, merged=True, **ways)

    def draw(poses: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Iterator[np.ndarray]:
        for ale, played, count in zip(*poses, strict=True):
            state, screens, _, _, over = console.play(ale, console.codes[played], count)
            yield screens if screens.ndim == 3 else screens[-1]
        if over:
            yield from console.after_end(state, console.codes[played[-1]])

    return draw


def settings(task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a game with their values; ``frame_skip`` is (low, high).

    Raises:
        ValueError: there is no such option, or a value is out of range.
    """
    name = f"atari/{task}"
    given = check(name, options, _KINDS)
    o = {"preset": "dqn", "inexact": False, **given}
    for option, words in _WORDS.items():
        if o.get(option, words[0]) not in words:
            raise ValueError(f"{name}: option {option} must be one of {', '.join(words)}, got {o[option]!r}")
    o = {**_preset(task, o["preset"]), **o}
    skip = o["frame_skip"]
    low, high = (skip, skip) if isinstance(skip, int) else skip
    if not 1 <= low <= high or low % 1 or high % 1:
        raise ValueError(
            f"{name}: option frame_skip must be at least 1, or integers (low, high) of at least 1, got {skip}"
        )
    o["frame_skip"] = int(low), int(high)
    if not 0 <= o["sticky"] < 1:
        raise ValueError(f"{name}: option sticky must be in [0, 1), got {o['sticky']}")
    for option, least in (("noops", 0), ("episode_length", 1)):
        if o[option] < least:
            raise ValueError(f"{name}: option {option} must be at least {least}, got {o[option]}")
    if task in INEXACT and not o["inexact"]:
        raise ValueError(f"{name}: restored games do not always continue exactly; pass inexact=True")
    return o


def _preset(task: str, preset: str) -> dict[str, Any]:
    """Return the options of ``preset``, a column of the table above."""
    if preset == "universe":
        pong = task == "pong"
        return {
            "frame_skip": 4 if pong else (2, 4),
            "sticky": 0.0 if pong else 0.25,
            "view": "field42",
            "noops": 0,
            "cut_lives": False,
            "fire": "never",
            "actions": "minimal",
            "episode_length": 100_000 if pong else 10_000,
        }
    common = {"frame_skip": 4, "view": "grey84", "episode_length": 27_000}
    if preset == "machado":
        return {**common, "sticky": 0.25, "noops": 0, "cut_lives": False, "fire": "never", "actions": "full"}
    return {**common, "sticky": 0.0, "noops": 30, "cut_lives": True, "fire": "life", "actions": "minimal"}
