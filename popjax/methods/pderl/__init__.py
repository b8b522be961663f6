"""Proximal distilled evolutionary reinforcement learning. Bodnar, Day & Lio, AAAI 2020.

A population of deterministic actors evolves beside a DDPG learner. Everybody's experience trains the
learner; every few generations the learner's actor enters the population. Children are distilled from the
better actions of two parents, as the learner's critic judges them, and mutations are scaled by how much
each weight moves the actions.

A generation: evaluate -> evolve -> learn -> sync.

ERL (``popjax.methods.erl``) is ``crossover="n_point", mutation="gaussian"``, PERL ``n_point`` with
``proximal``, DERL ``distil`` with ``gaussian``.

Differs from the paper where its code does, which made the paper's numbers; each difference is an option:
a child starts from the less fit parent, its regulariser is a mean over action components too, equal values
imitate the less fit parent (``distillation``); an elite's copy mates with the fitness of whom it replaced, a
repeated winner may mate with itself (``mating``); the learner may overwrite any slot but that of the best
elite's copy (``protect_all_elites``); the time limit is terminal (``timeout_is_terminal``). Left out, being
slips of ERL's first code: actor gradients unclipped, noisy actions stored beyond [-1, 1], sync counted in
games. For distances an individual's states are drawn once, not anew for every pair.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from popjax import rollout, tree
from popjax.agents import ddpg
from popjax.contract import checked
from popjax.core import (
    Env,
    Key,
    Method,
    Params,
    Timestep,
    Transition,
    as_arrays,
    chain,
    continuous_dims,
    example_transition,
    stacked,
    transition,
)
from popjax.evolution import mutate
from popjax.evolution.crossover import distil
from popjax.evolution.offspring import breed, clones, recombine
from popjax.evolution.select import Selection, replaceable, select
from popjax.methods.pderl.config import Config, Hyper, family, preset
from popjax.recipe import Recipe, recorded
from popjax.replay.ring import Ring, add, draw, ring

__all__ = ["METHOD", "Config", "Hyper", "Metrics", "State", "build", "family", "preset"]


@struct.dataclass
class Metrics:
    """What a generation shows.

    fitness:         float32 [P] mean return of each actor's trials, as evaluated, before evolution.
    learner_return:  return of the learner's noisy episode.
    critic_loss, actor_loss: of the learner's last gradient step; 0 before the first.
    steps:           int32 environment steps of the generation.
    gradient_steps:  int32 of the learner in the generation.
    children:        int32 slots filled by crossover.
    parents:         int32 [P, 2] slots from which each slot of the next generation stems; -1 for none, of
                     the learner's actor both.
    elite_rate, selected_rate, discarded_rate: what became of the learner's actor in the generation after it
                     entered the population: share of all its entries so far.
    """

    fitness: Array
    learner_return: Array
    critic_loss: Array
    actor_loss: Array
    steps: Array
    gradient_steps: Array
    children: Array
    parents: Array
    elite_rate: Array
    selected_rate: Array
    discarded_rate: Array


@struct.dataclass
class Memory:
    """A row of a genetic memory: obs [D], action [A]."""

    obs: Array
    action: Array


@struct.dataclass
class State:
    """Everything that training carries."""

    key: Key
    hyper: Hyper
    env_steps: Array  # int32 [] of population and learner
    generation: Array  # int32 [] completed
    metrics: Metrics
    learner: ddpg.State
    learner_memory: Ring
    replay: Ring
    noise: Array  # float32 [A] the learner's Ornstein-Uhlenbeck process
    champion: Params  # the fittest actor of the last evaluation
    elite_copy: Array  # int32 [n] slots that sync must spare, best elite's first
    synced: Array  # int32 [] slot that the learner's actor entered last generation, or -1
    fates: Array  # int32 [3] entries that became elite, were selected, were discarded
    actors: Params = stacked()
    memories: Ring = stacked()


@recorded
def build(env: Env, config: Config = Config()) -> Method:
    """PDERL, ERL, PERL or DERL in ``env``, as ``config`` says."""
    continuous_dims(env.spec, "pderl")
    env = checked(env)
    agent = ddpg.build(env.spec, config.ddpg)
    replay = ring(config.capacity, replace=config.sample_replace)
    memory = ring(config.memory)
    population, elites, trials = config.population, config.elites, config.trials
    players = population * trials  # lanes of the population; the learner's comes last

    def init(key: Key, hyper: Hyper) -> State:
        hyper = as_arrays(hyper)
        key, key_actors, key_learner = jax.random.split(key, 3)
        actors = jax.vmap(agent.actor.init)(jax.random.split(key_actors, population))
        row = example_transition(env.spec)
        empty = memory.init(Memory(row.obs, row.action))
        zero, none, scores = jnp.float32(0), jnp.int32(0), jnp.zeros(population)
        orphans = jnp.full((population, 2), -1, jnp.int32)
        return State(
            key=key,
            hyper=hyper,
            env_steps=none,
            generation=none,
            metrics=Metrics(scores, zero, zero, zero, none, none, none, orphans, zero, zero, zero),
            learner=agent.init(key_learner, hyper.ddpg),
            learner_memory=empty,
            replay=replay.init(row),
            noise=jnp.zeros_like(row.action),
            champion=tree.take(actors, 0),
            elite_copy=jnp.zeros(elites if config.protect_all_elites else 1, jnp.int32),
            synced=jnp.int32(-1),
            fates=jnp.zeros(3, jnp.int32),
            actors=actors,
            memories=tree.repeat(empty, population),
        )

    def play(actor: Params, noise: Array, scale: Array, hyper: Hyper, key: Key) -> rollout.Episode:
        """One episode of one actor, with ``scale`` times its Ornstein-Uhlenbeck noise."""

        def policy(noise: Array, obs: Array, key: Key) -> tuple[Array, Array]:
            normal = jax.random.normal(key, noise.shape)
            noise = ddpg.ornstein_uhlenbeck(noise, normal, hyper.noise_theta, hyper.noise_sigma)
            return noise, jnp.clip(agent.actor.apply(actor, obs) + scale * noise, -1.0, 1.0)

        def record(obs: Array, action: Array, timestep: Timestep) -> Transition:
            return transition(obs, action, timestep, hyper.ddpg.discount, config.timeout_is_terminal)

        return rollout.episode(env, policy, noise, key, record=record)

    def evaluate(s: State) -> State:
        """Everyone plays ``trials`` greedy episodes, the learner one noisy one; all are remembered."""
        key, key_play = jax.random.split(s.key)
        owner = jnp.repeat(jnp.arange(population), trials)
        learner = jax.tree.map(lambda x: x[None], s.learner.actor)
        noise = jnp.zeros((players + 1, *s.noise.shape)).at[-1].set(0.0 if config.noise_reset else s.noise)
        scale = jnp.zeros(players + 1).at[-1].set(s.hyper.noise_scale)
        episodes = jax.vmap(play, (0, 0, 0, None, 0))(
            tree.concat([tree.take(s.actors, owner), learner]),
            noise,
            scale,
            s.hyper,
            jax.random.split(key_play, players + 1),
        )  # [P * trials + 1, T]
        fitness = episodes.total[:-1].reshape(population, trials).mean(1)
        steps = episodes.length.sum()
        seen = (Memory(episodes.steps.obs, episodes.steps.action), episodes.valid)
        by_individual = jax.tree.map(lambda x: x[:-1].reshape(population, -1, *x.shape[2:]), seen)
        return replace(
            s,
            key=key,
            env_steps=s.env_steps + steps,
            generation=s.generation + 1,
            metrics=replace(s.metrics, fitness=fitness, learner_return=episodes.total[-1], steps=steps),
            learner_memory=add(s.learner_memory, *tree.take(seen, -1)),
            replay=replay.add(s.replay, tree.flatten(episodes.steps), episodes.valid.ravel()),
            noise=episodes.carry[-1],
            champion=tree.take(s.actors, jnp.argmax(fitness)),
            memories=jax.vmap(add)(s.memories, *by_individual),
        )

    def evolve(s: State) -> State:
        """Elites are cloned, winners stay, children fill the rest, all but the clones may mutate."""
        key, key_select, key_cross, key_chance, key_mutate = jax.random.split(s.key, 5)
        selection = select(key_select, s.metrics.fitness, elites, config.tournament)
        actors, memories = tree.take((s.actors, s.memories), selection.source)
        parents = clones(selection)
        if selection.vacant.size:
            actors, memories, parents = cross(s, selection, actors, memories, key_cross)
        eligible = jax.random.bernoulli(key_chance, s.hyper.mutation_probability, (population,))
        eligible &= ~jnp.isin(jnp.arange(population), selection.elite_copies)
        mutants = mutated(s.hyper, actors, memories, key_mutate)
        fates = s.fates.at[_fate(selection, s.synced)].add(s.synced >= 0)
        rates = fates / jnp.maximum(fates.sum(), 1)
        return replace(
            s,
            key=key,
            metrics=replace(
                s.metrics,
                children=(selection.vacant >= 0).sum(dtype=jnp.int32),
                parents=parents,
                elite_rate=rates[0],
                selected_rate=rates[1],
                discarded_rate=rates[2],
            ),
            elite_copy=selection.elite_copies[: s.elite_copy.shape[0]],
            fates=fates,
            actors=tree.where(eligible, mutants, actors),
            memories=memories,
        )

    def cross(
        s: State, selection: Selection, actors: Params, memories: Ring, key: Key
    ) -> tuple[Params, Ring, Array]:
        """Children in the vacant slots, and the slots that everybody stems from."""
        if config.crossover == "n_point":
            return recombine(selection, actors, memories, key)

        def child(x: Params, y: Params, memory: Ring, key: Key, active: Array) -> Params:
            networks = (agent.actor, agent.critic, s.learner.critic)
            how = (config.distillation, s.hyper.crossover_lr)
            return distil(*networks, x, y, memory, key, *how, active)

        return breed(child, agent.actor, selection, actors, memories, s.metrics.fitness, config.mating, key)

    def mutated(hyper: Hyper, actors: Params, memories: Ring, key: Key) -> Params:
        """A mutant of every actor."""
        keys = jax.random.split(key, population)
        if config.mutation == "gaussian":
            return jax.vmap(mutate.gaussian)(actors, keys)

        def proximal(individual: tuple[Params, Ring, Key]) -> Params:
            actor, memory, key = individual
            key_draw, key_std, key_noise = jax.random.split(key, 3)
            rows, valid = draw(memory, key_draw, config.mutation_batch)
            std = hyper.mutation_std + hyper.mutation_std_noise * jax.random.normal(key_std)
            return mutate.proximal(
                agent.actor.apply, actor, rows.obs, valid, key_noise, std, hyper.sensitivity_floor
            )

        # Two by two: a Jacobian per action component for everybody at once needs much memory.
        return jax.lax.map(proximal, (actors, memories, keys), batch_size=2)

    def learn(s: State) -> State:
        """As many off-policy updates as environment steps were seen in this generation."""
        key, key_learn = jax.random.split(s.key)
        owed = (s.metrics.steps * s.hyper.updates_per_step).astype(jnp.int32)
        updates = jnp.where(s.replay.size > config.start_batches * config.batch, owed, 0)

        def update(i: Array, carry: tuple[ddpg.State, ddpg.Losses]) -> tuple[ddpg.State, ddpg.Losses]:
            key_sample, key_update = jax.random.split(jax.random.fold_in(key_learn, i))
            batch = replay.sample(s.replay, key_sample, config.batch)
            return agent.learn(carry[0], batch, s.hyper.ddpg, key_update)

        losses = ddpg.Losses(s.metrics.critic_loss, s.metrics.actor_loss)
        learner, losses = jax.lax.fori_loop(0, updates, update, (s.learner, losses))
        metrics = replace(
            s.metrics,
            critic_loss=losses.critic_loss,
            actor_loss=losses.actor_loss,
            gradient_steps=updates,
        )
        return replace(s, key=key, learner=learner, metrics=metrics)

    def sync(s: State) -> State:
        """Every ``sync_period`` generations the learner's actor and memory take the least fit slot."""
        due = s.generation % config.sync_period == 0
        slot = replaceable(s.metrics.fitness, s.elite_copy)
        slots = (s.actors, s.memories, s.metrics.parents)
        entry = (s.learner.actor, s.learner_memory, jnp.full(2, -1, jnp.int32))
        actors, memories, parents = tree.put(slots, jnp.where(due, slot, population), entry)
        metrics = replace(s.metrics, parents=parents)
        return replace(s, metrics=metrics, synced=jnp.where(due, slot, -1), actors=actors, memories=memories)

    return Method(
        init=init,
        step=chain(evaluate, evolve, learn, sync),
        policy=lambda s: s.champion,
        act=agent.act,
        hyper=Hyper(),
        steps_bound=(players + 1) * env.spec.episode_length,
        individuals=lambda s: s.actors,
    )


def _fate(selection: Selection, slot: Array) -> Array:
    """What selection made of a slot: 0 elite, 1 selected, 2 discarded."""
    return jnp.where(selection.elites[slot], 0, jnp.where(selection.selected[slot], 1, 2))


METHOD = Recipe(build, Config, lambda config: Hyper(), preset=preset)
