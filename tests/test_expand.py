"""Options from a file, values drawn at random, seeds of one's choice."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popjax.cli import expand, parse
from popjax.cli.program import understand
from popjax.envs import make
from popjax.host.errors import Refused
from popjax.host.runs.options import Options, validate
from popjax.host.scaling import sweep
from popjax.host.training import train
from tests.host import tiny

CONTENT: dict[str, Any] = {
    "env": "probe/context",
    "env_steps": 1000,
    "seeds": [3, 7],
    "resume": False,
    "config": {"population": 2, "shared_replay": True, "agent": {"hidden": [8, 8], "dueling": False}},
    "hyper": {"actor_lr": 0.001},
    "env-option": {"length": 5},
    "sweep": {"hyper.polyak": [0.1, 0.2]},
}
WORDS = [
    "--env",
    "probe/context",
    "--env-steps",
    "1000",
    "--seeds",
    "3",
    "7",
    "--config.population",
    "2",
    "--config.shared-replay",
    "--config.agent.hidden",
    "8",
    "8",
    "--config.agent.no-dueling",
    "--hyper.actor-lr",
    "0.001",
    "--env-option",
    "length=5",
    "--sweep",
    "hyper.polyak=0.1,0.2",
]
TOML = """
env = "probe/context"
env_steps = 1000
seeds = [3, 7]
resume = false
[config]
population = 2
shared_replay = true
agent.hidden = [8, 8]
agent.dueling = false
[hyper]
actor_lr = 1e-3
[env-option]
length = 5
[sweep]
"hyper.polyak" = [0.1, 0.2]
"""


@pytest.mark.parametrize("kind", ["toml", "json", "yaml"])
def test_a_file_is_as_if_typed(tmp_path: Path, kind: str) -> None:
    import yaml

    texts = {"toml": TOML, "json": json.dumps(CONTENT), "yaml": yaml.safe_dump(CONTENT, sort_keys=False)}
    file = tmp_path / f"options.{kind}"
    file.write_text(texts[kind])
    assert expand.expanded(["--options", str(file)]) == WORDS


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text(json.dumps(CONTENT))
    typed = [
        "--config.no-shared-replay",
        "--env_steps=5",
        "--config.agent.hidden",
        "4",
        "--env-option",
        "a=1",
    ]
    words = expand.expanded([*typed, f"--options={file}"])
    assert [word for word in words if "shared" in word] == ["--config.no-shared-replay"]
    assert [word for word in words if "steps" in word] == ["--env_steps=5"]
    assert words[words.index("--config.agent.hidden") + 1 :][:1] == ["4"]
    assert [word for word in words if word in ("length=5", "a=1")] == ["length=5", "a=1"]


SWEEPING = """
hyper.rate = 0.5
[sweep]
hyper.poison-at = [1, 2]
config.agent.width = [8, 16]
"hyper.a,hyper.b" = ["1:2", "3:4"]
"""
SWEPT = ["hyper.poison-at=1,2", "config.agent.width=8,16", "hyper.a,hyper.b=1:2,3:4"]


@pytest.mark.parametrize("kind", ["toml", "json", "yaml"])
def test_names_in_a_sweep_may_be_tables(tmp_path: Path, kind: str) -> None:
    import yaml

    content = tomllib.loads(SWEEPING)
    texts = {"toml": SWEEPING, "json": json.dumps(content), "yaml": yaml.safe_dump(content, sort_keys=False)}
    file = tmp_path / f"options.{kind}"
    file.write_text(texts[kind])
    words = expand.expanded(["--options", str(file)])
    assert words == ["--hyper.rate", "0.5", *(word for text in SWEPT for word in ("--sweep", text))]


@pytest.mark.parametrize(
    ("typed", "left"),
    [
        (["--sweep", "hyper.rate=1,2"], SWEPT),
        (["--sweep", "hyper.poison_at=3,4"], SWEPT[1:]),
        (["--hyper.poison_at=3"], SWEPT[1:]),
        (["--config.agent.width", "8", "--sweep", "hyper.b,hyper.poison-at,hyper.a=1:2:3"], []),
        (["--hyper.a", "1", "--hyper.b", "2"], SWEPT[:2]),
    ],
)
def test_the_command_line_comes_before_values_and_sweeps_in_the_file(
    tmp_path: Path, typed: list[str], left: list[str]
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(SWEEPING)
    words = expand.expanded([*typed, "--options", str(file)])
    own = parse.peel_all(typed, "--sweep")[0]
    assert parse.peel_all(words, "--sweep")[0] == [*left, *own]
    assert ("--hyper.rate" in words) == ("hyper.rate=1,2" not in own)


def test_samples_in_a_file_are_those_of_its_distributions(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('samples = 3\n[sweep]\n"hyper.rate" = "uniform(0,1)"\n')
    assert expand.expanded(["--options", str(file), "--hyper.rate", "1"]) == ["--hyper.rate", "1"]
    (text,) = parse.peel_all(expand.expanded(["--options", str(file)]), "--sweep")[0]
    assert text.count(",") == 2
    (text,) = parse.peel_all(
        expand.expanded(["--options", str(file), "--sweep", "hyper.rate=uniform(2,3)"]), "--sweep"
    )[0]
    assert text.count(",") == 2


@pytest.mark.parametrize(
    ("text", "typed", "said"),
    [
        ("hyper.rate = 1\n[sweep]\nhyper.rate = [1, 2]", [], "--hyper.rate is both given a value and swept"),
        (SWEEPING, ["--hyper.a", "1"], "--hyper.a is both given a value and swept"),
        (SWEEPING, ["--sweep", "hyper.a=1,2"], "--sweep hyper.a is given twice"),
        ("sweep = true", [], "--sweep needs a value"),
    ],
)
def test_a_file_cannot_both_set_and_sweep_an_option(
    tmp_path: Path, text: str, typed: list[str], said: str
) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text)
    with pytest.raises(Refused, match=said):
        expand.expanded(["--options", str(file), *typed])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", None, "No such file"),
        ("a.toml", "x = ", "cannot be read"),
        ("a.ini", "", "write a .toml, .json or .yaml file"),
        ("a.json", "[1]", "must be a table of options by name"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(Refused, match=said):
        expand.expanded(["--options", str(tmp_path / name)])


def words_of(tmp_path: Path, kind: str, text: str) -> list[str]:
    file = tmp_path / f"options.{kind}"
    file.write_text(text, encoding="utf-8")
    return expand.expanded(["--options", str(file)])


def test_numbers_of_yaml_are_decimal(tmp_path: Path) -> None:
    text = """
