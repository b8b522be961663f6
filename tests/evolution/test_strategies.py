"""evosax's strategies behind the adapter: the library's own numbers, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax.core import as_arrays
from popjax.evolution import strategies
from popjax.methods import es
from tests.support import equal

algorithms = pytest.importorskip("evosax.algorithms")
shaping = pytest.importorskip("evosax.core.fitness_shaping")

TOP = {"w": jnp.array([0.5, -0.3, 0.2]), "b": jnp.array([0.1])}
START = jax.tree.map(jnp.zeros_like, TOP)
HYPER = as_arrays(strategies.Hyper(std=0.1, lr=0.03))
OWN = {
    "Open_ES": {"optimizer": optax.adam(0.03), "std_schedule": optax.constant_schedule(0.1)},
    "Sep_CMA_ES": {},
}
EVERY = sorted(set(algorithms.algorithms) - set(strategies.UNFIT))
WITHOUT_MEAN = sorted(set(algorithms.population_based_algorithms) - set(strategies.UNFIT))
FAST = (*OWN, "SimpleGA")
SOME = [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in EVERY]


def height(params):
    return -sum(
        jnp.square(x - top).sum() for x, top in zip(*map(jax.tree.leaves, (params, TOP)), strict=True)
    )


def climb(strategy, generations, hyper=HYPER, luck=0.0):
    """The search after so many generations on a hill, and the heights of its mean along the way; the first
    generation returns ``luck`` more."""

    def generation(search, drawn):
        key, luck = drawn
        key_ask, key_tell = jax.random.split(key)
        population, search = strategy.ask(search, hyper, key_ask)
        search = strategy.tell(search, population, jax.vmap(height)(population) + luck, hyper, key_tell)
        return search, height(strategy.mean(search))

    keys = jax.random.split(jax.random.key(1), generations)
    lucky = jnp.zeros(generations).at[0].set(luck)
    return jax.lax.scan(generation, strategy.init(START, hyper, jax.random.key(0)), (keys, lucky))


@pytest.mark.parametrize("name", OWN)
def test_the_adapter_is_the_librarys_ask_and_tell(name):
    strategy = strategies.build(name, 8, START)
    library = algorithms.distribution_based_algorithms[name](population_size=8, solution=START, **OWN[name])
    numbers = library.default_params
    numbers = numbers.replace(std_init=0.1) if hasattr(numbers, "std_init") else numbers
    keys = jax.random.split(jax.random.key(3), 7)
    ours, theirs = strategy.init(START, HYPER, keys[0]), library.init(keys[0], START, numbers)
    for key_ask, key_tell in zip(keys[1::2], keys[2::2], strict=True):
        population, ours = strategy.ask(ours, HYPER, key_ask)
        expected, theirs = library.ask(key_ask, theirs, numbers)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), population, expected
        )
        fitness = jax.vmap(height)(population)
        ours = strategy.tell(ours, population, fitness, HYPER, key_tell)
        theirs, _ = library.tell(key_tell, expected, -fitness, theirs, numbers)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5, atol=1e-6)
    assert np.abs(ours.mean).max() > 0.01


@pytest.mark.parametrize("name", SOME)
def test_every_strategy_climbs_by_its_numbers_and_keeps_its_form(name):
    strategy = strategies.build(name, 8, START)
    start = jax.eval_shape(strategy.init, START, HYPER, jax.random.key(0))
    search, heights = climb(strategy, 60)
    assert heights[-1] > 0.5 * height(START)
    kinds = (
        [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(jax.eval_shape(lambda s: s, s))]
        for s in (start, search)
    )
    assert next(kinds) == next(kinds)
    assert not any(x.weak_type for x in jax.tree.leaves(start))
    three = jax.jit(lambda hyper: climb(strategy, 3, hyper)[1])
    plain = three(HYPER)
    assert three(replace(HYPER, std=jnp.float32(0.05)))[-1] != plain[-1]
    slow = three(replace(HYPER, lr=jnp.float32(0.003)))
    assert np.array_equal(slow, plain) is (name not in strategies.ADAM)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in WITHOUT_MEAN],
)
def test_a_search_without_a_distribution_begins_with_a_population_around_the_parameters(name):
    """The library's state behind the first generation is that of its own ``init`` with what was found."""
    strategy = strategies.build(name, 8, START)
    search = strategy.init(TOP, HYPER, jax.random.key(0))
    first, asked = strategy.ask(search, HYPER, jax.random.key(1))
    equal(first, strategy.ask(search, HYPER, jax.random.key(9))[0])
    far = [np.abs(x - top).max() for x, top in zip(*map(jax.tree.leaves, (first, TOP)), strict=True)]
    assert 0 < max(far) < 0.5  # five standard deviations
    fitness = jax.vmap(height)(first)
    told = strategy.tell(asked, first, fitness, HYPER, jax.random.key(2))
    np.testing.assert_allclose(told.own.fitness, -fitness, rtol=1e-6)
    best = jax.tree.map(lambda x: x[fitness.argmax()], first)
    equal(strategy.mean(told), best)
    second = strategy.ask(told, HYPER, jax.random.key(3))[0]
    assert not np.array_equal(second["w"], first["w"])


