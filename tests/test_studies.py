"""Studies of finished runs: one line for a run that they cannot use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import (
    alignment,
    diversity,
    each_agent,
    gaits,
    maze,
    operators,
    over_training,
    returns,
    trained,
    visitation,
)

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [alignment, diversity, each_agent, gaits, maze, operators, over_training, visitation]


def make_run(root: Path, rows: list[dict[str, Any]], **config: Any) -> Path:
    root.mkdir()
    (root / "config.json").write_text(json.dumps({"method": "es", "env": "gymnax/Pendulum-v1", **config}))
    (root / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def refusal(study: Any, run: Path, **options: Any) -> str:
    """Return the line with which the process ends."""
    if study in (diversity, returns):
        arguments = study.Arguments((run,))
    elif study is over_training:
        arguments = over_training.Arguments(run, **{"metrics": ("rate",), "out": run / "out.json"} | options)
    else:
        arguments = study.Arguments(run, out=run / "out.json")
    with pytest.raises(SystemExit) as ended:
        study.main(arguments)
    line = str(ended.value)
    assert line.startswith("error: ")
    assert "\n" not in line
    return line.removeprefix("error: ")


@pytest.mark.parametrize("study", [*STUDIES, returns])
@pytest.mark.parametrize("exists", [False, True])
def test_a_study_of_no_run(study: Any, exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "none").mkdir()
    told = refusal(study, tmp_path / "none")
    assert told == f"{tmp_path / 'none'} holds no run (there is no {tmp_path / 'none/config.json'})"


@pytest.mark.parametrize(
    ("study", "told"),
    [
        (operators, "is a run of es; name a run of pderl or erl"),
        (visitation, "is a run of es; name a run of pderl or erl"),
        (diversity, "is a run of es; name a run of ce"),
        (alignment, "records no metric 'teacher'; name a run of align"),
        (maze, "is a run on gymnax/Pendulum-v1; name a run on benchmarks.maze:make"),
    ],
)
def test_a_study_of_a_run_that_lacks_what_it_studies(study: Any, told: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"member": 0, "seed": 0, "rate": 1}])
    assert refusal(study, run) == f"{run} {told}"


@pytest.mark.parametrize("study", [maze, gaits])
def test_a_study_of_individuals_that_do_not_act_alone(study: Any) -> None:
    run = SimpleNamespace(method=SimpleNamespace(individuals=None), saved={"method": "cdrl"})
    with pytest.raises(ValueError, match="a run of cdrl has no individuals that act alone"):
        study.play(run, 1, 0) if study is maze else study.play(run, 0)
    alone = SimpleNamespace(method=SimpleNamespace(individuals=abs))
    assert trained.individuals(alone) is abs


@pytest.mark.parametrize("study", [maze, each_agent, alignment, over_training])
def test_a_study_of_a_run_that_has_only_begun(study: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [], env="benchmarks.maze:make")
    what = "no checkpoint" if study in (maze, each_agent) else "recorded nothing"
    assert refusal(study, run) == f"{run} has {what} yet; train it first"


def evaluated(root: Path, steps: list[int]) -> Path:
    """Make a run of one seed whose returns are its environment steps."""
    facts = {"command": "x", "git_commit": "x", "versions": {}, "device": "cpu", "agents": {}, "hyper": {}}
    config = {"config": {}, "env_options": {}, "options": {"env_steps": 100, "seed": 0, "seeds": 1}}
    run = make_run(root, [], **facts, **config)
    each = {"member": 0, "seed": 0, "train_seconds": 1.0, "wall_seconds": 1.0, "lengths": [1]}
    lines = [{**each, "generation": x, "env_steps": x, "return": x, "returns": [x]} for x in steps]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize("exists", [False, True])
def test_returns_of_a_run_without_evaluations(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written, also not of the runs before it."""
    monkeypatch.setattr(returns, "RESULTS", tmp_path / "results")
    run, good = evaluated(tmp_path / "run", []), evaluated(tmp_path / "good", [0, 50, 100])
    if not exists:
        (run / "eval.jsonl").unlink()
    assert refusal(returns, run) == f"{run} has no evaluations yet: nothing is in {run / 'eval.jsonl'}"
    with pytest.raises(SystemExit, match="has no evaluations yet"):
        returns.main(returns.Arguments((good, run)))
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("steps", "area"), [([0], 0.0), ([0, 50, 100], 50.0)])
def test_returns_of_a_run(
    steps: list[int], area: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A straight line has half of its end as its mean."""
    monkeypatch.setattr(returns, "RESULTS", tmp_path / "results")
    returns.main(returns.Arguments((evaluated(tmp_path / "run", steps),)))
    found = json.loads((tmp_path / "results/run.json").read_text())
    assert found["evaluations"] == [[0, step, step] for step in steps]
    assert found["area"] == [area]
    assert (tmp_path / "results/run-time.png").stat().st_size > 5_000


def test_a_line_that_cannot_be_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    (run / "metrics.jsonl").write_text("nothing\n")
    assert refusal(over_training, run) == f"line 1 of {run / 'metrics.jsonl'} is not JSON: remove that line"


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("fitness", "records 'fitness' with axes [3]: name one of its numbers, fitness/mean, /max, /0 to /2"),
        ("fitness/7", "records 'fitness' with axes [3]: name one of its numbers, fitness/mean, /max, /0 to"),
        ("parents/0", "with axes [3, 2]: name one of its numbers, parents/mean or /max"),
        ("alone", "with axes [1]: name one of its numbers, alone/mean, /max, /0 or /first:0"),
        ("none", "records 'none' without any entry, since its axes are [0]; name another metric"),
        ("rate/0", "records 'rate' as one number: name rate"),
        ("loss", "records no metric 'loss'; it records alone, fitness, none, parents, rate"),
    ],
)
def test_a_metric_that_is_not_one_number_over_training(metric: str, told: str, tmp_path: Path) -> None:
    whose = {"member": 0, "seed": 0, "hyper.rate": 0.1, "generation": 1, "env_steps": 5, "wall_seconds": 1.0}
    values = {"rate": 1, "fitness": [1, 2, 3], "alone": [1], "none": [], "parents": [[0, -1]] * 3}
    run = make_run(tmp_path / "run", [whose | values])
    line = refusal(over_training, run, metrics=(metric,))
    assert told in line
    assert line.endswith(told) or metric.startswith("fitness")


def test_a_study_that_is_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    @trained.in_one_line()
    def study() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        study()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_the_line_is_all_that_a_user_sees(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "benchmarks/maze.py", str(tmp_path / "none"), "--out", str(tmp_path / "out.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
