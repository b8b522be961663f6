"""A method and environments of a user's own go wherever the built-in ones go; so do runs made from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import popjax
from popjax import cli
from popjax.agents import dqn
from popjax.host.runs import origins
from popjax.methods import independent
from tests import own
from tests.host import tiny

ROOT = Path(__file__).parent.parent
METHOD = ["tests.host.tiny", "--env", "tests.own", "--env-steps", "240", "--eval-every", "120"]
OPTIONS = {"env_steps": 240, "eval_every": 120, "eval_episodes": 2, "quiet": True}


def read(path: Path):
    return json.loads(path.read_text())


def same_but_for_the_command(first: Path, second: Path) -> None:
    one, other = read(first / "config.json"), read(second / "config.json")
    own = {"command": None, "id": None}
    assert one | own == other | own


def refused(argv, capsys, command=cli.run) -> str:
    capsys.readouterr()
    assert command(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_train_resume_evaluate_export_film_and_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run([*METHOD, "--env-option", "size=2", "--run-dir", "run"]) == 0
    saved = read(Path("run/config.json"))
    assert (saved["method"], saved["env"], saved["env_options"]) == (
        "tests.host.tiny",
        "tests.own:make",
        {"size": 2},
    )
    assert saved["not_rebuilt"] is None
    more = ["--env-option", "size=2", "--run-dir", "run", "--resume", "--env-steps", "480"]
    assert cli.run([*METHOD[:3], *more, *METHOD[5:]]) == 0
    capsys.readouterr()
    assert cli.evaluate(["run", "--episodes", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["env"], np.shape(told["seeds"][0]["returns"])) == ("tests.own:make", (3,))
    assert cli.export(["run", "--out", "policy"]) == 0
    assert read(Path("policy/policy.json"))["observation"]["shape"] == [2]
    assert cli.report(["run", "--out", "page"]) == 0
    assert "own/line cannot be drawn" in refused(["run", "--video", "film.mp4"], capsys, cli.evaluate)


def test_grids_name_their_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["tests.own:SECOND", "--env", "tests.own:make", "probe/context", "--sweep", "hyper.rate=0.1,0.2"]
    assert cli.run([*argv, *METHOD[3:]]) == 0
    (root,) = Path("runs").iterdir()
    configs = [read(path) for path in root.glob("*/config.json")]
    assert {config["env"] for config in configs} == {"tests.own:make", "probe/context"}
    assert all(config["sweep"] == {"hyper.rate": [0.1, 0.2]} for config in configs)


def test_defaults_are_the_recipes(tmp_path):
    assert cli.run(["tests.own:SECOND", *METHOD[1:], "--run-dir", str(tmp_path / "run")]) == 0
    saved = read(tmp_path / "run" / "config.json")
    assert (saved["method"], saved["hyper"]["rate"]) == ("tests.own:SECOND", 0.5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["no.such.method", *METHOD[1:]], "method no.such.method: there is no module 'no'"),
        (["tests.own", *METHOD[1:]], "module tests.own has no 'METHOD'"),
        (["tests.own:NOT_A_RECIPE", *METHOD[1:]], "NOT_A_RECIPE is of type int; make it a popjax.Recipe"),
        (["tests.own:NO_NUMBERS", *METHOD[1:]], "hyper of the Recipe returns a value of type NoneType;"),
        (["tests.own:NO_CONFIG", *METHOD[1:]], "config of the Recipe returns a value of type dict; let it"),
        (["tests.own:CONFIG_AS_A_VALUE", *METHOD[1:]], "Recipe is of type Config; give a class"),
        (["tests.own:NUMBERS_OF_NOTHING", *METHOD[1:]], "hyper of the Recipe must take a Config: too many"),
        (["tests.own:AGENT_WITHOUT_A_FIELD", *METHOD[1:]], "names agent, which Config lacks; add the field"),
        (["tests.own:AGENT_NOT_TAKEN", *METHOD[1:]], "must take the keywords agent: got"),
        (["tests.own:NO_METHOD", *METHOD[1:]], "returns a value of type int; let it return a popjax.M"),
        (["tests.own:NO_METHOD_RECORDED", *METHOD[1:]], "a value of type int; let it return a popjax.M"),
        (["tiiny", *METHOD[1:]], "unknown method 'tiiny'; choose from pderl"),
        (["tests.host.tiny", "--env", "tests.own:nothing", *METHOD[3:]], "a value of type module; let it"),
        (["tests.host.tiny", "--env", "no.such:make", *METHOD[3:]], "there is no module 'no'"),
        (["tests.host.tiny", "--env", "tests.own:LINE", *METHOD[3:]], "LINE is of type Env; name a"),
        ([*METHOD, "--env-option", "reward_axes=1"], "own/line: step: reward must be float32"),
    ],
)
def test_what_is_wrong_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(argv, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_cannot_be_read_is_told_with_its_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "half_written.py").write_text("import popjax\n\nMETHOD = (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    error = refused(["half_written", *METHOD[1:]], capsys)
    assert "SyntaxError: '(' was never closed" in error
    assert f"({tmp_path / 'half_written.py'}:3); fix the module" in error


def test_modules_are_found_in_the_current_directory(tmp_path):
    (tmp_path / "own_task.py").write_text(
        "import popjax\n\n\ndef make():\n    return popjax.make('probe/context')._replace(origin=None)\n"
    )
    for command in (
        ["run.py", "tests.host.tiny", "--env", "own_task", *METHOD[3:], "--run-dir", "run"],
        ["evaluate.py", "run", "--episodes", "1"],
    ):
        script = [sys.executable, str(ROOT / "scripts" / command[0]), *command[1:]]
        path = {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, env=os.environ | path)
        assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run" / "config.json")["env"] == "own_task:make"


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="local"),
        pytest.param(
            ["--launcher", "slurm", "--launcher-option", "cluster=local"], id="slurm", marks=pytest.mark.slow
        ),
    ],
)
def test_launchers_find_modules_in_the_current_directory(launcher, tmp_path):
    if launcher:
        pytest.importorskip("submitit")
    (tmp_path / "own_task.py").write_text("from tests.own import make\n")
    (tmp_path / "own_method.py").write_text("from tests.own import SECOND as METHOD\n")
    argv = ["own_method", "--env", "own_task", *METHOD[3:], "--sweep", "config.capacity=10,20"]
    script = [sys.executable, str(ROOT / "scripts" / "run.py"), *argv, *launcher, "--run-dir", "runs"]
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, env=os.environ | path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "runs" / "summary.json")["members"]
    assert [row["status"] for row in rows] == ["finished", "finished"]
    configs = [read(tmp_path / "runs" / row["run"] / "config.json") for row in rows]
    assert [(one["method"], one["env"]) for one in configs] == [("own_method", "own_task:make")] * 2


def test_a_run_from_python_is_one_of_the_command_line(tmp_path, capsys):
    line = [*METHOD, "--env-option", "size=2", "--eval-episodes", "2"]
    assert cli.run([*line, "--run-dir", str(tmp_path / "line")]) == 0
    env = popjax.make("tests.own", size=2)
    popjax.train(tiny.build(env), env, run_dir=tmp_path / "python", **OPTIONS)
    popjax.train(tiny.build(env), env, run_dir=tmp_path / "pooled", seed=1, **OPTIONS)
    same_but_for_the_command(tmp_path / "line", tmp_path / "python")
    told = {}
    for name in ("line", "python"):
        capsys.readouterr()
        assert cli.evaluate([str(tmp_path / name), "--json"]) == 0
        told[name] = json.loads(capsys.readouterr().out) | {"run_dir": ""}
    assert told["line"] == told["python"]
    resumed = [*line, "--run-dir", str(tmp_path / "python"), "--resume"]
    assert cli.run([text if text != "240" else "480" for text in resumed]) == 0
    runs = [str(tmp_path / name) for name in ("line", "pooled")]
    assert cli.report([*runs, "--out", str(tmp_path / "page")]) == 0
    assert " (2)" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.slow
def test_a_built_in_method_from_python_teaches(tmp_path):
    """Its run is the prior of another run from Python, which is evaluated on the command line."""
    env = popjax.make("probe/corridor-discrete")
    agent = dqn.Config(hidden=(4,))
    method = independent.build(env, independent.Config(agent=agent, batch=4, capacity=50, warmup=10))
    popjax.train(method, env, seeds=2, run_dir=tmp_path / "dqn", **OPTIONS)
    prior = popjax.pretrained(tmp_path / "dqn", seed=1)
    priors = popjax.ca2e.measure(env, [prior], jax.random.key(0))
    config = popjax.ca2e.Config(
        agent=agent,
        nature_actors=2,
        prior_actors=1,
        batch=4,
        capacity=50,
        local_buffer=3,
        learning_starts=40,
        check_every=40,
        return_window=2,
    )
    student = popjax.ca2e.build(env, config, priors)
    popjax.train(student, env, run_dir=tmp_path / "ca2e", **OPTIONS)
    saved = read(tmp_path / "ca2e" / "config.json")
    assert (saved["method"], saved["agents"], saved["not_rebuilt"]) == ("ca2e", {"agent": "dqn"}, None)
    (kept,) = saved["runs"]["prior"]
    assert (kept["run"], kept["seed"]) == (str((tmp_path / "dqn").resolve()), 1)
    assert cli.evaluate([str(tmp_path / "ca2e"), "--episodes", "1"]) == 0


def test_a_task_that_was_changed_by_hand_is_not_taken_for_the_suites(tmp_path, capsys):
    plain = popjax.make("probe/context")
    scored, spec = plain._replace(origin=None), plain.spec._replace(episode_length=3)
    for change in ({"scored": scored}, {"step": lambda *given: plain.step(*given)}, {"spec": spec}):
        env = plain._replace(**change)
        assert popjax.envs.origin(env) is None
    assert popjax.envs.origin(plain).name == "probe/context"
    popjax.train(tiny.build(env), env, run_dir=tmp_path, **OPTIONS)
    assert read(tmp_path / "config.json")["env"] == "probe/context (changed)"
    told = refused([str(tmp_path)], capsys, cli.evaluate)
    assert "probe/context was changed after popjax.make; write a function that returns it" in told
    with pytest.raises(popjax.Refused, match=r"--env probe/context \(changed\) -> probe/context"):
        popjax.train(tiny.build(plain), plain, run_dir=tmp_path, resume=True, **OPTIONS)


def test_the_environment_may_be_made_once_for_the_method_and_once_for_the_run():
    method = tiny.build(popjax.make("tests.own", size=2))
    assert (
        origins.describe(method, popjax.make("tests.own", size=2), "tests.host.tiny")["not_rebuilt"] is None
    )
    other = origins.describe(method, popjax.make("tests.own", size=3), "tests.host.tiny")
    assert "built for another environment" in other["not_rebuilt"]


@pytest.mark.parametrize(
    ("slip", "reason"),
    [
        (
            "environment",
            "own/line was not made by popjax.make, or with options that JSON cannot hold, such as arrays;"
            " write a function",
        ),
        ("method", "decorate its build with popjax.recorded"),
        ("other", "built for another environment, probe/context"),
        ("agent", "its Config is not one of"),
    ],
)
def test_what_cannot_be_built_again_is_told(slip, reason, tmp_path, capsys):
    env = own.make() if slip == "environment" else popjax.make("tests.own")
    method = tiny.build(popjax.make("probe/context") if slip == "other" else env)
    if slip == "method":
        method = method._replace(built=None)
    if slip == "agent":
        method = method._replace(built=method.built._replace(build=independent.build, config=tiny.Config()))
        method = method._replace(built=method.built._replace(config=independent.Config(agent=tiny.Config())))
    popjax.train(method, env, run_dir=tmp_path / "run", **OPTIONS | {"quiet": False})
    assert reason in capsys.readouterr().err
    told = refused([str(tmp_path / "run")], capsys, cli.evaluate)
    assert reason in told
    assert "popjax.evaluate" in told