@pytest.mark.parametrize("name", SOME)
def test_who_has_diverged_ranks_below_all_others(name):
    """NaN and infinity are as the lowest, and leave nothing that is not finite; so does a generation without
    any return."""
    strategy = strategies.build(name, 8, START)
    search = strategy.init(START, HYPER, jax.random.key(0))
    for generation in range(3):
        population, search = strategy.ask(search, HYPER, jax.random.key(generation))
        fitness = jax.vmap(height)(population)
        bad = fitness.at[jnp.array([1, 4])].set(jnp.array([jnp.nan, jnp.inf]))
        low = fitness.at[jnp.array([1, 4])].set(jnp.delete(fitness, jnp.array([1, 4])).min() - 1)
        after = [strategy.tell(search, population, x, HYPER, jax.random.key(9)) for x in (bad, low)]
        for one, other in zip(*(jax.tree.leaves(strategy.mean(x)) for x in after), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        search = after[0]
    none = strategy.tell(search, population, jnp.full(8, jnp.nan), HYPER, jax.random.key(9))
    for found in (search, none):
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(strategy.mean(found)))


@pytest.mark.parametrize("name", SOME)
def test_a_plateau_does_not_shrink_the_population(name):
    """Where all return the same, its standard deviation stays within a factor of three for 60 generations.
    iAMaLGaM begins at 1 instead of ``std``, towards which it falls."""
    strategy = strategies.build(name, 8, START)

    def spreads(key):
        def generation(search, key):
            key_ask, key_tell = jax.random.split(key)
            population, search = strategy.ask(search, HYPER, key_ask)
            search = strategy.tell(search, population, jnp.full(8, -200.0), HYPER, key_tell)
            return search, es.spread(population)

        key_init, key_run = jax.random.split(key)
        search = strategy.init(START, HYPER, key_init)
        return jax.lax.scan(generation, search, jax.random.split(key_run, 60))[1]

    found = jax.jit(jax.vmap(spreads))(jax.random.split(jax.random.key(0), 16))
    first, last = np.median(found[:, 0]), np.median(found[:, -1])
    assert last > min(first, HYPER.std) / 3
    assert last < 3 * first or name in ("GESMR_GA", "SAMR_GA")  # whose mutation rates wander freely


@pytest.mark.parametrize("name", strategies.WEIGHTED)
def test_each_of_several_equal_returns_has_a_rank_of_its_own(name):
    """Those that are not finite come last; without equal ones the weights are the library's."""
    fitness = jnp.array([2.0, jnp.nan, 5.0, 2.0, -jnp.inf, 5.0, 2.0, 1.0])
    library = algorithms.algorithms[name](population_size=8, solution=START)
    numbers = library.default_params
    weights = strategies._weights(None, strategies._cost(fitness), None, numbers)
    np.testing.assert_array_equal(weights, numbers.weights[jnp.array([2, 6, 0, 3, 7, 1, 4, 5])])
    distinct = jax.random.normal(jax.random.key(0), (8,))
    expected = library.fitness_shaping_fn(None, distinct, None, numbers)
    np.testing.assert_array_equal(strategies._weights(None, distinct, None, numbers), expected)


