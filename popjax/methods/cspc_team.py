"""The agents of a cooperating team: what they are made of and how they act, see ``cspc``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import agents, nets, tree
from popjax.core import (
    Act,
    Agent,
    Choice,
    Key,
    Network,
    OnPolicyAgent,
    Params,
    Spec,
    continuous_dims,
    example_transition,
)
from popjax.methods.cspc_config import Config, Evolution, Hyper, check_on_policy
from popjax.population import exchange, players, policy
from popjax.population.exchange import MeanNetwork
from popjax.population.players import OffPolicy, OnPolicy, Search

GLOBAL = 0  # row of the global agent, and evolution's slot for its policy
ON_POLICY_SLOT = 1  # evolution's slot for the on-policy agent's policy


T = TypeVar("T")
LanesAct: TypeAlias = Callable[[Array, Key], Choice]
"""``(obs [N, *obs], key) -> Choice [N]``"""


class Team(NamedTuple):
    """States of the agents: the global one, the local ones and the global one's copies; None of one that is
    missing."""

    off_policy: OffPolicy | None
    on_policy: OnPolicy | None
    evolution: Search | None
    copies: tuple[OffPolicy, ...] = ()


class Members(NamedTuple):
    """The members of the team, as functions, and the row that each has in scores, labels and lanes.

    off_policy: of the global agent and its copies.
    on_policy:  of the on-policy agent.
    actor:      network of evolution's policies; ``unflatten`` makes its mean's parameters of a vector [n].
    learners:   rows of the global agent and its copies.
    local:      row of the on-policy agent; None if it is missing.
    search:     row of evolution; None if it is missing.
    size:       agents, and the row of the lanes in which they are tested.
    network:    the mean network that all share.
    """

    off_policy: Agent | None
    on_policy: OnPolicyAgent | None
    actor: Network | None
    unflatten: Callable[[Array], Params]
    learners: tuple[int, ...]
    local: int | None
    search: int | None
    size: int
    network: MeanNetwork


class Group(NamedTuple):
    """Rows whose lanes one loop plays: the row of its first agent, how many there are, lanes of each, and
    whether they move together or one at a time."""

    first: int
    size: int
    width: int
    together: bool

    def __contains__(self, row: object) -> bool:
        return row in range(self.first, self.first + self.size)


def present(part: T | None) -> T:
    """Return what a member has, which must not be missing."""
    assert part is not None
    return part


def gather(spec: Spec, config: Config) -> Members:
    """Return the members of the team.

    Raises:
        ValueError: they cannot play the task, or cannot take over each other's policies.
    """
    continuous_dims(spec, "cspc")
    off_policy = on_policy = actor = None
    networks: dict[str, MeanNetwork] = {}
    if config.off_policy is not None:
        off_policy = agents.build(spec, config.off_policy)
        networks["off_policy"] = exchange.mean_network(off_policy, agents.default_hyper(config.off_policy))
    if config.on_policy is not None:
        check_on_policy(spec, config)
        rows = config.on_policy_lanes * config.rollout(spec.episode_length)
        on_policy = agents.build_on_policy(spec, config.on_policy, rows)
        networks["on_policy"] = exchange.mean_network(on_policy, agents.default_hyper(config.on_policy))
    if config.evolution is not None:
        actor = _actor(spec, config.evolution)
        blank = jax.tree.map(jnp.zeros_like, actor.init(jax.random.key(0)))
        networks["evolution"] = MeanNetwork(
            nets.mean_of(blank), lambda mean, obs: actor.apply(nets.with_mean(blank, mean), obs)
        )
    exchange.check_alike(spec, networks)
    network = next(iter(networks.values()))
    learners = tuple(range(0 if off_policy is None else 1 + config.copies))
    local = None if on_policy is None else len(learners)
    return Members(
        off_policy=off_policy,
        on_policy=on_policy,
        actor=actor,
        unflatten=ravel_pytree(network.blank)[1],
        learners=learners,
        local=local,
        search=None if actor is None else config.members - 1,
        size=config.members,
        network=network,
    )


def groups(members: Members, config: Config) -> tuple[Group, Group]:
    """Return the agents' group and that of whole episodes."""
    lone = members.search is not None and not config.fused
    agents, tests = members.size - lone, members.size * config.trials
    sizes = [config.lanes] * bool(members.learners) + [config.on_policy_lanes] * (members.local is not None)
    if config.fused and members.search is not None:
        sizes.append(config.individuals)
    return (
        Group(0, agents, max(sizes, default=0), config.fused),
        Group(agents, 1 + lone, max(tests, config.individuals * lone), False),
    )


