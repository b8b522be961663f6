"""MuJoCo's physics in Warp, an implementation behind MJX for NVIDIA GPUs that also runs on CPUs.
https://github.com/google-deepmind/mujoco_warp

Differs from MJX's implementation in JAX: the solver has another line search, and on a GPU forces are summed
in an order that changes from call to call, so that equal seeds do not give equal bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from popjax.core import PyTree
from popjax.devices import default_device, xla_flags

IMPLEMENTATIONS = ("jax", "warp")
"""MJX's implementations of physics."""
Advance = Callable[[Any, Any], Any]
"""``(mjx.Model, mjx.Data) -> mjx.Data``, all in Warp"""
_GIVEN = ("qpos", "qvel", "act", "qacc_warmstart", "ctrl")
_HIDDEN = ("cinert", "cfrc_ext")  # tasks read these and the public fields of ``mjx.Data``
_DETERMINISTIC = re.compile(r"deterministic_ops(=true|=1)?(\s|$)")  # XLA's two flags for GPUs end like this


def check(env: str, impl: str) -> None:
    """Check that ``env``, "suite/task", can use the implementation on this machine, once MJX is imported.

    Raises:
        ValueError: there is no such implementation, Warp is missing or cannot use this device, or XLA's flags
            require the same bits every time.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{env} has no impl {impl!r}; choose from {', '.join(IMPLEMENTATIONS)}")
    if impl == "jax":
        return
    from mujoco.mjx import warp

    if not warp.WARP_INSTALLED:
        raise ValueError(f"{env} with impl=warp needs Warp: pip install 'popjax[warp]'")
    if (device := default_device().platform) not in ("cpu", "gpu"):
        raise ValueError(f"{env}: impl=warp runs on NVIDIA GPUs and CPUs, not on a {device}; leave it out")
    if _DETERMINISTIC.search(" ".join(xla_flags())):
        raise ValueError(
            f"{env}: impl=warp does not compute the same bits every time; leave out --deterministic (or, in"
            " XLA_FLAGS, its flags) or impl=warp"
        )
    warp.warp.config.log_level = warp.warp.LOG_ERROR


def runner(model: Any, blank: Any, wrenches: bool = False) -> Callable[[Advance, Any], Any]:
    """Return ``(advance, mjx.Data) -> mjx.Data``, which advances data of MJX in JAX by physics in Warp.

    Warp keeps the contacts of all lanes in one list. Under ``vmap`` all lanes are therefore one call. Each
    lane has room for as many contacts and constraints as in JAX, where their numbers are fixed.

    model:    ``mujoco.MjModel``
    blank:    ``mjx.Data`` in JAX, from which these numbers are read
    wrenches: whether ``cfrc_ext``, the contact forces on bodies, is computed
    """
    from mujoco import mjx

    from popjax.envs import _warp_frames

    _warp_frames.install()
    physics = mjx.put_model(model, impl="warp").tree_replace(
        {"opt._impl.run_rne_postconstraint": wrenches, "opt._impl.warn_overflow": _serious()}
    )
    contacts, constraints = max(blank._impl.ncon, 1), max(blank._impl.nefc, 1)
    empty = mjx.make_data(model, impl="warp", naconmax=contacts, naccdmax=contacts, njmax=constraints)
    public = [field.name for field in type(blank).fields() if field.name != "_impl"]

    def run(advance: Advance, data: Any) -> Any:
        def together(given: PyTree) -> tuple[PyTree, PyTree]:
            roomy = _with_room(empty, len(given["qpos"]))
            data = jax.vmap(lambda given: advance(physics, roomy.replace(**given)))(given)
            hidden = {f"_impl.{name}": getattr(data._impl, name) for name in _HIDDEN}
            return {name: getattr(data, name) for name in public}, hidden

        given = {name: getattr(data, name).astype(jnp.float32) for name in _GIVEN}
        found, hidden = _all_lanes(together)(given)
        return data.replace(**found).tree_replace(hidden)

    return run


def _all_lanes(together: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """Return ``together`` [L, ...] -> [L, ...] as a function of one lane; L is the product of all axes over
    which it is mapped."""

    @custom_vmap
    def lanes(xs: PyTree) -> PyTree:
        return together(xs)

    @lanes.def_vmap
    def more(size: int, batched: list[PyTree], xs: PyTree) -> tuple[PyTree, PyTree]:
        xs = jax.tree.map(lambda x, is_: x if is_ else jnp.broadcast_to(x, (size, *x.shape)), xs, batched[0])
        count = jax.tree.leaves(xs)[0].shape[1]
        ys = lanes(jax.tree.map(lambda x: x.reshape(size * count, *x.shape[2:]), xs))
        ys = jax.tree.map(lambda y: y.reshape(size, count, *y.shape[1:]), ys)
        return ys, jax.tree.map(lambda _: True, ys)

    return lambda x: jax.tree.map(lambda y: y[0], lanes(jax.tree.map(lambda x: x[None], x)))


def _serious() -> int:
    """Return the mask of Warp's warnings to show: those about results dropped for lack of room, not those
    about the solver reaching its number of iterations."""
    from mujoco.mjx.third_party.mujoco_warp import OverflowType

    return int(OverflowType.ALL & ~(OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS))


def _with_room(data: Any, lanes: int) -> Any:
    """Return ``data``, made for one lane, with room for the contacts of ``lanes``."""
    impl = data._impl
    lists = {
        field.name: jnp.broadcast_to(rows[:1], (impl.naconmax * lanes, *rows.shape[1:]))
        for field in impl.fields()
        if field.name.startswith("contact__") and len(rows := getattr(impl, field.name))
    }
    room = {"naconmax": impl.naconmax * lanes, "naccdmax": impl.naccdmax * lanes}
    return data.replace(_impl=impl.replace(**room, **lists))
