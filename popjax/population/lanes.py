"""Environment lanes ``[P, N]``: ``N`` copies of a task for each of ``P`` individuals, played in vector steps.

Environments reset themselves (``rollout.autoreset``), so a lane never stops. The physics of a vector step is
compiled once for every call of ``step`` or ``play``; let one call serve all individuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import rollout, tree
from popjax.contract import checked
from popjax.core import Act, Choice, Env, Key, Params, PyTree, Timestep, Trajectory, Transition, transition
from popjax.replay import episodes as numbering
from popjax.replay import packed
from popjax.replay.episodes import Episodic

ActAll: TypeAlias = Callable[[PyTree, Array, Key], Any]
"""``(memory [P, N, ...], obs [P, N, *obs], key) -> Choice [P, N, ...]``, or another record with its
``memory`` and ``action``; ``policy.everyone`` makes one."""
Record: TypeAlias = Callable[["Lanes", Any, Timestep], Any]
"""``(lanes before the step, choice, timestep), [P, N] each -> the rows of this step that are kept``."""


@struct.dataclass
class Recent:
    """Returns of a lane's last K episodes that one individual has played from the beginning.

    returns: float32 [P, N, K] the newest first.
    count:   int32 [P, N]      number of them so far, at most K.
    whole:   bool [P, N]       whether the current individual has played the episode under way from its start.
    """

    returns: Array
    count: Array
    whole: Array

    @property
    def valid(self) -> Array:
        """bool [P, N, K] whether an entry is the return of an episode."""
        return jnp.arange(self.returns.shape[-1]) < self.count[..., None]


@struct.dataclass
class Account:
    """Returns and lengths of a lane's episodes, [P, N] each.

    running:       float32  return of the episode under way.
    length:        int32    its environment steps so far.
    latest:        float32  return of the last finished episode; of the one under way before any has finished.
    latest_length: int32    environment steps of the same episode.
    episodes:      int32    finished episodes.
    recent:        Recent   the last of them; None if none are kept.
    """

    running: Array
    length: Array
    latest: Array
    latest_length: Array
    episodes: Array
    recent: Recent | None = None


@struct.dataclass
class Lanes:
    """Lanes between two vector steps, [P, N]: environment states, observations to act on, the memory of the
    policy that acts, and the account of episodes."""

    env: PyTree
    obs: Array
    memory: PyTree
    account: Account

    @property
    def fitness(self) -> Array:
        """float32 [P] return of the last finished episode, mean over an individual's lanes."""
        return self.account.latest.mean(1)

    @property
    def episodes(self) -> Array:
        """int32 [P] episodes that an individual's lanes have finished."""
        return self.account.episodes.sum(1)


def start(env: Env, key: Key, shape: tuple[int, int], memory: PyTree = (), recent: int = 0) -> Lanes:
    """Return lanes ``shape`` = (P, N) of an ``autoreset`` environment, each at the beginning of an episode.

    memory: of a policy at the start of an episode.
    recent: past episodes that the account of a lane keeps.
    """
    flat = jax.vmap(env.reset)(jax.random.split(key, shape).reshape(-1))  # one axis, as in ``step``
    states, obs = _apart(flat, shape)
    zero, none = jnp.zeros(shape), jnp.zeros(shape, jnp.int32)
    memory = tree.repeat(tree.repeat(memory, shape[1]), shape[0])
    whole = jnp.ones(shape, jnp.bool_)
    remembered = Recent(jnp.zeros((*shape, recent)), none, whole) if recent else None
    return Lanes(states, obs, memory, Account(zero, none, zero, none, none, remembered))


def step(env: Env, lanes: Lanes, choice: Any, fresh: PyTree = ()) -> tuple[Lanes, Timestep]:
    """Play one vector step of an ``autoreset`` environment; return the lanes after it and the Timestep [P,
    N].

    ``fresh`` is the memory with which the policy begins a new episode in lanes where one has ended.
    """
    # One axis instead of two: programs of physics are traced and compiled faster.
    flat = jax.vmap(env.step)(*tree.flatten((lanes.env, choice.action)))
    states, timestep = _apart(flat, lanes.obs.shape[:2])
    memory = tree.where(~timestep.done, choice.memory, fresh)
    account = track(lanes.account, timestep.reward, timestep.done)
    return Lanes(states, timestep.obs, memory, account), timestep


def _apart(flat: Any, shape: tuple[int, ...]) -> Any:
    """Return leaves [P * N, ...] as [P, N, ...]."""
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)


def play(
    env: Env, act: ActAll, lanes: Lanes, key: Key, length: int, record: Record, fresh: PyTree = ()
) -> tuple[Lanes, Any]:
    """Play ``length`` vector steps; return the lanes after them, and the rows that ``record`` kept, [T, P, N,
    ...]."""

    def one(lanes: Lanes, key: Key) -> tuple[Lanes, Any]:
        choice = act(lanes.memory, lanes.obs, key)
        after, timestep = step(env, lanes, choice, fresh)
        return after, packed.bundle(record(lanes, choice, timestep), lead=lanes.obs.shape[:2])

    after, rows = jax.lax.scan(one, lanes, jax.random.split(key, length))
    return after, packed.unbundle(rows)


