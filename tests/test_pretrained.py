"""Runs that are built on finished runs: their policies come in by the command line and stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import popjax
from popjax import cli
from popjax.cli import building, pretrained, program
from popjax.core import Ingredient, Pretrained
from popjax.envs import make
from popjax.host.errors import Refused
from popjax.host.runs import rundir
from popjax.methods import ca2e, pderl
from popjax.recipe import defaults

OPTIONS = ["--eval-every", "100", "--eval-episodes", "3", "--log-every", "50", "--checkpoint-every", "100"]
SMALL = ["--config.batch", "4", "--config.capacity", "50", "--config.agent.hidden", "4"]
DQN = [
    "independent",
    "--config.agent",
    "dqn",
    "--config.warmup",
    "10",
    "--env-steps",
    "200",
    *SMALL,
    *OPTIONS,
]
CA2E = [
    "ca2e",
    "--env",
    "probe/corridor-discrete",
    "--config.nature-actors",
    "2",
    "--config.prior-actors",
    "2",
    *SMALL,
]
CA2E += ["--config.local-buffer", "3", "--config.learning-starts", "40", "--config.check-every", "40"]
CA2E += ["--config.return-window", "2", *OPTIONS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two seeds, a run on another task, and one that is built on the first."""
    root = tmp_path_factory.mktemp("runs")
    corridor = [*DQN, "--env", "probe/corridor-discrete", "--seeds", "2", "--seed", "3"]
    assert cli.run([*corridor, "--run-dir", str(root / "dqn")]) == 0
    assert cli.run([*DQN, "--env", "probe/context-discrete", "--run-dir", str(root / "other")]) == 0
    assert cli.run(argv(root, "whole", 400)) == 0
    return root


def argv(root: Path, name: str, steps: int, *priors: str) -> list[str]:
    priors = priors or (f"{root}/dqn:4", f"{root}/dqn")
    options = [text for prior in priors for text in ("--prior", prior)]
    return [*CA2E, "--env-steps", str(steps), *options, "--run-dir", str(root / name)]


def test_what_a_run_keeps_of_its_ingredients(runs):
    saved = json.loads((runs / "whole" / "config.json").read_text())
    explicit, best = saved["runs"]["prior"]
    last = {}
    for line in (runs / "dqn" / "eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        last[row["seed"]] = row["return"]
    assert explicit["run"] == str(runs / "dqn")
    assert (explicit["seed"], best["seed"]) == (4, max(last, key=last.get))
    assert explicit["env_steps"] == 200
    loaded = building.load(runs / "whole")
    state = building.load(runs / "dqn").state
    policy = loaded.state.prior_params[0]["Dense_0"]["linear"]["kernel"][0]
    np.testing.assert_array_equal(policy, state.agents.online["Dense_0"]["linear"]["kernel"][1, 0])
    assert list(loaded.state.retirement.baseline[0]) == [
        pytest.approx(entry["mean_return"]) for entry in (explicit, best)
    ]
    summary = json.loads((runs / "whole" / "summary.json").read_text())
    assert [entry["env_steps"] for entry in summary["runs"]["prior"]] == [200, 200]
    assert set(summary["runs"]["prior"][0]) == {"run", "seed", "env_steps", "mean_return"}
    assert summary["runs"]["prior"][0]["run"] == "dqn"


def test_it_goes_on_where_it_was_although_the_others_are_gone(runs, tmp_path, capsys):
    shutil.copytree(runs / "dqn", tmp_path / "dqn")
    assert cli.run(argv(tmp_path, "half", 200)) == 0
    shutil.rmtree(tmp_path / "dqn")
    assert cli.run([*argv(tmp_path, "half", 400), "--resume"]) == 0
    digests = [
        json.loads((folder / "summary.json").read_text())["state_sha256"]
        for folder in (runs / "whole", tmp_path / "half")
    ]
    assert digests[0] == digests[1]
    assert cli.evaluate([str(tmp_path / "half"), "--episodes", "2"]) == 0
    capsys.readouterr()
    changed = argv(tmp_path, "half", 600, f"{tmp_path}/dqn:3", f"{tmp_path}/dqn:3")
    assert cli.run([*changed, "--resume"]) == 2
    assert "was begun with other runs; --prior was" in capsys.readouterr().err


def test_it_goes_on_where_its_project_was_moved(runs, tmp_path, capsys):
    project = shutil.copytree(runs, tmp_path / "project")
    command = [*argv(project, "whole", 440), "--resume"]
    for entry in (project / "whole" / "checkpoints").iterdir():
        shutil.rmtree(entry)  # so that the policies come from their runs again, where these lie now
    assert cli.run(command) == 0
    saved = json.loads((project / "whole" / "config.json").read_text())
    assert {entry["run"] for entry in saved["runs"]["prior"]} == {str(project / "dqn")}
    capsys.readouterr()
    assert cli.run([*argv(project, "whole", 480, f"{runs}/dqn:4", f"{project}/other"), "--resume"]) == 2
    assert "was begun with other runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prior", "part"),
    [
        ("other", "--prior: the prior policy of ROOT/other was trained on probe/context-discrete, not on"),
        ("nothing", "ROOT/nothing holds no run"),
        ("dqn:9", "ROOT/dqn has the seeds 3 to 4, not 9"),
    ],
)
def test_what_cannot_be_built_on(runs, prior, part, capsys):
    capsys.readouterr()
    assert cli.run(argv(runs, "new", 400, f"{runs}/{prior}")) == 2
    err = capsys.readouterr().err
    assert part.replace("ROOT", str(runs)) in err
    assert err.count("\n") == 1
    assert not (runs / "new").exists()


