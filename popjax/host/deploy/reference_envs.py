"""Evaluation of policies in the original environments of Gymnasium, dm_control and ale-py, on the host.

The originals are unmodified and run MuJoCo in C with its own solver, so the difference in returns is the cost
of transferring a policy from MJX. Atari games are ale-py's environments with Gymnasium's preprocessing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from popjax import numerics, tree
from popjax.core import Env, Key, Method, Params, PyTree
from popjax.envs.episodic import rescale
from popjax.host.errors import Refused
from popjax.host.scaling import sweep

LIBRARIES = {"gym": "gymnasium", "atari": "gymnasium", "dmc": "dm_control"}
"""Original library of each suite."""
EXTRAS = {"gymnasium": "gym", "dm_control": "dmc"}
"""Extra of popjax that installs each original library."""
_ELSEWHERE = 0x4F524947


class Original(NamedTuple):
    """One original environment on the host.

    reset: seed -> obs [*obs]
    step:  action [A] in [-1, 1], or an integer [] -> (obs, reward, terminated, truncated); rescales the
           action as popjax does
    """

    reset: Callable[[int], np.ndarray]
    step: Callable[[np.ndarray], tuple[np.ndarray, float, bool, bool]]


def make(library: str, env: Env, options: Mapping[str, Any]) -> Original:
    """Return the original in ``library`` of ``env``, which was made with ``options``.

    Raises:
        Refused: the task is not from that library, the library is missing, or its observations differ.
    """
    suite, _, task = env.spec.name.partition("/")
    if suite not in LIBRARIES:
        raise Refused(
            f"{env.spec.name} has no original environment; --in plays tasks of gym/, dmc/ and atari/"
        )
    if library != LIBRARIES[suite]:
        raise Refused(f"{env.spec.name} is not a task of {library}; use --in {LIBRARIES[suite]}")
    rest = {key: value for key, value in options.items() if key not in ("episode_length", "impl")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning that version 4 is outdated
            build = {"gym": _gymnasium, "dmc": _dm_control, "atari": _atari}[suite]
            original = build(task, env.spec.episode_length, rest)
    except ImportError as absent:
        raise Refused(f"--in {library} needs {library}: pip install 'popjax[{EXTRAS[library]}]'") from absent
    if (shape := original.reset(0).shape) != env.spec.obs_shape:
        raise Refused(
            f"observations of {task} have shape {shape} in {library} and {env.spec.obs_shape} in popjax:"
            f" install another version of {library}"
        )
    return original


def _gymnasium(task: str, episode_length: int, options: dict[str, Any]) -> Original:
    import gymnasium

    env = gymnasium.make(task, max_episode_steps=episode_length, disable_env_checker=True, **options)
    space: Any = env.action_space
    to_action: Callable[[Any], Any] = rescale(space.low, space.high)

    def reset(seed: int) -> np.ndarray:
        return np.asarray(env.reset(seed=seed)[0], np.float32)

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        obs, reward, terminated, truncated, _ = env.step(to_action(action))
        return np.asarray(obs, np.float32), float(reward), bool(terminated), bool(truncated)

    return Original(reset, step)


def _atari(task: str, episode_length: int, options: dict[str, Any]) -> Original:
    """Return a game in ale-py's environment with Gymnasium's preprocessing.

    As in popjax, FIRE and the next action start an episode in games that have FIRE. With ``fire`` "life", a
    step without action follows each lost life in every game, and then these two. Their frames are hidden.
    With ``sticky``, actions of hidden frames are sticky, too, which they are not in popjax: ale-py sets
    stickiness once for the whole game.
    """
    from ale_py.env import AtariEnv
    from gymnasium.error import DependencyNotInstalled
    from gymnasium.wrappers import AtariPreprocessing

    from popjax.envs import atari
    from popjax.envs.atari.console import HIDDEN_FRAMES

    o = atari.settings(task, options)
    low, high = o["frame_skip"]
    if o["view"] != "grey84" or low != high:
        raise Refused("--in gymnasium needs view=grey84 and a frame_skip that is a single number")
    full = o["actions"] == "full"
    game = AtariEnv(task, frameskip=1, repeat_action_probability=o["sticky"], full_action_space=full)
    try:
        env = AtariPreprocessing(game, noop_max=o["noops"], frame_skip=high)
    except DependencyNotInstalled as absent:
        raise Refused("--in gymnasium plays Atari with OpenCV: pip install opencv-python") from absent
    meanings = game.get_action_meanings()
    begin = (1, 2) if len(meanings) >= 3 and meanings[1] == "FIRE" else ()
    seen: list[np.ndarray] = []
    steps = 0

    def look(frame: np.ndarray, anew: bool) -> np.ndarray:
        seen[:] = [frame] * atari.STACK if anew else [*seen[1:], frame]
        return np.stack(seen, -1)

    def hold(action: int) -> Any:
        """Play an action that starts a life, for HIDDEN_FRAMES frames whatever ``frame_skip`` is."""
        env.frame_skip = HIDDEN_FRAMES
        played: Any = env.step(action)
        env.frame_skip = high
        return played

    def reset(seed: int) -> np.ndarray:
        nonlocal steps
        steps = 0
        frame: Any = env.reset(seed=seed)[0]
        for action in begin if o["fire"] != "never" else ():
            frame = hold(action)[0]
        return look(frame, anew=True)

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        nonlocal steps
        steps, before = steps + 1, game.ale.lives()
        played: Any = env.step(int(action))
        frame, reward, over = played[:3]
        lost = 0 < game.ale.lives() < before and not over
        for hidden in (0, *begin) if lost and o["fire"] == "life" else ():
            if not over:
                frame, more, over = hold(hidden)[:3]
                reward += more
        obs = look(frame, anew=lost and o["cut_lives"])
        return obs, float(reward), bool(over), steps >= episode_length

    return Original(reset, step)


def _dm_control(task: str, episode_length: int, options: dict[str, Any]) -> Original:
    from dm_control import suite
    from dm_control.rl.control import PhysicsError

    domain, _, kind = task.partition("-")
    # Half a step less than the limit, so that no rounding of seconds adds a step.
    limit = (episode_length - 0.5) * suite.load(domain, kind).control_timestep()
    env = suite.load(domain, kind, task_kwargs={"time_limit": limit, **options})
    bounds = env.action_spec()
    to_action: Callable[[Any], Any] = rescale(bounds.minimum, bounds.maximum)

    def flat(observation: Mapping[str, Any]) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)

    def reset(seed: int) -> np.ndarray:
        env.task.random.seed(seed)
        return flat(env.reset().observation)

    def step(action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        try:
            timestep = env.step(to_action(action))
        except PhysicsError:  # the simulation has diverged; the episode ends as in popjax
            return np.zeros_like(flat(env.reset().observation)), 0.0, True, False
        terminated = timestep.last() and timestep.discount == 0
        return (
            flat(timestep.observation),
            float(timestep.reward),
            terminated,
            timestep.last() and not terminated,
        )

    return Original(reset, step)


@numerics.standardized
def evaluate(
    method: Method, originals: Sequence[Original], state: Any, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Play the policies of ``state`` [S, ...] for an episode in each of E originals, in lockstep.

    Return undiscounted returns float32 [S, E] and lengths int32 [S, E] in environment steps. Equal seeds give
    equal episodes, the same for every policy.
    """
    seeds, episodes = jax.tree.leaves(state)[0].shape[0], len(originals)
    policies = jax.jit(sweep.lift(method.policy, seeds))(state)

    @jax.jit
    def act(params: Params, key: Key, memory: PyTree, obs: Array, t: Array) -> tuple[PyTree, Array]:
        keys = jax.random.split(jax.random.fold_in(key, t), episodes)
        act = jax.vmap(method.act, in_axes=(None, 0, 0, 0, None))
        return act(params, memory, obs, keys, 0.0)[:2]

    key, fresh = jax.random.fold_in(jax.random.key(seed), _ELSEWHERE), tree.repeat(method.memory, episodes)
    starts = [int(start) for start in np.random.SeedSequence(seed).generate_state(episodes)]
    played = [
        _play(originals, starts, partial(act, tree.take(policies, place), key), fresh)
        for place in range(seeds)
    ]
    returns, lengths = zip(*played, strict=True)
    return np.stack(returns), np.stack(lengths)


def _play(
    originals: Sequence[Original],
    starts: Sequence[int],
    act: Callable[[PyTree, np.ndarray, np.int32], tuple[PyTree, Array]],
    memory: PyTree,
) -> tuple[np.ndarray, np.ndarray]:
    """Play an episode in each original; return returns float32 [E] and lengths int32 [E].

    ``act`` maps ``memory`` [E, ...], the observations [E, D] and the time to new memory and actions; actions
    for episodes that have ended are ignored.
    """
    obs = np.stack([original.reset(start) for original, start in zip(originals, starts, strict=True)])
    total, length = np.zeros(len(originals)), np.zeros(len(originals), np.int32)
    alive = np.ones(len(originals), bool)
    while alive.any():
        memory, said = act(memory, obs, length.max())
        action = np.asarray(said)
        for lane in np.flatnonzero(alive).tolist():
            obs[lane], reward, terminated, truncated = originals[lane].step(action[lane])
            total[lane] += reward
            length[lane] += 1
            alive[lane] = not (terminated or truncated)
    return total.astype(np.float32), length
