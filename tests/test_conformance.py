"""The promises of every method to the host: the public checks on a case of each.

Each file of ``tests/methods`` names its cases in ``CASES``.
"""

from __future__ import annotations

import importlib
import pickle
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import counting, testing, tree
from popjax.envs import make
from popjax.host.recipes import METHODS
from popjax.host.training import program_store
from popjax.methods import ca2e, ce, independent, pderl
from tests.support import close, out_of_step

FILES = sorted((Path(__file__).parent / "methods").glob("test_*.py"))
CASES = {
    name: case
    for file in FILES
    for name, case in importlib.import_module(f"tests.methods.{file.stem}").CASES.items()
}
ALONE = [name for name, case in CASES.items() if case.alone]


def marked(name):
    return pytest.param(name, marks=[pytest.mark.slow] * CASES[name].slow)


@lru_cache
def built(name):
    return CASES[name].build()


def test_every_method_has_a_case():
    made = {built(name).built.build for name in CASES}
    assert [name for name in METHODS if importlib.import_module(METHODS[name]).build not in made] == []


@pytest.mark.parametrize("name", map(marked, CASES))
def test_a_method_keeps_its_contract(name):
    method, case = built(name), CASES[name]
    testing.check_method(method, method.built.env, members=case.members and not case.slow_members)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    assert state.metrics.fitness.shape == (case.population,)
    assert isinstance(state.env_steps, counting.Count)  # beyond 32 bits, whatever the method
    assert (method.individuals is not None) == case.alone
    classes = jax.tree.structure((state, method.hyper))
    again = pickle.loads(pickle.dumps(classes))  # programs are stored with them
    assert again == classes
    assert program_store._classes(again) == program_store._classes(classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].slow_members])
def test_a_sweep_equals_single_runs(name):
    testing.check_members(built(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].members])
def test_members_that_are_out_of_step_go_on_as_if_alone(name):
    method = built(name)
    out_of_step(method, jax.jit(method.init), jax.jit(method.step), ahead=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_state_has_32_bits_whoever_compiles_it(name):
    method = built(name)

    def types():
        state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
        return [str(x.dtype) for s in (state, jax.eval_shape(method.step, state)) for x in jax.tree.leaves(s)]

    plain = types()
    with jax.enable_x64(True):
        assert types() == plain


@pytest.mark.parametrize("name", map(marked, ALONE))
def test_individuals_differ_and_one_of_them_or_their_mean_is_deployed(name):
    method = built(name)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    given = method.memory, jnp.ones(1), jax.random.key(0), 0.0
    act = jax.vmap(lambda params: method.act(params, *given).action)
    actions, chosen = act(method.individuals(state)), act(tree.repeat(method.policy(state), 1))
    apart = np.abs(actions - chosen).reshape(len(actions), -1).sum(1).min()
    assert CASES[name].mean or apart < 1e-6
    assert jnp.issubdtype(actions.dtype, jnp.integer) or len(np.unique(actions)) == CASES[name].population


@pytest.mark.parametrize("name", [marked(name) for name in CASES if CASES[name].eager])
def test_compiled_equals_operation_by_operation(name):
    method = built(name)
    step = jax.jit(method.step)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    for _ in range(2):
        state = step(state)
    close(method.step(state), step(state), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("module", "share"),
    [(independent, 0.3), (pderl, 0.3), (ce, 0.5), (ca2e, 0.3)],
    ids=["sac", "pderl", "ce", "ca2e"],
)
def test_a_step_never_copies_the_replay(module, share):
    """With 10^6 transitions of a real task and default networks; CE has the batches of four agents beside."""
    method = module.build(make("gymnax/Pendulum-v1"))
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    assert max(x.size for x in jax.tree.leaves(state.replay)) >= 3_000_000
    testing.check_in_place(method, share)