def test_a_run_that_was_killed_before_its_first_checkpoint_has_its_policies(runs, tmp_path):
    """A checkpoint that was only begun is none: the policies come from their own run again."""
    shutil.copytree(runs / "whole", tmp_path / "new")
    for entry in (tmp_path / "new" / "checkpoints").iterdir():
        shutil.rmtree(entry)
    (tmp_path / "new" / "checkpoints" / "partial-25").mkdir()
    for name in ("summary.json", "eval.jsonl", "metrics.jsonl"):
        (tmp_path / "new" / name).unlink()
    command = argv(runs, "whole", 400)
    command[command.index("--run-dir") + 1] = str(tmp_path / "new")
    assert cli.run([*command, "--resume"]) == 0
    digests = [
        json.loads((folder / "summary.json").read_text())["state_sha256"]
        for folder in (runs / "whole", tmp_path / "new")
    ]
    assert digests[0] == digests[1]


def test_a_run_with_other_options_of_the_task_is_refused(runs, capsys):
    other = [*DQN, "--env", "gymnax/CartPole-v1", "--env-option", "max_steps_in_episode=50"]
    assert cli.run([*other, "--run-dir", str(runs / "short")]) == 0
    capsys.readouterr()
    command = argv(runs, "new", 400, f"{runs}/short")
    command[command.index("--env") + 1] = "gymnax/CartPole-v1"
    assert cli.run(command) == 2
    assert (
        "was trained with --env-option {'max_steps_in_episode': 50}, not {}: give this run the same"
        in capsys.readouterr().err
    )


def test_a_run_with_other_rewards_of_the_task_fits():
    env = make("probe/action")
    config = {"env": "probe/action", "env_options": {"reward_clip": 1}}
    policy = Pretrained("runs/clipped", env.spec, None, None, origin={"config": config})
    takes = Ingredient("priors", lambda env, policies: policies, Pretrained, "")
    assert pretrained._made("prior", takes, env, [policy]) == [policy]
    seen = policy._replace(origin={"config": config | {"env_options": {"frame_stack": 2}}})
    with pytest.raises(Refused, match=r"was trained with --env-option \{'frame_stack': 2\}"):
        pretrained._made("prior", takes, env, [seen])


def test_help_and_near_misses_know_of_it(capsys):
    assert cli.run(["ca2e", "--env", "gymnax/CartPole-v1", "--help"]) == 0
    assert "--prior: Policy of a finished run" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["ca2e", "--env", "gymnax/CartPole-v1", "--env-steps", "9", "--priors", "x"]) == 2
    assert "did you mean --prior?" in capsys.readouterr().err


def test_the_best_seed_of_a_run_whose_last_line_is_torn(tmp_path):
    rows = [{"seed": seed, "return": value} for seed, value in ((3, 1.0), (4, 5.0), (3, 2.0), (4, 1.5))]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"seed": 4, "ret')
    assert pretrained._best_seed(tmp_path, [3, 4]) == 3
    assert pretrained._best_seed(tmp_path / "nowhere", [3, 4]) == 3


def test_failed_seeds_and_returns_that_are_no_number_are_not_the_best(tmp_path):
    rows = [{"seed": seed, "return": value} for seed, value in ((1, 9.0), (2, None), (3, "-inf"), (4, -5.0))]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def best(*failed):
        status = {seed: "failed" if seed in failed else "finished" for seed in seeds}
        members = [{"seed": seed, "status": value} for seed, value in status.items()]
        (tmp_path / "summary.json").write_text(json.dumps({"members": members}))
        return pretrained._best_seed(tmp_path, seeds)

    seeds = [1, 2, 3, 4, 5]  # the last was never evaluated
    assert pretrained._best_seed(tmp_path, seeds) == best() == 1
    assert best(1) == 4
    assert best(1, 2, 3, 4) == 5
    assert best(*seeds) == 1


def test_a_run_whose_environment_cannot_be_made_today_is_refused(tmp_path):
    config = {"method": "pderl", "agents": {}, "config": {"population": 4}, "hyper": {}}
    rundir.write_json(
        tmp_path / "config.json", config | {"env": "probe/action", "env_options": {"colour": 1}}
    )
    with pytest.raises(Refused, match="'colour'"):
        popjax.pretrained(tmp_path)


def test_options_are_taken_out_of_the_command_line():
    line = ["--env", "a", "--prior", "b", "--seeds", "2", "--prior=c:1"]
    assert pretrained.peel_runs(ca2e.METHOD, line) == (
        {"prior": ["b", "c:1"]},
        ["--env", "a", "--seeds", "2"],
    )
    assert pretrained.peel_runs(pderl.METHOD, line) == ({}, line)


def test_a_task_decides_about_the_learner():
    """Breakout is discrete, Pendulum is not; each comes with the paper's constants for it."""
    found = {}
    for task in ("gymnax/Breakout-MinAtar", "gymnax/Pendulum-v1"):
        kinds, _ = program._peel_agents(ca2e.METHOD, [], task)
        config, hyper = defaults(ca2e.METHOD, kinds, task)
        found[task] = kinds["agent"], config.batch, config.learning_starts, type(hyper.agent).__module__
    assert found["gymnax/Breakout-MinAtar"] == ("dqn", 32, 50_000, "popjax.agents.dqn")
    assert found["gymnax/Pendulum-v1"] == ("ddpg", 128, 10_000, "popjax.agents.ddpg")