def _actor(spec: Spec, config: Evolution) -> Network:
    return nets.tanh_actor(
        *continuous_dims(spec, "cspc"),
        config.hidden,
        activation=config.activation,
        initializer="uniform_zero_bias",
        final_initializer="uniform_fan_in",
    )


def init(members: Members, spec: Spec, config: Config, key: Key, hyper: Hyper) -> Team:
    """Return the fresh agents."""
    keys = jax.random.split(key, members.size + 1)
    on_policy = evolution = None
    batch = tree.repeat(example_transition(spec), config.batch)
    learners = [
        players.off_policy(present(members.off_policy), keys[row], hyper.off_policy, batch)
        for row in members.learners
    ]
    if members.on_policy is not None:
        shape = (config.rollout(spec.episode_length), config.on_policy_lanes)
        on_policy = players.on_policy(members.on_policy, keys[members.local], hyper.on_policy, spec, shape)
    if members.actor is not None:
        mean = nets.mean_of(members.actor.init(keys[members.search]))
        evolution = players.search(mean, hyper.cem, present(config.evolution).cem, keys[-1], slots=2)
    return Team(learners[0] if learners else None, on_policy, evolution, tuple(learners[1:]))


def learners(team: Team) -> tuple[OffPolicy, ...]:
    """Return the global agent and its copies."""
    return () if team.off_policy is None else (team.off_policy, *team.copies)


def givers(members: Members) -> np.ndarray:
    """Return bool [P, P]: whether the row's agent may take over the column's policy."""
    may = np.zeros((members.size, members.size), np.bool_)
    if members.learners:
        may[1:, GLOBAL] = True
    if members.search is not None and members.local is not None:
        may[members.search, members.local] = True
    return may


def hand_over(members: Members, config: Config, team: Team, taken: Array) -> Team:
    """Return the team after each row has taken over the policies of the columns, ``taken`` bool [P, P].

    The on-policy agent takes mean network and state value; evolution keeps policies for its next phase;
    copies take all networks. All policies are those before the exchange. Algorithm 1, lines 8 to 19.
    """
    given = means(members, team, config)
    evolution, local, copies = team.evolution, team.on_policy, []
    for slot, giver in ((GLOBAL, GLOBAL if members.learners else None), (ON_POLICY_SLOT, members.local)):
        if evolution is not None and giver is not None:
            offered = flat(tree.take(given, giver))
            evolution = players.offer(evolution, slot, offered, taken[members.search, giver])
    if members.off_policy is None:
        return team._replace(evolution=evolution)
    source, value_of = present(team.off_policy).agent, members.off_policy.state_value
    for row, one in enumerate(team.copies, 1):
        inherited = members.off_policy.inherit(one.agent, source)
        copies.append(replace(one, agent=tree.where(taken[row, GLOBAL], inherited, one.agent)))
    if local is not None and members.on_policy is not None:
        when, value = taken[members.local, GLOBAL], None if value_of is None else value_of(source)
        learner = exchange.adopt_mean(members.on_policy, local.agent, tree.take(given, GLOBAL), value, when)
        # A batch begun with another policy than the agent has now is begun anew.
        local = replace(local, agent=learner, filled=jnp.where(when, 0, local.filled))
    return team._replace(on_policy=local, evolution=evolution, copies=tuple(copies))


