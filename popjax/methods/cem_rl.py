"""CEM-RL: half of the actors drawn by a cross-entropy search take gradient steps against a shared critic
before all of them are compared. Pourchot & Sigaud, ICLR 2019, "CEM-RL: Combining evolutionary and
gradient-based methods for policy search".

A generation (Algorithm 1): draw -> train -> evaluate -> move. The cross-entropy method draws actors around a
mean actor; half of them take gradient steps; all play an episode and fill one replay; then mean and variance
move to the best half, whether its actors were trained or not.

The learner is TD3's; DDPG's is ``critics=1`` with ``learner.target_noise`` 0. The mean actor is deployed.

Differs from the paper's code: actors take their gradient steps side by side, each against the critic as it
was at the end of that actor's turn as target, which gives the same result as one after the other. Importance
mixing reuses only individuals that took no gradient steps, since the density of the others is unknown; the
code reuses both, and reads their returns from shifted places. With several ``trials`` no time limit counts as
the end of the task; in the code all but the first do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import counting, distributions, tree
from popjax.checks import check_least, check_types, check_widths
from popjax.core import (
    Env,
    Key,
    Method,
    Number,
    Params,
    PyTree,
    as_arrays,
    chain,
    example_transition,
    number,
    stacked,
    transition,
)
from popjax.evolution import cem
from popjax.evolution.ranking import best_first
from popjax.population import judging, lanes, learning, shared_critic
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, ring


@dataclass(frozen=True)
class Config:
    """Sizes and choices; the defaults are the paper's."""

    population: int = 10  # actors of a generation; the best half moves the search
    trained: int = 5  # actors of a generation that take gradient steps
    trials: int = 1  # episodes whose mean return is an actor's fitness
    mixing: bool = False  # importance mixing: reuse actors of the last generation that the search still fits
    elitism: bool = False  # the last actor of a generation is the best of the one before
    hidden: tuple[int, ...] = (400, 300)  # units of the hidden layers of actors (tanh), critics (leaky ReLU)
    critics: int = 2  # number of critics; the smallest value counts; TD3 has 2, DDPG 1
    batch: int = 100  # transitions per gradient step
    capacity: int = 1_000_000  # transitions that the replay holds
    warmup: int = 10_000  # environment steps before any gradient step

    @property
    def search(self) -> cem.Config:
        """Return the sizes of the search. Without mixing, actors are drawn in antithetic pairs if their
        number is even."""
        antithetic = self.population % 2 == 0 and not self.mixing
        return cem.Config(self.population, self.population // 2, antithetic)

    def __post_init__(self) -> None:
        check_types(self)
        check_widths(self)
        check_least(self, 2, "population")
        check_least(self, 1, "trained", "trials", "critics", "batch", "capacity")
        check_least(self, 0, "warmup")
        if self.trained > self.population:
            raise ValueError(f"trained {self.trained} exceeds the population {self.population}; lower it")
        if self.mixing and self.trained == self.population:
            raise ValueError(
                f"mixing reuses untrained actors, and all {self.population} train; lower trained"
            )
        if self.mixing and self.elitism:
            raise ValueError("an elite is not drawn from the search, so mixing cannot reuse it; choose one")


@struct.dataclass
class Hyper:
    """Hyperparameters, all sweepable."""

    search: cem.Hyper = field(default_factory=cem.Hyper)
    learner: shared_critic.Hyper = field(default_factory=shared_critic.Hyper)
    updates_per_step: Number = number(1.0)  # gradient steps per environment step of the last generation


@struct.dataclass
class Metrics:
    """Metrics of a generation.

    fitness:         float32 [P] mean return of each actor's trials, the trained actors first; one that has
                     diverged gets the worst of the others.
    diverged:        int32 actors whose return was not finite.
    critic_loss:     mean squared TD error of the last gradient step, summed over critics; 0 before the first.
    actor_loss:      [trained] minus the mean value of an actor's actions in its last gradient step.
    gradient_steps:  int32 gradient steps of each trained actor and, up to rounding, of the critics.
    steps:           int32 environment steps of the generation.
    reused:          int32 actors that kept their episodes of the generation before.
    trained_parents: int32 trained actors in the best half, which moves the search.
    spread:          mean standard deviation of a parameter in the search after it has moved.
    """

    fitness: Array
    diverged: Array
    critic_loss: Array
    actor_loss: Array
    gradient_steps: Array
    steps: Array
    reused: Array
    trained_parents: Array
    spread: Array


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] of all actors together
    generation: Array  # int32 [] completed
    metrics: Metrics
    critic: shared_critic.Critic
    replay: Ring
    search: cem.State  # draws the next generation
    before: cem.State  # drew this generation
    population: Array = stacked()  # float32 [P, n] parameters, as they were evaluated
    source: Array = stacked()  # int32 [P] actor of the generation before whose episodes are kept; -1: none
    start: Array = stacked()  # int32 [P] slot of the replay at which an actor's episodes begin
    length: Array = stacked()  # int32 [P] environment steps of an actor's episodes


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return the search over actors, and the critic that they share, in ``env``.

    Raises:
        ValueError: actions are discrete, observations are not vectors, or the replay is too small to mix.
    """
    learner = shared_critic.build(env.spec, config.hidden, config.critics, "cem_rl")
    actor = learner.actor
    act = distributions.acting(distributions.deterministic(), actor.apply)
    replay, population, trained = ring(config.capacity), config.population, config.trained
    longest = config.trials * env.spec.episode_length  # environment steps of an actor in a generation
    if config.mixing and config.capacity < population * longest:
        raise ValueError(
            f"mixing reads a generation of up to {population * longest} transitions back from the replay;"
            f" raise capacity {config.capacity}"
        )
    unflatten = ravel_pytree(learning.zeros(jax.eval_shape(actor.init, jax.random.key(0))))[1]

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_actor, key_critic, key_draw = jax.random.split(key, 4)
        search = cem.init(ravel_pytree(actor.init(key_actor))[0], hyper.search)
        zero, none = jnp.float32(0), jnp.int32(0)
        nobody, scores = jnp.zeros(population, jnp.int32), jnp.zeros(population)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=none,
            metrics=Metrics(
                fitness=scores,
                diverged=none,
                critic_loss=zero,
                actor_loss=jnp.zeros(trained),
                gradient_steps=none,
                steps=none,
                reused=none,
                trained_parents=none,
                spread=zero,
            ),
            critic=learner.init(key_critic, hyper.learner),
            replay=replay.init(example_transition(env.spec)),
            search=search,
            before=search,
            population=cem.ask(search, key_draw, config.search),
            source=nobody - 1,
            start=nobody,
            length=nobody,
        )

    def draw(s: State) -> State:
        """Draw a generation from the search (line 10), its untrained actors by importance mixing if set."""
        key, key_draw, key_mix = jax.random.split(s.key, 3)
        drawn, source = cem.ask(s.search, key_draw, config.search), jnp.full(population, -1, jnp.int32)
        if config.mixing:
            old = s.population[trained:]
            mixed, kept = cem.mix(s.before, s.search, old, s.generation > 0, key_mix)
            drawn = drawn.at[trained:].set(mixed)
            source = source.at[trained:].set(jnp.where(kept >= 0, kept + trained, -1))
        if config.elitism:
            elite = s.population[best_first(judging.sound(s.metrics.fitness, s.population))[0]]
            drawn = drawn.at[-1].set(jnp.where(s.generation > 0, elite, drawn[-1]))
        return replace(s, key=key, population=drawn, source=source)

    def train(s: State) -> State:
        """Train the critics with each trained actor in turn as their target, and each actor against the
        critics at the end of its turn (lines 11 to 16)."""
        key, key_critic, key_actors = jax.random.split(s.key, 3)
        owed = (s.length.sum() * s.hyper.updates_per_step).astype(jnp.int32)
        count = jnp.where(s.env_steps >= config.warmup + 1, owed, 0)
        policies = jax.vmap(unflatten)(s.population[:trained])

        def judge(
            critic: shared_critic.Critic, turn: tuple[Params, Key]
        ) -> tuple[shared_critic.Critic, tuple[Params, Array]]:
            target_actor, key = turn

            def learn(critic: shared_critic.Critic, key: Key) -> tuple[shared_critic.Critic, Array]:
                key_rows, key_learn = jax.random.split(key)
                rows = replay.sample(s.replay, key_rows, config.batch)
                return learner.learn(critic, target_actor, rows, s.hyper.learner, key_learn)

            critic, loss = learning.steps(learn, critic, count // trained, key, s.metrics.critic_loss)
            return critic, (tree.take(critic.params, 0), loss)

        def climb(climbers: PyTree, key: Key) -> tuple[PyTree, Array]:
            keys = jax.random.split(key, trained)
            obs = jax.vmap(lambda key: replay.sample(s.replay, key, config.batch).obs)(keys)
            return jax.vmap(learner.climb, (0, 0, 0, None))(climbers, judges, obs, s.hyper.learner)

        turns = policies, jax.random.split(key_critic, trained)
        critic, (judges, losses) = jax.lax.scan(judge, s.critic, turns)
        climbers = jax.vmap(learner.begin, (0, None))(policies, s.hyper.learner)
        (policies, _), actor_loss = learning.steps(climb, climbers, count, key_actors, s.metrics.actor_loss)
        flat = jax.vmap(lambda policy: ravel_pytree(policy)[0])(policies)
        metrics = replace(s.metrics, critic_loss=losses[-1], actor_loss=actor_loss, gradient_steps=count)
        everyone = s.population.at[:trained].set(flat)
        return replace(s, key=key, critic=critic, population=everyone, metrics=metrics)

    def evaluate(s: State) -> State:
        """Play ``trials`` greedy episodes of all actors and store them (lines 18 to 22); actors reused by
        mixing keep their returns and transitions."""
        key, key_play = jax.random.split(s.key)
        owner = jnp.repeat(jnp.arange(population), config.trials)
        episodes = lanes.episodes(
            env,
            act,
            jax.vmap(unflatten)(s.population[owner]),
            (),
            key_play,
            scale=0.0,
            record=partial(transition, discount=s.hyper.learner.discount),
        )  # [P * trials, T]
        stays = s.source >= 0
        rows, valid = jax.tree.map(
            lambda x: x.reshape(population, longest, *x.shape[2:]), (episodes.steps, episodes.valid)
        )
        total, played = (x.reshape(population, config.trials) for x in (episodes.total, episodes.length))
        fitness, steps = total.mean(1), jnp.where(stays, 0, played.sum(1)).sum(dtype=jnp.int32)
        if config.mixing:
            place = jnp.arange(longest)
            slots = (s.start[s.source][:, None] + place) % config.capacity
            rows = tree.where(stays, s.replay.take(slots), rows)
            valid = jnp.where(stays[:, None], place < s.length[s.source][:, None], valid)
            fitness = jnp.where(stays, s.metrics.fitness[s.source], fitness)
        length = valid.sum(1, dtype=jnp.int32)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + steps,
            metrics=replace(s.metrics, fitness=fitness, steps=steps, reused=stays.sum(dtype=jnp.int32)),
            replay=replay.add(s.replay, tree.flatten(rows), valid.ravel()),
            start=(s.replay.position + jnp.cumsum(length) - length) % config.capacity,
            length=length,
        )

    def move(s: State) -> State:
        """Move mean and variance to the best half (line 23)."""
        fitness = judging.sound(s.metrics.fitness, s.population)
        search = cem.tell(s.search, s.population, fitness, s.hyper.search, config.search)
        best = best_first(fitness)[: config.search.parents]
        metrics = replace(
            s.metrics,
            **judging.told(fitness),
            trained_parents=(best < trained).sum(dtype=jnp.int32),
            spread=jnp.sqrt(search.variance).mean(),
        )
        return replace(s, generation=s.generation + 1, metrics=metrics, before=s.search, search=search)

    return Method(
        init=init,
        step=chain(draw, train, evaluate, move),
        policy=lambda s: unflatten(s.search.mean),
        act=act,
        hyper=Hyper(),
        steps_bound=population * longest,
        individuals=lambda s: jax.vmap(unflatten)(s.population),
        exploration=lambda s: jnp.float32(0),  # in parameters, not in actions
        learning_starts=config.warmup,
    )


METHOD = Recipe(build, Config, lambda config: Hyper())
