"""Worker processes that answer in lines of JSON, each with the interpreter of what it measures."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainers import Cannot

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU


@dataclass(frozen=True)
class Worker:
    """A process that answers once it is ready, and then after every chunk of work.

    limit:  seconds to wait for an answer; None: for ever.
    prefix: beginning of the reason why there is none.
    """

    process: subprocess.Popen[str]
    limit: float | None = None
    prefix: str = ""

    def answer(self) -> dict[str, Any]:
        """Return the next line of the process.

        Raises:
            Cannot: there is none, or none in time, or it says why the process cannot do the work.
        """
        assert self.process.stdout
        if select.select([self.process.stdout], [], [], self.limit)[0]:
            line = self.process.stdout.readline()
            said = json.loads(line) if line else {"cannot": f"ended with exit status {self.process.wait()}"}
        else:
            said = {"cannot": f"no answer in {self.limit:g} s"}
        if "cannot" in said:
            self.close()
            raise Cannot(f"{self.prefix}{said['cannot']}")
        return said

    def chunk(self) -> dict[str, Any]:
        """Let the process work for a chunk; see ``answer``."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended, as ``answer`` reports
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Others:
    """Directories of the other trainers and of results."""

    python: str = sys.executable
    """Python interpreter of an environment with the other trainers."""
    evorl: Path | None = None
    """Checkout of EvoRL."""
    purejaxrl: Path | None = None
    """Checkout of PureJaxRL."""
    out: Path | None = None
    """JSON file for the results; the figure goes beside it."""
    limit: float = 300.0
    """Seconds to wait for an answer."""

    def start(self, script: str, name: str, *told: Any, environment: Mapping[str, str] = {}) -> Worker:
        """Start ``script`` as the worker of one trainer, with the arguments ``told`` as JSON. Reasons why it
        cannot work name popjax if it is ours."""
        checkouts = {"evorl": self.evorl, "purejaxrl": self.purejaxrl and self.purejaxrl / "purejaxrl"}
        paths = [ROOT, *filter(None, [checkouts.get(name)])]
        python = sys.executable if name == "ours" else self.python
        process = subprocess.Popen(
            [python, script, "--worker", name, *map(json.dumps, told)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return Worker(process, self.limit, "popjax: " if name == "ours" else "")

    def ask(self, *command: Any, environment: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return the only answer of a worker, or the reason why it gives none; see ``start``."""
        with closing(self.start(*command, environment=environment)) as worker:
            try:
                return worker.answer()
            except Cannot as error:
                return {"cannot": str(error)}


def versions(python: str) -> dict[str, str]:
    """Return the versions of the other trainers and their dependencies. End the process if ``python`` is not
    an interpreter."""
    names = [
        "rejax",
        "sbx-rl",
        "stable_baselines3",
        "qdax",
        "brax",
        "evosax",
        "gymnax",
        "jax",
        "jaxlib",
        "torch",
    ]
    code = (
        "import importlib.metadata as m, json\n"
        f"found = {{d.metadata['Name'].lower(): d.version for d in m.distributions()}}\n"
        f"print(json.dumps({{n: found[n] for n in {names!r} if n in found}}))"
    )
    try:
        told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: --python {python} is no interpreter of Python: {error}") from None
    return json.loads(told)