seed: 010
members: 4:8
env_steps: 1_000
hyper: {rate: 0.1, poison_at: .inf}
launcher_option: {slurm_time: 4:00:00, slurm_mem: 1:30.5, begin: 2030-01-02T03:04:05Z}
"""
    assert words_of(tmp_path, "yaml", text) == [
        *("--seed", "010", "--members", "4:8", "--env-steps", "1000"),
        *("--hyper.rate", "0.1", "--hyper.poison-at", "inf"),
        *("--launcher-option", "slurm_time=4:00:00", "--launcher-option", "slurm_mem=1:30.5"),
        *("--launcher-option", "begin=2030-01-02T03:04:05Z"),
    ]


@pytest.mark.parametrize(
    ("kind", "text", "options"),
    [
        ("toml", "sizes = [5]", {"sizes": [5]}),
        ("toml", "sizes = [5, 6.5]", {"sizes": [5, 6.5]}),
        ("toml", "sizes = []", {"sizes": []}),
        ("toml", "sizes = [[1], [true]]", {"sizes": [[1], [True]]}),
        ("toml", """names = ["a", "it's", "b,c"]""", {"names": ["a", "it's", "b,c"]}),
        ("toml", 'name = "a"', {"name": "a"}),
        ("yaml", " rates: [1e-3, x]", {"rates": [1e-3, "x"]}),
        ("json", '"sizes": [5]', {"sizes": [5]}),
    ],
)
@pytest.mark.parametrize("table", ["env_option", "launcher_option"])
def test_a_list_stays_a_list(tmp_path: Path, kind: str, text: str, options: Any, table: str) -> None:
    whole = {"toml": f"[{table}]\n{text}", "yaml": f"{table}:\n{text}", "json": f'{{"{table}": {{{text}}}}}'}
    option = f"--{table.replace('_', '-')}"
    given, _ = parse.peel_all(words_of(tmp_path, kind, whole[kind]), option)
    assert parse.key_values(given, option) == options


@pytest.mark.parametrize("kind", ["toml", "json", "yaml"])
def test_a_file_may_begin_with_a_mark(tmp_path: Path, kind: str) -> None:
    texts = {"toml": 'wandb = "läuft"', "json": '{"wandb": "läuft"}', "yaml": "wandb: läuft"}
    assert words_of(tmp_path, kind, f"\ufeff{texts[kind]}") == ["--wandb", "läuft"]


def test_an_empty_name_of_a_file_is_refused() -> None:
    with pytest.raises(Refused, match="a path is empty"):
        expand.expanded(["--options="])


def points(*argv: str) -> list[Any]:
    texts = parse.peel_all(expand.drawn(list(argv)), "--sweep")[0]
    return [dict(member.numbers) for member in sweep.grid(0, 1, parse.swept_numbers(texts))]


def test_random_points_are_distinct_within_their_bounds_and_begin_those_of_more_samples() -> None:
    """To five digits, 50 points of this interval were not distinct; more points of two names were others."""
    argv = ["--sweep", "hyper.a=uniform(0.99,0.999)", "--sweep", "hyper.b=uniform(0,1)", "--samples"]
    few, many = points(*argv, "50"), points(*argv, "60")
    assert many[:50] == few
    values = [point["hyper.a"] for point in many]
    assert len(set(values)) == 60
    assert min(values) >= 0.99
    assert max(values) <= 0.999


def test_random_search() -> None:
    argv = [
        "--sweep",
        "hyper.a=loguniform(1e-5, 1e-2)",
        "--sweep",
        "hyper.b=uniform(-1,2)",
        "--samples",
        "400",
    ]
    found = points(*argv)
    a, b = (np.array([point[name] for point in found]) for name in ("hyper.a", "hyper.b"))
    assert len(found) == 400
    assert ((a >= 1e-5) & (a <= 1e-2)).all()
    assert ((b >= -1) & (b <= 2)).all()
    assert abs(np.mean(a < 10**-3.5) - 0.5) < 0.1  # half below the middle in powers
    assert abs(np.corrcoef(np.log(a), b)[0, 1]) < 0.15
    assert points(*argv) == found != points(*argv, "--seed", "1")
    assert len(points(*argv, "--sweep", "hyper.c=1,2")) == 800
    assert len(points("--sweep", "hyper.a=uniform(0,1)")) == 10


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sweep", "hyper.a=loguniform(0,1)", "--samples", "2"], "above 0"),
        (["--sweep", "hyper.a=uniform(2,1)", "--samples", "2"], "the lower bound must come first"),
        (["--sweep", "hyper.a=normal(0,1)", "--samples", "2"], "needs loguniform"),
        (
            ["--sweep", "hyper.a=uniform(0,1)", "--samples", "0"],
            "--samples must be a whole number of at least 1, got '0'",
        ),
        (["--sweep", "hyper.a=1,2", "--samples", "2"], "--samples needs --sweep"),
    ],
)
def test_senseless_draws_are_refused(argv: list[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        expand.drawn(argv)


def test_numbers_that_vary_together(tmp_path: Path) -> None:
    env = make("probe/context")
    swept = {"hyper.rate,hyper.poison_at": [(0.1, -1.0), (0.2, -2.0)]}
    options: dict[str, Any] = {
        "env_steps": 24,
        "eval_every": 24,
        "quiet": True,
        "swept": swept,
        "seeds": [9, 4],
    }
    result = train(tiny.build(env), env, run_dir=tmp_path / "run", **options)
    assert [member.seed for member in result.members] == [9, 4, 9, 4]
    assert result.members[2].numbers == {"hyper.rate": 0.2, "hyper.poison_at": -2.0}
    alone = train(tiny.build(env), env, env_steps=24, eval_every=24, seed=4, quiet=True)
    last = train(tiny.build(env), env, env_steps=24, eval_every=24, seeds=[4], quiet=True)
    assert last.summary["state_sha256"] == alone.summary["state_sha256"]
    assert result.summary["members"][1]["state_sha256"] == alone.summary["state_sha256"]
    again = train(tiny.build(env), env, run_dir=tmp_path / "run", resume=True, **options)
    assert again.summary == result.summary
    with pytest.raises(Refused, match="needs 2 numbers in each value"):
        train(tiny.build(env), env, **options | {"swept": {"hyper.rate,hyper.poison_at": [(1.0,)]}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": (3, 3)}, "list different seeds"),
        ({"seeds": ()}, "list different seeds"),
        ({"seeds": (3, -1)}, "list different seeds"),
        ({"seeds": (3, 4), "seed": 5}, "leave out --seed 5"),
        ({"seeds": 0}, "--seeds must be at least 1"),
    ],
)
def test_senseless_seeds_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        validate(Options(env_steps=100, **options), tiny.build(make("probe/context")))


@pytest.mark.parametrize(("typed", "meant"), [(["3"], 3), (["3", "7", "11"], (3, 7, 11)), (["1e1"], 10)])
def test_one_number_is_a_count_and_several_are_seeds(typed: list[str], meant: Any) -> None:
    program = understand("independent", ["--env", "probe/endless", "--env-steps", "10", "--seeds", *typed])
    assert program.arguments.common.options.seeds == meant
