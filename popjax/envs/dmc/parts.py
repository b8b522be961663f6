"""Parts that the domains of the DeepMind Control Suite share: graded rewards, sensors and resets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from popjax.core import Key
from popjax.envs.mujoco import posed, touching

FREE, HINGE = 0, 3  # mujoco.mjtJoint
INFINITE = float("inf")


def linear(x: Array, at_margin: float) -> Array:
    """Return a line that falls from 1 to ``at_margin`` at x = 1, and 0 where it would be below."""
    return jnp.maximum(1 - x * (1 - at_margin), 0.0)


def quadratic(x: Array, at_margin: float) -> Array:
    """Return a parabola that falls from 1 to ``at_margin`` at x = 1."""
    return jnp.maximum(1 - x**2 * (1 - at_margin), 0.0)


def gaussian(x: Array, at_margin: float) -> Array:
    """Return a Gaussian that falls from 1 to ``at_margin`` at x = 1."""
    return at_margin ** (x**2)


def long_tail(x: Array, at_margin: float) -> Array:
    """Return a Cauchy density that falls from 1 to ``at_margin`` at x = 1."""
    return 1 / (x**2 * (1 / at_margin - 1) + 1)


def tolerance(
    x: Array,
    low: float = 0.0,
    high: float = 0.0,
    margin: float = 0.0,
    shape: Callable[[Array, float], Array] = gaussian,
    at_margin: float = 0.1,
) -> Array:
    """Return 1 if ``x`` is in [low, high], else 0 or a ``shape`` that falls to ``at_margin`` at ``margin``.

    ``dm_control.utils.rewards.tolerance``.
    """
    inside = (low <= x) & (x <= high)
    if margin == 0:
        return jnp.float32(inside)
    distance = jnp.where(x < low, low - x, x - high) / margin
    return jnp.where(inside, 1.0, shape(distance, at_margin))


def small_control(ctrl: Array) -> Array:
    """Return a factor from 4/5 for full control to 1 for none; ``ctrl`` [nu]."""
    return (4 + tolerance(ctrl, margin=1, shape=quadratic, at_margin=0).mean()) / 5


def at_least(x: Array, low: float, margin: float, at_margin: float = 0.0) -> Array:
    """Return 1 if ``x`` is at least ``low``, falling linearly below."""
    return tolerance(x, low, INFINITE, margin, linear, at_margin)


def sensors(model: Any, *names: str) -> Callable[[Any], Array]:
    """Return ``data`` -> readings of the named sensors, one after the other."""
    places = [np.arange(s.adr[0], s.adr[0] + s.dim[0]) for s in (model.sensor(name) for name in names)]
    index = np.concatenate(places)
    return lambda data: data.sensordata[index]


def pose(model: Any) -> Callable[[Key], Array]:
    """Return ``key -> qpos`` with limited joints uniform in their range and other hinges on the circle.

    The orientation of a free body is as dm_control draws it: four uniform numbers in [0, 1), normalized.
    """
    low, high = (np.array(model.qpos0) for _ in range(2))
    free = []
    for joint in range(model.njnt):
        place, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
        if kind == FREE:
            free.append(slice(place + 3, place + 7))
        elif model.jnt_limited[joint]:
            low[place], high[place] = model.jnt_range[joint]
        elif kind == HINGE:
            low[place], high[place] = -np.pi, np.pi

    def draw(key: Key) -> Array:
        qpos = jax.random.uniform(key, (model.nq,), minval=jnp.float32(low), maxval=jnp.float32(high))
        for place in free:
            turn = jax.random.uniform(jax.random.fold_in(key, 1), (4,))
            qpos = qpos.at[place].set(turn / jnp.linalg.norm(turn))
        return qpos

    return draw


def untouched(model: Any, draw: Callable[[Key], Array]) -> Callable[[Key], Array]:
    """Return ``draw`` repeated until nothing is in contact."""
    view = posed(model)

    def repeat(key: Key) -> Array:
        def again(loop: tuple[Key, Array]) -> tuple[Key, Array]:
            key, key_draw = jax.random.split(loop[0])
            return key, draw(key_draw)

        first = again((key, jnp.zeros(model.nq)))
        return jax.lax.while_loop(lambda loop: touching(view(loop[1])), again, first)[1]

    return repeat


def still(model: Any, draw: Callable[[Key], Array]) -> Callable[[Key], tuple[Array, Array]]:
    """Return a reset to the position drawn by ``draw``, at rest."""
    return lambda key: (draw(key), jnp.zeros(model.nv))


def state(data: Any) -> Array:
    """Return positions and velocities."""
    return jnp.concatenate([data.qpos, data.qvel])


def addresses(model: Any, *names: str) -> np.ndarray:
    """Return the places of the named joints in ``qpos``; they are also those in ``qvel`` if no free or ball
    joint comes before."""
    return np.array([model.joint(name).qposadr[0] for name in names])
