"""Who takes over whose policy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax import tree
from popjax.core import Key, PyTree, Spec
from popjax.methods.cspc import off_policy
from popjax.methods.cspc.config import Config, Hyper
from popjax.methods.cspc.members import Member

ON_POLICY = 1  # the population's slot for its policy; the global agent's is 0


def hand_over(
    config: Config,
    members: dict[str, Member],
    team: tuple[PyTree, ...],
    scores: Array,
    labels: Array,
    may: Array | bool,
    hyper: Hyper,
) -> tuple[tuple[PyTree, ...], Array, Array]:
    """The team, its labels [P] and how many policies each (row) took over from each, int32 [P, P].

    Algorithm 1, lines 8 to 19. The global agent gives to everybody, the on-policy one to the search; only the
    former labels.
    """
    names = list(members)
    states = dict(zip(names, team, strict=True))
    score = dict(zip(names, scores, strict=True))
    before = states.get("on_policy")
    count = jnp.zeros((len(names), len(names)), jnp.int32)

    def given(name: str, giver: str, taken: PyTree) -> Array:
        nonlocal count
        yes = may & (score[giver] - score[name] > hyper.gap)
        states[name] = tree.where(yes, taken, states[name])
        count = count.at[names.index(name), names.index(giver)].add(yes)
        return yes

    for name in names:
        if name == "global" or "global" not in members:
            continue
        taken = _taken(config, name, members, states, hyper)
        yes = given(name, "global", taken)
        labels = labels.at[names.index(name)].set(labels[names.index(name)] | yes)
    if "on_policy" in members and "evolution" in members:
        source = before if config.source == "before" else states["on_policy"]
        mean = members["on_policy"].mean(source)
        adopt = members["evolution"].adopt
        given("evolution", "on_policy", adopt(states["evolution"], mean, None, hyper, slot=ON_POLICY))
    return tuple(states[name] for name in names), labels, count


def _taken(
    config: Config, name: str, members: dict[str, Member], states: dict[str, PyTree], hyper: Hyper
) -> PyTree:
    """The state of ``name`` after it has taken over the global agent's policy."""
    state, giver = states[name], states["global"]
    if name.startswith("copy") and config.copy == "all":
        state = off_policy.copied(state, giver)
    own: Member = members[name]
    return own.adopt(state, members["global"].mean(giver), members["global"].value(giver), hyper)


def check(spec: Spec, members: dict[str, Member]) -> None:
    """That all agents have one mean network, and understand it alike.

    Raises:
        ValueError: with the parameters that differ, or the agents that act differently with the same ones.
    """
    key_mean, key_obs = jax.random.split(jax.random.key(0))
    (first, one), *others = members.items()

    def drawn(key: Key, leaf: Array) -> Array:
        """Weights that make outputs of the order of 1, where squashing and activations show."""
        return jax.random.normal(key, leaf.shape) * (leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 1.0)

    mean = jax.tree.map(drawn, tree.keys_like(key_mean, one.blank), one.blank)
    obs = jax.random.normal(key_obs, (8, spec.obs_shape[0]))
    expected = jax.vmap(one.greedy, (None, 0))(mean, obs)
    for name, member in others:
        differing = sorted(_leaves(mean) ^ _leaves(member.blank))
        if differing:
            raise ValueError(
                f"{name} cannot take over the mean network of {first}; these differ: "
                + ", ".join(differing)
                + "; give both the same hidden layers and no layer norm"
            )
        if not np.allclose(jax.vmap(member.greedy, (None, 0))(mean, obs), expected, atol=1e-4):
            raise ValueError(
                f"{name} and {first} do not act alike with the same mean network; "
                "give both the same activation, and let actions be squashed"
            )


def _leaves(params: PyTree) -> set[str]:
    return {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {tuple(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(params)
    }
