"""Without an optional library, one line names the extra that brings it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from popjax import cli, remember
from popjax.envs import make
from popjax.envs.atari.console import games
from popjax.host.deploy import video
from popjax.host.errors import Refused

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ELSEWHERE = {
    "warp": "tests/envs/test_playground.py",
    "notebooks": "",  # of the repository
    "docs": "",
    "peers": "",
    "dev": "",
    "cuda": "",  # JAX says what it lacks
    "tpu": "",
    "aot-gpu": "tests/absent.py",
    "aot-tpu": "tests/absent.py",
}
"""Extras without a command here, and where they are tested; "" for those that no command of popjax needs."""
ENV_STEPS = ("--env-steps", "8")
ATARI = ("--env", "atari/pong", *ENV_STEPS)
DMC = ("--env", "dmc/pendulum-swingup", *ENV_STEPS)
PENDULUM = ("--env", "gymnax/Pendulum-v1", *ENV_STEPS)
COMMANDS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "atari": [("ale_py", ("independent", "--config.agent", "dqn", *ATARI)), ("ale_py", ("cdrl", *ATARI))],
    "dmc": [
        ("dm_control", ("independent", *DMC)),
        ("dm_control", ("independent", "--env", "pixels/pendulum-swingup", *ENV_STEPS)),
    ],
    "gym": [("gymnasium", ("independent", "--env", "gym/Hopper-v4", *ENV_STEPS))],
    "playground": [("mujoco_playground", ("independent", "--env", "playground/CartpoleBalance"))],
    "es": [("evosax.algorithms", ("es", *PENDULUM))],
    "tracking": [("wandb", ("independent", *PENDULUM, "--wandb", "mine"))],
    "ray": [("ray", ("independent", *PENDULUM, "--launcher", "ray"))],
    "slurm": [("submitit", ("independent", *PENDULUM, "--launcher", "slurm"))],
}
FILMS = {
    "imageio_ffmpeg": ("gymnax/Breakout-MinAtar", "film.mp4"),
    "pygame": ("gymnax/Pendulum-v1", "film.gif"),
}
"""Films that need a library of the extra "video"."""
CASES = [(extra, *case) for extra, cases in COMMANDS.items() for case in cases]


def test_every_extra_is_looked_after() -> None:
    assert COMMANDS.keys() | ELSEWHERE.keys() | {"video"} == EXTRAS.keys()
    for extra, file in ELSEWHERE.items():
        assert not file or f"popjax[{extra}]" in (ROOT / file).read_text()


@pytest.mark.parametrize(("extra", "library", "command"), CASES)
def test_a_command_without_its_library_names_the_extra(
    extra: str,
    library: str,
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    remember.forget()
    games.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    directory = tmp_path / "run"
    assert cli.run([*command, "--run-dir", str(directory)]) == 2
    told = capfd.readouterr().err.strip()
    assert re.fullmatch(rf"error: .*pip install 'popjax\[{extra}\]'.*", told), told
    assert not directory.exists()


@pytest.mark.parametrize("library", FILMS)
def test_a_film_without_its_library_names_the_extra(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    task, film = FILMS[library]
    with pytest.raises(Refused, match=rf"\A--video .*needs {library}.*pip install 'popjax\[video\]'.*\Z"):
        video.subject(make(task), {}, Path(film))
