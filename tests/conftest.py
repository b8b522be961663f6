"""What all tests share: the CPU, a compilation cache that outlives the run, and statistical helpers."""

from __future__ import annotations

import gc
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before JAX is imported; subprocesses of tests inherit it. `JAX_PLATFORMS=cuda pytest -m gpu` overrides it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popjax" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Tests compile more than they compute. LLVM's optimizations take a third of the time; half of the rest
    # goes into the emitters of fusions, which set up MLIR anew for each one. The older emitters leave it to
    # LLVM where product and sum become one operation: without that instruction, equal programs round alike.
    # A program is split for LLVM's threads into parts, for each of which LLVM is set up anew: a fifth.
    fast = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if platform.machine() == "x86_64":
        fast += ["--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters", "--xla_cpu_max_isa=AVX"]
    os.environ["XLA_FLAGS"] = " ".join([*fast, os.environ.get("XLA_FLAGS", "")])

# Tracing makes many objects and few cycles: looking for those as often as Python does is a twentieth of all.
gc.set_threshold(50_000, 20, 20)

# A shell has processes in the background ignore Ctrl-C, and those that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On import it configures logging, upon which absl closes the stream that it writes to, unless that is the
# present ``sys.stderr``: within a test, the one that captures.
with suppress(ImportError):
    import submitit  # noqa: F401

import jax  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
from scipy import stats  # noqa: E402

from popjax import remember  # noqa: E402
from popjax.host.training import compile_cache, program_store, summary  # noqa: E402

compile_cache.keep_compiled()  # from the first test on, so that all of them find each other's programs
# Tests replace functions that a stored program would still contain; their subprocesses do not.
program_store.trace_nobody_elses_code = lambda: None

_draw, _drawn = summary.learning_curve, bytearray()


def _draw_once(evaluations: Any, path: Any, **options: Any) -> None:
    """Draw the learning curve of the first run and give the others a copy: many runs of tests train for less
    time than drawing takes."""
    if not _drawn:
        _draw(evaluations, path, **options)
        _drawn.extend(Path(path).read_bytes())
    Path(path).write_bytes(_drawn)


summary.learning_curve = _draw_once

FIRST = {"test_conformance.py", "test_cspc.py", "test_ce.py", "test_cdrl.py", "test_testing.py"}
"""Files that take longest."""


@pytest.fixture
def key() -> jax.Array:
    """A key that is the same in every run."""
    return jax.random.key(0)


@pytest.fixture
def chance() -> Callable[..., float]:
    """``chance(counts, probabilities=None)``: the p-value of Pearson's chi-square test of counts.

    Tests use fixed keys, so a p-value above a small threshold is a fact and not a matter of luck.
    """

    def p_value(counts: np.ndarray, probabilities: np.ndarray | None = None) -> float:
        counts = np.asarray(counts, np.float64).ravel()
        expected = None if probabilities is None else np.asarray(probabilities).ravel() * counts.sum()
        return float(stats.chisquare(counts, expected).pvalue)

    return p_value


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """A worker that keeps the programs of all files it has run takes gigabytes. Until then it keeps those of
    single operations, which many files need."""
    yield
    remember.forget()
    if psutil.Process().memory_info().rss > 2 * 2**30:
        jax.clear_caches()


def pytest_collection_finish() -> None:
    """What importing the tests has made stays: nobody need look there for garbage."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none. What takes longest comes first, so that no worker
    is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name not in FIRST)
    if any(item.get_closest_marker("gpu") for item in items) and jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
