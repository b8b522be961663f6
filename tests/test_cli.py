"""The command line: what it makes, and the one line that bad input gets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tyro._docstrings import get_field_docstring

from popjax import cli
from popjax.agents import a2c
from popjax.cli import building, grid, parse, training
from popjax.cli.program import understand
from popjax.envs import make
from popjax.host import recipes
from popjax.host.errors import Interrupted, Refused
from popjax.host.numbers import plain
from popjax.host.report import measures
from popjax.host.runs.options import Options
from popjax.host.runs.rundir import write_json
from popjax.host.training import train
from popjax.methods import ce, cspc, independent, pderl
from popjax.recipe import defaults
from tests.host import tiny

TINY = ["tiny", "--env", "probe/context", "--env-steps", "240", "--eval-every", "120"]


@pytest.fixture(autouse=True)
def _tiny_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    monkeypatch.chdir(tmp_path)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str], command: Any = cli.run) -> str:
    """The error of ``argv``, which must be a single line with code 2."""
    assert command(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


PENDULUM = ["--env", "gymnax/Pendulum-v1", "--env-steps", "10000"]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["no method given", "pderl", "independent"]),
        (["pdrel", *PENDULUM], ["unknown method 'pdrel'", "did you mean pderl?"]),
        (
            ["pderl", "--env", "gymnaks/Pendulum-v1", "--env-steps", "9"],
            ["'gymnaks'", "did you mean 'gymnax/Pendulum-v1'"],
        ),
        (["pderl", "--env", "gymnax/Pendlum-v1", "--env-steps", "9"], ["did you mean 'Pendulum-v1'"]),
        (["pderl", *PENDULUM, "--sedes", "3"], ["unknown option --sedes", "did you mean --seeds?"]),
        (["pderl", *PENDULUM, "--SEEDS", "3"], ["unknown option --SEEDS", "did you mean --seeds?"]),
        (["pderl", *PENDULUM, "--keep", "3"], ["unknown option --keep", "did you mean --keep-checkpoints?"]),
        (["pderl", *PENDULUM, "--hyper.mutation_sdt", "3"], ["did you mean --hyper.mutation-std?"]),
        (["pderl", *PENDULUM, "stray"], ["unexpected argument 'stray'"]),
        (["pderl", "--env-steps", "10000"], ["missing --env"]),
        (
            ["pderl", *PENDULUM, "--seeds", "two"],
            ["error: --seeds must be an integer or a list of integers, got 'two'"],
        ),
        (["pderl", *PENDULUM, "--seeds", "1", "two"], ["a list of integers, got '1 two'"]),
        (["pderl", *PENDULUM, "--seeds", "x]."], ["error: --seeds must be an integer or a list of integers"]),
        (["pderl", *PENDULUM, "--max-minutes", "x"], ["--max-minutes must be a number, got 'x'"]),
        (
            ["pderl", *PENDULUM, "--config.agent.hidden", "x"],
            ["--config.agent.hidden must be a list of integers, got 'x'"],
        ),
        (["pderl", *PENDULUM, "--seeds"], ["--seeds"]),
        (["pderl", *PENDULUM, "--seeds", "0"], ["--seeds must be at least 1, got 0"]),
        (
            ["pderl", *PENDULUM, "--env-steps", "2199"],
            ["2199 is less than one generation, which may take 2200"],
        ),
        (["pderl", *PENDULUM, "--env-option", "gravity"], ["KEY=VALUE", "'gravity'"]),
        (["pderl", *PENDULUM, "--env-option", "gg=1"], ["no option 'gg'"]),
        (
            ["pderl", "--env", "gym/Reacher-v5", "--env-steps", "9", "--env-option", "xml_file=nothing.xml"],
            ["gym/Reacher-v5: option xml_file='nothing.xml'", "does not exist"],
        ),
        (
            ["pderl", "--env", "gym/Reacher-v5", "--env-steps", "9", "--env-option", "frame_skip=abc"],
            ["gym/Reacher-v5: option frame_skip must be an integer, got 'abc'"],
        ),
        (["pderl", *PENDULUM, "--config.elite-fraction", "0.9"], ["elites 9", "population 10"]),
        (
            ["ce", *PENDULUM, "--hyper.learner.discont", "0.9,0.99"],
            ["did you mean --hyper.learner.discount?"],
        ),
        (
            ["ce", *PENDULUM, "--hyper.learner.discount=0.9,0.99"],
            ["one for each of 4 agents, got shape (2,)"],
        ),
        (
            ["independent", *PENDULUM, "--config.population", "3", "--hyper.actor-lr", "1e-3,1e-4"],
            ["hyper.actor_lr has 2 values, and there are 3 individuals; give one for all, or one for each"],
        ),
        (
            ["cem_rl", *PENDULUM, "--hyper.learner.actor-lr", "1e-3,1e-4"],
            ["hyper.learner.actor_lr has 2 values, and there are 10 individuals; give one for all"],
        ),
        (["pderl", *PENDULUM, "--config.crossover", "magic"], ["'magic'", "distil"]),
        (
            ["pderl", *PENDULUM, "--config.capacity", "10" + "0" * 12],
            ["capacity must be at most 2147483647, got 10000000000000"],
        ),
        (["pderl", "--env", "gymnax/CartPole-v1", "--env-steps", "9000"], ["continuous", "CartPole-v1"]),
        (
            [
                "cspc",
                *PENDULUM,
                *(f"--config.{who}=none" for who in ("off-policy", "on-policy", "evolution")),
            ],
            ["give the team an agent"],
        ),
        (
            ["cspc", *PENDULUM, "--config.on-policy.minibatches", "3"],
            ["1000 steps is not divisible by minibatches 3", "use 2"],
        ),
        (
            ["cspc", *PENDULUM, "--config.on-policy", "a2c", "--config.on-policy-batch", "20"],
            ["after step 20 of an episode's 200", "no-reset-at-batch", "at least 200"],
        ),
        (
            ["onpolicy", *PENDULUM, "--config.agent", "ppo", "--config.agent.minibatches", "7"],
            ["4000 steps is not divisible by minibatches 7", "use 8"],
        ),
        (["independent", *PENDULUM, "--config.agent", "td4"], ["unknown agent 'td4'", "did you mean td3?"]),
        (
            ["independent", *PENDULUM, "--config.batch", "9", "--config.capacity", "8"],
            ["batch 9", "capacity 8"],
        ),
        (["tiny", "--env", "probe/action-discrete", "--env-steps", "99"], ["continuous"]),
    ],
)
def test_bad_input_is_told_in_one_line(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(argv, capsys)
    for part in parts:
        assert part in error
    assert not Path("runs").exists()


def test_a_run_is_trained_evaluated_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--seeds", "2", "--config.capacity", "50", "--hyper.rate=0.2"]) == 0
    out = capsys.readouterr().out
    assert "final return, seed 1" in out
    root = Path("runs/tiny-probe-context-seeds0to1")
    config = json.loads((root / "config.json").read_text())
    assert config["config"] == {"capacity": 50, "uneven": False}
    assert config["hyper"]["rate"] == 0.2

    assert cli.evaluate([str(root), "--episodes", "7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [seed["seed"] for seed in shown["seeds"]] == [0, 1]
    assert len(shown["seeds"][0]["returns"]) == 7
    assert cli.evaluate([str(root), "--episodes", "7"]) == 0
    assert f"{shown['mean']:.2f}" in capsys.readouterr().out
    assert "has no original" in refused([str(root), "--in", "gymnasium"], capsys, cli.evaluate)
    assert "probe/context cannot be drawn" in refused(
        [str(root), "--video", "film.mp4"], capsys, cli.evaluate
    )
    assert "did you mean --in?" in refused([str(root), "--inn", "gymnasium"], capsys, cli.evaluate)

    again = [*TINY, "--seeds", "2", "--hyper.rate=0.2"]
    assert "already holds a run" in refused([*again, "--config.capacity", "50"], capsys)
    error = refused([*again, "--config.capacity", "60", "--resume"], capsys)
    assert "--config.capacity 50 -> 60" in error
    assert cli.run([*again, "--config.capacity", "50", "--resume", "--env-steps", "480"]) == 0
    assert json.loads((root / "summary.json").read_text())["env_steps"] >= 480


def test_a_non_finite_metric_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--hyper.poison-at", "5", "--log-every", "12"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: metric losses.loss of seed 0")


def test_evaluating_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in refused([str(tmp_path)], capsys, cli.evaluate)
    (tmp_path / "config.json").write_text("{}")
    assert "popjax.evaluate" in refused([str(tmp_path)], capsys, cli.evaluate)
    assert "missing" in refused([], capsys, cli.evaluate)


@pytest.mark.parametrize("argv", [["--help"], ["pderl", "--help"], ["independent", "--help"]])
def test_help_documents_every_option(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(argv) == 0
    text = capsys.readouterr().out
    for option in ("--env ", "--env-steps", "--eval-every", "--resume", "environment steps"):
        assert option in text
    if len(argv) > 1:
        assert "--config.population" in text
        assert "--hyper." in text


def told(argv: list[str], capsys: pytest.CaptureFixture[str], command=cli.run) -> str:
    """The help of a command in one line, without the frame."""
    assert command([*argv, "--help"]) == 0
    return " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().out).split())


def test_help_says_what_a_method_is_and_what_it_may_consist_of(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(["ce"], capsys)
    assert "Collaborative Exploration: agents that share a replay and are rewarded for states" in text
    assert "new to all of them. ICLR 2024 submission" in text
    assert "--config.drive {none,collab,rnd,diayn} (here: collab); --config.drive NAME --help shows" in text
    assert "--config.drive.horizon" in text
    text = told(["ce", "--config.drive", "none"], capsys)
    assert "--config.drive {none,collab,rnd,diayn} (here: none)" in text
    assert re.search(r"--config.drive {none,collab,rnd,diayn} reward added .*\(default: none\)", text)
    assert "{fixed}" not in text
    assert "--config.drive.horizon" not in text


@pytest.mark.parametrize("method", recipes.METHODS)
def test_help_shows_no_default_that_is_none(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told([method], capsys)
    assert "--stop-at-return FLOAT Stop" in text
    assert "(default: None)" not in text


def test_help_shows_no_default_of_an_option_that_is_not_given(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(["erl"], capsys)
    assert "by default runs/METHOD-SUITE-TASK-seedS. --wandb" in text
    assert "--processes INT Number" in text
    assert "--max-minutes FLOAT Save" in text
    assert "by default all of them. --episodes" in told(["run"], capsys, cli.evaluate)


@pytest.mark.parametrize("record", [parse.Common, Options, parse.EvaluateArguments, parse.ReportArguments])
def test_the_help_of_an_option_is_one_paragraph(record: type) -> None:
    texts = {field.name: get_field_docstring(record, field.name, ()) for field in fields(record)}
    assert [name for name, text in texts.items() if name != "options" and (not text or "\n" in text)] == []


def test_help_lists_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.report(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in (*measures._OF_CURVES, measures.METRIC) if name not in text] == []


@pytest.mark.parametrize(("name", "repeated"), [("pbt", False), ("ca2e", True)])
def test_help_says_which_runs_may_be_several(
    name: str, repeated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([name, "--help"]) == 0
    assert ("May be repeated." in " ".join(capsys.readouterr().out.split())) == repeated


def test_presets_are_defaults_that_flags_override() -> None:
    kinds = {"agent": "ddpg", "drive": "none"}
    config, _ = defaults(pderl.METHOD, kinds, "brax/hopper")
    assert config == pderl.preset("brax/hopper").config
    argv = ["--env", "brax/hopper", "--env-steps", "9", "--config.trials", "2"]
    arguments = understand("pderl", argv).arguments
    assert arguments.config.trials == 2
    assert arguments.config.elite_fraction == config.elite_fraction == 0.2
    assert defaults(pderl.METHOD, kinds, "gymnax/Pendulum-v1") == (pderl.Config(), pderl.Hyper())


@pytest.mark.parametrize(
    ("method", "kinds", "task", "told"),
    [
        (
            "pderl",
            {"agent": "ddpg", "drive": "rnd"},
            "gym/Ant-v4",
            "--config.elite-fraction 0.2, --config.sync-period 1, --hyper.mutation-std 0.01,"
            " --env-steps 6000000",
        ),
        ("pderl", {"agent": "td3", "drive": "none"}, "gym/Ant-v4", "--env-steps 6000000"),
        (
            "ce",
            {"learner": "dqn", "drive": "collab"},
            "atari/asterix",
            "--config.learner dqn, --env-option reward_clip=1, --env-steps 5000000",
        ),
    ],
)
def test_a_preset_is_told_by_what_it_changes(method, kinds, task, told, capsys) -> None:
    training._tell_preset(recipes.recipe(method), kinds, task)
    wanted = f"preset for {task}: {told}; given options override it"
    assert " ".join(capsys.readouterr().err.split()) == wanted


@pytest.mark.parametrize("name", ["cdrl", "align"])
def test_games_of_cdrl_have_the_frames_of_its_paper_unless_others_are_given(name: str) -> None:
    def chosen(*argv: str) -> tuple[str, ...]:
        return understand(name, ["--env", "atari/bowling", *argv]).arguments.common.env_option

    assert chosen() == ("preset=universe",)
    assert chosen("--env-option", "noops=3") == ("preset=universe", "noops=3")
    assert chosen("--env-option", "preset=dqn") == ("preset=dqn",)
    assert understand(name, ["--env", "gymnax/CartPole-v1"]).arguments.common.env_option == ()


def test_a_preset_reaches_further_tasks_and_is_told(capsys) -> None:
    given = ("atari/pong noops=2", "atari/asterix preset=dqn", "gymnax/CartPole-v1")
    further = [word for text in given for word in ("--teacher-env", text)]
    program = understand("cdrl", ["--env", "gymnax/CartPole-v1", *further])
    texts = ["atari/pong preset=universe noops=2", *given[1:]]
    assert program.tasks == {"teacher-env": texts}
    training._tell_further_presets(program.recipe, program.tasks)
    told = "preset for atari/pong: --teacher-env 'atari/pong preset=universe'; given options override it"
    assert " ".join(capsys.readouterr().err.split()) == told


def test_a_further_task_that_is_the_own_one_needs_the_same_options() -> None:
    argv = ["--env", "atari/pong", "--teacher-env", "atari/pong"]
    assert understand("cdrl", argv).tasks == {"teacher-env": ["atari/pong preset=universe"]}
    assert understand("cdrl", [*argv, "--env-option", "preset=universe"])
    with pytest.raises(Refused, match="--teacher-env atari/pong: --env-option applies only to --env"):
        understand("cdrl", [*argv, "--env-option", "preset=dqn"])


@pytest.mark.parametrize(
    ("argv", "budget"),
    [
        (["pderl", "--env", "gymnax/Pendulum-v1"], 1_000_000),
        (["pderl", "--env", "brax/hopper"], pderl.preset("brax/hopper").env_steps),
        (["pderl", "--env", "brax/hopper", "--env-steps", "5e5"], 500_000),
        (["pbt", "--env", "gymnax/CartPole-v1", "--config.population", "32"], 50 * 10_000 * 32),
        (["pbt", "--env", "gymnax/CartPole-v1", "--config.population=32", "--env-steps=8000000"], 8_000_000),
        (["cdrl", "--env", "gymnax/CartPole-v1"], 20_000_000),
        (["diayn", "--env", "gymnax/Pendulum-v1", "--config.pretraining", "500"], 1_000_500),
        (["es", "--env", "gymnax/CartPole-v1", "--config.population", "4"], 1_200_000),
    ],
)
def test_the_budget_is_that_of_the_preset_or_the_method_unless_one_is_given(
    argv: list[str], budget: int
) -> None:
    assert understand(argv[0], argv[1:]).arguments.common.options.env_steps == budget


def test_each_task_of_a_command_has_its_own_budget() -> None:
    argv = ["--env", "brax/hopper", "gymnax/Pendulum-v1"]
    entries = grid.programs(argv, lambda own: understand("pderl", list(own)).arguments.common)
    assert [grid.budget(entry.argv) for entry in entries] == [
        pderl.preset("brax/hopper").env_steps,
        1_000_000,
    ]


def test_an_agent_brings_its_own_options() -> None:
    argv = ["--env=probe/context", "--config.agent=td3", "--config.agent.hidden", "64", "32", "--env_steps=9"]
    program = understand("independent", [*argv, "--hyper.target_noise", "0.3"])
    arguments = program.arguments
    assert program.kinds == {"agent": "td3", "drive": "none"}
    assert type(arguments.config) is independent.Config
    assert arguments.config.agent.hidden == (64, 32)
    assert arguments.hyper.target_noise == 0.3
    assert arguments.common.options == Options(env_steps=9)


def test_members_of_a_team_are_chosen_or_left_out() -> None:
    argv = ["--env=probe/context", "--env-steps=9", "--config.on-policy", "a2c", "--config.evolution=none"]
    argv += ["--config.off_policy", "td3", "--config.off-policy.hidden", "8"]
    argv += ["--hyper.off-policy.target-noise", "0.3", "--config.phase", "30"]
    program = understand("cspc", argv)
    arguments = program.arguments
    assert program.kinds == {"off_policy": "td3", "on_policy": "a2c", "evolution": "none", "drive": "none"}
    assert arguments.config.off_policy.hidden == (8,)
    assert arguments.config.on_policy.squash
    assert arguments.config.on_policy.hidden == (400, 300)
    assert arguments.config.evolution is None
    assert arguments.config.phase == 30
    assert type(arguments.hyper) is cspc.Hyper
    assert arguments.hyper.off_policy.target_noise == 0.3
    assert arguments.hyper.cem is None
    unchanged = understand("cspc", ["--env=probe/context"]).arguments
    assert (unchanged.config, unchanged.hyper) == (cspc.Config(), cspc.default_hyper(cspc.Config()))
    with pytest.raises(Refused, match="unknown option"):
        understand("cspc", [*argv, "--config.evolution.score", "mean"])


def test_a_configuration_survives_json() -> None:
    for module, agents in ((pderl, {}), (independent, {"agent": "td3"})):
        config, hyper = defaults(module.METHOD, agents, "brax/hopper")
        for default in (config, hyper):
            write_json(Path("config.json"), asdict(default))
            assert parse.rebuild(default, json.loads(Path("config.json").read_text())) == default
    with pytest.raises(Refused, match="'colour'"):
        parse.rebuild(pderl.Config(), {"colour": 1})
    assert parse.rebuild(a2c.Config(), {"hidden": [32, 16]}) == a2c.Config(hidden=(32, 16))


def test_a_number_may_be_one_for_each_agent() -> None:
    discounts = [0.9, 0.97, 0.99, 0.995]
    argv = ["--env", "probe/endless", "--env-steps", "400", "--hyper.learner.discount", "0.9,.97,0.99,0.995"]
    hyper = understand("ce", [*argv, "--hyper.drive.weight", "0.1"]).arguments.hyper
    np.testing.assert_array_equal(hyper.learner.discount, np.float32(discounts))
    assert (hyper.learner.polyak, hyper.drive.weight) == (0.005, 0.1)
    saved = json.loads(json.dumps(plain(asdict(hyper))))
    default = ce.default_hyper(ce.Config())
    again = parse.rebuild(default, saved)
    np.testing.assert_array_equal(again.learner.discount, np.float32(discounts))


def test_environment_options_are_literals_or_strings() -> None:
    pairs = ["backend=spring", "length=200", "scale=0.5", "healthy=True", "a=b=c"]
    expected = {"backend": "spring", "length": 200, "scale": 0.5, "healthy": True, "a": "b=c"}
    assert parse.key_values(pairs) == expected


def test_importing_the_package_is_light() -> None:
    heavy = ["brax", "mujoco", "gymnax", "orbax", "matplotlib", "tensorboardX", "jax"]
    code = f"import popjax, sys; print([name for name in {heavy} if name in sys.modules], popjax.train)"
    root = Path(__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.startswith("[] <function train")


def test_a_run_of_an_earlier_version_is_refused_with_its_commit():
    with pytest.raises(ValueError, match="earlier popjax; read it with commit abc"):
        building.rebuilt({"method": "pderl", "git_commit": "abc"})


def test_a_configuration_that_is_refused_today_names_the_commit_of_its_run():
    saved = {
        "method": "independent",
        "agents": {"agent": "sac"},
        "config": {"population": 0},
        "hyper": {},
        "git_commit": "abc",
    }
    with pytest.raises(Refused, match="population must be at least 1, got 0; the run was made at commit abc"):
        building.rebuilt(saved)


def test_numbers_and_flags_as_people_type_them(tmp_path: Path):
    argv = [*TINY[:3], "--env-steps", "2.4e2", "--eval-every", "1_20", "--config.capacity=1e2"]
    assert cli.run([*argv, "--config.uneven", "True", "--run-dir", "a"]) == 0
    assert cli.run([*argv, "--config.no-uneven=true", "--resume", "false", "--run-dir", "b"]) == 0
    saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [run["config"] for run in saved] == [
        {"capacity": 100, "uneven": True},
        {"capacity": 100, "uneven": False},
    ]
    assert saved[0]["options"]["env_steps"] == 240


@pytest.mark.parametrize(
    ("words", "set_"),
    [
        (["--deterministic"], True),
        (["--deterministic=True"], True),
        (["--deterministic", "False"], False),
        (["--deterministic=false"], False),
        ([], False),
    ],
)
def test_the_flags_of_a_deterministic_run_are_set_however_it_is_asked_for(
    words: list[str], set_: bool, monkeypatch: pytest.MonkeyPatch
):
    asked: list[bool] = []
    monkeypatch.setattr(cli.jax_setup, "compute_deterministically", lambda: asked.append(True))
    assert cli.run([*TINY, *words, "--run-dir", "a"]) == 0
    assert asked == [True] * set_


@pytest.mark.parametrize("words", [["--resume", "True"], ["--resume=true"], ["--resume"], []])
def test_the_command_that_continues_a_run_asks_for_it_once(
    words: list[str], capsys: pytest.CaptureFixture[str]
):
    def interrupt() -> None:
        raise Interrupted("stopped", 2)

    assert cli._guarded(interrupt, ["tiny", *words, "--seeds", "2"]) == 130
    assert capsys.readouterr().err.endswith(" tiny --seeds 2 --resume\n")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("s3://bucket/run", "s3://bucket/run is a URL"),
        ("gs://bucket/run", "is a URL"),
        ("file:///run", "is a URL"),
        ("", "a path is empty"),
    ],
)
def test_a_run_directory_is_a_local_path(
    named: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert said in refused([*TINY, f"--run-dir={named}"], capsys)
    env = make("probe/context")
    with pytest.raises(Refused, match=said):
        train(tiny.build(env), env, env_steps=24, run_dir=named, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_run_directory_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.run([*TINY, "--run-dir=~/run[1]"]) == 0
    assert cli.evaluate(["~/run[1]", "--episodes", "2"]) == 0
    assert (tmp_path / "home/run[1]/summary.json").exists()


def test_remarks_are_on_the_values_of_a_sweep() -> None:
    argv = ["--config.agent", "dqn", "--env", "probe/context-discrete", "--env-steps", "250000"]
    program = understand("independent", [*argv, "--sweep", "hyper.exploration_steps=1e5,5e5"])
    (told,) = training._remarks(program, make("probe/context-discrete"), {})
    assert told.startswith("exploration falls over 500,000 environment steps")
    many = ",".join(str(300_000 + place) for place in range(8))
    program = understand("independent", [*argv, "--sweep", f"hyper.exploration_steps={many}"])
    assert training._remarks(program, make("probe/context-discrete"), {})[5:] == [
        "and 3 remarks on other values of the sweep"
    ]
