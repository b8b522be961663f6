"""Tables of the papers by one command: its commands are valid, and repeating one goes on."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import (
    alignment,
    each_agent,
    gaits,
    maze,
    over_training,
    record,
    registry,
    reproduce,
    reproduced,
    table_rows,
    trained,
    visitation,
)
from popjax import cli, testing
from popjax.cli import grid
from popjax.cli.program import understand
from popjax.envs import gym
from popjax.host.recipes import METHODS
from popjax.host.report import measures
from popjax.host.training import evaluation
from popjax.methods import pderl

NAMES = list(registry.names())
TOY = """
paper = "A paper"
seeds = 2
options = "--eval-every 20000 --log-every 20000 --eval-episodes 2"
[tasks]
context = { env = "probe/context", env_steps = 120_000_000 }
[rows]
teacher = { method = "tests.host.tiny", options = "--hyper.rate 0.2" }
A = { method = "tests.host.tiny", options = "--hyper.rate 0.1 --eval-every 40000" }
[tables.toy-table1]
where = "Table 1"
rows = ["A", "teacher"]
tasks = ["context"]
measures = { "" = "last", fitness = "metric:fitness/max" }
statistics = ["mean", "std"]
[tables.toy-table1.paper.context]
A = { "" = [1.0, 0.5] }
"""


def understood(cell: registry.Cell) -> Any:
    """Return what the command line makes of the arguments of a cell."""
    method, *rest = cell.arguments(Path("runs"))
    _, rest = grid.control(rest)
    return understand(method, rest).arguments


def test_every_command_is_one_that_the_command_line_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are the same on all tasks but for options of their own and the environment."""
    seen = set()
    for name in NAMES:
        for cell in registry.cells(name):
            own, env = cell.paper.rows[cell.row].tasks.get(cell.task), cell.paper.tasks[cell.task].env
            case = cell.paper.name, cell.row, own, env.startswith("pixels/")  # which have presets
            if case in seen:
                continue
            seen.add(case)
            if "atari" in cell.paper.tasks[cell.task].env and importlib.util.find_spec("ale_py") is None:
                continue
            common = understood(cell).common
            assert common.options.env_steps == cell.full_steps
            assert common.options.seeds == (cell.paper.rows[cell.row].seeds or cell.paper.seeds)


def test_numbers_that_follow_from_the_budget_follow_a_share_of_it() -> None:
    """A third of 2,000,000 steps is half for skills; a third of 20,000,000 has a twentieth with a teacher."""
    rows = [("ce-table1", "DIAYN", "pendulum-swingup"), ("cdrl-figure3", "KD and GAE", "Pong")]
    diayn, distilled = (
        understood(registry.cell_of(registry.find(name)[0], row, task, 1, 1 / 3)) for name, row, task in rows
    )
    assert diayn.config.pretraining == 333_334
    assert diayn.common.options.env_steps == 666_667
    whole = registry.cell_of(registry.find("ce-table1")[0], "A2C", "pendulum-swingup", 1, 1.0)
    assert understood(whole).hyper.anneal_updates == 10_000_000 / (4 * 5)  # lanes, steps of a rollout
    assert float(distilled.hyper.distil_until) * float(distilled.hyper.budget) == pytest.approx(
        1e6 / 3, rel=1e-3
    )


def test_every_measure_is_of_something_that_its_rows_record() -> None:
    kinds = {"", *(suffix.removeprefix("/") for suffix in measures.by_suffix(np.zeros(4)))}
    for name in NAMES:
        paper, table = registry.find(name)
        for measure in table.measures.values():
            metric, _, kind = measures.measure(measure).name.partition(":")[2].partition("/")
            assert not metric or kind in kinds
            for row in table.rows if metric else ():
                method = importlib.import_module(METHODS[paper.rows[row].method])
                recorded = getattr(method, "Metrics", pderl.Metrics)  # erl is a configuration of pderl
                assert metric in recorded.__dataclass_fields__


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_lists_what_would_be_trained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = reproduce.Arguments(name, fraction=0.5, dry_run=True, runs=tmp_path / "runs", out=tmp_path)
    assert reproduce.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line) for line in lines if "run.py" in line]
    _, table = registry.find(name)
    assert len(commands) >= len(table.rows) * len(table.tasks)
    begun: list[str] = []
    for words in commands:
        needed = [words[i + 1].rpartition(":")[0] or words[i + 1] for i, w in enumerate(words) if w in USES]
        assert set(needed) <= set(begun)  # what a run needs comes before it
        begun.append(words[words.index("--run-dir") + 1])
        if any(place.endswith("-at-0.5") for place in needed):  # other fractions need other runs
            assert begun[-1].endswith("-at-0.5")
    assert len(set(begun)) == len(begun)
    assert not list(tmp_path.iterdir())


