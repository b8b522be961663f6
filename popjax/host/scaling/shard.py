"""A run on several devices: its members, or the population of its only member, spread over a mesh.

Members do not communicate, so each device runs its own program with its own loops on its share of them. A
long episode on one device does not delay others, and the program has no collectives. Individuals of one
population do communicate: the compiler is given the placement of the ``stacked()`` fields of the State and
derives the rest. Methods need no code for either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from popjax.core import lapack, stacked_fields
from popjax.devices import default_device, xla_flags
from popjax.host.errors import Refused
from popjax.host.scaling import sweep

SWEEP, POPULATION = "sweep", "population"


class Placement(NamedTuple):
    """Placement of the arrays of a run on devices.

    devices: the devices in use, of all processes.
    axis:    the axis spread over them: ``SWEEP`` [S] or ``POPULATION`` [P]; None for a single device.
    """

    devices: tuple[jax.Device, ...]
    axis: str | None = None

    @property
    def mesh(self) -> Mesh:
        """One-dimensional mesh of the devices."""
        return Mesh(np.array(self.devices), (self.axis or SWEEP,))

    @property
    def local(self) -> int:
        """Return the number of this process's devices."""
        return len(self._own)

    @property
    def first(self) -> jax.Device:
        """Return the first of this process's devices."""
        return self._own[0]

    @property
    def _own(self) -> list[jax.Device]:
        return [device for device in self.devices if device.process_index == jax.process_index()]

    def lift(self, function: Callable[..., Any], members: int) -> Callable[..., Any]:
        """Map ``function`` over members as ``sweep.lift`` does, each device on its own members."""
        if self.axis != SWEEP:
            return sweep.lift(function, members)
        each = sweep.lift(function, members // len(self.devices))

        def share(*args: Any) -> Any:
            # XLA of jaxlib 0.11 crashes the process if an empty array passes through.
            return jax.tree.map(lambda x: x if x.size else jnp.zeros(x.shape, x.dtype), each(*args))

        spec = PartitionSpec(SWEEP)
        return jax.shard_map(share, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def members(self) -> Sharding:
        """Return the sharding of arrays [S, ...] that are not a State."""
        if self.axis is None:
            return SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, PartitionSpec(*[SWEEP] if self.axis == SWEEP else []))

    def state(self, shapes: Any) -> Any:
        """Return the sharding of every leaf of a State [S, ...], in its structure."""
        everywhere = jax.tree.map(lambda _: self.members(), shapes)
        if self.axis != POPULATION:
            return everywhere
        spread = NamedSharding(self.mesh, PartitionSpec(None, POPULATION))
        return everywhere.replace(
            **{name: jax.tree.map(lambda _: spread, field) for name, field in stacked_fields(shapes).items()}
        )


def spread(arrays: Any, sharding: Sharding) -> Any:
    """Place a pytree that every process holds in full, such as keys and hypers, by ``sharding``."""

    def put(array: Any) -> jax.Array:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put, arrays)


def place(shapes: Any, devices: int | str) -> Placement:
    """Return the placement of a State of these ``shapes`` [S, ...] on ``devices``, a number or "all".

    Raises:
        Refused: there are fewer devices, or the axis does not divide evenly over them.
    """
    used = chosen(devices)
    count = len(used)
    if count == 1:
        return Placement(used)
    members = shapes.generation.shape[0]
    if members > 1:
        require_divisible(members, count, "members of the sweep")
        return Placement(used, SWEEP)
    sizes = {leaf.shape[1] for leaf in jax.tree.leaves(stacked_fields(shapes))}
    if len(sizes) != 1:
        raise Refused(f"--devices {count}: there is one member and no population to spread; use --devices 1")
    require_divisible(sizes.pop(), count, "individuals of the population")
    return Placement(used, POPULATION)


def chosen(devices: int | str) -> tuple[jax.Device, ...]:
    """Return the default device or, if ``devices`` is greater than 1 or "all", the first ``devices`` devices
    or all. Raises Refused as ``number`` does."""
    count = number(devices)
    return tuple(_present()[:count]) if count > 1 else (default_device(),)


def _present() -> list[jax.Device]:
    """Return all devices of the default device's platform."""
    return default_device().client.devices()


def divide_cpu(devices: str | None, axis: str = POPULATION) -> None:
    """Split the CPU into ``devices`` JAX devices, at most one per core; call it before any array is made.

    axis: the axis to be spread over them. With some versions of jaxlib (``lapack``), a population needs more
        threads than there are cores; a sweep does not, and they would slow it down.

    XLA leaves most of a second core idle on arrays as small as a population's, especially in physics
    (``benchmarks/envs.py`` and ``benchmarks/sweep.py``, ``--devices``). Nothing changes if
    JAX_NUM_CPU_DEVICES or XLA_FLAGS already split the CPU, or if processes train together.
    """
    count = min(int(devices), cores()) if devices and devices.isdecimal() else 1
    told = jax.config.jax_num_cpu_devices > 0  # type: ignore[attr-defined]
    divided = told or any("device_count" in flag for flag in xla_flags())
    if count < 2 or divided or jax.distributed.is_initialized():
        return
    with suppress(RuntimeError):  # too late; ``number`` reports missing devices
        jax.config.update("jax_num_cpu_devices", count)
        # Eight threads per device are enough: its simultaneous batches rarely occupy all of them.
        if lapack.SPLITS and axis == POPULATION:
            os.environ.setdefault("NPROC", str(max(8 * count, os.cpu_count() or 1)))


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Return the number of threads that XLA uses on the CPU; the last digits of sums depend on it."""
    told = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or ""
    return max(int(told) if told.isdecimal() else cores(), jax.local_device_count("cpu"))


def number(devices: int | str) -> int:
    """Return ``devices`` as a number; it may be "all".

    Raises:
        Refused: ``devices`` is not a number, exceeds the devices present, or leaves some out while several
            processes train together.
    """
    present = len(_present())
    if jax.process_count() > 1:
        if devices not in ("all", present):
            raise Refused(f"processes that train together use all {present} devices: add --devices all")
        return present
    if devices == "all":
        return present
    try:
        count = int(devices)
    except ValueError:
        raise Refused(f"--devices must be a number or all, got {devices!r}") from None
    if not 1 <= count <= present:
        remedy = "; set JAX_NUM_CPU_DEVICES=N to split the CPU" if default_device().platform == "cpu" else ""
        raise Refused(f"--devices must be in 1 to {present}, the number of devices, got {count}{remedy}")
    return count


def require_divisible(size: int, devices: int, what: str) -> None:
    """Check that ``size`` of ``what`` divide evenly over ``devices``. Raises Refused with numbers that do."""
    if size % devices == 0:
        return
    fitting = [n for n in range(1, min(size, len(_present())) + 1) if size % n == 0]
    below, above = size // devices * devices, -(-size // devices) * devices
    others = " or ".join(str(n) for n in (below, above) if n)
    raise Refused(
        f"{size} {what} do not divide evenly over {devices} devices: use --devices"
        f" {' or '.join(map(str, fitting))}, or {others} {what}"
    )
