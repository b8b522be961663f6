"""Returns of a policy on fresh environments.

Evaluation draws from its own key stream, so how often it happens never changes training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from popjax import numerics, rollout
from popjax.arguments import told, typed
from popjax.core import Env, Key, Method, Params, PyTree, Spec
from popjax.host import garbage
from popjax.host.errors import Refused
from popjax.host.scaling import sweep
from popjax.host.signals import ready
from popjax.host.training.compile_cache import identity, keep_compiled
from popjax.remember import Remembered

_DURING_TRAINING = 0x45564131
_AFTERWARDS = 0x45564132


def play(
    env: Env, method: Method, params: Params, key: Key, episodes: int, scale: Array | float = 0.0
) -> tuple[Array, Array]:
    """Play one policy, with its exploration at ``scale`` [], for ``episodes`` episodes from fresh resets.

    The results are undiscounted returns float32 [E] and lengths int32 [E] in environment steps.
    """

    env = env.scored or env

    def one(key: Key) -> tuple[Array, Array]:
        def choose(memory: PyTree, obs: Array, key: Key) -> tuple[PyTree, Array]:
            return method.act(params, memory, obs, key, scale)[:2]

        episode = rollout.episode(env, choose, method.memory, key, record=lambda *_: ())
        return episode.total, episode.length

    return jax.vmap(one)(jax.random.split(key, episodes))


def training_key(seed_key: Key, generation: Array) -> Key:
    """Return the key for evaluating the seed with key ``seed_key`` [] after ``generation`` generations."""
    return jax.random.fold_in(jax.random.fold_in(seed_key, _DURING_TRAINING), generation)


def evaluator(method: Method, env: Env, episodes: int) -> Callable[..., tuple[Array, Array]]:
    """Return the function ``(state, seed key, generation []) -> returns [E], lengths [E]`` that plays the
    policy of one member."""

    def evaluation(state: Any, key: Key, generation: Array) -> tuple[Array, Array]:
        return play(env, method, method.policy(state), training_key(key, generation), episodes)

    return evaluation


@typed(Refused)
@numerics.standardized
def evaluate(
    method: Method,
    env: Env,
    state: Any,
    *,
    episodes: int = 5,
    seed: int = 0,
    members: Sequence[int] | None = None,
    stochastic: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate the policies of ``state`` [S, ...], such as the ``state`` of a ``Result``, and return
    undiscounted returns float32 [S, E] and lengths int32 [S, E] in environment steps.

    A State without the axis S, as ``method.init`` returns it, is that of a single member. Equal seeds give
    equal episodes; none of them were used for evaluation during training.

    Args:
        members: numbers of the policies in their sweep, by default 0 to S - 1. A policy with the same number
            plays the same episodes, alone or among others.
        stochastic: explore as in training: a stochastic policy samples, a deterministic one adds its noise.

    Raises:
        Refused: an argument has the wrong type or is out of range, ``members`` does not have one number for
            each policy, ``state`` is of another method, or the observations or actions of ``env`` differ from
            those of the task that the method was built for.
    """
    if episodes < 1:
        raise Refused(f"--episodes must be at least 1, got {episodes}")
    if not 0 <= seed < 2**31:
        raise Refused(f"--seed must be in 0 to {2**31 - 1}, got {seed}")
    if not (leaves := jax.tree.leaves(state)) or not all(hasattr(leaf, "dtype") for leaf in leaves):
        raise Refused(f"state must be a State of the method, as in result.state, got {told(state)}")
    if method.built:
        _check_alike(method.built.env.spec, env.spec)
    keep_compiled()
    if any(not np.ndim(leaf) for leaf in jax.tree.leaves(state)):  # no members: a State has scalars
        state = jax.tree.map(lambda x: x[None], state)
    count = jax.tree.leaves(state)[0].shape[0]
    if members is not None and len(members) != count:
        raise Refused(
            f"members must have one number for each policy of the state, {count} in all, got {told(members)}"
        )
    numbers = np.asarray(range(count) if members is None else members, np.int32)
    key = identity(method, env), method.exploration, count, episodes, stochastic
    run = _PLAYERS.get(key, lambda: _player(method, env, count, episodes, stochastic))
    try:
        returns, lengths = ready(run(state, jax.random.fold_in(jax.random.key(seed), _AFTERWARDS), numbers))
    except (AttributeError, TypeError, ValueError):
        if not _belongs(state, method):
            raise Refused(
                "state is that of another method, or of one with another Config; evaluate it with the method"
                " that trained it"
            ) from None
        raise
    return np.asarray(returns), np.asarray(lengths)


def _check_alike(trained: Spec, asked: Spec) -> None:
    """Check that a policy for one task can see and act in another."""

    def told(spec: Spec) -> str:
        kind = "discrete" if spec.discrete else "continuous"
        return f"observations {spec.obs_shape} and {spec.action_dim} {kind} actions"

    if told(trained) != told(asked):
        raise Refused(
            f"{asked.name} has {told(asked)}, but the method was built for {trained.name} with"
            f" {told(trained)}; build it for this task"
        )


def _belongs(state: Any, method: Method) -> bool:
    """Return whether ``state`` [S, ...] has the structure and the shapes of a State of ``method``."""
    fresh = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    ours, theirs = (jax.tree.flatten_with_path(each)[0] for each in (fresh, state))
    shapes = {path: x.shape for path, x in ours}
    return shapes == {path: x.shape[1:] for path, x in theirs}


_PLAYERS: Remembered[Callable[..., tuple[Array, Array]]] = Remembered(8)


def _player(
    method: Method, env: Env, count: int, episodes: int, stochastic: bool
) -> Callable[..., tuple[Array, Array]]:
    """Return ``(state, key, member numbers [S]) -> returns [S, E], lengths [S, E]`` for ``count`` members."""

    @jax.jit
    @garbage.paused()
    def run(state: Any, key: Key, numbers: Array) -> tuple[Array, Array]:
        def one(state: Any, number: Array) -> tuple[Array, Array]:
            scale = method.exploration(state) if stochastic else 0.0
            return play(env, method, method.policy(state), jax.random.fold_in(key, number), episodes, scale)

        return sweep.mapped(one, count)(state, numbers)

    return run