def test_every_study_is_one_that_its_script_takes(tmp_path: Path) -> None:
    found = 0
    for name in NAMES:
        cells = registry.cells(name)
        for study in reproduced.studies(name, cells, tmp_path / "runs", tmp_path):
            script, *options = study.command
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            tyro.cli(module.Arguments, args=options)
            found += 1
    assert found


USES = ("--prior", "--teacher", "--expert", "--alignment")


def test_no_script_hides_a_module_of_pythons_own() -> None:
    """A script's folder comes first where it looks for modules."""
    root = Path(registry.__file__).parents[1]
    names = {path.stem for folder in ("benchmarks", "scripts") for path in (root / folder).glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


def test_numbers_of_the_papers_belong_to_a_statistic() -> None:
    for paper in registry.papers().values():
        for table in paper.tables.values():
            for said in table.paper.values():
                for numbers in said.values():
                    columns = numbers if isinstance(numbers, dict) else {"": numbers}
                    assert columns.keys() <= table.measures.keys()
                    assert {len(found) for found in columns.values()} == {len(table.statistics)}


def test_a_reader_who_closes_the_pipe_sees_no_traceback() -> None:
    ended = subprocess.run(
        f"{shlex.quote(sys.executable)} benchmarks/reproduce.py ce-table7 --dry-run | head -1",
        shell=True,
        cwd=Path(reproduce.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.startswith("# CE on pendulum-swingup")
    assert ended.stderr == ""


def test_names_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (reproduce.Arguments("pderl-table9"), "there is no 'pderl-table9'"),
        (reproduce.Arguments("pderl-table1", tasks=("Reacher",)), "has no task 'Reacher'; it has 'Swimmer'"),
        (reproduce.Arguments("pderl-table1", rows=("SAC",)), "has no row 'SAC'; it has 'PDERL'"),
    ]
    for arguments, told in cases:
        assert reproduce.main(arguments) == 2
        assert told in capsys.readouterr().err


WHERE = 'where = "Table 1"'


def write(toy: Path, paper: str) -> None:
    """Replace the registry's only paper."""
    (toy / "papers/toy.toml").write_text(paper)
    registry.papers.cache_clear()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "toy.toml").write_text(TOY)
    monkeypatch.setattr(registry, "PAPERS", tmp_path / "papers")
    registry.papers.cache_clear()
    yield tmp_path
    registry.papers.cache_clear()


def test_interrupted_and_repeated_it_has_the_result_of_an_undisturbed_one(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever ends a run: its minutes are over, or another table trained a part of it before."""
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))

    def reproduced_in(directory: str) -> dict:
        arguments = reproduce.Arguments(
            "toy-table1", fraction=0.001, runs=toy / directory, out=toy / f"{directory}-out"
        )
        assert reproduce.main(arguments) == 0
        return json.loads((toy / f"{directory}-out" / "toy-table1.json").read_text())

    whole = reproduced_in("whole")
    begun = reproduce.Arguments(
        "toy-table1", fraction=0.001, minutes=1e-4, runs=toy / "parts", out=toy / "parts-out"
    )
    assert reproduce.main(begun) == 1  # there is nothing to show yet
    assert not reproduced.finished(registry.cells("toy-table1", fraction=0.001)[0], toy / "parts")
    parts = reproduced_in("parts")
    for key in ("row", "ours", "env_steps"):
        assert [row[key] for row in parts["rows"]] == [row[key] for row in whole["rows"]]
    scores = [[row["runs"][0]["scores"] for row in found["rows"]] for found in (parts, whole)]
    assert scores[0] == scores[1]
    first = whole["rows"][0]
    (run,) = first["runs"]
    assert (first["row"], first["column"], first["seeds"]) == ("A", "", 2)
    assert first["paper"] == {"mean": 1.0, "std": 0.5}
    assert first["ours"]["mean"] == pytest.approx(np.mean(run["scores"]), abs=1e-3)
    assert first["fraction_of_budget"] == pytest.approx(first["env_steps"] / 120_000_000, abs=1e-4)
    assert run["seeds"] == [0, 1]
    assert run["git_commit"]
    assert run["device"]
    assert whole["figures"] == ["toy-table1-context.png", "toy-table1-context-time.png"]
    digests = [
        json.loads((toy / place / "toy/context/A/summary.json").read_text())["state_sha256"]
        for place in ("whole", "parts")
    ]
    assert digests[0] == digests[1]
    capsys.readouterr()
    reproduced_in("parts")  # trains nothing
    assert "resuming" not in capsys.readouterr().err
    page = reproduced.page(toy / "parts-out")
    assert "are its last evaluation alone; fitness: the last value of its metric fitness/max." in page
    assert "| context | A |" in page
    assert "1 ± 0.5" in page


def test_a_report_keeps_what_it_does_not_see(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other runs stay, with their remarks and curves, and so does a row of a longer run."""
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))
    file = toy / "out/toy-table1.json"

    def reproduced_with(row: str, fraction: float, runs: str) -> dict:
        asked = reproduce.Arguments("toy-table1", (), (row,), fraction, runs=toy / runs, out=toy / "out")
        assert reproduce.main(asked) == 0
        return json.loads(file.read_text())

    first = reproduced_with("teacher", 0.001, "long")
    first["rows"][0]["runs"][0]["remark"] = "Beside other work."
    file.write_text(json.dumps(first))
    drawn = (toy / "out/toy-table1-context.png").read_bytes()
    both = reproduced_with("A", 0.001, "long")
    assert [row["row"] for row in both["rows"]] == ["A", "A", "teacher", "teacher"]
    assert both["rows"][2:] == first["rows"]
    assert both["curves"]["context"]["teacher"] == first["curves"]["context"]["teacher"]
    assert [curve["seed"] for curve in both["curves"]["context"]["A"]] == [0, 1]
    assert both["figures"] == first["figures"]
    assert (toy / "out/toy-table1-context.png").read_bytes() != drawn  # with a line for each
    assert reproduced_with("A", 0.0005, "short")["rows"] == both["rows"]
    assert reproduced_with("teacher", 0.001, "long")["rows"] == both["rows"]  # the remark, too
    page = reproduced.page(toy / "out")
    assert "teacher on context: Beside other work." in page
    assert "Not run yet:" not in page


