"""Hyperparameters with a value for each agent, such as ``--hyper.learner.discount 0.9,0.99``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from popjax.cli import parse
from popjax.host.errors import Refused


def taken(argv: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the hyperparameters in ``argv`` that have a value for each agent, by option, and the rest."""
    found, rest = {}, list(argv)
    for word in argv:
        option = word.partition("=")[0].replace("_", "-")
        value = parse.peel(rest, option)[0] if option.startswith("--hyper.") else None
        try:
            values = [float(number) for number in (value or "").split(",")]
        except ValueError:
            continue
        if len(values) > 1:
            found[option], rest = np.array(values, np.float32), parse.peel(rest, option)[1]
    return found, rest


def put(hyper: Any, given: Mapping[str, np.ndarray]) -> Any:
    """Return ``hyper`` with the ``given`` hyperparameters, by option, each with a value for each agent.

    Raises:
        Refused: an option is unknown; the nearest one is named.
    """

    def replaced(part: Any, path: Sequence[str], value: np.ndarray) -> Any:
        first, *rest = path
        return replace(part, **{first: replaced(getattr(part, first), rest, value) if rest else value})

    known = list(parse.option_names(hyper, "hyper."))
    for option, value in given.items():
        if option not in known:
            raise Refused(parse.unknown_option(option, known))
        hyper = replaced(hyper, option.removeprefix("--hyper.").replace("-", "_").split("."), value)
    return hyper