def with_learners(team: Team, learners: Sequence[OffPolicy]) -> Team:
    """Return the team with these global agent and copies, if it has any."""
    return team._replace(off_policy=learners[0], copies=tuple(learners[1:])) if learners else team


def flat(mean: Params) -> Array:
    """Return the parameters of a mean network as a vector [n]."""
    return ravel_pytree(mean)[0]


def represented(team: Team, config: Config) -> Array:
    """Return the vector [n] by which evolution is tested and deployed."""
    evolution = present(team.evolution)
    return evolution.best if present(config.evolution).score == "best" else evolution.search.mean


def means(members: Members, team: Team, config: Config) -> Params:
    """Return the parameters [P] of the mean network of each agent."""
    found = [nets.mean_of(present(members.off_policy).policy(one.agent)) for one in learners(team)]
    if members.on_policy is not None:
        found.append(nets.mean_of(members.on_policy.policy(present(team.on_policy).agent)))
    if members.actor is not None:
        found.append(members.unflatten(represented(team, config)))
    return tree.stack(found)


def act(members: Members, spec: Spec, config: Config, team: Team, row: int, hyper: Hyper) -> LanesAct:
    """Return how the agent in ``row`` acts in its lanes while it trains: ``(obs [N], key) -> Choice [N]``.

    The off-policy agents begin with uniformly random actions; copies that take over policies do not.
    """
    if row in members.learners:
        agent, one = present(members.off_policy), learners(team)[row]
        warmup = config.warmup if row == GLOBAL or not config.transfer else 0
        scale = agent.exploration(hyper.off_policy, one.steps)

        def explore(memory: tuple[()], obs: Array, key: Key) -> Choice:
            return players.act_in_lanes(agent.act, agent.policy(one.agent), obs, key, scale)

        random = policy.randomly(explore, spec, one.steps < warmup)
        return lambda obs, key: random((), obs, key)
    if row == members.local:
        local, params = of_local(members, team)
        return lambda obs, key: players.act_in_lanes(local, params, obs, key, 1.0)
    drawn = present(team.evolution).population
    return lambda obs, key: jax.vmap(lambda mean, o: by_mean(members, mean, o))(drawn, obs)


def act_in_tests(members: Members, config: Config, team: Team, hyper: Hyper) -> LanesAct:
    """Return how all agents act in their test lanes: ``(obs [P * trials], key) -> Choice [P * trials]``."""
    scale = 1.0 if config.test == "sample" else 0.0

    def one(row: int, obs: Array, key: Key) -> Choice:
        if row in members.learners:
            agent, state = present(members.off_policy), learners(team)[row]
            own = scale * agent.exploration(hyper.off_policy, state.steps)
            return players.act_in_lanes(agent.act, agent.policy(state.agent), obs, key, own)
        if row == members.local:
            return players.act_in_lanes(*of_local(members, team), obs, key, scale)
        mean = members.unflatten(represented(team, config))
        return jax.vmap(lambda o: by_mean(members, mean, o))(obs)

    def everybody(obs: Array, key: Key) -> Choice:
        by_row = obs.reshape(members.size, config.trials, *obs.shape[1:])
        keys = jax.random.split(key, members.size)
        return tree.concat([one(row, by_row[row], keys[row]) for row in range(members.size)])

    return everybody


def of_local(members: Members, team: Team) -> tuple[Act, Params]:
    """Return how the on-policy agent acts, and its policy."""
    agent = present(members.on_policy)
    return agent.act, agent.policy(present(team.on_policy).agent)


def by_mean(members: Members, mean: Params, obs: Array) -> Choice:
    """Return the greedy Choice of the mean network with parameters ``mean``."""
    action = members.network.greedy(mean, obs)
    return Choice((), action, action, jnp.float32(0))
