"""Several processes that train one run together, on one host or on many.

Every process runs the same program. The first one does the work that must be done only once, such as writing
logs; decisions that must agree, such as whether to stop, are exchanged between chunks.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from popjax import counting
from popjax.host.errors import Refused

PORT = 8476
"""Default port on which the first process listens."""


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the processes of a run; call it before any array is made.

    Args:
        coordinator: HOST:PORT of the first process; "auto" to read the environment of SLURM, MPI or
            Kubernetes; None to train alone.
        processes: number of processes.
        process: number of this process, from 0.

    Raises:
        Refused: the arguments are inconsistent, or the processes cannot connect.
    """
    if coordinator is None:
        if processes is not None or process is not None:
            raise Refused("--processes and --process need --coordinator HOST:PORT or --coordinator auto")
        return
    known: dict[str, Any] = {}
    if coordinator == "auto":
        known = kubernetes(os.environ, socket.getfqdn(), processes) or {}
    elif processes is None or process is None:
        raise Refused("--coordinator HOST:PORT needs --processes N and --process I")
    elif not 0 <= process < processes:
        raise Refused(f"--process must be in 0 to {processes - 1}, got {process}")
    else:
        known = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # without it, CPUs cannot communicate
        jax.distributed.initialize(**known)
    except (RuntimeError, ValueError) as error:
        raise Refused(f"the processes could not connect: {' '.join(str(error).split())[:300]}") from None


def kubernetes(environment: Mapping[str, str], host: str, processes: int | None) -> dict[str, Any] | None:
    """Return the arguments of ``jax.distributed.initialize`` for a pod of an Indexed Job behind a headless
    service; None elsewhere.

    A pod's index is in JOB_COMPLETION_INDEX and at the end of its name, so the name of the first pod follows
    from ``host``, the full name of this one. The environment does not have the number of pods.
    """
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "KUBERNETES_SERVICE_HOST" not in environment:
        return None
    if processes is None:
        raise Refused("--coordinator auto in a Kubernetes job needs --processes N, the job's completions")
    name, dot, domain = host.partition(".")
    first = re.sub(rf"-{index}$", "-0", name)
    if not dot or (first == name and index != "0"):
        raise Refused(
            f"{host} is not the name of an indexed pod behind a headless service (JOB-{index}.SERVICE...):"
            " set the job's completionMode: Indexed and its subdomain"
        )
    return {
        "coordinator_address": f"{first}.{domain}:{PORT}",
        "num_processes": processes,
        "process_id": int(index),
    }


def first() -> bool:
    """Return whether this is the first process, which writes logs."""
    return jax.process_index() == 0


def fetch(arrays: Any) -> Any:
    """Return a pytree of arrays as whole NumPy arrays on every process, a ``Count`` as int64.

    Leaves may not be PRNG keys.
    """
    return jax.tree.map(counting.on_host, jax.tree.map(_fetch, arrays), is_leaf=_is_count)


def _is_count(node: Any) -> bool:
    return isinstance(node, counting.Count)


def _fetch(array: Any) -> np.ndarray:
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def largest(number: int) -> int:
    """Return the largest ``number`` of all processes, such as a signal that only one has received."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(jnp.int32(number))))


def smallest_size(count: int) -> int:
    """Return the smallest ``count`` of bytes of all processes, rounded down to megabytes if there are
    several."""
    return count if jax.process_count() == 1 else -largest(-(count // 10**6)) * 10**6


def together(action: Callable[[], None], *, everyone: bool = False) -> None:
    """Do ``action`` on the first process, or on all, and wait until every process is done.

    Raises:
        Refused: the action failed on another process; that process itself raises the exception of the action.
    """
    failure: Exception | None = None
    if everyone or first():
        try:
            action()
        except Exception as error:  # raised below, since other processes wait for the exchange
            failure = error
    failed = largest(int(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise Refused("another process has stopped; its own message says why")
