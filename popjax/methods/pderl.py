"""Proximal Distilled Evolutionary RL: a population of actors evolves beside a learner that trains on their
experience, and a child imitates the better actions of two parents. Bodnar, Day & Lio, AAAI 2020.

A generation: evaluate -> evolve -> learn -> sync. Every few generations the learner's actor enters the
population. A child imitates the parent whose action has the higher value under the learner's critic, and
mutations are scaled by how much each weight changes the actions.

The paper's learner is DDPG; TD3, SAC or DQN is ``config.agent``. ERL (``popjax.erl``) is
``crossover="n_point", mutation="gaussian"``, PERL ``n_point`` with ``proximal``, DERL ``distil`` with
``gaussian``. With a ``drive`` the learner is also rewarded for novelty; fitness stays the task's return.

Where the authors' code differs from the paper, popjax follows the paper in the magnitude of mutations (the
code's default is 0.05) and in the distance between mates, which compares current actions (the code: stored
ones). Otherwise it follows the code, which produced the published numbers:

- A child starts as a copy of the less fit parent, and imitates it in states where the critic values both
  parents' actions equally.
- The regulariser of a child is averaged over action components, too.
- An epoch of a distillation takes a gradient step for each whole batch of its rows.
- The learner treats the time limit as the end of the task.
- The sigma of mutation is a standard deviation.
- Mutation leaves biases and norms alone, and a sensitivity is at least 0.01, or 1 if it is 0.
- When mates are chosen, an elite's copy has the fitness of the individual that it replaced.
- A repeated winner may mate with itself.
- The learner may overwrite any slot but that of the best elite's copy.
- The learner's noise continues from episode to episode.

Faults of ERL's first code are not reproduced: unclipped actor gradients, noisy actions stored beyond [-1, 1],
sync counted in games. Distances between individuals use states drawn once for each individual, not for every
pair.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import agents, counting, tree
from popjax.agents import dqn
from popjax.core import (
    Env,
    Key,
    Method,
    Params,
    PyTree,
    as_arrays,
    chain,
    example_transition,
    stacked,
    transition,
)
from popjax.evolution import mutate
from popjax.evolution.crossover import distil
from popjax.evolution.offspring import breed, clones, recombine
from popjax.evolution.ranking import best_first
from popjax.evolution.select import Selection, fate, replaceable, select
from popjax.methods.pderl_config import Config, Hyper, Metrics, check, default_hyper, preset
from popjax.population import clocks, drives, exchange, judging, lanes, learning, policy
from popjax.recipe import Recipe, recorded
from popjax.replay import episodes as numbering
from popjax.replay.ring import Ring, add, ring


@struct.dataclass
class Memory:
    """A row of a genetic memory: obs [*obs]."""

    obs: Array


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: counting.Count  # [] of the population and the learner
    generation: Array  # int32 [] completed
    metrics: Metrics
    learner: PyTree
    learner_memory: Ring
    replay: Ring
    drive: PyTree  # the learner's; None without one
    noise: Array  # float32 [A] the learner's Ornstein-Uhlenbeck process; [0] if its policy explores by itself
    champion: Params  # the fittest policy of the last evaluation
    elite_copy: Array  # int32 [] slot of the best elite's copy, which sync must spare
    synced: Array  # int32 [] slot that the learner's actor entered last generation, or -1
    fates: Array  # int32 [3] how often the learner's actor became elite, was selected, was discarded
    actors: Params = stacked()
    memories: Ring = stacked()


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """Return a population of the policies of ``config.agent``, and its learner, in ``env``.

    Raises:
        ValueError: the agent is not made for the task's actions, normalizes observations, or has no density
                    to distil.
    """
    agent = agents.build(env.spec, config.agent)
    check(agent, config)
    noisy = agent.actions.kl is None  # a deterministic policy explores by noise
    replay, memory = ring(config.capacity, replace=False), ring(config.memory)
    population, trials = config.population, config.trials
    players = population * trials  # lanes of the population; the learner's comes last
    owner = jnp.repeat(jnp.arange(population), trials)
    drive = drives.build(env.spec, config.drive, 1, players + 1, agent.eyes)

    def greedy(policy: Params, obs: Array) -> Array:
        return agent.actions.vector(agent.outputs(policy, obs))

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_actors, key_learner, key_drive = jax.random.split(key, 4)
        actors = jax.vmap(agent.actor.init)(jax.random.split(key_actors, population))
        learner, row = agent.init(key_learner, hyper.agent), example_transition(env.spec)
        kept = numbering.numbered(row, jnp.int32(0)) if drive.horizon else row
        store, empty = replay.init(kept), memory.init(Memory(row.obs))
        zero, none = jnp.float32(0), jnp.int32(0)
        held = drive.init(key_drive)
        losses, bonus, told = learning.no_losses(update, (learner, held), store, hyper, key)
        scores, orphans = jnp.zeros(population), jnp.full((population, 2), -1, jnp.int32)
        return State(
            key=key,
            hyper=hyper,
            env_steps=counting.none(),
            generation=none,
            metrics=Metrics(
                fitness=scores,
                diverged=none,
                learner_return=zero,
                losses=losses,
                bonus=bonus,
                drive=told,
                steps=none,
                gradient_steps=none,
                children=none,
                parents=orphans,
                elite_rate=zero,
                selected_rate=zero,
                discarded_rate=zero,
            ),
            learner=learner,
            learner_memory=empty,
            replay=store,
            drive=held,
            noise=jnp.zeros_like(row.action) if noisy else jnp.zeros(0),
            champion=tree.take(actors, 0),
            elite_copy=none,
            synced=jnp.int32(-1),
            fates=jnp.zeros(3, jnp.int32),
            actors=actors,
            memories=tree.repeat(empty, population),
        )

    def evaluate(s: State) -> State:
        """Play ``trials`` greedy episodes of each actor and one exploring episode of the learner; store
        all."""
        key, key_play = jax.random.split(s.key)
        learner = jax.tree.map(lambda x: x[None], agent.policy(s.learner))
        noise = jnp.zeros((players + 1, *s.noise.shape)).at[-1].set(s.noise)
        explores = s.hyper.noise_scale if noisy else agent.exploration(s.hyper.agent, s.env_steps / 1)
        episodes = lanes.episodes(
            env,
            policy.with_noise(agent, s.hyper.noise_theta, s.hyper.noise_sigma) if noisy else agent.act,
            tree.concat([tree.take(s.actors, owner), learner]),
            noise if noisy else (),
            key_play,
            scale=jnp.zeros(players + 1).at[-1].set(explores),
            record=partial(transition, discount=s.hyper.agent.discount, timeout_is_terminal=True),
        )  # [P * trials + 1, T]
        fitness = judging.sound(episodes.total[:-1].reshape(population, trials).mean(1), s.actors)
        steps = episodes.length.sum()
        seen = (Memory(episodes.steps.obs), episodes.valid)
        by_individual = jax.tree.map(lambda x: x[:-1].reshape(population, -1, *x.shape[2:]), seen)
        rows, held = drives.after_episodes(drive, s.drive, episodes, s.generation, s.hyper)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + steps,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=fitness, learner_return=episodes.total[-1], steps=steps),
            learner_memory=add(s.learner_memory, *tree.take(seen, -1)),
            replay=replay.add(s.replay, tree.flatten(rows), episodes.valid.ravel()),
            drive=held,
            noise=episodes.carry[-1] if noisy else s.noise,
            champion=tree.take(s.actors, best_first(fitness)[0]),
            memories=jax.vmap(add)(s.memories, *by_individual),
        )

    def evolve(s: State) -> State:
        """Clone the elites, keep the winners, fill the rest with children; all but the clones may mutate."""
        key, key_select, key_cross, key_chance, key_mutate = jax.random.split(s.key, 5)
        fitness = s.metrics.fitness
        s = replace(s, metrics=replace(s.metrics, **judging.told(fitness)))
        selection = select(key_select, fitness, config.elites, config.tournament)
        actors, memories = tree.take((s.actors, s.memories), selection.source)
        parents = clones(selection)
        if selection.vacant.size:
            actors, memories, parents = cross(s, selection, actors, memories, key_cross)
        eligible = jax.random.bernoulli(key_chance, s.hyper.mutation_probability, (population,))
        eligible &= ~jnp.isin(jnp.arange(population), selection.elite_copies)
        mutants = mutated(s.hyper, actors, memories, key_mutate)
        fates = s.fates.at[fate(selection, s.synced)].add(s.synced >= 0)
        elite, selected, discarded = fates / jnp.maximum(fates.sum(), 1)
        return replace(
            s,
            key=key,
            metrics=replace(
                s.metrics,
                children=(selection.vacant >= 0).sum(dtype=jnp.int32),
                parents=parents,
                elite_rate=elite,
                selected_rate=selected,
                discarded_rate=discarded,
            ),
            elite_copy=selection.elite_copies[0],
            fates=fates,
            actors=tree.where(eligible, mutants, actors),
            memories=memories,
        )

    def cross(
        s: State, selection: Selection, actors: Params, memories: Ring, key: Key
    ) -> tuple[Params, Ring, Array]:
        """Return the population with children in the vacant slots, and the two parents of each slot."""
        if config.crossover == "n_point":
            return recombine(selection, actors, memories, key)

        def child(x: Params, y: Params, memory: Ring, key: Key, active: Array) -> Params:
            how = (config.distillation, s.hyper.crossover_lr)
            return distil(agent, s.learner, x, y, memory, key, *how, active)

        def behave(policy: Params, obs: Array) -> Array:
            said = greedy(policy, obs)
            return jax.nn.one_hot(jnp.argmax(said, -1), env.spec.action_dim) if env.spec.discrete else said

        return breed(child, behave, selection, actors, memories, s.metrics.fitness, config.mating, key)

    def mutated(hyper: Hyper, actors: Params, memories: Ring, key: Key) -> Params:
        """Return a mutant of every individual."""
        keys = jax.random.split(key, population)
        if config.mutation == "gaussian":
            return jax.vmap(mutate.gaussian)(actors, keys)
        return mutate.proximal_all(
            greedy, actors, memories, keys, config.mutation_batch, hyper.mutation_std, hyper.sensitivity_floor
        )

    @learning.traced_once
    def update(
        learned: tuple[PyTree, PyTree], store: Ring, hyper: Hyper, key: Key
    ) -> tuple[tuple[PyTree, PyTree], tuple[PyTree, ...]]:
        """Take one gradient step of the learner, then one of its drive."""
        learner, held = learned
        key_sample, key_update, key_drive = jax.random.split(key, 3)
        batch = replay.sample(store, key_sample, config.batch)
        if drive.see is not None and agent.eyes is not None:
            held = drive.see(held, agent.eyes.of(learner))
        paid, bonus = drive.pay(held, batch, hyper)
        learner, losses = agent.learn(learner, tree.take(paid, 0), hyper.agent, key_update)
        near = partial(numbering.pairs, store, count=config.batch, stride=1, horizon=drive.horizon)
        held, told = drive.learn(held, batch, None, near, hyper, key_drive)
        return (learner, held), (losses, bonus, told)

    def learn(s: State) -> State:
        """Take as many gradient steps of the learner as the generation took environment steps."""
        key, key_learn = jax.random.split(s.key)
        owed = (s.metrics.steps * s.hyper.updates_per_step).astype(jnp.int32)
        count = jnp.where(s.replay.size > config.learning_starts, owed, 0)
        (learner, held), (losses, bonus, told) = learning.steps(
            lambda learned, key: update(learned, s.replay, s.hyper, key),
            (s.learner, s.drive),
            count,
            key_learn,
            (s.metrics.losses, s.metrics.bonus, s.metrics.drive),
        )
        metrics = replace(s.metrics, losses=losses, bonus=bonus, drive=told, gradient_steps=count)
        return replace(s, key=key, learner=learner, drive=held, metrics=metrics)

    def sync(s: State) -> State:
        """Put the learner's policy and memory into the least fit slot, every ``sync_period`` generations."""
        due = s.generation % config.sync_period == 0
        slot = replaceable(s.metrics.fitness, s.elite_copy)
        slots = (s.actors, s.memories, s.metrics.parents)
        entry = (agent.policy(s.learner), s.learner_memory, jnp.full(2, -1, jnp.int32))
        actors, memories, parents = exchange.insert(slots, slot, entry, due)
        metrics = replace(s.metrics, parents=parents)
        return replace(s, metrics=metrics, synced=jnp.where(due, slot, -1), actors=actors, memories=memories)

    return Method(
        init=init,
        step=chain(evaluate, evolve, learn, sync),
        policy=lambda s: s.champion,
        act=agent.act,
        hyper=default_hyper(config),
        steps_bound=(players + 1) * env.spec.episode_length,
        individuals=lambda s: s.actors,
        exploration=lambda s: agent.exploration(s.hyper.agent, s.env_steps / 1),
    )


def remarks(env: Env, config: Config, hyper: Hyper, env_steps: int) -> list[str]:
    """Return a line if DQN's exploration does not end within the run."""
    return (
        clocks.exploration(hyper.agent, env_steps, field="agent")
        if isinstance(config.agent, dqn.Config)
        else []
    )


METHOD = Recipe(
    build,
    Config,
    default_hyper,
    agents={
        "agent": {name: module.Config() for name, module in agents.AGENTS.items()},
        "drive": drives.NOVELTY,
    },
    preset=preset,
    remarks=remarks,
)
