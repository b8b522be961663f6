"""Policies that are plain networks, as arrays that NumPy alone can act with.

The record ``Method`` says what a policy does and not what it is made of, so its kind of network is found by
trial: among all the networks that its parameters could be, the one that acts alike. What is found has been
compared with the policy and cannot differ from it unnoticed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from popjax.normalize import RunningStatistics

TOLERANCE = 1e-3
"""The most by which actions may differ, or share of the choices that may: both are made with rounding."""
_ACTIVATIONS = ("relu", "tanh", "elu", "swish")
_OUTPUTS = ("tanh", "clip", "argmax")

LOADER = '''"""Acts with policy.npz beside this file; needs NumPy alone."""

from pathlib import Path

import numpy as np

WEIGHTS = dict(np.load(Path(__file__).with_name("policy.npz")))
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "clip": lambda x: np.clip(x, -1, 1),
    "argmax": lambda x: np.argmax(x, -1),
}


def act(obs, w=WEIGHTS):
    """obs [..., D] -> action [..., A], or int [...] where actions are discrete."""
    x = np.clip((np.asarray(obs, np.float64) - w["obs_mean"]) * w["obs_scale"], -w["obs_clip"], w["obs_clip"])
    for layer in range(int(w["hidden"])):
        x = x @ w[f"kernel{layer}"] + w[f"bias{layer}"]
        if f"norm_scale{layer}" in w:
            x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, ddof=1, keepdims=True) + 1e-6)
            x = x * w[f"norm_scale{layer}"] + w[f"norm_bias{layer}"]
        x = FUNCTIONS[str(w["activation"])](x)
    return FUNCTIONS[str(w["output"])](x @ w["kernel"] + w["bias"])
'''


class NotPlain(Exception):
    """Reason why a policy is no plain network."""


def plain_network(params: Any, observations: np.ndarray, actions: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of policy.npz of the network that gives ``actions`` [B, ...] for ``observations`` [B, D].

    Raises:
        NotPlain: there is none.
    """
    if observations.ndim != 2:
        raise NotPlain(f"observations of shape {list(observations.shape[1:])} are not vectors")
    networks = list(_networks(params))
    if len(networks) != 1:
        raise NotPlain(f"its parameters hold {len(networks)} sequences of layers, and one is needed")
    layers = _layers(networks[0])
    width = layers["kernel0" if "kernel0" in layers else "kernel"].shape[0]
    if width != observations.shape[1]:
        raise NotPlain(f"its network reads {width} numbers of observations that have {observations.shape[1]}")
    act = _loader()
    best, error = None, np.inf
    for activation, output, seen in itertools.product(_ACTIVATIONS, _OUTPUTS, _normalisations(params, width)):
        candidate = layers | seen | {"activation": np.array(activation), "output": np.array(output)}
        with np.errstate(over="ignore"):
            difference = _apart(act(observations, candidate), actions)
        if difference < error:
            best, error = candidate, difference
    if best is None or error > TOLERANCE:
        raise NotPlain(f"no network of its layers acts like it; the nearest is {error:.2g} away")
    return best


def _apart(found: np.ndarray, actions: np.ndarray) -> float:
    """The largest difference, or the share of choices that are others."""
    if found.shape != actions.shape or np.issubdtype(found.dtype, np.integer) != np.issubdtype(
        actions.dtype, np.integer
    ):
        return np.inf
    if np.issubdtype(actions.dtype, np.integer):
        return float((found != actions).mean())
    return float(np.abs(found - actions).max())


def _loader() -> Any:
    """``act`` of the loader, so that what is compared is what is delivered."""
    space: dict[str, Any] = {}
    body = LOADER.replace('dict(np.load(Path(__file__).with_name("policy.npz")))', "None")
    exec(compile(body, "policy.py", "exec"), space)
    return space["act"]


def _networks(params: Any) -> Iterator[Mapping[str, Any]]:
    """Every dictionary of layers in a tree of parameters."""
    if isinstance(params, Mapping):
        if "Dense_0" in params:
            yield params
        else:
            for value in params.values():
                yield from _networks(value)
    elif isinstance(params, tuple):
        for value in params:
            yield from _networks(value)


def _layers(network: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the layers by their names in policy.npz, the last one without a number."""
    count = sum(name.startswith("Dense_") for name in network)
    found = {"hidden": np.array(count - 1)}
    for layer in range(count):
        suffix, linear = layer if layer < count - 1 else "", network[f"Dense_{layer}"]["linear"]
        found |= {f"{name}{suffix}": np.asarray(linear[name]) for name in ("kernel", "bias")}
        norm = network.get(f"LayerNorm_{layer}")
        if norm is not None:
            found |= {f"norm_{name}{suffix}": np.asarray(norm[name]) for name in ("scale", "bias")}
    return found


def _normalisations(params: Any, width: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield what may be done to observations before the network reads them."""
    held = [
        leaf
        for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, RunningStatistics))
        if isinstance(leaf, RunningStatistics)
    ]
    if not held:
        yield _normalisation(np.zeros(width), np.ones(width), np.inf)
        return
    mean = np.asarray(held[0].mean, np.float64) + np.asarray(held[0].low, np.float64)
    variance = np.asarray(held[0].variance, np.float64)
    scale = 1 / np.sqrt(variance + 1e-8)
    for clip in (10.0, 5.0, np.inf):
        yield _normalisation(mean, scale, clip)


def _normalisation(mean: np.ndarray, scale: np.ndarray, clip: float) -> dict[str, np.ndarray]:
    return {"obs_mean": mean, "obs_scale": scale, "obs_clip": np.array(clip)}
