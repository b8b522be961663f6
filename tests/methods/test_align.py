"""Alignment before distillation: what an alignment network learns, and from whom."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.envs import make
from popjax.methods import align
from popjax.nets import recurrent
from popjax.nets.recurrent import recurrent_actor_critic
from popjax.population import imitation
from tests.support import Case

NET = recurrent.Config(hidden=(8,), units=8)


def opinionated(task, seed):
    env = make(task)
    network = recurrent_actor_critic((1,), 2, NET)
    params = network.init(jax.random.key(seed))
    params["policy"]["kernel"] *= 200
    params["policy"]["bias"] = jnp.array([0.0, 1.5])
    return env, imitation.of_network(env.spec, network, params)


@lru_cache
def aligned():
    """The teacher knows the wrong way about what the expert does."""
    env, expert = opinionated("probe/corridor-discrete", 1)
    unroll = expert.policy.unroll

    def other(params, memory, obs, done):
        memory, logits = unroll(params, memory, obs, done)
        return memory, logits[..., ::-1]

    teacher = imitation.Teacher(expert.policy._replace(unroll=other))
    config = align.Config(lanes=2, steps=10, updates=4, batch=20, capacity=400, align_hidden=(16,))
    method = align.build(env, config, [teacher], [expert])
    hyper = replace(method.hyper, align_lr=1e-2)
    state = jax.jit(method.init)(jax.random.key(3), hyper)  # a network that begins far off
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), s.metrics), s, length=60))
    return method, expert.policy, *run(state)


@pytest.mark.slow
def test_an_alignment_network_turns_a_teacher_into_the_expert():
    method, expert, state, rows = aligned()
    assert rows.fresh_loss[1] > 0.1 > 20 * rows.fresh_loss[-1]
    np.testing.assert_allclose(rows.aligned[-1], rows.expert[-1], atol=0.03)
    assert np.abs(rows.teacher[-1] - rows.expert[-1]).max() > 0.1
    assert int(state.env_steps) == 60 * 20
    assert rows.fitness[-1, 0] > 0
    memory, own = method.memory, method.memory
    for obs in (0.0, 0.5, 0.0):
        seen = jnp.array([obs])
        choice = method.act(method.policy(state), memory, seen, jax.random.key(0), 0.0)
        own, logits = expert.unroll(expert.params, own, seen[None], jnp.zeros(1, bool))
        said = method.unroll(method.policy(state), memory, seen[None], jnp.zeros(1, bool))[1]
        memory = choice.memory
        assert int(choice.action) == int(jnp.argmax(logits)) == int(jnp.argmax(said))


def test_alignment_needs_one_of_each():
    env, expert = opinionated("probe/corridor-discrete", 1)
    with pytest.raises(ValueError, match=r"got 1 and 0.*--expert"):
        align.build(env, align.Config(), [expert])
    spec = expert.policy.spec._replace(action_dim=3)
    wide = imitation.Teacher(expert.policy._replace(spec=spec))
    with pytest.raises(ValueError, match=r"and 3 discrete actions; probe/corridor-discrete has .* and 2"):
        align.build(env, align.Config(), [expert], [wide])
    other = make("probe/context-discrete")  # of equal shapes; the teacher may be of another task
    with pytest.raises(
        ValueError, match=r"a run of probe/corridor-discrete .*; probe/context-discrete .*--expert"
    ):
        align.build(other, align.Config(), [expert], [expert])


def a_case():
    config = align.Config(lanes=2, steps=3, updates=2, batch=4, capacity=20, align_hidden=(4,))
    teacher, expert = (
        opinionated(f"probe/{task}", 7)[1] for task in ("context-discrete", "corridor-discrete")
    )
    build = partial(align.build, make("probe/corridor-discrete"), config, [teacher], [expert])
    return Case(build, population=1, alone=False, slow=True)


CASES = {"align": a_case()}
