"""Translation of a policy, as traced by JAX, into a program that needs only NumPy.

Weights, random key and exploration scale are constants of the traced program. Everything that depends only on
these is computed once; the rest is about a dozen operations that NumPy also has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, Literal

LOADER = '''"""Acts with policy.npz beside this file; needs NumPy alone."""

from pathlib import Path

import numpy as np

w = np.load(Path(__file__).with_name("policy.npz"))
w = {{name: w[name] for name in w.files}}


def act(obs):
    """obs [..., {shape}] -> action [..., A], or int [...] where actions are discrete."""
    obs = np.asarray(obs, np.{dtype})
    if obs.ndim > {rank}:
        return np.stack([act(one) for one in obs])
    with np.errstate(over="ignore"):
{body}
    return {action}
'''

_ALIKE = ("abs", "cos", "exp", "expm1", "floor", "log", "log1p", "sign", "sin", "sqrt", "square", "tanh")
_OPERATIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "neg": "-{0}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "not": "~{0}",
    "max": "np.maximum({0}, {1})",
    "min": "np.minimum({0}, {1})",
    "pow": "{0} ** {1}",
    "integer_pow": "{0} ** {y}",
    "rsqrt": "1 / np.sqrt({0})",
    "logistic": "1 / (1 + np.exp(-{0}))",
    "clamp": "np.clip({1}, {0}, {2})",
    "select_n": "np.where({0}, {2}, {1})",
    "convert_element_type": "np.asarray({0}, np.{new_dtype})",
    "reduce_sum": "np.sum({0}, {axes})",
    "reduce_max": "np.max({0}, {axes})",
    "reduce_min": "np.min({0}, {axes})",
    "argmax": "np.argmax({0}, {axes[0]})",
    "argmin": "np.argmin({0}, {axes[0]})",
    "reshape": "np.reshape({0}, {new_sizes})",
    "squeeze": "np.squeeze({0}, {dimensions})",
    "transpose": "np.transpose({0}, {permutation})",
    "copy": "{0}",
    "stop_gradient": "{0}",
    **{name: f"np.{name}({{0}})" for name in _ALIKE},
}
"""NumPy expressions for JAX primitives, with operands by number and parameters by name."""
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
"""Primitives that call an inner program."""


class NotPlain(Exception):
    """Reason why a policy cannot be translated."""


def numpy_program(act: Callable[[Array], Array], obs: np.ndarray) -> tuple[str, dict[str, np.ndarray]]:
    """Return the source of policy.py and the arrays of policy.npz; ``obs`` is one observation.

    Raises:
        NotPlain: ``act`` has an operation without a translation.
    """
    traced = jax.make_jaxpr(act)(obs)
    program = _Program()
    (action,) = program.translate(traced.jaxpr, traced.consts, ["obs"])
    body = "\n".join(f"        {line}" for line in program.needed(str(action))) or "        pass"
    shape = ", ".join(map(str, obs.shape))
    source = LOADER.format(
        shape=shape, dtype=obs.dtype.name, rank=obs.ndim, body=body, action=program.spelt(action)
    )
    used = {name: array for name, array in program.arrays.items() if f'w["{name}"]' in source}
    return source, used


class _Program:
    """Assignments to x0, x1, ... and the arrays that they read; a value is a name or a constant."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str | NotPlain]] = []
        self.arrays: dict[str, np.ndarray] = {}

    def translate(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Append the assignments of ``jaxpr``; return the values of its results."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            values, params = [value(atom) for atom in equation.invars], equation.params
            if equation.primitive.name in _CALLS:
                inner = params.get("jaxpr") or params["call_jaxpr"]
                results = self.translate(inner.jaxpr, inner.consts, values)
            elif not any(isinstance(x, str) for x in values):
                results = equation.primitive.bind(*values, **params)
                results = results if equation.primitive.multiple_results else [results]
            else:
                results = [self._result(equation, values)]
            known.update(zip(equation.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def needed(self, result: str) -> list[str]:
        """Return the assignments on which ``result`` depends."""
        wanted, kept = {result}, []
        for name, expression in reversed(self.lines):
            if name in wanted:
                if isinstance(expression, NotPlain):
                    raise expression
                kept.append(f"{name} = {expression}")
                wanted |= set(_NAME.findall(expression))
        return kept[::-1]

    def spelt(self, value: Any) -> str:
        """Return ``value`` as source: a name, a number or an array of policy.npz."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        if array.ndim == 0 and np.isfinite(array):
            return repr(array.item())
        name = f"c{len(self.arrays)}"
        self.arrays[name] = array
        return f'w["{name}"]'

    def _result(self, equation: Any, values: Sequence[Any]) -> Any:
        """Return the value of an equation, with a new assignment unless it multiplies by 0 or adds 0."""
        shape, dtype = equation.outvars[0].aval.shape, equation.outvars[0].aval.dtype
        rest = [x for x in values if isinstance(x, str) or np.any(x)]
        if equation.primitive.name == "mul" and len(rest) < 2:
            return np.zeros(shape, dtype)
        if equation.primitive.name == "add" and len(rest) == 1:
            return rest[0]
        name = f"x{len(self.lines)}"
        try:
            self.lines.append((name, _expression(equation, [self.spelt(x) for x in values])))
        except NotPlain as reason:  # matters only if the result depends on it
            self.lines.append((name, reason))
        return name


def _expression(equation: Any, operands: Sequence[str]) -> str:
    name = equation.primitive.name
    if name in _SHAPED:
        return _SHAPED[name](equation, *operands)
    if name in _OPERATIONS and len(operands) <= 3:
        return _OPERATIONS[name].format(*operands, **equation.params)
    raise NotPlain(f"it uses {name}, which has no translation")


_NAME = re.compile(r"\bx\d+\b")


def _broadcast(equation: Any, x: str) -> str:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    own = iter(equation.invars[0].aval.shape)
    aligned = tuple(next(own) if axis in places else 1 for axis in range(len(shape)))
    return f"np.broadcast_to(np.reshape({x}, {aligned}), {shape})"


def _product(equation: Any, x: str, y: str) -> str:
    (contract_x, contract_y), (batch_x, batch_y) = equation.params["dimension_numbers"]
    letters = itertools.count(ord("a"))
    of_x = [chr(next(letters)) for _ in equation.invars[0].aval.shape]
    of_y = [chr(next(letters)) for _ in equation.invars[1].aval.shape]
    for i, j in zip((*contract_x, *batch_x), (*contract_y, *batch_y), strict=True):
        of_y[j] = of_x[i]
    free = [c for i, c in enumerate(of_x) if i not in (*contract_x, *batch_x)]
    free += [c for j, c in enumerate(of_y) if j not in (*contract_y, *batch_y)]
    spelt = f"{''.join(of_x)},{''.join(of_y)}->{''.join([of_x[i] for i in batch_x] + free)}"
    return f"{x} @ {y}" if spelt == "a,ac->c" else f'np.einsum("{spelt}", {x}, {y})'


def _padded(equation: Any, x: str, value: str) -> str:
    config = equation.params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        raise NotPlain("it uses padding that removes or spreads elements")
    return f"np.pad({x}, {[(low, high) for low, high, _ in config]}, constant_values={value})"


def _cut(equation: Any, x: str) -> str:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    bounds = (f"{a}:{b}:{s}" for a, b, s in zip(starts, limits, strides, strict=True))
    return f"{x}[{', '.join(bounds)}]"


_SHAPED: dict[str, Callable[..., str]] = {
    "broadcast_in_dim": _broadcast,
    "dot_general": _product,
    "pad": _padded,
    "slice": _cut,
    "stack": lambda equation, *xs: f"np.stack([{', '.join(xs)}], {equation.params['axis']})",
    "concatenate": lambda equation, *xs: f"np.concatenate([{', '.join(xs)}], {equation.params['dimension']})",
}
"""Primitives whose translation depends on shapes."""