def episodes(
    env: Env,
    act: Act,
    params: Params,
    memory: PyTree,
    key: Key,
    *,
    scale: Array | float,
    record: rollout.Record,
) -> rollout.Episode:
    """Play one whole episode with each of ``params`` [E]; return rows [E, T], valid [E, T], returns and
    lengths [E].

    Rows of a policy that has diverged, whose parameters or return are not finite, are not valid: they would
    corrupt a replay and all agents that learn from it. Its return and length are as played.

    memory: [E] with which a policy begins its episode; ``carry`` [E] of the result is its memory at the end.
    scale:  [E] of the exploration, or a number for all; 0.0 draws no noise.
    record: ``(obs, action, timestep) -> row that is kept of a step``.
    """
    one = _episode(env, act, scale, record)
    count = jax.tree.leaves(params)[0].shape[0]
    scales = jnp.asarray(scale) if jnp.ndim(scale) else None
    return jax.vmap(one)(params, memory, jax.random.split(key, count), scales)


def trials(
    env: Env, act: Act, policy: Params, key: Key, count: int, *, record: rollout.Record
) -> rollout.Episode:
    """Play ``count`` greedy episodes with one ``policy`` without a memory; return them as ``episodes`` does,
    E = ``count``.

    The episodes read the same parameters, which are not copied for each of them.
    """
    one = _episode(env, act, 0.0, record)
    return jax.vmap(one, (None, None, 0, None))(policy, (), jax.random.split(key, count), None)


def _episode(
    env: Env, act: Act, scale: Array | float, record: rollout.Record
) -> Callable[..., rollout.Episode]:
    """Return ``(params, memory, key, scale or None) -> Episode`` of one policy."""
    env = checked(env)

    def one(params: Params, memory: PyTree, key: Key, own: Array | None) -> rollout.Episode:
        def choose(memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
            return act(params, memory, obs, key, scale if own is None else own)[:2]

        played = rollout.episode(env, choose, memory, key, record=record)
        return replace(played, valid=played.valid & tree.finite(params, 0) & jnp.isfinite(played.total))

    return one


def keep_transitions(discount: Array | float, timeout_is_terminal: bool = False) -> Record:
    """Return the ``record`` of a learner with a replay: a ``Transition`` with gamma ``discount`` [] or
    [P]."""

    def record(lanes: Lanes, choice: Choice, timestep: Timestep) -> Transition:
        gamma = tree.align(discount, timestep.reward)
        return transition(lanes.obs, choice.action, timestep, gamma, timeout_is_terminal)

    return record


def keep_trajectory(discount: Array | float, timeout_is_terminal: bool = False) -> Record:
    """Return the ``record`` of an on-policy learner: a row of a ``Trajectory`` without the memory before
    it."""
    transitions = keep_transitions(discount, timeout_is_terminal)

    def record(lanes: Lanes, choice: Choice, timestep: Timestep) -> Trajectory:
        row = transitions(lanes, choice._replace(action=choice.sampled), timestep)
        return Trajectory(**vars(row), done=timestep.done, log_prob=choice.log_prob)

    return record


def numbered(record: Record) -> Record:
    """Return ``record`` with the number of the episode added to every row, and two flags: ``(Episodic, done,
    anew)``.

    The flags mark where an episode ended and where observations begin anew; drives, ``replay.episodes`` and
    ``replay.frames`` need them.
    """

    def with_episodes(lanes: Lanes, choice: Choice, timestep: Timestep) -> tuple[Episodic, Array, Array]:
        row = record(lanes, choice, timestep)
        return numbering.numbered(row, lanes.account.episodes), timestep.done, timestep.anew

    return with_episodes


def owner(slots: Array, shape: tuple[int, int]) -> Array:
    """Return the individuals whose lanes wrote the ``slots`` of a ring that all lanes ``shape`` = (P, N) fill
    in order of time."""
    return slots % (shape[0] * shape[1]) // shape[1]


def trajectories(rows: Trajectory, before: PyTree) -> Trajectory:
    """Return the rows [T, P, N] of ``play`` as a Trajectory of each individual, [P, T, N], begun with the
    memory ``before`` [P, N]."""
    by_individual = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)
    return replace(by_individual, memory=jax.tree.map(lambda x: x[:, None], before))


def track(account: Account, reward: Array, done: Array) -> Account:
    """Return the account after a step with ``reward`` and ``done``, [P, N] each."""
    chex.assert_equal_shape([account.running, reward, done])
    running, length = account.running + reward, account.length + 1
    shown = done | (account.episodes == 0)
    return Account(
        running=jnp.where(done, 0.0, running),
        length=jnp.where(done, 0, length),
        latest=jnp.where(shown, running, account.latest),
        latest_length=jnp.where(shown, length, account.latest_length),
        episodes=account.episodes + done,
        recent=account.recent and _remember(account.recent, running, done),
    )


def _remember(recent: Recent, returns: Array, done: Array) -> Recent:
    """Return ``recent`` with the ``returns`` [P, N] of whole episodes that are ``done`` put first."""
    shifted = jnp.concatenate([returns[..., None], recent.returns[..., :-1]], -1)
    count = jnp.minimum(recent.count + 1, recent.returns.shape[-1])
    after = Recent(shifted, count, jnp.ones_like(done))
    return tree.where(done & recent.whole, after, replace(recent, whole=recent.whole | done))


def taken_over(lanes: Lanes, amid: Array, fresh: PyTree = ()) -> Lanes:
    """Return lanes [P, N] that other individuals have taken over, in the middle of an episode, where ``amid``
    bool [P].

    These episodes are not remembered (``Recent``), and the policy goes on with the memory ``fresh``, since
    another network's memory is meaningless to it.
    """
    recent = lanes.account.recent
    assert recent is not None
    account = replace(lanes.account, recent=replace(recent, whole=recent.whole & ~amid[:, None]))
    memory = tree.where(~amid, lanes.memory, fresh)
    return replace(lanes, memory=memory, account=account)
