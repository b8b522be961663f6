"""All agents at once: a vector step moves everybody's environments, and gradient steps follow it.

Against phases it changes when things are seen, not what they are: the global agent collects while the others
do, and learns from their steps at once; batches and generations run on over the end of an iteration, and a
batch underway is dropped when another policy is taken over. Policies of others enter the generation that an
iteration begins with or, if that is underway, the next. Individuals whose episode is over stand by until
their generation is; steps in which they stand by do not count. The first phase is the global agent's alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from popjax import rollout, tree
from popjax.core import Env, Key, PyTree
from popjax.methods.cspc.config import Hyper
from popjax.methods.cspc.members import Member, Phase, seen
from popjax.methods.cspc.memory import Gate, Memory


def play(
    env: Env,
    members: Sequence[Member],
    team: tuple[PyTree, ...],
    kept: tuple[PyTree, ...],
    memory: Memory,
    length: Array,
    gates: Sequence[Gate],
    hyper: Hyper,
    key: Key,
) -> tuple[tuple[PyTree, ...], tuple[PyTree, ...], Memory, Phase]:
    """``length`` [] vector steps of all members: the team, what they keep, the memory, and steps and kept
    episodes, int32 [P] each. ``length`` is the same in all lanes of any ``vmap``."""
    players = [member.player for member in members]
    move = jax.vmap(rollout.autoreset(env).step)

    def step(carry: Any) -> Any:
        count, team, kept, memory, phase = carry
        keys = jax.random.split(jax.random.fold_in(key, count), (len(players), 3))
        own = list(zip(players, team, kept, strict=True))
        lanes = [player.lanes(state, keep) for player, state, keep in own]
        chosen = [
            player.act(state, keep, hyper, k[0]) for (player, state, keep), k in zip(own, keys, strict=True)
        ]
        states, timesteps = move(
            tree.concat([lane.env for lane in lanes]), jnp.concatenate([actions for actions, _ in chosen])
        )
        team, kept, begin = [], [], 0
        done: list[Phase] = []
        for (player, state, keep), lane, (actions, choice), gate, k in zip(
            own, lanes, chosen, gates, keys, strict=True
        ):
            mine = slice(begin, begin + len(actions))
            answer = jax.tree.map(lambda x, mine=mine: x[mine], (states, timesteps))
            what_happened = seen(lane, actions, answer, choice, hyper)
            state, keep, memory, what = player.take(state, keep, memory, what_happened, gate, hyper, k[1])
            team, kept, done, begin = [*team, state], [*kept, keep], [*done, what], mine.stop
        steps = jnp.stack([what.steps for what in done])
        for i, player in enumerate(players):
            if player.update is not None:
                more = steps[i] if i else steps.sum()  # the first is the global agent
                team[i] = player.update(team[i], memory, more, hyper, keys[i, 2])
        entered = jnp.stack([what.kept for what in done])
        return count + 1, tuple(team), tuple(kept), memory, Phase(phase.steps + steps, phase.kept + entered)

    begun = [player.start(*own) for player, *own in zip(players, team, kept, strict=True)]
    team, kept = tree.where(length > 0, tuple(zip(*begun, strict=True)), (team, kept))
    nothing = Phase(*jnp.zeros((2, len(players)), jnp.int32))
    carry = (jnp.int32(0), team, kept, memory, nothing)
    return jax.lax.while_loop(lambda carry: tree.any_lane(carry[0] < length), step, carry)[1:]