def test_seeds_that_were_trained_apart_are_pooled(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))
    file = toy / "out/toy-table1.json"

    def reproduced_with(out: str, seed: int, seeds: int, fraction: float = 0.001) -> dict:
        asked = reproduce.Arguments(
            "toy-table1", (), ("A",), fraction, seeds, seed, runs=toy / f"{out}-runs", out=toy / out
        )
        assert reproduce.main(asked) == 0
        return json.loads((toy / out / "toy-table1.json").read_text())

    first = reproduced_with("out", seed=0, seeds=1)
    first["rows"][0]["runs"][0]["remark"] = "Beside other work."
    file.write_text(json.dumps(first))
    both = reproduced_with("out", seed=1, seeds=1)
    whole = reproduced_with("whole", seed=0, seeds=2)
    for row, one in zip(both["rows"], whole["rows"], strict=True):
        assert [run["seeds"] for run in row["runs"]] == [[0], [1]]
        assert [score for run in row["runs"] for score in run["scores"]] == one["runs"][0]["scores"]
        assert row["ours"] == one["ours"]
        assert row["seeds"] == 2
    same = [[dict(curve, seconds=None) for curve in each["curves"]["context"]["A"]] for each in (both, whole)]
    assert same[0] == same[1]
    assert "A (seed 0) on context: Beside other work." in reproduced.page(toy / "out")
    assert reproduced_with("out", seed=1, seeds=1)["rows"] == both["rows"]  # nothing counts twice
    longer = reproduced_with("out", seed=1, seeds=1, fraction=0.002)  # without seed 0, the row stays
    assert longer["rows"] == both["rows"]
    assert "A on context, which has seed 0 of other settings or steps" in capsys.readouterr().out


