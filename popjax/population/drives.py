"""Drives of a population: rewards added to the task's, in one record that every method can use.

A method with a field ``drive: drives.AnyConfig | None`` in its Config and the drive's Hyper in
``hyper.drive`` (``with_drive``) carries the drive's state in its own State and calls::

    drive = drives.build(env.spec, config.drive, population, lanes)
    lanes_env = drive.env(rollout.autoreset(env))  # as the agents see it, DIAYN's skill included
    held = drive.observe(held, rows, done, valid, hyper)  # after playing [T, P, N]
    paid, bonus = drive.pay(held, rows, hyper)  # before a gradient step, which learns from paid
    held, losses = drive.learn(held, rows, own, pairs, hyper, key)  # after it
    drive.act(agent.act), drive.deploy(held, policies)  # for the Method

Returns and fitness stay the task's.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, kinds, tree
from popjax.core import Act, Choice, Env, Eyes, Intrinsic, Key, Params, PyTree, Spec, Transition
from popjax.intrinsic import contrastive, diayn, rnd
from popjax.replay import episodes
from popjax.rollout import Episode

AnyConfig: TypeAlias = contrastive.Config | rnd.Config | diayn.Config
NoveltyConfig: TypeAlias = contrastive.Config | rnd.Config
NOVELTY: dict[str, NoveltyConfig | None] = {"none": None, "collab": contrastive.Config(), "rnd": rnd.Config()}
"""The kinds that leave observations unchanged, for methods whose individuals have no skills."""
KINDS: dict[str, AnyConfig | None] = {**NOVELTY, "diayn": diayn.Config()}
"""All kinds of drive by their names on the command line."""
Pairs: TypeAlias = Callable[[Key], tuple[Array, Array, Array]]
"""``key -> (anchors [B, *obs], positives [B, *obs], valid bool [B])``: states of one episode a few steps
apart, such as ``replay.episodes.pairs``."""


class Drive(NamedTuple):
    """A reward added to the task's for ``P`` agents. ``hyper`` has the drive's Hyper in its field ``drive``.

    init:    key -> state
    observe: (state, rows [T, P, N], done [T, P, N], valid [T, P, N], hyper) -> state that has seen these
             steps, in order of time
    pay:     (state, rows, hyper) -> (rows [P, B], rewarded by task and drive; mean [P] of the drive's bonus).
             ``rows`` are each agent's own [P, B], or common ones [B]
    learn:   (state, rows, own, Pairs, hyper, key) -> (state, losses [] each). ``own`` bool [P, B] marks
             each agent's own among common rows, or the rows that count among [P, B]; None: all
    env:     self-resetting Env -> the Env that the agents play
    act:     Act on the agents' observations -> Act on the task's
    deploy:  (state, policies [P]) -> parameters [P] for that ``act``
    horizon: largest distance of two states of ``Pairs``, environment steps; 0: no pairs are needed
    see:     (state, parameters of the first agent's ``Agent.eyes``) -> state that encodes images by them;
             None for a drive with its own encoder
    hand_over: (state, source int32 [P], fresh bool [P], amid bool [P], key) -> state in which each agent has
             the module of ``source``, a new one if ``fresh``; where ``amid``, another agent began
             the episodes under way in its lanes. None: no agent has a module of its own
    """

    init: Callable[[Key], PyTree]
    observe: Callable[..., PyTree]
    pay: Callable[..., tuple[Transition, PyTree]]
    learn: Callable[..., tuple[PyTree, PyTree]]
    env: Callable[[Env], Env] = lambda env: env
    act: Callable[[Act], Act] = lambda act: act
    deploy: Callable[[PyTree, Params], Params] = lambda state, policies: policies
    horizon: int = 0
    see: Callable[[PyTree, Params], PyTree] | None = None
    hand_over: Callable[..., PyTree] | None = None


def build(
    spec: Spec, config: AnyConfig | None, population: int, lanes: int, eyes: Eyes | None = None
) -> Drive:
    """Return the drive of ``config`` for ``population`` agents with ``lanes`` environments each.

    If ``config`` is a user's own, its module's ``build`` makes an ``Intrinsic`` for each agent, which learns
    from that agent's transitions. A drive with torso "auto" has convolutions of the same shape as
    the agents' ``eyes``, if given, else those that fit the observations. A caller with ``eyes`` must call
    ``see`` before ``pay`` and ``learn``.

    Raises:
        ValueError: the drive cannot read the observations of the task, or needs ``eyes``; or ``config`` is
            not a drive's.
    """
    if config is None:
        return none(population)
    module, kind = _module(config), cast(Any, config)
    if eyes is not None and isinstance(config, contrastive.Config | rnd.Config) and config.torso == "auto":
        kind = replace(kind, torso=eyes.torso)
    if module is contrastive:
        return collaborative(spec, kind, population, lanes, eyes)
    if module is diayn:
        return skills(spec, kind, population, lanes)
    modules = kind.modules if module is rnd else "own"
    made = module.build(spec, kind, (population, lanes) if modules == "one" else (lanes,))
    return lifted(made, population, shared=modules == "one", own=modules == "own")


def check_novelty(config: AnyConfig | None, who: str) -> None:
    """Check that a drive, if any, does not change observations, so that individuals without it, named ``who``
    in errors, can use the same policies.

    Raises:
        ValueError: the drive has skills.
    """
    if isinstance(config, diayn.Config):
        raise ValueError(
            f"drive diayn adds a skill to the observations, which {who} cannot use; set drive collab, rnd or"
            " none"
        )


def default_hyper(config: AnyConfig | None) -> PyTree:
    """Return the default ``Hyper`` of the drive of ``config``; None without a drive."""
    return None if config is None else _module(config).Hyper()


def _module(config: Any) -> ModuleType:
    return kinds.home(config, "a drive", [name for name in KINDS if name != "none"])


def hyper_of(config: Any) -> PyTree:
    """Return the default Hyper of the agents ``config.agent``, extended by that of ``config.drive``."""
    return with_drive(agents.default_hyper(config.agent), config.drive)


def with_drive(hyper: Any, config: AnyConfig | None) -> Any:
    """Return an agent's ``Hyper`` with the drive's in a field ``drive``; unchanged without a drive."""
    return hyper if config is None else extended(hyper, drive=default_hyper(config))


def extended(hyper: Any, **further: Any) -> Any:
    """Return a ``Hyper`` with ``further`` fields appended."""
    own = {field.name: getattr(hyper, field.name) for field in fields(hyper)}
    return _extended(hyper.__class__, tuple(further))(**own, **further)


class _Extended(type):
    """The type of extended ``Hyper`` classes, which pickle has to rebuild: no module holds them by name."""


@cache
def _extended(kind: type, names: tuple[str, ...]) -> Any:
    body = {"__annotations__": dict.fromkeys(names, Any), "__doc__": kind.__doc__, **dict.fromkeys(names)}
    # --help finds the comments of the fields by these two (by the line from Python 3.13 on).
    source = {name: vars(kind)[name] for name in ("__module__", "__firstlineno__") if name in vars(kind)}
    return struct.dataclass(_Extended(kind.__name__, (kind,), body | source))


def _reduced(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return how pickle rebuilds an extended class: programs are stored with their arguments' classes."""
    base = kind.__base__
    return _extended, (base, tuple(field.name for field in fields(kind)[len(fields(base)) :]))


copyreg.pickle(_Extended, _reduced)


def none(population: int) -> Drive:
    """Return a drive that adds nothing to the task's reward."""
    return Drive(
        init=lambda key: None,
        observe=lambda state, *_: state,
        pay=lambda state, rows, hyper: (_everybodys(rows, population), None),
        learn=lambda state, *_: (state, None),
    )


def collaborative(
    spec: Spec, config: contrastive.Config, population: int, lanes: int, eyes: Eyes | None = None
) -> Drive:
    """Return the collaborative novelty of equations 2 to 4: a bank of states for each agent and one encoder
    for all, which takes ``config.steps`` gradient steps per call of ``learn``."""
    module = contrastive.build(spec, config, (lanes,), None if eyes is None else eyes.network)
    axes: dict[str, Any] = {"encoder": None, "optimizer": None, "bank": 0, "clock": 0, "eyes": None}
    by_bank = contrastive.State(**axes)

    def init(key: Key) -> contrastive.State:
        state = module.init(key)
        banks, clocks = tree.repeat((state.bank, state.clock), population)
        return replace(state, bank=banks, clock=clocks)

    def observe(state: Any, rows: Transition, done: Array, valid: Array, hyper: Any) -> contrastive.State:
        each = jax.vmap(module.observe, (by_bank, 1, 1, 1, None), by_bank)
        return each(state, rows, done, valid, hyper.drive)

    def bonus(state: contrastive.State, rows: Transition, hyper: Any) -> Array:
        """Return [P, B]: the reward of each agent for each of its rows."""
        common = rows.reward.ndim == 1
        novelty = jax.vmap(module.reward, (by_bank, None))(state, rows if common else tree.flatten(rows)).T
        if common:
            return contrastive.collaborative(novelty, hyper.drive.ego_weight, config.others).T
        novelty = novelty.reshape(*rows.reward.shape, population)
        place = jnp.arange(population)
        return contrastive.collaborative(novelty, hyper.drive.ego_weight, config.others)[place, :, place]

    def learn(
        state: contrastive.State, rows: Transition, own: Any, pairs: Pairs, hyper: Any, key: Key
    ) -> tuple[contrastive.State, contrastive.Losses]:
        def step(state: contrastive.State, key: Key) -> tuple[contrastive.State, contrastive.Losses]:
            anchors, positives, valid = pairs(key)
            none = jnp.zeros(len(valid))
            near = Transition(anchors, none, none, none, positives)
            return module.learn(state, near, jnp.float32(valid), hyper.drive, key)

        if not config.trained:
            return state, contrastive.Losses(jnp.float32(0))
        # Gradient steps do not read the banks, so these stay out of the loop.
        no_bank: dict[str, Any] = {"bank": None, "clock": None}
        bare = replace(state, **no_bank)
        learned, losses = jax.lax.scan(step, bare, jax.random.split(key, config.steps))
        return replace(learned, bank=state.bank, clock=state.clock), tree.take(losses, -1)

    def see(state: contrastive.State, eyes: Params) -> contrastive.State:
        """Encode images by the first agent's ``eyes``, or by the last finite ones if these have diverged."""
        return replace(state, eyes=tree.where(tree.finite(eyes, 0), eyes, state.eyes))

    drive = Drive(init, observe, _paying(bonus, population), learn, horizon=config.horizon * config.trained)
    return drive._replace(see=see) if config.encoder == "critic" else drive


def lifted(module: Intrinsic, population: int, *, shared: bool = False, own: bool = True) -> Drive:
    """Return a drive that gives each of ``population`` agents a module, or all of them one if ``shared``.

    If ``own``, a module learns from its agent's transitions, else from all agents'.
    """

    def init(key: Key) -> PyTree:
        return module.init(key) if shared else jax.vmap(module.init)(jax.random.split(key, population))

    def observe(state: PyTree, rows: Transition, done: Array, valid: Array, hyper: Any) -> PyTree:
        if shared:
            return module.observe(state, rows, done, valid, hyper.drive)
        return jax.vmap(module.observe, (0, 1, 1, 1, None))(state, rows, done, valid, hyper.drive)

    def bonus(state: PyTree, rows: Transition, hyper: Any) -> Array:
        common = rows.reward.ndim == 1
        if shared:
            paid = module.reward(state, rows if common else tree.flatten(rows))
            return (
                jnp.broadcast_to(paid, (population, len(paid))) if common else paid.reshape(rows.reward.shape)
            )
        return jax.vmap(module.reward, (0, None if common else 0))(state, rows)

    def learn(
        state: PyTree, rows: Transition, mine: Array | None, pairs: Pairs, hyper: Any, key: Key
    ) -> tuple[PyTree, PyTree]:
        pooled, weight = shared or not own, jnp.ones(rows.reward.shape)
        if mine is not None and (rows.reward.ndim == 2 or not pooled):
            weight = jnp.float32(mine)
        if pooled and rows.reward.ndim == 2:
            rows, weight = tree.flatten((rows, weight))
        if shared:
            return module.learn(state, rows, weight, hyper.drive, key)
        weight = weight if weight.ndim == 2 else tree.repeat(weight, population)
        each = jax.vmap(module.learn, (0, None if rows.reward.ndim == 1 else 0, 0, None, 0))
        state, losses = each(state, rows, weight, hyper.drive, jax.random.split(key, population))
        return state, jax.tree.map(jnp.mean, losses)

    def hand_over(state: PyTree, source: Array, fresh: Array, amid: Array, key: Key) -> PyTree:
        return tree.where(fresh, init(key), tree.take(state, source))

    own_modules = None if shared else hand_over
    return Drive(init, observe, _paying(bonus, population), learn, hand_over=own_modules)


def skills(spec: Spec, config: diayn.Config, population: int, lanes: int) -> Drive:
    """Return DIAYN's drive: each episode has a skill, and states are rewarded for revealing it.

    Each agent has its own skills and discriminator. It is deployed with the skill whose latest episode had
    the highest return in the task.
    """
    drive = lifted(diayn.build(spec, config, (lanes,)), population)

    def hand_over(state: diayn.State, source: Array, fresh: Array, amid: Array, key: Key) -> diayn.State:
        assert drive.hand_over is not None
        state = drive.hand_over(state, source, fresh, amid, key)
        return replace(state, running=jnp.where(amid[:, None], -jnp.inf, state.running))

    return drive._replace(
        hand_over=hand_over,
        env=lambda env: diayn.skilled(env, config.skills),
        act=lambda act: skill_act(act, config.skills),
        deploy=lambda state, policies: (policies, jax.vmap(lambda one: one.best)(state)),
    )


def after_episodes(
    drive: Drive, state: PyTree, played: Episode, generation: Array, hyper: Any
) -> tuple[Transition, PyTree]:
    """Return the Transitions [E, T] of whole episodes, numbered if the drive needs pairs, and the drive's
    state after observing them as E lanes of one learner."""
    rows, valid = played.steps, played.valid
    count = valid.shape[0]
    number = jnp.broadcast_to((generation * count + jnp.arange(count))[:, None], valid.shape)
    ends = jnp.arange(valid.shape[1]) == played.length[:, None] - 1
    stream, done, valid = jax.tree.map(
        lambda x: jnp.moveaxis(x, 1, 0)[:, None], (episodes.numbered(rows, number), ends, valid)
    )  # [T, 1, E]
    state = drive.observe(state, stream, done, valid, hyper)
    return episodes.numbered(rows, number) if drive.horizon else rows, state


def skill_act(act: Act, skills: int) -> Act:
    """Return an Act on the task's observations, given the ``act`` of an agent that also observes a skill.

    Its parameters are (policy, skill int32 []).
    """

    def act_with_skill(
        params: tuple[Params, Array], memory: PyTree, obs: Array, key: Key, scale: Array | float
    ) -> Choice:
        policy, skill = params
        return act(policy, memory, diayn.with_skill(obs, skill, skills), key, scale)

    return act_with_skill


def _paying(
    bonus: Callable[[PyTree, Transition, Any], Array], population: int
) -> Callable[..., tuple[Transition, Array]]:
    """Return ``Drive.pay`` of a drive that gives ``bonus(state, rows, hyper)`` [P, B]."""

    def pay(state: PyTree, rows: Transition, hyper: Any) -> tuple[Transition, Array]:
        added = jnp.asarray(hyper.drive.weight)[..., None] * bonus(state, rows, hyper)
        everybodys = _everybodys(rows, population)
        return replace(everybodys, reward=everybodys.reward + added), added.mean(1)

    return pay


def _everybodys(rows: Transition, population: int) -> Transition:
    """Return rows [P, B], repeating common rows [B] for every agent."""
    return rows if rows.reward.ndim == 2 else tree.repeat(rows, population)
