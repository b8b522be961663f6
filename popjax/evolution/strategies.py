"""Evolution strategies and genetic algorithms of evosax (Lange, 2022) by name, each a search over the
parameters of one network.

    strategy = strategies.build("Sep_CMA_ES", 32, params)
    search = strategy.init(params, hyper, key)
    population, search = strategy.ask(search, hyper, key)
    search = strategy.tell(search, population, fitness, hyper, key)

Everything that a strategy does, antithetic draws and the ranking of fitness included, is the library's,
except for the ranks of equal fitness in ``WEIGHTED`` and the matrices of ``BY_PLACE``. Its hyperparameters
are the library's defaults except for the two in ``Hyper``, which a sweep can vary. Names are read without
regard to case, hyphens and underscores: ``OpenES`` is ``Open_ES``.

A strategy without a distribution, such as ``SimpleGA``, begins with a population around the parameters, which
its first generation evaluates; its mean is the best of its last population.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from popjax import tree
from popjax.core import Key, Number, Params, PyTree, number

ADAM = ("ARS", "ASEBO", "ESMC", "GuidedES", "Open_ES", "PGPE")
"""Strategies that follow an estimated gradient; their mean moves by Adam, as OpenAI's does (Salimans et al.,
2017)."""
WEIGHTED = ("CMA_ES", "DES", "LM_MA_ES", "MA_ES", "Sep_CMA_ES", "SimpleES")
"""Strategies that recombine individuals by weights of their ranks whose sum must stay the same; see
``_weights``."""
BY_PLACE = ("LM_MA_ES", "MA_ES")
"""Strategies in which the library updates the matrix as if individuals came in the order of their ranks."""
UNFIT = {
    **dict.fromkeys(
        (
            *("CMAAnchoredLES", "DifferentialEvolution", "EvoTF_ES", "HillClimbing", "LGA", "MR15_GA", "PSO"),
            "SimulatedAnnealing",
        ),
        "it keeps individuals for the fitness of an earlier generation, which had other initial states",
    ),
    "DiffusionEvolution": "it needs the number of generations in advance",
    "GradientlessDescent": "it has no standard deviation to set",
    **dict.fromkeys(("NoiseReuseES", "PersistentES"), "it needs parts of episodes"),
    "RandomSearch": "it needs a sampler of its own",
    "Rm_ES": "its standard deviation shrinks at the same rate whatever the fitness",
    **dict.fromkeys(("SV_CMA_ES", "SV_Open_ES"), "it needs several populations"),
}
"""Strategies of evosax that are refused, and why."""


@struct.dataclass
class Hyper:
    """Hyperparameters of a search."""

    # standard deviation of a parameter; only the initial one if the strategy adapts it
    std: Number = number(0.05, low=1e-6)
    lr: Number = number(0.01)  # Adam's rate for the mean in the strategies of ADAM; the others have no Adam


class Strategy(NamedTuple):
    """A search over parameters.

    init: (params, hyper, key) -> search around ``params``
    ask:  (search, hyper, key) -> (population [P] of parameters, search)
    tell: (search, population [P], fitness [P], hyper, key) -> search; more fitness is better
    mean: search -> parameters

    An individual whose fitness is not finite ranks below all others.
    """

    init: Callable[[Params, Hyper, Key], PyTree]
    ask: Callable[[PyTree, Hyper, Key], tuple[Params, PyTree]]
    tell: Callable[[PyTree, Params, Array, Hyper, Key], PyTree]
    mean: Callable[[PyTree], Params]


def names() -> list[str]:
    """Return the names of the strategies.

    Raises:
        ValueError: evosax is not installed.
    """
    return sorted(set(_known()) - set(UNFIT))


def named(name: str) -> str:
    """Return evosax's name for the strategy ``name``, which may differ in case, hyphens and underscores.

    Raises:
        ValueError: there is no such strategy, it is in ``UNFIT``, or evosax is not installed.
    """
    known = {_bare(own): own for own in _known()}
    own = known.get(_bare(name))
    if own is None or own in UNFIT:
        wrong = f"unknown strategy {name!r}" if own is None else f"strategy {own} does not fit: {UNFIT[own]}"
        raise ValueError(f"{wrong}; use one of {', '.join(names())}")
    return own


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def build(name: str, population: int, params: Params) -> Strategy:
    """Return the strategy ``name`` of evosax, see ``named``, with ``population`` individuals like ``params``.

    Raises:
        ValueError: there is none of this name, it cannot have that population, or evosax is not installed.
    """
    name = named(name)
    kind = _known()[name]
    accepts = inspect.signature(kind.__init__).parameters
    options: dict[str, Any] = {}
    if name in ADAM:
        options["optimizer"] = optax.inject_hyperparams(optax.adam)(learning_rate=Hyper().lr)
    if name in WEIGHTED:
        options["fitness_shaping_fn"] = _weights
    try:
        library = kind(population_size=population, solution=params, **options)
    except AssertionError as refusal:
        raise ValueError(f"strategy {name} refuses population {population}: {refusal}") from refusal
    if name == "LM_MA_ES" and population > 2 * library.num_dims:  # it takes the root of a negative number
        most = f"use at most {2 * library.num_dims}, two for each weight of the network"
        raise ValueError(f"strategy {name} refuses population {population}: {most}")

    defaults = library.default_params  # computed now: LM_MA_ES takes a size from it

    def settings(hyper: Hyper) -> Any:
        return defaults.replace(std_init=hyper.std) if hasattr(defaults, "std_init") else defaults

    def told(search: PyTree, hyper: Hyper) -> PyTree:
        """Return the search with the values that the library would take from a schedule, and mended."""
        if "std_schedule" in accepts:
            search = search.replace(std=jnp.broadcast_to(hyper.std, jnp.shape(search.std)))
        if name in ADAM:
            rates = {**search.opt_state.hyperparams, "learning_rate": hyper.lr}
            search = search.replace(opt_state=search.opt_state._replace(hyperparams=rates))
        if name == "ASEBO":
            # Without a gradient the library takes its share outside the known directions for 0 instead of
            # all, which leaves next to nothing to draw from.
            lost = (search.grad_subspace[-1] == 0).all()
            search = search.replace(alpha=jnp.where(lost, 1.0, search.alpha))
        # The library's weak types would make the second step compile again.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), search)

    def init(params: Params, hyper: Hyper, key: Key) -> PyTree:
        return told(library.init(key, params, settings(hyper)), hyper)

    def ask(search: PyTree, hyper: Hyper, key: Key) -> tuple[Params, PyTree]:
        population, search = library.ask(key, search, settings(hyper))
        return population, told(search, hyper)

    def tell(search: PyTree, population: Params, fitness: Array, hyper: Hyper, key: Key) -> PyTree:
        cost = _cost(fitness)
        if name in BY_PLACE:  # sort individuals, best first
            order = jnp.argsort(cost)
            drawn, population, cost = tree.take((search.z, population, cost), order)
            search = search.replace(z=drawn)
        return told(library.tell(key, population, cost, search, settings(hyper))[0], hyper)

    if hasattr(library, "get_mean"):
        return Strategy(init, ask, tell, library.get_mean)

    def scattered(params: Params, hyper: Hyper, key: Key) -> Begun:
        key_init, key_noise = jax.random.split(key)
        noise = tree.normal_like(key_noise, tree.repeat(params, population))
        first = jax.tree.map(lambda x, n: x + hyper.std * n, params, noise)
        unknown = jnp.full(population, jnp.inf)
        return Begun(told(library.init(key_init, first, unknown, settings(hyper)), hyper), jnp.bool_(False))

    def ask_on(search: Begun, hyper: Hyper, key: Key) -> tuple[Params, Begun]:
        first = library.get_population(search.own)
        asked, after = ask(search.own, hyper, key)
        chosen, own = tree.where(search.begun, (asked, after), (first, search.own))
        return chosen, Begun(own, search.begun)

    def tell_on(search: Begun, individuals: Params, fitness: Array, hyper: Hyper, key: Key) -> Begun:
        first = told(library.init(key, individuals, _cost(fitness), settings(hyper)), hyper)
        after = tell(search.own, individuals, fitness, hyper, key)
        return Begun(tree.where(search.begun, after, first), jnp.bool_(True))

    return Strategy(scattered, ask_on, tell_on, lambda search: library.get_best_solution(search.own))


@struct.dataclass
class Begun:
    """A search without a distribution: the library's state, and whether its first generation has been
    evaluated."""

    own: PyTree
    begun: Array


def _cost(fitness: Array) -> Array:
    """Return costs [P] to minimise: -fitness; non-finite entries cost more than any other."""
    sound = jnp.isfinite(fitness)
    low = jnp.min(fitness, where=sound, initial=jnp.inf)
    high = jnp.max(fitness, where=sound, initial=-jnp.inf)
    below = jnp.where(sound.any(), low - jnp.maximum(high - low, 1.0), 0.0)
    return -jnp.where(sound, fitness, below)


def _weights(population: Array, cost: Array, search: Any, settings: Any) -> Array:
    """Return the weights [P] of individuals by the ranks of their ``cost``, as the library's
    ``weights_fitness_shaping_fn`` does, but with a rank of its own for each of several equal costs.

    The library gives them all the weight of their mean rank, which changes the sum of the weights, so that
    generations without differences shrink the standard deviation, or blow it up. Here they rank in order of
    place. As these strategies draw every individual alike and independently, that is a random order.
    """
    return settings.weights[jnp.argsort(jnp.argsort(cost))]


def _known() -> dict[str, Any]:
    try:
        from evosax.algorithms import algorithms
    except ImportError as absent:
        raise ValueError(f"es needs evosax: pip install 'popjax[es]' ({absent})") from absent
    return algorithms