def known_run(seeds: list[int], scores: list[float], command: str = "", **known: object) -> dict:
    """Return what is known of a run."""
    command = f"python scripts/run.py sac --env gym/Hopper-v4 --seed {seeds[0]} {command} --run-dir x"
    return {
        "seeds": seeds,
        "scores": scores,
        "wall_seconds": 9.0,
        "git_commit": "c",
        "command": command,
    } | known


def test_only_seeds_with_the_same_settings_are_pooled() -> None:
    new, old = known_run([1, 2], [10.0, 20.0]), known_run([0, 1], [5.0, 6.0], "--devices 2")
    assert [run["seeds"] for run in table_rows.pool([new], [old])] == [[0], [1, 2]]
    rest, own = table_rows.pool([new], [old])
    assert (rest["scores"], rest["wall_seconds"]) == ([5.0], None)
    assert own == new
    for other in (
        known_run([0], [5.0], "--hyper.discount 0.9"),
        known_run([0], [5.0], built_on="another teacher"),
        known_run([0], [5.0]) | {"command": None},
        known_run([0], [5.0]) | {"command": "python _submit.py folder"},
    ):
        assert table_rows.pool([new], [other]) == [new]
    assert table_rows.pool([new, old], []) == table_rows.pool([new], [old])  # the first has a seed


def test_a_remark_stays_with_a_part_of_its_run() -> None:
    old = known_run([0, 1], [5.0, 6.0], remark="Beside other work.")
    assert table_rows.with_remark(known_run([1], [6.0]), [old])["remark"] == "Beside other work."
    assert "remark" not in table_rows.with_remark(known_run([1], [7.0]), [old])
    assert "remark" not in table_rows.with_remark(known_run([1], [6.0], git_commit="d"), [old])


