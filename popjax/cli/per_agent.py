"""Numbers of a Hyper that are one for each agent, such as ``--hyper.learner.discount 0.9,0.99``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from popjax.cli import parse
from popjax.core import Method, as_arrays


def taken(argv: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the numbers in ``argv`` that are one for each agent, by option, and the other arguments."""
    found, rest = {}, list(argv)
    for word in argv:
        option = word.partition("=")[0].replace("_", "-")
        value = parse.peel(rest, option)[0] if option.startswith("--hyper.") else None
        try:
            numbers = [float(number) for number in (value or "").split(",")]
        except ValueError:
            continue
        if len(numbers) > 1:
            found[option], rest = np.array(numbers, np.float32), parse.peel(rest, option)[1]
    return found, rest


def check(method: Method, hyper: Any) -> None:
    """Check, without computing it, that ``method`` can take its first step with such numbers.

    Raises:
        Fault: a number is not one for each of its agents, or must be one for all.
    """
    given = {
        f"hyper.{jax.tree_util.keystr(path, simple=True, separator='.')}": len(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(hyper)
        if np.ndim(leaf)
    }
    if not given:
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(lambda key, hyper: method.step(method.init(key, hyper)), key, as_arrays(hyper))
    except (TypeError, ValueError) as refusal:
        text = str(refusal).partition("\n")[0]
        if not text.startswith("hyper."):  # JAX's, of shapes that do not fit
            lists = ", ".join(f"{name} has {count} numbers" for name, count in given.items())
            text = f"{lists}{_size(method, key)}; give one for all, or one for each agent that has its own"
        raise parse.Fault(text) from None


def _size(method: Method, key: Any) -> str:
    """Return the size of the population as a refusal tells it; nothing where there are no individuals."""
    if method.individuals is None:
        return ""
    state = jax.eval_shape(method.init, key, as_arrays(method.hyper))
    leaf = jax.tree.leaves(jax.eval_shape(method.individuals, state))[0]
    return f", and there are {len(leaf)} individuals"


def put(hyper: Any, given: Mapping[str, np.ndarray]) -> Any:
    """Return ``hyper`` with the numbers that are ``given`` by option, one for each agent.

    Raises:
        Fault: an option is unknown; the nearest one is named.
    """

    def replaced(part: Any, path: Sequence[str], value: np.ndarray) -> Any:
        first, *rest = path
        return replace(part, **{first: replaced(getattr(part, first), rest, value) if rest else value})

    known = list(parse.option_names(hyper, "hyper."))
    for option, value in given.items():
        if option not in known:
            raise parse.Fault(parse.unknown_option(option, known))
        hyper = replaced(hyper, option.removeprefix("--hyper.").replace("-", "_").split("."), value)
    return hyper
