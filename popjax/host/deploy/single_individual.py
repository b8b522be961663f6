"""One individual of a population in place of the policy that its method would deploy."""

from __future__ import annotations

from typing import Any

import jax

from popjax import tree
from popjax.core import Method
from popjax.host.errors import Refused


def alone(method: Method, state: Any, index: int) -> Method:
    """Return ``method`` with the policy of individual ``index`` of the population.

    ``state`` leads with the members.

    Raises:
        Refused: there is no such individual, or the individuals of the method do not act alone.
    """
    if method.individuals is None:
        raise Refused(
            "--individual: this method offers no policies of individuals: they act together, share one policy"
            " or play different tasks"
        )
    everybody = method.individuals
    first = jax.eval_shape(lambda s: everybody(tree.take(s, 0)), state)
    size = jax.tree.leaves(first)[0].shape[0]
    if not 0 <= index < size:
        raise Refused(
            f"--individual must be in 0 to {size - 1}, the population's size being {size}, got {index}"
        )
    return method._replace(policy=lambda s: tree.take(everybody(s), index))
