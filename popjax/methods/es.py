"""Evolution strategies over policies: OpenAI-ES (Salimans et al., 2017), CMA-ES, SNES and others of evosax.

A generation: ask -> evaluate -> tell. A population is drawn from a distribution over the parameters of one
network, each individual plays whole episodes, and the distribution is updated by their mean returns. The
distribution's mean is deployed. Policies need no gradients and there is no replay, so any task works.
Observations are normalized by running statistics of all steps of all individuals.

Differs from Salimans et al.: no weight decay, episodes are played to their end, and the observations of all
individuals count in the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import counting, distributions, nets, normalize, rollout, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Choice,
    Env,
    Key,
    Method,
    Network,
    Params,
    PyTree,
    Spec,
    Timestep,
    as_arrays,
    chain,
    stacked,
)
from popjax.evolution import strategies
from popjax.evolution.strategies import Hyper
from popjax.nets import images
from popjax.normalize import RunningStatistics
from popjax.population import judging, lanes, learning
from popjax.recipe import Recipe, recorded

CLIP_OBS = 5.0  # standard deviations


@dataclass(frozen=True)
class Config:
    """The strategy, the size of its population, and the policy."""

    # strategy of evosax, such as Sep_CMA_ES, CMA_ES, SNES or SimpleGA; an unknown name prints all of them
    strategy: str = "Open_ES"
    population: int = 32  # individuals of a generation
    trials: int = 1  # episodes whose mean return is an individual's fitness
    # units of the policy's hidden layers; CMA_ES stores a matrix with a row and a column for each weight
    hidden: tuple[int, ...] = (32, 32)
    normalize_obs: bool = True  # observations are whitened by their running statistics

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 2, "population")
        check_least(self, 1, "trials")


@struct.dataclass
class Metrics:
    """Metrics of a generation.

    fitness:  float32 [P] mean return of each individual's trials; one that has diverged gets the worst of
              the others.
    diverged: int32 individuals whose return was not finite.
    steps:    int32 environment steps.
    moved:    distance by which the mean of the distribution moved.
    spread:   mean standard deviation of a parameter in the population; a search whose spread collapses stands
              still.
    """

    fitness: Array
    diverged: Array
    steps: Array
    moved: Array
    spread: Array


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] of all individuals
    generation: Array  # int32 [] completed
    metrics: Metrics
    search: PyTree  # the strategy's state
    statistics: RunningStatistics | None  # of observations; None if they are not normalized
    population: Params = stacked()  # as evaluated last


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return the strategy over policies in ``env``.

    Raises:
        ValueError: evosax is not installed, has no such strategy, or refuses the population.
    """
    spec, population = env.spec, config.population
    network = policy_network(spec, config.hidden)
    actions = distributions.categorical() if spec.discrete else distributions.deterministic()
    example = learning.zeros(jax.eval_shape(network.init, jax.random.key(0)))
    strategy = strategies.build(config.strategy, population, example)

    def act(params: Params, memory: PyTree, obs: Array, key: Key, scale: Array | float) -> Choice:
        if config.normalize_obs:
            params, statistics = params
            obs = normalize.normalize(statistics, obs, clip=CLIP_OBS)
        return distributions.choose(actions, memory, network.apply(params, obs), key, scale)

    def deployed(s: State, params: Params) -> Params:
        return (params, s.statistics) if config.normalize_obs else params

    def individuals(s: State) -> Params:
        statistics = tree.repeat(s.statistics, population)
        return (s.population, statistics) if config.normalize_obs else s.population

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_network, key_init, key_ask = jax.random.split(key, 4)
        search = strategy.init(network.init(key_network), hyper, key_init)
        none, zero = jnp.int32(0), jnp.float32(0)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=none,
            metrics=Metrics(jnp.zeros(population), none, none, moved=zero, spread=zero),
            search=search,
            statistics=normalize.init(spec.obs_shape) if config.normalize_obs else None,
            population=strategy.ask(search, hyper, key_ask)[0],
        )

    def ask(s: State) -> State:
        """Draw a generation."""
        key, key_ask = jax.random.split(s.key)
        drawn, search = strategy.ask(s.search, s.hyper, key_ask)
        return replace(s, key=key, search=search, population=drawn)

    def record(obs: Array, action: Array, timestep: Timestep) -> PyTree:
        return obs if config.normalize_obs else ()

    def evaluate(s: State) -> State:
        """Play ``trials`` greedy episodes of every individual, all from the same initial states."""
        key, key_play = jax.random.split(s.key)

        def play(policy: Params) -> rollout.Episode:
            return lanes.trials(env, act, policy, key_play, config.trials, record=record)

        episodes = jax.vmap(play)(individuals(s))  # [P, trials, T]
        statistics = s.statistics
        if statistics is not None:
            seen = episodes.steps.reshape(*episodes.valid.shape, -1)
            sound = episodes.valid & jnp.isfinite(seen).all(-1)
            statistics = normalize.update(statistics, episodes.steps, sound)
        steps = episodes.length.sum()
        fitness = judging.sound(episodes.total.mean(1), s.population)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + steps,
            metrics=replace(s.metrics, fitness=fitness, steps=steps),
            statistics=statistics,
        )

    def tell(s: State) -> State:
        """Update the distribution by the fitness of all individuals."""
        key, key_tell = jax.random.split(s.key)
        search = strategy.tell(s.search, s.population, s.metrics.fitness, s.hyper, key_tell)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, strategy.mean(search), strategy.mean(s.search)))
        metrics = replace(
            s.metrics, **judging.told(s.metrics.fitness), moved=moved, spread=spread(s.population)
        )
        return replace(s, key=key, generation=s.generation + 1, metrics=metrics, search=search)

    return Method(
        init=init,
        step=chain(ask, evaluate, tell),
        policy=lambda s: deployed(s, strategy.mean(s.search)),
        act=act,
        hyper=Hyper(),
        steps_bound=population * config.trials * spec.episode_length,
        individuals=individuals,
        exploration=lambda s: jnp.float32(0),  # exploration is in parameters, not in actions
    )


def spread(population: Params) -> Array:
    """Return the standard deviation of a parameter in ``population`` [P], averaged over parameters."""
    return jax.vmap(lambda params: ravel_pytree(params)[0])(population).std(0).mean()


def policy_network(spec: Spec, hidden: tuple[int, ...]) -> Network:
    """Return the network obs [..., *obs] -> actions in [-1, 1], or logits of discrete ones; behind
    convolutions if observations are images."""

    def make(inputs: int) -> Network:
        if spec.discrete:
            return nets.categorical_actor(inputs, spec.action_dim, hidden, gain=1.0)
        return nets.tanh_actor(inputs, spec.action_dim, hidden, activation="tanh")

    initializer = "orthogonal" if spec.discrete else "uniform_fan_in"  # of the dense layers, too
    return images.behind_convolutions(spec.obs_shape, make, initializer=initializer)


def remarks(env: Env, config: Config, hyper: Hyper, env_steps: int) -> list[str]:
    """Return a line if a hyperparameter was set that the strategy does not use."""
    strategy = strategies.named(config.strategy)
    if strategy in strategies.ADAM or hyper.lr == Hyper().lr:
        return []
    return [f"hyper.lr {hyper.lr:g} changes nothing: {strategy} has no Adam"]


def default_budget(config: Config) -> int:
    """Return the environment steps of 300 generations whose episodes have 1,000 steps each."""
    return 300 * 1_000 * config.population * config.trials


METHOD = Recipe(build, Config, lambda config: Hyper(), budget=default_budget, remarks=remarks)
