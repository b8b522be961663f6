"""Agents of different kinds that play one vector step at a time, side by side or in turn; each takes in the
answers of its lanes and learns on its own schedule.

There are three kinds of ``Player``: a learner from a replay, which may learn after every step; an on-policy
learner, which learns after a batch or an episode; and a search over parameters, which learns after a
generation. None calls the environment, so that one vector step can serve all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import counting, nets, tree
from popjax.core import (
    Act,
    Agent,
    Choice,
    Key,
    Network,
    OnPolicyAgent,
    Params,
    PyTree,
    Spec,
    Timestep,
    Trajectory,
    example_transition,
)
from popjax.counting import Count
from popjax.evolution import cem, ranking
from popjax.population import exchange, judging, lanes, learning, policy
from popjax.population.exchange import MeanNetwork
from popjax.population.lanes import Lanes

T = TypeVar("T")


class Step(NamedTuple):
    """A vector step of lanes [...]: the lanes before it, the actions, the environments' answers, and which
    lanes played. The answers of the other lanes are meaningless."""

    before: Lanes
    choice: Choice
    timestep: Timestep
    alive: Array


class Player(NamedTuple):
    """An agent as functions of its own state and Hyper, for loops over agents of different kinds.

    lanes:   environments in which it trains.
    network: the network of its mean action.
    init:    (key, hyper) -> state
    act:     (state, hyper, obs [N], key) -> Choice [N], as it trains
    test:    as ``act``, in tests
    mean:    state -> the mean network that is tested, handed over and deployed
    take_in: (state, Step [N], hyper, key) -> state after a vector step, from which it may have learned
    midway:  (state, int32 [N] steps of its lanes' episodes) -> bool [] whether its phase must go on
    plays:   state -> bool [N] or [] lanes that play; the others wait for their peers' episodes to end
    """

    lanes: int
    network: MeanNetwork
    init: Callable[[Key, Any], Any]
    act: Callable[[Any, Any, Array, Key], Choice]
    test: Callable[[Any, Any, Array, Key], Choice]
    mean: Callable[[Any], Params]
    take_in: Callable[[Any, Step, Any, Key], Any]
    midway: Callable[[Any, Array], Array]
    plays: Callable[[Any], Array] = lambda state: jnp.bool_(True)


def act_in_lanes(act: Act, params: Params, obs: Array, key: Key, scale: Array | float) -> Choice:
    """Return the Choice [N] of one policy for ``obs`` [N, *obs]."""
    keys = jax.random.split(key, obs.shape[0])
    return jax.vmap(act, (None, None, 0, 0, None))(params, (), obs, keys, scale)


def padded(rows: T, size: int) -> T:
    """Return ``rows`` [N, ...] padded with zeros to ``size`` lanes."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)), rows)


# A learner from a replay.


@struct.dataclass
class OffPolicy:
    """State of a learner from a replay.

    agent:   State of the agent.
    steps:   [] environment steps that it has played.
    owed:    int32 [] gradient steps that are due, for the steps since it last learned.
    updates: [] gradient steps taken.
    losses:  losses of the last gradient step.
    """

    agent: PyTree
    steps: Count
    owed: Array
    updates: Count
    losses: PyTree


def off_policy(
    agent: Agent,
    hyper: PyTree,
    spec: Spec,
    lanes: int,
    *,
    batch: int,
    warmup: int,
    test_scale: float,
    burst: bool,
) -> Player:
    """Return the player of an ``agent`` that owes a gradient step for every step it plays; the first
    ``warmup`` steps are uniformly random.

    batch:      transitions per gradient step, see ``pay``.
    test_scale: scale of the exploration in tests.
    burst:      whether its phases end with an episode.
    """

    def init(key: Key, hyper: PyTree) -> OffPolicy:
        state, rows = agent.init(key, hyper), tree.repeat(example_transition(spec), batch)
        losses = learning.no_losses(agent.learn, state, rows, hyper, key)
        return OffPolicy(state, counting.none(), jnp.int32(0), counting.none(), losses)

    def explore(state: OffPolicy, hyper: Any, obs: Array, key: Key, scale: float) -> Choice:
        scales = scale * agent.exploration(hyper, state.steps / 1)
        return act_in_lanes(agent.act, agent.policy(state.agent), obs, key, scales)

    def act(state: OffPolicy, hyper: PyTree, obs: Array, key: Key) -> Choice:
        def explored(memory: tuple[()], obs: Array, key: Key) -> Choice:
            return explore(state, hyper, obs, key, 1.0)

        return policy.randomly(explored, spec, state.steps < warmup)((), obs, key)

    def take_in(state: OffPolicy, step: Step, hyper: PyTree, key: Key) -> OffPolicy:
        played = step.alive.sum(dtype=jnp.int32)
        return replace(state, steps=state.steps + played, owed=state.owed + played)

    return Player(
        lanes=lanes,
        network=exchange.mean_network(agent, hyper),
        init=init,
        act=act,
        test=lambda state, hyper, obs, key: explore(state, hyper, obs, key, test_scale),
        mean=lambda state: nets.mean_of(agent.policy(state.agent)),
        take_in=take_in,
        midway=lambda state, steps: burst & (steps[0] > 0),
    )


def pay(
    update: learning.Update, state: OffPolicy, beside: PyTree, ready: Array, key: Key
) -> tuple[OffPolicy, PyTree]:
    """Take the owed gradient steps if ``ready`` bool []; return the learner, and ``beside``, which learns
    with it.

    update: ((agent's state, beside), key) -> (the same after a gradient step, the agent's losses)
    """
    count = jnp.where(ready, state.owed, 0)
    (agent, beside), losses = learning.steps(update, (state.agent, beside), count, key, state.losses)
    updates, owed = state.updates + count, state.owed - count
    return replace(state, agent=agent, owed=owed, updates=updates, losses=losses), beside


# A learner from its latest play.


@struct.dataclass
class OnPolicy:
    """State of an on-policy learner.

    agent:  State of the agent.
    rows:   [T, N] rows of the batch or the episode under way.
    filled: int32 [] rows played so far.
    losses: losses of the last update.
    """

    agent: PyTree
    rows: Trajectory
    filled: Array
    losses: PyTree


def on_policy(
    agent: OnPolicyAgent,
    hyper: PyTree,
    spec: Spec,
    lanes: int,
    *,
    length: int,
    by_episode: bool,
    test_scale: float,
) -> Player:
    """Return the player of an ``agent`` that learns from each ``length`` steps of its lanes, see ``fill``."""

    def init(key: Key, hyper: PyTree) -> OnPolicy:
        row = Trajectory(**vars(example_transition(spec)), done=jnp.bool_(False), log_prob=jnp.float32(0))
        rows, state = tree.repeat(tree.repeat(row, lanes), length), agent.init(key, hyper)
        return OnPolicy(state, rows, jnp.int32(0), learning.no_losses(agent.learn, state, rows, hyper, key))

    def act(state: OnPolicy, hyper: PyTree, obs: Array, key: Key, scale: float = 1.0) -> Choice:
        return act_in_lanes(agent.act, agent.policy(state.agent), obs, key, scale)

    return Player(
        lanes=lanes,
        network=exchange.mean_network(agent, hyper),
        init=init,
        act=act,
        test=lambda state, hyper, obs, key: act(state, hyper, obs, key, test_scale),
        mean=lambda state: nets.mean_of(agent.policy(state.agent)),
        take_in=lambda *given: fill(agent, *given, by_episode=by_episode),
        midway=lambda state, steps: state.filled > 0,
    )


def fill(
    agent: OnPolicyAgent, state: OnPolicy, step: Step, hyper: PyTree, key: Key, *, by_episode: bool = False
) -> OnPolicy:
    """Store a vector step that all lanes have played, or skip one that none has; learn once the rows are full
    or, if ``by_episode``, once the episode of the only lane is over."""
    length = len(state.rows.reward)
    plays = step.alive.all()
    row = lanes.keep_trajectory(hyper.discount)(step.before, step.choice, step.timestep)
    rows = tree.put(state.rows, jnp.where(plays, state.filled, length), row)
    filled = state.filled + plays
    ready, learned = filled == length, rows
    if by_episode:
        ready = plays & step.timestep.done[0]
        learned = replace(rows, valid=(jnp.arange(length) < filled)[:, None])
    learner, losses = learning.once(
        lambda learner: agent.learn(learner, learned, hyper, key), state.agent, ready, state.losses
    )
    return OnPolicy(learner, rows, jnp.where(ready, 0, filled), losses)


# A search over parameters.


@struct.dataclass
class Search:
    """A search over the n parameters of a policy, and the generation under way.

    search:     mean, variance and damp.
    population: parameters [individuals, ...] of the generation, not vectors, which would have to be cut up in
                every step.
    total:      [individuals] returns so far.
    done:       bool [individuals] whether the episode is over.
    begun:      bool [] whether any step of the generation has been played.
    best:       [n] the fittest individual of the last generation; the mean before the first.
    fitness:    [individuals] fitness in the last generation.
    offers:     [slots, n] policies of others, which replace the first individuals of a generation.
    offered:    bool [slots] which slots hold one.
    expects:    bool [] whether the offers enter the next generation, because the present one began without
                them.
    """

    search: cem.State
    population: Params
    total: Array
    done: Array
    begun: Array
    best: Array
    fitness: Array
    offers: Array
    offered: Array
    expects: Array


def search(actor: Network, config: cem.Config, *, slots: int, tests_best: bool) -> Player:
    """Return the player of a search over the mean networks of ``actor``; each individual plays one episode.

    slots:      policies of others that it accepts, see ``offer``.
    tests_best: test the best individual of the last generation, else the mean.
    """
    blank = learning.zeros(jax.eval_shape(actor.init, jax.random.key(0)))
    network = MeanNetwork(
        nets.mean_of(blank), lambda mean, obs: actor.apply(nets.with_mean(blank, mean), obs)
    )
    unflatten = ravel_pytree(network.blank)[1]

    def init(key: Key, hyper: cem.Hyper) -> Search:
        key_mean, key_search = jax.random.split(key)
        return fresh_search(nets.mean_of(actor.init(key_mean)), hyper, config, key_search, slots)

    def mean(state: Search) -> Params:
        return unflatten(state.best if tests_best else state.search.mean)

    def by_mean(mean: Params, obs: Array) -> Choice:
        return greedy(network, mean, obs)

    return Player(
        lanes=config.population,
        network=network,
        init=init,
        act=lambda state, hyper, obs, key: jax.vmap(by_mean)(state.population, obs),
        test=lambda state, hyper, obs, key: jax.vmap(by_mean, (None, 0))(mean(state), obs),
        mean=mean,
        take_in=lambda state, step, hyper, key: evaluate(state, step, hyper, config, key),
        midway=lambda state, steps: state.begun,
        plays=lambda state: ~state.done,
    )


def greedy(network: MeanNetwork, mean: Params, obs: Array) -> Choice:
    """Return the Choice of the mean network with parameters ``mean``."""
    action = network.greedy(mean, obs)
    return Choice((), action, action, jnp.float32(0))


def fresh_search(params: Params, hyper: cem.Hyper, config: cem.Config, key: Key, slots: int) -> Search:
    """Return a new search around ``params`` with its first generation, and ``slots`` for policies of
    others."""
    mean, unflatten = ravel_pytree(params)
    start = cem.init(mean, hyper)
    zeros, no = jnp.zeros(config.population), jnp.bool_(False)
    return Search(
        search=start,
        population=jax.vmap(unflatten)(cem.ask(start, key, config)),
        total=zeros,
        done=jnp.zeros(config.population, jnp.bool_),
        begun=no,
        best=mean,
        fitness=zeros,
        offers=jnp.zeros((slots, mean.size)),
        offered=jnp.zeros(slots, jnp.bool_),
        expects=no,
    )


def offer(state: Search, slot: int, policy: Array, when: Array) -> Search:
    """Return the search with ``policy`` [n] put into ``slot``, if ``when`` bool []."""
    return replace(
        state,
        offers=state.offers.at[slot].set(jnp.where(when, policy, state.offers[slot])),
        offered=state.offered.at[slot].set(state.offered[slot] | when),
    )


def begin_phase(state: Search, when: Array) -> Search:
    """Let the policies of others enter the drawn generation or, if that is already under way, the next one,
    if ``when`` bool []."""
    entered = _entered(state, when & ~state.begun)
    return replace(entered, expects=jnp.where(when, state.begun, state.expects))


def evaluate(state: Search, step: Step, hyper: cem.Hyper, config: cem.Config, key: Key) -> Search:
    """Add a vector step [individuals] to the returns; move the search and draw the next generation once all
    episodes are over. Individuals whose episode is over wait for the others."""
    state = replace(
        state,
        total=state.total + jnp.where(step.alive, step.timestep.reward, 0.0),
        done=state.done | (step.alive & step.timestep.done),
        begun=state.begun | step.alive.any(),
    )

    def told(state: Search, key: Key) -> tuple[Search, tuple[()]]:
        population, unflatten = _vectors(state.population)
        fitness = judging.sound(state.total, population)
        moved = cem.tell(state.search, population, fitness, hyper, config)
        best = population[ranking.best_first(fitness)[0]]
        after = replace(
            state,
            search=moved,
            population=jax.vmap(unflatten)(cem.ask(moved, key, config)),
            total=jnp.zeros_like(state.total),
            done=jnp.zeros_like(state.done),
            begun=jnp.bool_(False),
            best=best,
            fitness=fitness,
        )
        return replace(_entered(after, state.expects), expects=jnp.bool_(False)), ()

    # Use the key that ``steps`` derives in its loop: with a key from outside the loop, XLA would draw the
    # next generation at every step.
    return learning.steps(told, state, 1, key, (), ready=state.done.all())[0]


def _entered(state: Search, when: Array) -> Search:
    first = slice(len(state.offered))
    others = jax.vmap(_vectors(state.population)[1])(state.offers)
    rows = tree.where(state.offered & when, others, tree.take(state.population, first))
    return replace(state, population=tree.put(state.population, first, rows))


def _vectors(population: Params) -> tuple[Array, Callable[[Array], Params]]:
    """Return the parameters [P, ...] as vectors [P, n], and the function that turns a vector into
    parameters."""
    vectors = jax.vmap(lambda params: ravel_pytree(params)[0])(population)
    return vectors, ravel_pytree(tree.take(population, 0))[1]
