"""Searches: who takes over whom, by known returns and recorded draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from popjax.evolution import search
from popjax.evolution.search import Standing

OWN = np.arange(16)


def standing(fitness, ready=1, age=None, line=None):
    fitness = jnp.asarray(fitness, jnp.float32)
    returns = fitness[:, None] + jnp.zeros((1, 2))
    age = jnp.full(len(fitness), ready) if age is None else jnp.asarray(age)
    line = jnp.arange(len(fitness)) if line is None else jnp.array(line, jnp.int32)
    return Standing(fitness, returns, jnp.ones(returns.shape, bool), jnp.int32(ready), age, line)


def decided(config, now, key=0):
    decide = search.build(config, len(now.fitness))
    return jax.tree.map(np.asarray, jax.jit(decide)(jax.random.key(key), now, 0.05))


def permutation(key, count=16):
    return jax.random.permutation(jax.random.key(key), count)


def test_truncation_copies_the_best_fifth_to_the_worst():
    """Of ten the two worst are 7 and 0, the two best 3 and 5."""
    fitness = jnp.array([1.0, 5, 4, 9, 3, 8, 6, 0, 7, 2])
    uniform = jnp.zeros(10).at[0].set(0.6).at[7].set(0.2)
    assert search.truncation(uniform, fitness, 2).tolist() == [5, 1, 2, 3, 4, 5, 6, 3, 8, 9]
    assert search.truncation(uniform, fitness.at[7].set(jnp.nan), 2)[7] == 3, "what has no fitness is worst"


def test_a_tournament_is_won_by_the_better_of_two():
    fitness = jnp.array([1.0, 3.0, 2.0])
    assert search.tournament(jnp.zeros(3), fitness).tolist() == [1, 1, 2]  # rivals 1, 2, 0
    assert search.tournament(jnp.full(3, 0.9), fitness).tolist() == [2, 1, 1]  # rivals 2, 0, 1
    assert search.tournament(jnp.zeros(3), jnp.ones(3)).tolist() == [0, 1, 2], "equals stay"


def test_welchs_test_is_that_of_scipy():
    generator = np.random.default_rng(0)
    outcomes = set()
    for shift in (0.0, 0.6, 1.0, 1.4, 3.0):
        samples = generator.normal(size=(2, 10)) * [[1.0], [2.0]] + [[0.0], [shift]]
        valid = np.arange(10) < [[10], [6]]
        known = [samples[0], samples[1, :6]]
        now = standing(samples.mean(1))._replace(
            returns=jnp.asarray(samples, jnp.float32), valid=jnp.asarray(valid)
        )
        chance = stats.ttest_ind(*known, equal_var=False).pvalue
        better = known[1].mean() > known[0].mean()
        for level in (0.999 * chance, 1.001 * chance):
            source = search.welch(jnp.zeros(2), now, level).tolist()
            expected = chance < level
            assert source == ([1, 1] if better and expected else [0, 0] if expected else [0, 1])
            outcomes.add(tuple(source))
    assert len(outcomes) > 1


@pytest.mark.parametrize(
    ("returns", "count", "expected"),
    [
        ([[1.0, 1.0], [2.0, 2.0]], [2, 2], [1, 1]),  # no spread and different
        ([[1.0, 1.0], [1.0, 1.0]], [2, 2], [0, 1]),  # no spread and equal
        ([[1.0, 0.0], [9.0, 0.0]], [1, 1], [0, 1]),  # an episode each says nothing of the spread
    ],
)
def test_welchs_test_at_its_edges(returns, count, expected):
    now = standing([0.0, 0.0])._replace(
        returns=jnp.array(returns), valid=jnp.arange(2) < jnp.array(count)[:, None]
    )
    assert search.welch(jnp.zeros(2), now, 0.05).tolist() == expected


@pytest.mark.parametrize("exploit", ["truncation", "tournament", "welch"])
def test_who_has_diverged_is_replaced_and_copied_by_nobody(exploit):
    returns = jnp.array([[1.0, 1.0], [jnp.nan, jnp.nan]])
    now = standing([1.0, -jnp.inf])._replace(returns=returns)
    assert decided(search.Pbt(exploit, fraction=0.5), now).source.tolist() == [0, 0]
    before = jnp.array([[1.0, 1.1], [9.0, 9.1]])  # returns of the time before it diverged
    assert decided(search.Pbt(exploit, fraction=0.5), now._replace(returns=before)).source.tolist() == [0, 0]


def test_random_search_copies_nobody():
    decision = decided(search.Random(), standing(range(16)))
    assert decision.source.tolist() == decision.numbers.tolist() == list(range(16))
    assert not decision.explore.any()
    assert not decision.fresh.any()


@pytest.mark.parametrize("exploit", ["truncation", "tournament", "welch"])
def test_copies_take_numbers_too_and_explore(exploit):
    decision = decided(search.Pbt(exploit=exploit), standing(range(16)))
    assert (decision.source == decision.numbers).all()
    np.testing.assert_array_equal(decision.explore, decision.source != OWN)
    assert decision.explore.any()
    assert not decision.fresh.any()


def test_halving_leaves_a_half_a_quarter_and_one_line():
    """The best of 16 is 15. Ready points 1, 2, 4 and 8 are rungs, at which survivors fill all lanes
    evenly."""
    for ready, left in ((1, 8), (2, 4), (3, 16), (4, 2), (5, 16), (8, 1), (16, 16), (32, 16)):
        decision = decided(search.Halving(), standing(range(16), ready))
        assert not decision.explore.any()
        source = decision.source
        kept, count = np.unique(source, return_counts=True)
        assert kept.tolist() == list(range(16 - left, 16))
        assert (count == 16 // left).all()
        assert (source[kept] == kept).all(), "survivors stay where they are"


def test_clones_of_a_line_count_once():
    """They return as much as their line does, so that places for individuals would go to few lines."""
    line = np.arange(16)
    for ready, left in ((1, 8), (2, 4), (4, 2), (8, 1)):
        decision = decided(search.Halving(), standing(line, ready, line=line))
        line = line[decision.source]
        kept, count = np.unique(line, return_counts=True)
        assert kept.tolist() == list(range(16 - left, 16))
        assert (count == 16 // left).all()


def test_halving_after_lines_have_ended_otherwise():
    """Three lines are left, by an intervention, where half of eight would continue."""
    line = [0, 0, 0, 1, 1, 1, 2, 2]
    decision = decided(search.Halving(), standing([1, 2, 3, 4, 5, 6, 7, 8], 1, line=line))
    assert np.unique(np.array(line)[decision.source], return_counts=True)[1].tolist() == [2, 3, 3]
    assert set(decision.source) == {2, 5, 7}


def test_halving_with_newcomers_compares_those_of_one_age():
    """Ages 2, 2, 1, 1 and 3: one of each pair goes on; 3 is no rung. The worst of the old is safe from the
    young."""
    age = [2, 2, 1, 1, 3, 3, 3, 3]
    decision = decided(search.Halving(freed="fresh"), standing([9, 8, 1, 2, 0, 0, 0, 0], 3, age))
    assert decision.fresh.tolist() == [False, True, True, False] + [False] * 4
    assert decision.source.tolist() == list(range(8))
    lonely = decided(search.Halving(freed="fresh"), standing([0, 1], 1, [1, 2]))
    assert not lonely.fresh.any(), "the only one of its age goes on"


def test_the_least_length_leaves_one_line():
    for config, population, last in ((search.Halving(), 16, 8), (search.Halving(factor=3), 9, 3)):
        assert search.least_length(config, population)[0] == last
        kept = decided(config, standing(range(population), last)).source
        assert set(kept.tolist()) == {population - 1}
    for config, least in (
        (search.Halving(freed="fresh"), 1),
        (search.Pbt(), 1),
        (search.MultipleFrequencies((2, 5)), 5),
    ):
        assert search.least_length(config, 16)[0] == least


@pytest.mark.parametrize("config", search.KINDS.values(), ids=search.KINDS)
def test_a_takeover_from_outside_explores_if_those_of_the_search_do(config):
    decision = search.copies(jnp.arange(4))
    changed = search.intervened(decision, jnp.int32(1), jnp.int32(3), explores=search.explores(config))
    assert changed.source.tolist() == changed.numbers.tolist() == [0, 3, 2, 3]
    explored = isinstance(config, search.Pbt | search.MultipleFrequencies)
    assert changed.explore.tolist() == [False, explored, False, False]


@pytest.mark.parametrize(("population", "fraction"), [(2, 0.5), (3, 0.5), (7, 0.5)])
def test_truncation_replaces_nobody_whom_it_copies(population, fraction):
    decide = search.build(search.Pbt(fraction=fraction), population)
    keys = jax.random.split(jax.random.key(0), 16)
    count = population // 2
    for source in jax.jit(jax.vmap(decide, (0, None, None)))(keys, standing(range(population)), 0.05).source:
        np.testing.assert_array_equal(source[count:], np.arange(count, population))
        assert (source[:count] >= population - count).all()


def test_halving_by_three():
    decision = decided(search.Halving(factor=3), standing(range(9), 1))
    assert sorted(np.unique(decision.source)) == [6, 7, 8]


def test_multiple_frequencies_by_hand():
    """Two subpopulations of four. In the first (0 to 3), which evolves always, 3 is worst and takes over from
    0;
    1 goes on; 2 is replaced by the best of the steady one, 6, with its numbers. In the second, at its turn, 4
    is
    worst and takes over from 6; 5, third, would be replaced by 0 of the fast one, with the numbers of 6."""
    fitness = [5.0, 4, 3, 2, 0, 1, 9, 8]
    config = search.MultipleFrequencies((1, 3))
    decision = decided(config, standing(fitness, 1))
    assert decision.source.tolist() == [0, 1, 6, 0, 4, 5, 6, 7]
    assert decision.numbers.tolist() == [0, 1, 6, 0, 4, 5, 6, 7]
    assert decision.explore.tolist() == [False, False, False, True] + [False] * 4
    decision = decided(config, standing(fitness, 3))
    assert decision.source.tolist() == [0, 1, 6, 0, 6, 0, 6, 7]
    assert decision.numbers.tolist() == [0, 1, 6, 0, 6, 6, 6, 7]
    assert decision.explore.tolist() == [False, False, False, True, True, False, False, False]


def test_migrants_are_better_and_each_comes_once():
    """Subpopulations of eight: two slots are open, the first to the best of the others, the second to the
    next; none that is no better than the individual in the slot comes."""
    fitness = [10.0, 9, 8, 7, 6, 5, 1, 0, 20, 5.5, 3, 3, 3, 3, 3, 3]
    decision = decided(search.MultipleFrequencies((1, 2)), standing(fitness, 1))
    assert decision.source[:8].tolist() == [0, 1, 2, 3, 8, 9, 0, 1]
    lower = [*fitness[:9], 4.0, *fitness[10:]]
    assert decided(search.MultipleFrequencies((1, 2)), standing(lower, 1)).source[5] == 5


@pytest.mark.parametrize("key", range(3))
@pytest.mark.parametrize("config", [search.Halving(), search.Halving(freed="fresh")], ids=["clones", "fresh"])
def test_permuted_individuals_are_decided_on_alike(config, key):
    order = permutation(key)
    fitness = jax.random.normal(jax.random.key(key + 9), (16,))
    plain = decided(config, standing(fitness, 2))
    permuted = decided(config, standing(fitness[order], 2))
    where = np.argsort(order)
    if config.freed == "fresh":
        np.testing.assert_array_equal(permuted.fresh, plain.fresh[order])
    np.testing.assert_array_equal(permuted.source, where[plain.source[order]])


def relabelled(uniform, order):
    """The draws with which the individuals in this order meet the same rivals."""
    count = len(order)
    rival = np.argsort(order)[np.asarray(search._rival(uniform))[order]]
    return jnp.asarray(((rival - np.arange(count) - 1) % count + 0.5) / (count - 1))


def welch(uniform, fitness, count):
    """By five episodes of each, as many as there are differing."""
    returns = fitness[:, None] + 0.3 * jnp.sin(7.0 * fitness[:, None] + jnp.arange(5.0))
    valid = jnp.arange(5) < 2 + jnp.abs(8 * fitness[:, None]).astype(jnp.int32) % 4
    now = standing(fitness)._replace(returns=returns, valid=valid)
    return search.welch(uniform, now, 0.3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("operator", [search.truncation, lambda u, f, _: search.tournament(u, f), welch])
def test_permuted_individuals_with_permuted_draws_are_decided_on_alike(operator, seed):
    """A draw of truncation is the individual's, one of the others names its rival."""
    order, key = permutation(seed), jax.random.key(seed + 20)
    uniform, fitness = jax.random.uniform(key, (16,)), jax.random.normal(key, (16,))
    drawn = uniform[order] if operator is search.truncation else relabelled(uniform, order)
    plain, permuted = operator(uniform, fitness, 3), operator(drawn, fitness[order], 3)
    assert (plain != OWN).any()
    np.testing.assert_array_equal(permuted, np.argsort(order)[np.asarray(plain)[order]])


