"""``python -m popjax`` and ``popjax``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import popjax
from popjax import cli
from popjax.cli import forms

ROOT = Path(__file__).parent.parent
RUN = ["train", "tests.host.tiny", "--env", "probe/context", "--env-steps", "24", "--eval-episodes", "1"]


def test_the_commands_are_the_scripts(tmp_path, capsys):
    assert cli.main([*RUN, "--run-dir", str(tmp_path / "run")]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 0
    assert cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "policy")]) == 0
    assert cli.main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0
    capsys.readouterr()
    assert cli.main([]) == 2
    assert "no command given: popjax train | evaluate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "did you mean train?"), ("pderl", "choose from train, evaluate, report, export")],
)
def test_an_unknown_command_is_named(word, hint, capsys):
    assert cli.main([word, "pderl"]) == 2
    assert capsys.readouterr().err == f"error: unknown command {word!r}; {hint}\n"


def test_a_module_is_a_command_and_says_how_to_repeat_it(tmp_path):
    def popjax_m(*argv):
        command = [sys.executable, "-m", "popjax", *argv]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert popjax_m("--version").stdout == f"popjax {popjax.__version__}\n"
    assert popjax_m(*RUN, "--run-dir", "run").returncode == 0
    command = popjax.load(tmp_path / "run").config["command"]
    assert command.startswith("python -m popjax train tests.host.tiny --env")


@pytest.mark.parametrize("name", ["run", "evaluate", "report", "export"])
def test_a_script_finds_the_package_beside_it(name, tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "popjax").mkdir()
    script = shutil.copy(ROOT / f"scripts/{name}.py", tmp_path / "scripts")
    (tmp_path / "popjax/cli.py").write_text(f"def {name}():\n    print(__file__)\n    return 3\n")
    ran = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == (f"{tmp_path / 'popjax/cli.py'}\n", 3)


def test_the_installed_command_is_named_as_it_is_typed():
    assert forms.command(["/opt/env/bin/popjax", "train", "a b"]) == "popjax train 'a b'"
    assert forms.command(["scripts/run.py", "--resume"]) == "python scripts/run.py --resume"


@pytest.mark.parametrize("command", [cli.run, cli.evaluate, cli.report, cli.export, cli.main])
def test_every_command_says_its_version(command, capsys):
    assert command(["--version"]) == 0
    assert capsys.readouterr().out == f"popjax {popjax.__version__}\n"


def test_the_package_installs_the_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"popjax": "popjax.cli:main"}
    home = {}
    exec((ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(), home)
    assert home["__version__"] == popjax.__version__


DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("optax", "0.2.7"),  # cannot be imported beside jax 0.10.2
        ("mujoco", "3.9.0"),  # models without M_rownnz
        ("mujoco-mjx", "3.9.0"),
    ],
)
def test_versions_that_do_not_work_are_not_allowed(name, broken):
    (allowed,) = [each.specifier for each in map(Requirement, DECLARED) if each.name == name]
    assert not allowed.contains(broken)
    assert allowed.contains(version(name))