def test_a_row_does_not_give_way_to_less() -> None:
    def row(env_steps: int, *seeds: int) -> dict:
        return {"env_steps": env_steps, "runs": [known_run([seed], [0.0]) for seed in seeds]}

    assert table_rows.lost(row(100, 0, 1), row(100, 0, 1, 2)) == ""
    assert table_rows.lost(row(100, 0), row(200, 0)) == ""
    assert table_rows.lost(row(200, 0), row(100, 0)) == "longer runs"
    assert table_rows.lost(row(100, 0, 1), row(100, 3, 4)) == "seeds 0, 1 of other settings or steps"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"rows": [{"task": "context", "row": "A"}], "figures": []}',
            "has rows without runs, of an older version",
        ),
        ("[]", "is not a readable file of results"),
        ("{", "is not a readable file of results"),
    ],
)
def test_other_files_in_the_place_of_results_are_refused_before_training(
    toy: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (toy / "toy-table1.json").write_text(content)
    assert reproduce.main(reproduce.Arguments("toy-table1", runs=toy / "runs", out=toy)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"toy-table1.json {said}" in line
    assert not (toy / "runs").exists()


def test_runs_that_others_need_do_not_follow_the_first_seed() -> None:
    """Since all seeds of a student have the same teacher."""
    student, whole = (
        registry.cells("cdrl-standin", ("CartPole",), ("online 1",), 1, seed=seed)[-1] for seed in (2, 0)
    )
    assert student.directory == Path("cdrl/CartPole/online-1-from-seed-2")
    assert student.needs == whole.needs
    assert "--seed 2 --seeds 1" in " ".join(student.arguments(Path("runs")))


def test_a_figure_without_stored_curves_stays(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As results had them that were written before curves were stored."""
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))
    file, picture = toy / "out/toy-table1.json", toy / "out/toy-table1-context.png"

    def reproduced_with(row: str) -> dict:
        asked = reproduce.Arguments("toy-table1", (), (row,), 0.001, 1, runs=toy / "runs", out=toy / "out")
        assert reproduce.main(asked) == 0
        return json.loads(file.read_text())

    old = reproduced_with("teacher")
    del old["curves"]
    file.write_text(json.dumps(old))
    drawn = picture.read_bytes()
    for _ in range(2):
        figures = reproduced_with("A")["figures"]
        assert (toy / "out/toy-table1-context-earlier.png").read_bytes() == drawn
        assert figures[0] == "toy-table1-context-earlier.png"
        assert figures.count("toy-table1-context.png") == 1


def test_a_command_names_no_place_of_a_machine() -> None:
    command = "python /here/scripts/run.py pderl --run-dir /there/runs/pderl/Swimmer/PERL --resume"
    told = "python scripts/run.py pderl --run-dir runs/reproduce/pderl/Swimmer/PERL --resume"
    assert table_rows.portable(command, Path("/there/runs")) == told
    assert table_rows.portable(told, Path("runs/reproduce")) == told
    assert table_rows.portable("python scripts/run.py pderl --run-dir r/x", Path("r")) == (
        "python scripts/run.py pderl --run-dir runs/reproduce/x"
    )


def test_a_page_tells_what_has_not_been_run(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))
    asked = reproduce.Arguments("toy-table1", rows=("A",), seeds=1, fraction=0.001, runs=toy, out=toy / "out")
    assert reproduce.main(asked) == 0
    page = reproduced.page(toy / "out")
    assert "Not run yet: teacher on context." in page
    assert "(1 of 2 seeds)" in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fraction": 0.0}, "--fraction must be above 0, got 0"),
        ({"fraction": -1.0}, "--fraction must be above 0, got -1"),
        ({"seeds": 0}, "--seeds must be above 0, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"minutes": -1.0}, "--minutes must be above 0, got -1"),
        ({"report_only": True, "dry_run": True}, "--report-only trains nothing; leave out --dry-run"),
        ({"devices": "0", "dry_run": True}, "--devices must be all or a number above 0, got '0'"),
        ({"devices": "two", "dry_run": True}, "--devices must be all or a number above 0, got 'two'"),
        ({"launcher_option": ("timeout_min=5",)}, "--launcher-option is for --launcher slurm or ray"),
    ],
)
def test_numbers_without_a_meaning_are_refused(
    given: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(reproduce.Arguments("pderl-table1", **given)) == 2
    assert said in capsys.readouterr().err


def test_a_launcher_that_is_not_here_is_refused_by_the_options_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    elsewhere = reproduce.Arguments("pderl-table1", launcher="slurm", runs=tmp_path, out=tmp_path)
    assert reproduce.main(elsewhere) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --launcher slurm: srun is not found")
    known = {f"--{field.name.replace('_', '-')}" for field in fields(reproduce.Arguments)}
    assert {word for word in told.split() if word.startswith("--")} <= known
    dry = replace(elsewhere, dry_run=True, tasks=("Ant",), rows=("ERL",))
    assert reproduce.main(dry) == 0  # trains nothing
    assert capsys.readouterr().out.endswith("--resume --launcher slurm\n")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert reproduce.main(elsewhere) == 2
    assert "add --launcher-option timeout_min=600" in capsys.readouterr().err
    timed = replace(dry, launcher_option=("timeout_min=600",))
    assert reproduce.main(timed) == 0
    assert capsys.readouterr().out.endswith("--launcher slurm --launcher-option timeout_min=600\n")
    reproduce.check(replace(timed, dry_run=False))


def test_the_command_of_a_run_that_failed_is_shown(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Since it is what its message advises to change; the others are trained."""
    monkeypatch.setattr(reproduce, "execute", lambda argv: 2)
    assert reproduce.main(reproduce.Arguments("toy-table1", runs=toy / "runs", out=toy)) == 1
    told = capsys.readouterr().err
    assert told.count("reproduce: exit code 2 of python scripts/run.py tests.host.tiny --env probe") == 2
    monkeypatch.setattr(reproduce, "execute", lambda argv: 130)
    assert reproduce.main(reproduce.Arguments("toy-table1", runs=toy / "runs", out=toy)) == 130
    assert capsys.readouterr().err.endswith("reproduce: stopped; the same command continues\n")


def test_a_study_is_made_once_and_ends_with_the_minutes(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(toy, TOY.replace(WHERE, f'{WHERE}\nstudy = "study.py {{run}} --out {{out}}"'))
    made = []

    def execute(argv: list[str]) -> int:
        if not argv[0].endswith("study.py"):
            return cli.run(argv[1:])
        made.append(argv[-1])
        if ended:
            return ended
        record.write(Path(argv[-1]), runs=[trained.origin(Path(argv[1]))])
        return 0

    monkeypatch.setattr(reproduce, "execute", execute)
    asked = {"fraction": 0.001, "seeds": 1, "runs": toy / "runs", "out": toy / "out"}
    ended = 130
    assert reproduce.main(reproduce.Arguments("toy-table1", **asked)) == ended
    assert made == [str(toy / "out/toy-table1-context-A.json")]  # the other one is not begun
    assert not (toy / "out/toy-table1.json").exists()
    ended = 0
    assert reproduce.main(reproduce.Arguments("toy-table1", **asked, minutes=1e-9)) == 0
    assert "no time is left for toy-table1-context-A.json" in capsys.readouterr().err
    for _ in range(2):
        assert reproduce.main(reproduce.Arguments("toy-table1", **asked)) == 0
    assert len(made) == 3


def test_a_study_is_made_again_of_a_run_that_went_on_and_of_another_run(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of a shorter one: what there is of the longer run stays."""
    write(toy, TOY.replace(WHERE, f'{WHERE}\nstudy = "study.py {{run}} --out {{out}}"'))
    made = []

    def execute(argv: list[str]) -> int:
        if not argv[0].endswith("study.py"):
            return cli.run(argv[1:])
        made.append(argv[1])
        record.write(Path(argv[-1]), runs=[trained.origin(Path(argv[1]))])
        return 0

    monkeypatch.setattr(reproduce, "execute", execute)

    def reproduced_in(directory: str, fraction: float) -> int:
        where = {"runs": toy / directory, "out": toy / "out", "rows": ("A",), "seeds": 1}
        assert reproduce.main(reproduce.Arguments("toy-table1", fraction=fraction, **where)) == 0
        return len(made)

    assert [reproduced_in("runs", fraction) for fraction in (0.0005, 0.0005, 0.001, 0.001)] == [1, 1, 2, 2]
    assert [reproduced_in("others", fraction) for fraction in (0.001, 0.001)] == [3, 3]
    capsys.readouterr()
    assert reproduced_in("short", 0.0005) == 3
    assert "toy-table1-context-A.json keeps the study of a longer run" in capsys.readouterr().err


def test_a_row_that_is_only_studied_is_trained_and_not_shown(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one seed of the row B, with a checkpoint for every tenth of its budget."""
    study = 'study = "each_agent.py {run} --episodes 2 --out {out}"\nstudied = ["B"]'
    options = "--checkpoint-every 6000 --keep-checkpoints 10"
    row = f'B = {{ method = "tests.host.tiny", options = "{options}", seeds = 1 }}'
    paper = TOY.replace(WHERE, f"{WHERE}\n{study}")
    write(toy, paper.replace("[tables.toy-table1]", f"{row}\n[tables.toy-table1]"))

    def execute(argv: list[str]) -> int:
        if not argv[0].endswith("each_agent.py"):
            return cli.run(argv[1:])
        each_agent.main(tyro.cli(each_agent.Arguments, args=argv[1:]))
        return 0

    monkeypatch.setattr(reproduce, "execute", execute)
    asked = {"fraction": 0.0005, "runs": toy / "runs", "out": toy / "out"}
    assert reproduce.main(reproduce.Arguments("toy-table1", **asked, rows=("B",))) == 0
    found = json.loads((toy / "out/toy-table1-context-B.json").read_text())
    assert [row["env_steps"] // 6_000 for row in found["rows"]] == list(range(1, 11))
    assert np.shape([row["return_by_seed_and_agent"] for row in found["rows"]]) == (10, 1, 3)
    shown = json.loads((toy / "out/toy-table1.json").read_text())
    assert (shown["rows"], shown["figures"]) == ([], ["toy-table1-context-B.png"])
    assert reproduce.main(reproduce.Arguments("toy-table1", **asked)) == 0
    shown = json.loads((toy / "out/toy-table1.json").read_text())
    assert {row["row"] for row in shown["rows"]} == {"A", "teacher"}
    assert len(shown["figures"]) == 3


def test_every_agent_is_played_at_every_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agent 0 is the policy that is evaluated, and all of them play the same episodes."""
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    often = ["--checkpoint-every", "12", "--keep-checkpoints", "3"]
    argv = ["tiny", "--env", "probe/context", "--env-steps", "48", "--seeds", "2", *often]
    assert cli.run([*argv, "--run-dir", str(tmp_path / "run")]) == 0
    out = tmp_path / "found.json"
    each_agent.main(each_agent.Arguments(tmp_path / "run", out, episodes=3))
    found = json.loads(out.read_text())
    (origin,) = found["runs"]
    assert (origin["name"], origin["env_steps"]) == ("run", [48, 48])
    assert [row["env_steps"] for row in found["rows"]] == [24, 36, 48]
    for row in found["rows"]:
        run = trained.load(tmp_path / "run", picked=str(row["env_steps"]))
        weights = np.asarray(run.state.weight)
        for seed in range(2):
            for agent in range(3):
                params = jnp.asarray(weights[seed] + agent)
                returns, _ = evaluation.play(run.env, run.method, params, jax.random.key(0), 3)
                told = row["return_by_seed_and_agent"][seed][agent]
                assert told == pytest.approx(float(returns.mean()), abs=0.01)
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_a_beginning_that_is_trained_apart_tells_the_time_and_memory_of_all(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "execute", lambda argv: cli.run(argv[1:]))
    arguments = reproduce.Arguments(
        "toy-table1", dry_run=True, calibrate=0.001, runs=toy / "runs", out=toy, rows=("A",)
    )
    assert reproduce.main(arguments) == 0
    summary = json.loads((toy / "runs/calibration/toy/context/A/summary.json").read_text())
    hours = (2 * 120_000_000 / summary["steps_per_second"] + summary["compile_seconds"]) / 3600
    told = capsys.readouterr().out
    assert "# A on context: all of 2 x 120,000,000 environment steps left" in told
    assert f"# about {hours:.1f} h in all on cpu" in told
    assert f"{summary['peak_memory_bytes'] / 1e9:.1f} GB" in told
    assert reproduce.main(reproduce.Arguments("toy-table1", calibrate=1.0)) == 2
    assert "--calibrate must be above 0 and below 1, got 1" in capsys.readouterr().err


def test_what_alignment_changes_is_drawn_from_the_metrics_of_a_run(tmp_path: Path) -> None:
    """KL of (1/2, 1/2) from (3/4, 1/4) is ln(2 / sqrt(3)); from itself 0; two of 20 records count."""
    even, uneven = [0.5, 0.5], [0.75, 0.25]
    rows = [
        {"member": 0, "teacher": [0.2, 0.3, 0.5], "expert": even, "aligned": a}
        for a in (*[uneven] * 18, [0.4, 0.6], [0.6, 0.4])
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text("{}")
    alignment.main(alignment.Arguments(tmp_path, tmp_path / "found.json"))
    (found,) = json.loads((tmp_path / "found.json").read_text())["seeds"]
    assert found["divergence"] == [pytest.approx(np.log(2 / 3**0.5), abs=1e-4), 0.0]
    assert found["teacher"] == [0.2, 0.3, 0.5]
    assert (tmp_path / "found.png").stat().st_size > 5_000


def test_metrics_are_drawn_over_training(tmp_path: Path) -> None:
    """Where seeds have records at different steps, the mean is of what lies between them."""
    rows = [
        {"seed": seed, "env_steps": steps, "rate": steps / 1000, "fitness": [seed, 4 * seed]}
        for seed, every in ((0, 100), (1, 200))
        for steps in range(0, 500, every)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text("{}")
    names, out = ("rate", "fitness/1"), tmp_path / "found.json"
    over_training.main(over_training.Arguments(tmp_path, names, out, factor=100))
    means = json.loads(out.read_text())["means"]
    assert means["rate"] == [[steps, steps / 10] for steps in (0, 100, 200, 300, 400)]
    assert means["fitness/1"] == [[steps, 200] for steps in (0, 100, 200, 300, 400)]
    assert out.with_suffix(".png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="no metric 'loss'; it records fitness, rate"):
        over_training.main(over_training.Arguments(tmp_path, ("loss",), out))


@pytest.mark.parametrize(
    ("task", "heights"), [("Walker2d-v4", (1.45, 1.05, 0.1)), ("Hopper-v4", (1.45, 1.05, 0.1))]
)
def test_head_waist_and_foot_of_a_body_that_stands(
    task: str, heights: tuple[float, ...], tmp_path: Path
) -> None:
    """Lengths are those of the model: a torso of 0.4 m on a thigh of 0.45 m, a shin of 0.5 m and a foot."""
    model = gym.load(task)
    poses = np.stack([model.qpos0, model.qpos0])
    poses[1, 0] += 2  # two metres further
    found = gaits.points(model, poses)
    for name, height in zip(("head", "waist", "foot"), heights, strict=True):
        np.testing.assert_allclose(found[name][:, 1], height, atol=0.01)
        np.testing.assert_allclose(np.diff(found[name][:, 0]), 2)
    gaits.draw(model, [poses, poses], tmp_path / "gaits.png")
    assert (tmp_path / "gaits.png").stat().st_size > 5_000


def test_the_maze_has_a_wall_and_two_goals() -> None:
    env = maze.make()
    testing.check_env(env)
    step = jax.jit(env.step)
    for turn, goal in ((1.0, 0), (-1.0, 1), (0.0, None)):
        state, obs = env.reset(jax.random.key(0))
        total, ends, places = 0.0, [], [obs]
        for time in range(100):
            up = turn if time < 8 else 0.0
            state, timestep = step(state, jnp.array([float(time >= 8), up]))
            total += float(timestep.reward)
            ends.append(bool(timestep.terminated))
            places.append(timestep.obs)
            if ends[-1]:
                break
        if goal is None:  # straight on is the wall
            assert total == 0
            assert max(float(place[0]) for place in places) <= 0
        else:
            assert total == 1
            assert list(maze.reached(places[-1])) == [goal == 0, goal == 1]


def test_visitation_tells_how_far_a_child_has_gone() -> None:
    """Two normal densities one standard deviation apart diverge by half a nat, but for the kernel's width."""
    rng = np.random.default_rng(0)
    parent = rng.normal(size=(4_000, 2))
    near, far = (parent + np.array([step, 0.0]) for step in (0.1, 1.0))
    _, (p, q, r) = visitation.densities([parent, near, far])
    assert p.sum() == pytest.approx(1)
    assert visitation.divergence(p, p) == 0
    assert visitation.divergence(p, q) == pytest.approx(0.005, abs=0.005)
    assert visitation.divergence(p, r) == pytest.approx(0.5, abs=0.15)
    with pytest.raises(ValueError, match="never changes; choose others"):
        visitation.densities([np.zeros((5, 2))])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_thousandth_of_every_table(name: str, tmp_path: Path) -> None:
    """On its first task, its last row, which is the cheapest, and what that needs."""
    _, table = registry.find(name)
    arguments = reproduce.Arguments(
        name,
        tasks=table.tasks[:1],
        rows=table.rows[-1:],
        fraction=0.001,
        seeds=1,
        runs=tmp_path / "runs",
        out=tmp_path / "out",
    )
    assert reproduce.main(arguments) == 0
    (row, *_) = json.loads((tmp_path / "out" / f"{name}.json").read_text())["rows"]
    assert (row["task"], row["row"]) == (table.tasks[0], table.rows[-1])
    scores = [score for run in row["runs"] for score in run["scores"]]
    assert len(scores) == 1
    assert np.isfinite(scores).all()