@pytest.mark.parametrize("seed", range(4))
def test_subpopulations_decide_on_their_permuted_individuals_alike(seed):
    """Within each of two subpopulations of eight, as the subpopulation is where an individual stands."""
    order = jnp.concatenate([permutation(seed, 8), 8 + permutation(seed + 50, 8)])
    fitness, config = jax.random.normal(jax.random.key(seed), (16,)), search.MultipleFrequencies((1, 2))
    plain, permuted = (decided(config, standing(x, 2)) for x in (fitness, fitness[order]))
    where = np.argsort(order)
    for field in ("source", "numbers"):
        expected = where[np.asarray(getattr(plain, field))[order]]
        np.testing.assert_array_equal(getattr(permuted, field), expected)
    np.testing.assert_array_equal(permuted.explore, plain.explore[order])


@pytest.mark.parametrize(
    "config",
    [search.Pbt(), search.Halving(), search.Halving(freed="fresh"), search.MultipleFrequencies((1, 2))],
    ids=["pbt", "clones", "fresh", "mf"],
)
def test_chance_decides_among_equals(config):
    """Of sixteen equals each is replaced now and then, wherever it stands."""
    keys = jax.random.split(jax.random.key(0), 200)
    decide = search.build(config, 16)
    made = jax.vmap(lambda key: decide(key, standing(jnp.ones(16), 2), 0.05))(keys)
    replaced = (made.fresh | (made.source != jnp.arange(16))).mean(0)
    assert replaced.min() > 0.5 * replaced.mean() > 0
    assert replaced.max() < 1.5 * replaced.mean()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: search.build(search.Pbt(), 1), "population of at least 2, got 1"),
        (lambda: search.build(search.Halving(), 12), "power of 2, got 12; use 16"),
        (lambda: search.build(search.Halving(factor=3), 10), "power of 3, got 10; use 9"),
        (lambda: search.build(search.MultipleFrequencies(), 24), "divisible by 16, .* got 24; use 32"),
        (lambda: search.MultipleFrequencies((10, 1)), "frequencies must ascend, got 10 1"),
        (lambda: search.MultipleFrequencies((1,)), "at least two whole numbers above 0, got 1"),
        (lambda: search.Halving(factor=1), "factor must be at least 2, got 1"),
        (lambda: search.Pbt(fraction=0.7), "fraction must be above 0 and at most 0.5, got 0.7"),
        (lambda: search.Pbt(exploit="best"), "exploit must be one of"),
    ],
)
def test_what_does_not_divide_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
