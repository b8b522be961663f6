"""Agents of a cooperating team: their kinds, their turns, and the transfer of policies; see ``cspc``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import agents, nets, tree
from popjax.core import Agent, Key, OnPolicyAgent, Params, PyTree, Spec, Transition, continuous_dims
from popjax.methods.cspc_config import Config, Evolution, Hyper, check_on_policy
from popjax.population import exchange, learning, players
from popjax.population.drives import Drive, Pairs
from popjax.population.exchange import MeanNetwork
from popjax.population.players import OffPolicy, OnPolicy, Player, Search

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")


class Team(NamedTuple, Generic[A, B, C]):
    """A value for each agent: the global one, the local ones and the global one's copies; None for an agent
    that is missing."""

    off_policy: A | None
    on_policy: B | None
    evolution: C | None
    copies: tuple[A, ...] = ()

    @property
    def learners(self) -> tuple[A, ...]:
        """Values of the global agent and its copies."""
        return () if self.off_policy is None else (self.off_policy, *self.copies)

    @property
    def everybody(self) -> tuple[Any, ...]:
        """Values of all agents of the team, in the order of the rows of scores and labels."""
        local = (self.off_policy, self.on_policy, self.evolution, *self.copies)
        return tuple(one for one in local if one is not None)

    def of(self, values: Iterable[T]) -> Team[T, T, T]:
        """Return a team of other ``values``, given in the order of the rows."""
        left = iter(values)

        def next_of(one: Any) -> Any:
            return None if one is None else next(left)

        local = next_of(self.off_policy), next_of(self.on_policy), next_of(self.evolution)
        return Team(*local, copies=tuple(next(left) for _ in self.copies))


States: TypeAlias = Team[OffPolicy, OnPolicy, Search]
"""The states of the agents."""


class Roster(NamedTuple):
    """The agents of a team, as functions.

    off_policy: the kind of the global agent and its copies.
    on_policy:  the kind of the on-policy agent.
    players:    the functions of each agent.
    rows:       the row of each agent in scores, labels and metrics.
    size:       the number of agents.
    network:    the mean network that all share.
    """

    off_policy: Agent | None
    on_policy: OnPolicyAgent | None
    players: Team[Player, Player, Player]
    rows: Team[int, int, int]
    size: int
    network: MeanNetwork


@struct.dataclass
class Driven:
    """The drive's state, its mean bonus [] in the global agent's last batch, and its losses there; None
    each without a drive."""

    state: PyTree
    bonus: Array | None
    losses: PyTree


class Part(NamedTuple):
    """The place where an agent trains: its turn, and its lanes in that turn."""

    turn: int
    lanes: slice


class Turns(NamedTuple):
    """The K turns of a team, each with up to W lanes.

    parts:  where each agent trains.
    sizes:  [K] number of lanes of each turn.
    owners: int32 [K, W] the row of the agent that trains in a lane; P for tests and unused lanes.
    """

    parts: Team[Part, Part, Part]
    sizes: np.ndarray
    owners: np.ndarray

    @property
    def tests(self) -> int:
        """The turn of the tests."""
        return len(self.sizes) - 1

    @property
    def width(self) -> int:
        """The lanes of the largest turn."""
        return int(self.sizes.max())


def present(part: T | None) -> T:
    """Return ``part``, the value of an agent that must not be missing."""
    assert part is not None
    return part


def gather(spec: Spec, config: Config) -> Roster:
    """Return the agents of the team.

    Raises:
        ValueError: the agents cannot play the task, or cannot take over each other's policies.
    """
    continuous_dims(spec, "cspc")
    off_policy, learner, copies = _off_policy(spec, config)
    on_policy, local = _on_policy(spec, config)
    search = None if config.evolution is None else _search(spec, config.evolution)
    everybody = Team(learner, local, search, copies)
    named = {"off_policy": learner, "on_policy": local, "evolution": search}
    networks = {name: player.network for name, player in named.items() if player is not None}
    exchange.check_alike(spec, networks)
    rows, network = everybody.of(range(config.agents)), everybody.everybody[0].network
    return Roster(off_policy, on_policy, everybody, rows, config.agents, network)


def _off_policy(spec: Spec, config: Config) -> tuple[Agent | None, Player | None, tuple[Player, ...]]:
    """Return the kind of the global agent, its player and its copies' players."""
    if config.off_policy is None:
        return None, None, ()
    agent = agents.build(spec, config.off_policy)
    agent = agent._replace(learn=learning.traced_once(agent.learn))
    own = agent, agents.default_hyper(config.off_policy), spec, config.lanes
    scale = float(config.test == "sample")
    one = partial(players.off_policy, *own, batch=config.batch, test_scale=scale, burst=config.burst)
    # Copies that take over policies need no random actions to begin with.
    copies = (one(warmup=0 if config.transfer else config.warmup),) * config.copies
    return agent, one(warmup=config.warmup), copies


def _on_policy(spec: Spec, config: Config) -> tuple[OnPolicyAgent | None, Player | None]:
    """Return the kind of the on-policy agent, and its player."""
    if config.on_policy is None:
        return None, None
    check_on_policy(spec, config)
    length = config.rollout(spec.episode_length)
    agent = agents.build_on_policy(spec, config.on_policy, config.on_policy_lanes * length)
    agent = agent._replace(learn=learning.traced_once(agent.learn))
    return agent, players.on_policy(
        agent,
        agents.default_hyper(config.on_policy),
        spec,
        config.on_policy_lanes,
        length=length,
        by_episode=config.on_policy_update == "episode",
        test_scale=float(config.test == "sample"),
    )


