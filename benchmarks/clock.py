"""The clock of benchmarks that measure one process at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def kind() -> str:
    """Return which seconds count: processor time if this process may use only one core of a CPU, since it
    excludes other work on that core; otherwise wall-clock time."""
    import jax

    one_core = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1
    return "processor" if one_core and jax.default_backend() == "cpu" else "wall"


def chosen() -> Callable[[], float]:
    """Return the function that reads this clock [seconds]."""
    return time.process_time if kind() == "processor" else time.perf_counter
