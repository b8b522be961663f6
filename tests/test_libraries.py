"""Environment variables that choose what draws, where popjax needs none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from popjax import libraries


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


def test_an_opengl_that_is_not_there_is_one_line():
    program = """
import popjax
for task in ("gym/InvertedPendulum-v5", "brax/inverted_pendulum", "dmc/pendulum-swingup"):
    try:
        popjax.make(task)
    except ValueError as refusal:
        print(refusal)
try:
    import popjax.host.deploy.video
except ValueError as refusal:
    print(refusal)
"""
    lines = output(program, MUJOCO_GL="bogus")
    assert len(lines) == 4
    assert all(line.startswith("MUJOCO_GL=bogus has no OpenGL here: unset it (") for line in lines)


def test_what_has_nothing_to_do_with_opengl_is_told_as_it_is(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ModuleNotFoundError), libraries.physics():
        import no_such_library  # noqa: F401
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(AttributeError), libraries.physics():
        raise AttributeError("of another library")