def _search(spec: Spec, config: Evolution) -> Player:
    """Return the player of evolution."""
    actor = nets.tanh_actor(
        *continuous_dims(spec, "cspc"),
        config.hidden,
        activation=config.activation,
        initializer="uniform_zero_bias",
        final_initializer="uniform_fan_in",
    )
    return players.search(actor, config.cem, slots=2, tests_best=config.score == "best")


def turns(roster: Roster, config: Config) -> Turns:
    """Return the turns of ``roster``: one for each agent or, if fused, one for all; and the tests."""
    counts = [player.lanes for player in roster.players.everybody]
    first = np.cumsum([0, *counts]) * config.fused
    parts = [
        Part(0 if config.fused else row, slice(first[row], first[row] + count))
        for row, count in enumerate(counts)
    ]
    sizes = np.array([*([sum(counts)] if config.fused else counts), roster.size * config.trials])
    owners = np.full((len(sizes), sizes.max()), roster.size, np.int32)
    for row, part in enumerate(parts):
        owners[part.turn, part.lanes] = row
    return Turns(roster.rows.of(parts), sizes, owners)


def hypers(roster: Roster, hyper: Hyper) -> Team[Any, Any, Any]:
    """Return the Hyper of each agent."""
    rows = roster.rows
    return Team(
        off_policy=None if rows.off_policy is None else hyper.off_policy,
        on_policy=None if rows.on_policy is None else hyper.on_policy,
        evolution=None if rows.evolution is None else hyper.cem,
        copies=(hyper.off_policy,) * len(rows.copies),
    )


def near(rows: Transition) -> Pairs:
    """Return the function that pairs each state with its successor; states farther apart would have rows of
    other lanes between them."""
    return lambda key: (rows.obs, rows.next_obs, jnp.ones(rows.reward.shape, jnp.bool_))


def lesson(
    agent: Agent, drive: Drive, row: int, draw: Callable[[Key], Transition], hyper: Hyper, *, teaches: bool
) -> learning.Update:
    """Return a gradient step of the off-policy agent in ``row`` on a batch that ``draw`` makes and the drive
    rewards; if it ``teaches``, the drive learns from the same batch."""

    def update(learned: tuple[PyTree, Driven], key: Key) -> tuple[tuple[PyTree, Driven], PyTree]:
        state, held = learned
        key_draw, key_learn, key_drive = jax.random.split(key, 3)
        rows = draw(key_draw)
        paid, bonus = drive.pay(held.state, rows, hyper)
        state, losses = agent.learn(state, tree.take(paid, row), hyper.off_policy, key_learn)
        if teaches:
            taught, told = drive.learn(held.state, rows, None, near(rows), hyper, key_drive)
            held = Driven(taught, tree.take(bonus, row), told)
        return (state, held), losses

    return update


def givers(roster: Roster) -> np.ndarray:
    """Return bool [P, P]: whether the row's agent may take over the column's policy."""
    rows, may = roster.rows, np.zeros((roster.size, roster.size), np.bool_)
    if rows.off_policy is not None:
        may[:, rows.off_policy] = np.arange(roster.size) != rows.off_policy
    if rows.evolution is not None and rows.on_policy is not None:
        may[rows.evolution, rows.on_policy] = True
    return may


def hand_over(roster: Roster, team: States, taken: Array) -> States:
    """Return the team after each row has taken over the policies of the columns, ``taken`` bool [P, P].

    The on-policy agent takes mean network and state value; evolution keeps policies for its next phase;
    copies take all networks. Policies are handed over as they were before the exchange. Algorithm 1, lines 11
    to 19.
    """
    rows = roster.rows
    given = rows.of(
        player.mean(one) for player, one in zip(roster.players.everybody, team.everybody, strict=True)
    )
    evolution, local, copies = team.evolution, team.on_policy, team.copies
    if evolution is not None:
        offers = ((given.off_policy, rows.off_policy), (given.on_policy, rows.on_policy))
        for slot, (mean, giver) in enumerate(offers):
            if giver is not None:
                vector, when = ravel_pytree(mean)[0], taken[rows.evolution, giver]
                evolution = players.offer(evolution, slot, vector, when)
    if team.off_policy is not None:
        agent, source = present(roster.off_policy), team.off_policy.agent
        if local is not None:
            when = taken[rows.on_policy, rows.off_policy]
            value = None if agent.state_value is None else agent.state_value(source)
            taker = present(roster.on_policy)
            learner = exchange.adopt_mean(taker, local.agent, present(given.off_policy), value, when)
            # Start the batch over if the agent began it with a policy that it no longer has.
            local = replace(local, agent=learner, filled=jnp.where(when, 0, local.filled))
        copies = tuple(
            replace(
                one,
                agent=tree.where(taken[row, rows.off_policy], agent.inherit(one.agent, source), one.agent),
            )
            for row, one in zip(rows.copies, copies, strict=True)
        )
    return Team(team.off_policy, local, evolution, copies)


def means(roster: Roster, team: States) -> Params:
    """Return the parameters [P] of the mean network of each agent."""
    everybody = zip(roster.players.everybody, team.everybody, strict=True)
    return tree.stack([player.mean(state) for player, state in everybody])
