"""JAX as the command line uses it: its settings, processes and devices."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from popjax.host.errors import Refused

_alone = False


def run_alone() -> None:
    """Declare that this process was started for the command line and runs no other code."""
    global _alone
    _alone = True


def join_processes(argv: list[str]) -> list[str]:
    """Join the processes named in the arguments; call it before any other use of JAX."""
    from popjax.cli import parse
    from popjax.host.scaling import processes

    coordinator, argv = parse.peel(argv, "--coordinator")
    numbers: list[int | None] = []
    for option in ("--processes", "--process"):
        text, argv = parse.peel(argv, option)
        if text is not None and not text.isdigit():
            raise Refused(f"{option} must be a whole number of at least 0, got {text!r}")
        numbers.append(None if text is None else int(text))
    processes.start(coordinator, *numbers)
    return argv


DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true")
"""Flags of XLA under which a GPU computes the same bits every time; a CPU and a TPU do so anyway."""


def compute_deterministically() -> None:
    """Set the flags that make GPUs deterministic; call it before JAX looks for devices."""
    from popjax.devices import xla_flags

    flags = xla_flags()
    os.environ["XLA_FLAGS"] = " ".join([*flags, *(flag for flag in DETERMINISTIC if flag not in flags)])


def rejected_setting() -> str | None:
    """Import JAX, which reads its environment variables; return the reason if it or XLA rejects one."""
    try:
        from popjax.devices import xla_flags

        xla_flags()
    except ValueError as error:
        return f"{' '.join(str(error).split())}: correct or unset that environment variable"
    except OSError as error:
        return (
            f"XLA_FLAGS={os.environ['XLA_FLAGS']} does not begin with a hyphen, so XLA reads its flags from a"
            f" file of this name ({error.strerror}): correct or unset that environment variable"
        )
    return None


def see_current_directory() -> None:
    """Make the current directory importable for methods and environments, however this process began."""
    with suppress(OSError):  # it may have been removed
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())


def prepare_jax() -> None:
    """Keep compiled programs for later processes, and suppress the libraries' remarks."""
    import logging
    import warnings

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # it prints what it raises
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from popjax import numerics
    from popjax.host.terminal import complain
    from popjax.host.training import program_store
    from popjax.host.training.compile_cache import keep_compiled

    for setting in numerics.standardize():
        complain(
            f"{setting} is overruled: popjax computes with 32 bits and standard promotion, and checks metrics"
            " for NaN itself"
        )
    keep_compiled()
    if _alone:
        program_store.trace_nobody_elses_code()


def require_backend() -> None:
    """Check that JAX finds a device of the platform in JAX_PLATFORMS; raise Refused if not."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        named = os.environ.get("JAX_PLATFORMS")
        told = f"JAX has no device for JAX_PLATFORMS={named}" if named else "JAX finds no device"
        why = " ".join(str(error).split())
        remedy = "set JAX_PLATFORMS to a platform of this machine, such as cpu, or install JAX for yours"
        raise Refused(f"{told}{f' ({why})' if why else ''}; {remedy}") from None
