"""Environment variables that choose a backend for drawing, where popjax draws without one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def output(program: str, **environment: str) -> list[str]:
    """What a process of its own prints, since it imports the libraries for the first time."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "use",
    [
        "import popjax.envs.gymnax",
        "from popjax.host.report import learning_curve as draw; draw([], os.devnull, title='none')",
    ],
)
def test_a_backend_that_is_not_installed_is_not_needed(use):
    told = "import matplotlib, matplotlib.pyplot as p; p.figure(); print(matplotlib.get_backend())"
    program = f"import os\n{use}\nprint(os.environ['MPLBACKEND'])\n{told}"
    assert output(program, MPLBACKEND="bogus") == ["bogus", "agg"]
    assert output(program, MPLBACKEND="svg") == ["svg", "svg"]
