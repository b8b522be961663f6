"""The vocabulary: the records and structs that all other modules share.

A thing you call is a ``NamedTuple`` of pure functions; a thing you carry is a frozen
``flax.struct.dataclass``. Agents and environments are written for one individual and lifted to a
population with ``vmap``; a method chains phases ``State -> State`` over the lifted pieces.

Axis letters used in docstrings, outermost first: ``S`` sweep (seeds), ``P`` individuals, ``N``
environment lanes, ``T`` time, ``B`` batch, ``D`` observation, ``A`` action.
"""

from popjax.core import lapack
from popjax.core.agent import (
    Act,
    Agent,
    Choice,
    Distribution,
    Eyes,
    Intrinsic,
    Network,
    OnPolicyAgent,
    Recurrent,
    Replay,
    Unroll,
)
from popjax.core.env import (
    Env,
    Origin,
    Spec,
    Timestep,
    Unfit,
    continuous_dims,
    needs_continuous,
    vector_size,
)
from popjax.core.experience import (
    Trajectory,
    Transition,
    Weighted,
    example_transition,
    importance,
    transition,
)
from popjax.core.method import (
    LARGEST,
    Built,
    Ingredient,
    Method,
    Pretrained,
    Schedule,
    as_arrays,
    chain,
    number,
    stacked,
    stacked_fields,
)
from popjax.core.types import (
    Key,
    Number,
    Params,
    PyTree,
    S,
)

__all__ = [
    "LARGEST",
    "Act",
    "Agent",
    "Built",
    "Choice",
    "Distribution",
    "Env",
    "Eyes",
    "Ingredient",
    "Intrinsic",
    "Key",
    "Method",
    "Network",
    "Number",
    "OnPolicyAgent",
    "Origin",
    "Params",
    "Pretrained",
    "PyTree",
    "Recurrent",
    "Replay",
    "S",
    "Schedule",
    "Spec",
    "Timestep",
    "Trajectory",
    "Transition",
    "Unfit",
    "Unroll",
    "Weighted",
    "as_arrays",
    "chain",
    "continuous_dims",
    "example_transition",
    "importance",
    "needs_continuous",
    "number",
    "stacked",
    "stacked_fields",
    "transition",
    "vector_size",
]

lapack.split_no_batch()
