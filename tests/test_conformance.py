"""What every method promises to the host, whatever it does: one table, one set of tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import tree
from popjax.agents import a2c, ddpg, dqn, ppo, sac, sac2018, td3
from popjax.core import Method, Pretrained, stacked_fields
from popjax.envs import make
from popjax.evolution import cem
from popjax.evolution.crossover import Distillation
from popjax.intrinsic import contrastive
from popjax.methods import ca2e, cdrl, ce, cspc, distil, independent, onpolicy, pderl
from popjax.methods.cdrl import offline
from popjax.nets import recurrent
from tests.support import bare, close, equal


class Case(NamedTuple):
    """A method of ``population`` individuals, small enough to compile often."""

    build: Callable[[], Method]
    population: int


def _pderl(**options):
    config = pderl.Config(
        population=4,
        sync_period=2,
        memory=12,
        mutation_batch=4,
        capacity=200,
        batch=4,
        start_batches=2,
        distillation=Distillation(batch=4, epochs=1),
        ddpg=ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4),
    )
    return Case(lambda: pderl.build(make("probe/delay"), replace(config, **options)), 4)


def _independent(agent, env="probe/delay", **options):
    config = independent.Config(agent=agent, population=3, batch=4, capacity=50, warmup=1)
    return Case(lambda: independent.build(make(env), replace(config, **options)), 3)


def _onpolicy(**options):
    config = onpolicy.Config(agent=a2c.Config(hidden=(4,), **options), population=3, lanes=2, steps=3)
    return Case(lambda: onpolicy.build(make("probe/delay"), config), 3)


def _ce(**options):
    config = ce.Config(
        population=3,
        batch=6,
        capacity=60,
        warmup=3,
        sac=sac.Config(hidden=(4,)),
        contrastive=contrastive.Config(hidden=(4,), features=4, bank_size=6, neighbours=2, horizon=2),
        q_horizon=3,
    )
    return Case(lambda: ce.build(make("probe/delay"), replace(config, **options)), 3)


def _cspc(**options):
    config = cspc.Config(
        off_policy=sac2018.Config(hidden=(4,)),
        on_policy=ppo.Config(hidden=(4,), activation="relu", squash=True, policy_epochs=2, value_epochs=2),
        evolution=cspc.Evolution(hidden=(4,), cem=cem.Config(population=4, parents=2)),
        first_phase=20,
        phase=10,
        capacity=200,
        local_capacity=40,
        local_least=10,
        batch=4,
        warmup=5,
        update_after=5,
        on_policy_batch=5,
        trials=2,
    )
    return Case(lambda: cspc.build(make("probe/delay"), replace(config, **options)), 3)


def _ca2e():
    config = replace(
        ca2e.default_config(replace(ddpg.BASELINES, hidden=(4,), critic_layers=(4, 4))),
        nature_actors=2,
        prior_actors=1,
        n_step=1,
        batch=4,
        capacity=50,
        local_buffer=1,
        sync_every=2,
        learning_starts=0,
        check_every=3,
        return_window=2,
    )

    def build():
        env = make("probe/delay")
        policy = Pretrained("constant", env.spec, lambda p, m, obs, key, scale: (m, p), jnp.zeros(1))
        return ca2e.build(env, config, [ca2e.Prior(policy, 0.5)])

    return Case(build, 3)


def _cdrl(**options):
    """A student with a teacher that trains beside it; there are discrete probes of two kinds."""
    network = recurrent.Config(hidden=(4,), units=4)
    config = cdrl.Config(network=network, lanes=2, steps=3, align_hidden=(4,), **options)
    here, other = make("probe/context-discrete"), make("probe/corridor-discrete")

    def build():
        method = cdrl.build(here, config, teacher_envs=[other])
        return method._replace(hyper=replace(method.hyper, align_from=0.0, distil_from=0.0))

    return Case(build, 2)


SMALL = recurrent.Config(hidden=(4,), units=4)


def _finished(task):
    """A finished run of ``cdrl`` with a memory, whose network has learned nothing."""
    spec = make(task).spec
    network = recurrent.recurrent_actor_critic((1,), spec.action_dim, SMALL)
    params = network.init(jax.random.key(7))
    return Pretrained("a run", spec, None, params, network.memory, config=cdrl.Config(network=SMALL))


def _cdrl_finished():
    config = cdrl.Config(network=SMALL, lanes=2, steps=3, align_hidden=(4,))

    def build():
        teachers = [cdrl.Finished(_finished("probe/corridor-discrete"))]
        method = cdrl.build(make("probe/context-discrete"), config, teachers)
        return method._replace(hyper=replace(method.hyper, align_from=0.0, distil_from=0.0))

    return Case(build, 1)


def _align():
    config = offline.Config(lanes=2, steps=3, updates=2, batch=4, capacity=20, align_hidden=(4,))
    runs = [cdrl.Finished(_finished(f"probe/{task}")) for task in ("context-discrete", "corridor-discrete")]
    return Case(lambda: offline.build(make("probe/corridor-discrete"), config, runs[:1], runs[1:]), 1)


def _distil():
    config = distil.Config(network=SMALL, lanes=2, steps=3, capacity=4, batch=3, updates=2, labels="logits")
    run = distil.Graded(_finished("probe/corridor-discrete"), -1, 0.0)
    return Case(lambda: distil.build(make("probe/corridor-discrete"), config, [run]), 1)


CASES = {
    "align": _align(),
    "ca2e": _ca2e(),
    "cdrl": _cdrl(),
    "cdrl_finished": _cdrl_finished(),
    "ce": _ce(),
    "cspc": _cspc(),
    "distil": _distil(),
    "cspc_fused": _cspc(
        fused=True, phase=12, lanes=4, on_policy_lanes=4, on_policy_batch=8, reset_at_batch=False
    ),
    "ce_all": _ce(col_unroll=True, col_eval=True, eval_classifier="q", lanes=2),
    "pderl": _pderl(),
    "erl": _pderl(crossover="n_point", mutation="gaussian"),
    "ddpg": _independent(ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4)),
    "ddpg_normalized": _independent(replace(ddpg.BASELINES, hidden=(4,), critic_layers=(4, 4))),
    "dqn": _independent(dqn.Config(hidden=(4,)), env="probe/corridor-discrete"),
    "td3": _independent(td3.Config(hidden=(4,)), lanes=2, steps=2),
    "sac": _independent(sac.Config(hidden=(4,))),
    "shared": _independent(sac.Config(hidden=(4,)), shared_replay=True),
    "onpolicy": _onpolicy(),
    "onpolicy_lstm": _onpolicy(lstm=4),
}
# Second cases of their methods.
SLOW = (
    "align",
    "cdrl_finished",
    "ce_all",
    "cspc_fused",
    "ddpg",
    "ddpg_normalized",
    "erl",
    "onpolicy_lstm",
    "shared",
    "td3",
)
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES]
)


@lru_cache
def compiled(name):
    """(method, init, step, number of traces of step), the last as a list that grows by one each."""
    method, traces = CASES[name].build(), []

    def step(state):
        traces.append(name)
        return method.step(state)

    return method, jax.jit(method.init), jax.jit(step), traces


def started(name, seed=0):
    method, init, _, _ = compiled(name)
    return init(jax.random.key(seed), method.hyper)


@every_method
def test_a_step_keeps_structure_shapes_and_types(name):
    method = compiled(name)[0]
    before = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    after = jax.eval_shape(method.step, before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for path, x in jax.tree.leaves_with_path(before):
        y = dict(jax.tree.leaves_with_path(after))[path]
        assert (x.shape, x.dtype, x.weak_type) == (y.shape, y.dtype, y.weak_type), jax.tree_util.keystr(path)
        assert not x.weak_type, jax.tree_util.keystr(path)
        assert x.dtype != jnp.float64


@every_method
def test_the_fields_that_the_host_reads(name):
    state = jax.eval_shape(compiled(name)[0].init, jax.random.key(0), compiled(name)[0].hyper)
    assert (state.generation.shape, state.generation.dtype) == ((), jnp.int32)
    counts = jax.tree.leaves(state.env_steps)
    assert [(count.shape, count.dtype) for count in counts] in ([((), jnp.int32)], [((), jnp.uint32)] * 2)
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.hyper))
    assert state.metrics.fitness.shape == (CASES[name].population,)


@every_method
def test_stacked_fields_lead_with_the_population(name):
    state = jax.eval_shape(compiled(name)[0].init, jax.random.key(0), compiled(name)[0].hyper)
    fields = stacked_fields(state)
    assert fields
    for path, x in jax.tree.leaves_with_path(fields):
        assert x.shape[:1] == (CASES[name].population,), jax.tree_util.keystr(path)


@every_method
def test_one_trace_serves_all_steps_and_seeds_and_keys_decide(name):
    _, _, step, traces = compiled(name)

    def run(seed):
        state = started(name, seed)
        for _ in range(5):
            state = step(state)
        return state

    first, again, other = run(0), run(0), run(1)
    equal(first, again)
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(bare(first)), jax.tree.leaves(bare(other)), strict=True)
    )
    assert len(traces) == 1
    assert step._cache_size() == 1
    assert int(first.generation) == 5
    assert 0 < int(first.env_steps) <= 5 * compiled(name)[0].steps_bound


@pytest.mark.parametrize(  # the two that take longest are slow, too
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in (*SLOW, "cspc", "cdrl"))) for name in CASES],
)
def test_a_sweep_of_seeds_equals_single_runs(name):
    method, _, step, _ = compiled(name)
    keys = jax.random.split(jax.random.key(4), 2)
    rates = jnp.array([1.0, 0.5])

    def scaled(rate):
        return jax.tree.map(lambda x: x * rate, method.hyper)

    sweep = jax.jit(jax.vmap(lambda key, rate: method.step(method.init(key, scaled(rate)))))(keys, rates)
    for i in range(2):
        single = compiled(name)[1](keys[i], scaled(rates[i]))
        after = step(single)
        assert any(
            (x != y).any() for x, y in zip(*map(jax.tree.leaves, map(learners, (single, after))), strict=True)
        )
        close(tree.take(sweep, i), after, rtol=2e-3, atol=2e-4)


def learners(state):
    """What gradient steps change."""
    return next(getattr(state, name) for name in ("learner", "team", "agents") if hasattr(state, name))


@pytest.mark.parametrize("name", ["sac", pytest.param("erl", marks=pytest.mark.slow)])
def test_compiled_equals_operation_by_operation(name):
    method, _, step, _ = compiled(name)
    state = started(name)
    for _ in range(2):
        state = step(state)
    close(method.step(state), step(state), rtol=2e-3, atol=2e-4)


@every_method
def test_the_policy_acts(name):
    method = compiled(name)[0]
    state = started(name)
    memory, action = method.act(method.policy(state), method.memory, jnp.zeros(1), jax.random.key(0), 0.0)[:2]
    assert jax.tree.structure(memory) == jax.tree.structure(method.memory)
    assert (action.shape, action.dtype) in (((1,), jnp.float32), ((), jnp.int32))
    assert np.abs(action).max() <= 1


@every_method
def test_every_individual_acts(name):
    """With its own parameters, of which the policy's are one set; where all vote, nobody acts alone."""
    method, state = compiled(name)[0], started(name)
    if name in ("align", "ca2e", "cdrl", "cdrl_finished", "ce_all", "distil"):
        assert method.individuals is None
        return
    everybody, policy = method.individuals(state), method.policy(state)
    assert jax.tree.structure(everybody) == jax.tree.structure(policy)
    for x, y in zip(jax.tree.leaves(everybody), jax.tree.leaves(policy), strict=True):
        assert (x.shape, x.dtype) == ((CASES[name].population, *y.shape), y.dtype)
    act = jax.vmap(method.act, (0, None, None, None, None))
    actions = act(everybody, method.memory, jnp.ones(1), jax.random.key(0), 0.0).action
    chosen = method.act(policy, method.memory, jnp.ones(1), jax.random.key(0), 0.0)[1]
    assert np.abs(actions - chosen).reshape(len(actions), -1).sum(1).min() < 1e-6
    assert jnp.issubdtype(actions.dtype, jnp.integer) or len(np.unique(actions)) == CASES[name].population


def _bytes(state):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(bare(state)))


@pytest.mark.parametrize(("name", "share"), [("sac", 0.3), ("pderl", 0.3), ("ce", 0.5), ("ca2e", 0.3)])
def test_a_step_never_copies_the_replay(name, share):
    """With 10^6 transitions of a real task and default networks: the donated State is written in place, and
    all else that a step needs, the batches of four agents in CE, is less than a ``share`` of its size."""
    env = make("gymnax/Pendulum-v1")
    method = {"sac": independent, "pderl": pderl, "ce": ce, "ca2e": ca2e}[name].build(env)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    assert max(x.size for x in jax.tree.leaves(state.replay)) >= 3_000_000
    memory = jax.jit(method.step, donate_argnums=0).lower(state).compile().memory_analysis()
    size = _bytes(
        jax.tree.map(lambda x: x if x.dtype != state.key.dtype else jnp.zeros(2, jnp.uint32), state)
    )
    assert memory.alias_size_in_bytes >= 0.99 * size
    assert memory.temp_size_in_bytes < share * size
