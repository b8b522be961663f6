"""Several processes that train one run together, on one host or on many.

Every process runs the same program. What must not be done twice, such as writing logs, is done by the first;
what they must agree on, such as whether to stop, they tell each other between chunks.
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
"""Port on which the first process listens unless told otherwise."""


def start(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the processes of a run; call it before any array is made.

    Args:
        coordinator: HOST:PORT of the first process, or "auto": SLURM's, MPI's or Kubernetes' environment says
            it all. ``None``: this process trains alone.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        Refused: the three do not make sense, or the others do not come.
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
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # without them CPUs cannot speak
        jax.distributed.initialize(**known)
    except (RuntimeError, ValueError) as error:
        raise Refused(f"the processes did not come together: {' '.join(str(error).split())[:300]}") from None


def kubernetes(environment: Mapping[str, str], host: str, processes: int | None) -> dict[str, Any] | None:
    """Return what the pods of an Indexed Job behind a headless service know of each other; ``None``
    elsewhere.

    A pod's index is in JOB_COMPLETION_INDEX and at the end of its name, so the first pod is known by
    ``host``, the full name of this one. How many there are the environment does not say.
    """
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "KUBERNETES_SERVICE_HOST" not in environment:
        return None
    if processes is None:
        raise Refused("--coordinator auto in a Kubernetes job needs --processes N, its completions")
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
    """Return whether this is the process that writes logs; true of one that trains alone."""
    return jax.process_index() == 0


def fetch(arrays: Any) -> Any:
    """Return a pytree of arrays as whole NumPy arrays on every process, a ``Count`` as int64.

    No leaf may be a PRNG key.
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
    """Return the largest of the processes' numbers, such as a signal that only one of them has received."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(jnp.int32(number))))


def smallest_size(count: int) -> int:
    """Return the smallest ``count`` of bytes of all processes, to the megabyte; exact for one process."""
    return count if jax.process_count() == 1 else -largest(-(count // 10**6)) * 10**6


def together(action: Callable[[], None], *, everyone: bool = False) -> None:
    """Do ``action`` on the first process, or on all, and wait until every process is done.

    Raises:
        Refused: it failed on some process; there, what it raised.
    """
    failure: Exception | None = None
    if everyone or first():
        try:
            action()
        except Exception as error:  # told to the others first: they would wait for ever
            failure = error
    failed = largest(int(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise Refused("another process has stopped; its own message says why")
