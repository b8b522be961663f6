"""A population that a search over parameters draws, tests and forgets, generation by generation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree

from popjax import nets, rollout, tree
from popjax.core import Env, Key, Params, continuous_dims
from popjax.evolution import cem
from popjax.methods.cspc import memory as store
from popjax.methods.cspc.config import Config, Evolution, Hyper
from popjax.methods.cspc.members import NOTHING, Member, Phase, Player, Seen, enter, record_transition, until
from popjax.methods.cspc.memory import Gate, Memory


@struct.dataclass
class State:
    """A search over the parameters of the mean network.

    search:     mean, variance and damp.
    population: [individuals, n] drawn and not yet evaluated.
    best:       [n] the fittest of the last generation; the mean before the first.
    slots:      [2, n] policies of others that enter the first rows: the global's, the on-policy agent's.
    filled:     bool [2] whether there is one.
    excess:     int32 [] steps that the last phase was too long.
    fitness:    [individuals] of the last generation.
    """

    search: cem.State
    population: Array
    best: Array
    slots: Array
    filled: Array
    excess: Array
    fitness: Array


@struct.dataclass
class Playing:
    """A generation that is played step by step, [individuals] each: environments, episodes, returns so far,
    and whose episode is over; [] bool: whether any step of the generation has been played (``begun``), and
    whether it began before the phase did, whose policies of others the next one then takes (``expects``)."""

    lanes: rollout.Lane
    underway: store.Underway
    total: Array
    done: Array
    begun: Array
    expects: Array


def build(env: Env, config: Config, how: Evolution, *, shares: bool) -> Member:
    """The search; it ``shares`` what its individuals see, if so."""
    size = how.cem.population
    actor = nets.tanh_actor(
        *continuous_dims(env.spec, "cspc"),
        how.hidden,
        activation=how.activation,
        initializer="uniform_zero_bias",
        final_initializer="uniform_fan_in",
    )
    flat, unflatten = ravel_pytree(actor.init(jax.random.key(0))["mlp"])

    def init(key: Key, hyper: Hyper) -> State:
        key_actor, key_ask = jax.random.split(key)
        mean = ravel_pytree(actor.init(key_actor)["mlp"])[0]
        search = cem.init(mean, hyper.cem)
        return State(
            search=search,
            population=cem.ask(search, key_ask, how.cem),
            best=mean,
            slots=jnp.zeros((2, mean.size)),
            filled=jnp.zeros(2, jnp.bool_),
            excess=jnp.int32(0),
            fitness=jnp.zeros(size),
        )

    def play(mean: Array, hyper: Hyper, key: Key) -> rollout.Episode:
        params = {"mlp": unflatten(mean)}
        # Nothing is kept of a step that nobody learns from.
        record = partial(record_transition, hyper.off_policy.discount) if shares else lambda *_: ()
        return rollout.episode(
            env, lambda carry, obs, key: (carry, actor.apply(params, obs)), (), key, record=record
        )

    def injected(state: State, now: Array) -> State:
        """The policies of others take their rows of the population, if ``now``."""
        enters = state.filled & now
        rows = jnp.where(enters[:, None], state.slots, state.population[:2])
        state = replace(state, population=state.population.at[:2].set(rows))
        return replace(state, filled=state.filled & ~enters) if how.inject == "once" else state

    def told_of(state: State, fitness: Array, hyper: Hyper, key: Key) -> State:
        """The search after a generation, with the next one drawn."""
        search = cem.tell(state.search, state.population, fitness, hyper.cem, how.cem)
        # By the order of ``tell``, for which a return that is no number is the worst.
        best = state.population[jnp.argsort(-fitness, stable=True)[0]]
        population = cem.ask(search, key, how.cem)
        return replace(state, search=search, population=population, best=best, fitness=fitness)

    def train(
        state: State, memory: Memory, length: Array, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Memory, Phase]:
        """Whole generations, of which the first has the policies of others among its individuals."""
        runs = length > 0
        carries = how.carry and config.schedule == "paper"
        due = length - jnp.where(runs & carries, state.excess, 0)
        state = injected(state, due > 0)

        def generation(carry: tuple[State, Memory, Phase]) -> tuple[State, Memory, Phase]:
            before, memory, phase = carry
            alive = phase.steps < due
            key_play, key_ask = jax.random.split(jax.random.fold_in(key, phase.steps))
            keys = jax.random.split(key_play, size)
            episodes = jax.vmap(play, (0, None, 0))(before.population, hyper, keys)  # [individuals]
            kept = jnp.int32(0)
            if shares:
                memory, kept = enter(memory, episodes, alive, gate)
            state = told_of(before, episodes.total, hyper, key_ask)
            steps = phase.steps + jnp.where(alive, episodes.length.sum(), 0)
            return tree.where(alive, state, before), memory, Phase(steps, phase.kept + kept)

        state, memory, phase = until(generation, (state, memory, NOTHING), due)
        return replace(state, excess=jnp.where(runs, phase.steps - due, state.excess)), memory, phase

    def fresh(key: Key) -> Playing:
        start = partial(rollout.start, rollout.autoreset(env), ())
        return Playing(
            lanes=jax.vmap(start)(jax.random.split(key, size)),
            underway=tree.repeat(store.underway(env.spec.episode_length), size),
            total=jnp.zeros(size),
            done=jnp.zeros(size, jnp.bool_),
            begun=jnp.bool_(False),
            expects=jnp.bool_(False),
        )

    def start_phase(state: State, kept: Playing) -> tuple[State, Playing]:
        """The policies of others enter the generation that is drawn, or the next if this one is underway."""
        return injected(state, ~kept.begun), replace(kept, expects=kept.begun)

    def act_now(state: State, kept: Playing, hyper: Hyper, key: Key) -> tuple[Array, tuple[()]]:
        actions = jax.vmap(lambda flat, obs: actor.apply({"mlp": unflatten(flat)}, obs))
        return actions(state.population, kept.lanes.obs), ()

    def take(
        state: State, kept: Playing, memory: Memory, seen: Seen, gate: Gate, hyper: Hyper, key: Key
    ) -> tuple[State, Playing, Memory, Phase]:
        """Individuals whose episode is over stand by until the generation is."""
        alive, reward = ~kept.done, seen.timesteps.reward
        count, underway = jnp.int32(0), kept.underway
        if shares:
            memory, number = store.remember(memory, seen.transitions, alive)
            ends = seen.timesteps.done & alive
            memory, followed, count = store.track_episodes(memory, underway, number, reward, ends, gate)
            underway = tree.where(alive, followed, underway)
        kept = replace(
            kept,
            lanes=seen.played,
            underway=underway,
            total=kept.total + jnp.where(alive, reward, 0.0),
            done=kept.done | seen.timesteps.done,
            begun=jnp.bool_(True),
        )
        over = kept.done.all()

        def renewed() -> tuple[State, Playing]:
            key_ask, key_fresh = jax.random.split(key)
            told = told_of(state, kept.total, hyper, key_ask)
            return injected(told, kept.expects), fresh(key_fresh)

        state, kept = jax.lax.cond(
            tree.any_lane(over), lambda: tree.where(over, renewed(), (state, kept)), lambda: (state, kept)
        )
        return state, kept, memory, Phase(alive.sum(dtype=jnp.int32), count)

    def act(params: Array, obs: Array, hyper: Hyper, key: Key, scale: Array | float) -> Array:
        return actor.apply({"mlp": unflatten(params)}, obs)

    def tested(state: State) -> Array:
        return state.best if how.score == "best" else state.search.mean

    def adopt(state: State, mean: Params, value: Params, hyper: Hyper, slot: int = 0) -> State:
        """The policy waits in its slot for the next phase."""
        flat = ravel_pytree(mean)[0]
        state = replace(state, slots=state.slots.at[slot].set(flat), filled=state.filled.at[slot].set(True))
        if not how.reset_mean:
            return state
        moved = state.population + flat - state.search.mean
        return replace(state, search=replace(state.search, mean=flat), population=moved)

    return Member(
        init=init,
        train=train,
        update=None,
        mean=lambda state: unflatten(tested(state)),
        value=lambda state: None,
        adopt=adopt,
        tested=tested,
        act=act,
        player=Player(
            begin=lambda state, key: fresh(key),
            start=start_phase,
            lanes=lambda state, kept: kept.lanes,
            act=act_now,
            take=take,
            update=None,
        ),
        blank=jax.tree.map(jnp.zeros_like, unflatten(flat)),
        greedy=lambda mean, obs: actor.apply({"mlp": mean}, obs),
    )