@pytest.mark.parametrize("spelt", ["OpenES", "open-es", "Open_ES", "sep-CMA-ES", "CMA-ES", "SNES", "xnes"])
def test_names_are_read_without_case_hyphens_and_underscores(spelt):
    assert strategies.named(spelt).replace("_", "").lower() == spelt.replace("-", "").replace("_", "").lower()
    bare = {name.replace("_", "").lower() for name in EVERY}
    assert len(bare) == len(EVERY), "no two are read alike"


@pytest.mark.parametrize("name", OWN)
def test_the_order_of_a_population_does_not_matter(name):
    strategy = strategies.build(name, 8, START)
    search = strategy.init(START, HYPER, jax.random.key(0))
    population, search = strategy.ask(search, HYPER, jax.random.key(1))
    order = jnp.array([3, 1, 7, 0, 5, 2, 6, 4])
    mixed = jax.tree.map(lambda x: x[order], population)
    one, two = (
        strategy.tell(search, each, jax.vmap(height)(each), HYPER, jax.random.key(2))
        for each in (population, mixed)
    )
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-6)
    assert not np.array_equal(one.mean, search.mean)


def test_open_es_draws_pairs():
    strategy = strategies.build("Open_ES", 8, START)
    search = strategy.init(START, HYPER, jax.random.key(0))
    population = strategy.ask(search, HYPER, jax.random.key(1))[0]
    equal(jax.tree.map(lambda x: x[:4], population), jax.tree.map(lambda x: -x[4:], population))


@pytest.mark.parametrize("name", strategies.BY_PLACE)
def test_a_matrix_is_updated_by_the_weights_of_ranks(name):
    """The library gives the first individual the weight of the best, wherever it ranks."""
    strategy = strategies.build(name, 8, START)
    search = strategy.init(START, HYPER, jax.random.key(0))
    population, search = strategy.ask(search, HYPER, jax.random.key(1))
    order = jnp.array([3, 1, 7, 0, 5, 2, 6, 4])
    mixed = search.replace(z=search.z[order]), jax.tree.map(lambda x: x[order], population)
    one, two = (
        strategy.tell(before, each, jax.vmap(height)(each), HYPER, jax.random.key(2))
        for before, each in ((search, population), mixed)
    )
    np.testing.assert_allclose(one.M, two.M, atol=1e-6)
    assert not np.allclose(one.M, search.M)


@pytest.mark.parametrize(
    ("name", "population", "message"),
    [
        ("OpenAI", 8, "unknown strategy 'OpenAI'; use one of ARS, .*Open_ES, .*xNES"),
        (
            "persistent-es",
            8,
            "strategy PersistentES does not fit: it needs parts of episodes; use one of ARS,",
        ),
        ("Open_ES", 7, "strategy Open_ES refuses population 7: Population size must be even"),
        ("LM_MA_ES", 9, "strategy LM_MA_ES refuses population 9: use at most 8, two for each weight"),
    ],
)
def test_what_cannot_be_is_refused(name, population, message):
    with pytest.raises(ValueError, match=message):
        strategies.build(name, population, START)


@pytest.mark.parametrize("name", strategies.UNFIT)
def test_what_does_not_fit_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"^strategy {name} does not fit: {strategies.UNFIT[name]}; use"):
        strategies.build(name, 8, START)


@pytest.mark.parametrize("name", SOME)
def test_nothing_is_kept_for_the_fitness_of_an_earlier_generation(name):
    """A search goes on although none reaches the returns of a first generation with lucky initial states."""
    heights = climb(strategies.build(name, 8, START), 60, luck=1e3)[1]
    assert heights[0] < 0.5 * height(START) < heights[-1]


def test_without_the_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evosax.algorithms", None)
    with pytest.raises(ValueError, match=r"es needs evosax: pip install 'popjax\[es\]'"):
        strategies.build("Open_ES", 8, START)


def test_every_strategy_of_the_library_is_known_to_fit_or_not():
    everything = set(algorithms.algorithms)
    assert set(strategies.UNFIT) | set(strategies.ADAM) <= everything
    own = {name: signature(algorithms.algorithms[name]).parameters["fitness_shaping_fn"] for name in EVERY}
    weighted = {name for name in EVERY if own[name].default is shaping.weights_fitness_shaping_fn}
    assert weighted == {*strategies.WEIGHTED, "CR_FM_NES", "SNES", "xNES"}, "weights of any sum do"
    assert strategies.names() == EVERY
