"""The code of the documentation runs, and every method has a page."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

import popjax
from popjax import cli, population
from popjax.agents import a2c
from popjax.cli import expand, grid
from popjax.cli.program import understand
from popjax.host import recipes
from popjax.host.errors import Refused
from popjax.methods import independent, onpolicy, pbt

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LESS = {
    "env_steps=100_000": "env_steps=2_000",
    "env_steps=20_000": "env_steps=200",
    "pderl.build(env)": "pderl.build(env, popjax.pderl.Config(population=2, memory=200, capacity=4_000))",
}
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("extending/*.md")]
    if "```python" in path.read_text()
)


def code(path: Path) -> str:
    """Return the Python of a page in one piece, with less to train."""
    text = "\n\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
    for long, short in LESS.items():
        text = text.replace(long, short)
    return text


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Import the Python of a page as a module named ``page_STEM``."""

    def imported(path: Path):
        name = f"page_{path.stem.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(code(path))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return imported


QUICK = ["agent", "drive", "environment", "operator", "method"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem)
        for path in PAGES
    ],
)
def test_the_python_of_a_page_runs(path, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a page writes its runs
    if "optuna" in code(path):
        pytest.importorskip("optuna")
    module(path)


def training_commands():
    """Yield (page, command) of every complete training command in the documentation."""
    for path in [ROOT / "README.md", *sorted(DOCS.glob("[!_]*.md")), *sorted(DOCS.glob("[!_g]*/*.md"))]:
        for language, block in re.findall(
            r"^```([^\n]*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE
        ):
            for line in block.replace("\\\n", " ").splitlines() if not language else ():
                told = re.fullmatch(r"(?:python scripts/run.py|popjax train) (.*)", line.strip())
                if told and not re.search(r"\.\.\.|\[|METHOD|my_package|steps N", told[1]):
                    yield path.name, told[1]


def test_every_training_command_is_understood():
    commands = list(training_commands())
    assert len(commands) > 25
    for page, command in commands:
        name, *options = shlex.split(command, comments=True)
        _, rest = grid.control(expand.expanded(options))
        try:
            grid.programs(rest, lambda argv, name=name: understand(name, list(argv)).arguments.common)
        except Refused as refusal:
            pytest.fail(f"{page}: {command}: {refusal}")


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_method_has_a_page_with_its_options_and_a_line_in_the_table():
    table = (DOCS / "methods/index.md").read_text()
    for name in recipes.METHODS:
        page = (DOCS / f"methods/{name}.md").read_text()
        assert f"../generated/parts/method-{name}.md" in page
        assert f"[`{name}`]({name}.md)" in table


def test_the_page_of_a_method_tells_of_every_phase():
    for name, module in recipes.METHODS.items():
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        phases = ",".join(re.findall(r"chain\(([^)]*)\)", source)).split(",")
        page = (DOCS / f"methods/{name}.md").read_text()
        for phase in (words.strip().rpartition(".")[2] for words in phases):
            assert not phase or f"`{phase}`" in page, (name, phase)


def test_the_design_names_every_module_of_the_population_layer():
    modules = {path.stem for path in Path(population.__path__[0]).glob("[a-z]*.py")}
    layer = (DOCS / "design.md").read_text().partition("## The population layer")[2].partition("\n## ")[0]
    for text in (population.__doc__, layer):
        assert modules - set(re.findall(r"`(\w+)`", text)) == set()


def test_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_option_says_what_it_means(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    for name, part in importlib.import_module("generate.settings").parts().items():
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `--")]
        assert rows, name
        assert [row[0] for row in rows if len(row) < 3 or row[2].startswith("(")] == [], name


@pytest.mark.slow
def test_an_agent_of_ones_own_trains_from_the_command_line(module, tmp_path):
    page = module(DOCS / "extending/agent.md")
    run = str(tmp_path / "run")
    options = ["--env", "probe/corridor", "--env-steps", "40", "--config.agent", "mine", "--run-dir", run]
    sizes = [
        "--config.agent.hidden",
        "4",
        "--config.warmup",
        "10",
        "--config.batch",
        "4",
        "--config.capacity",
        "50",
    ]
    assert cli.run([page.__name__, *options, *sizes, "--eval-episodes", "1"]) == 0
    assert cli.evaluate([run, "--episodes", "1"]) == 0


def test_a_config_without_a_module_of_its_own_is_no_agent():
    @dataclass(frozen=True)
    class Config:
        """Of nothing."""

    with pytest.raises(ValueError, match="Config is not the Config of an agent; use that of ddpg"):
        independent.build(popjax.make("probe/corridor"), independent.Config(agent=Config()))


def test_an_on_policy_module_without_a_rollout_is_told_what_it_lacks(monkeypatch):
    """Methods that take both kinds of agent know it by that alone."""
    monkeypatch.delattr(a2c, "ROLLOUT")
    env, message = (
        popjax.make("probe/corridor"),
        "agents.a2c has no ROLLOUT, .*; add it, or choose a2c or ppo",
    )
    for method, config in (
        (onpolicy, onpolicy.Config),
        (pbt, pbt.configured),
        (independent, independent.Config),
    ):
        with pytest.raises(ValueError, match=message):
            method.build(env, config(agent=a2c.Config(hidden=(4,))))


def test_each_agent_carries_a_drive_of_ones_own(module):
    method = module(DOCS / "extending/drive.md").method
    state = jax.eval_shape(method.step, jax.eval_shape(method.init, jax.random.key(0), method.hyper))
    assert state.drive.count.shape == state.metrics.bonus.shape == (2,)


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx_llm")
    built = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path),
    ]
    done = subprocess.run(built, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "llms.txt").read_text().startswith("# popjax")
    assert "# PDERL" in (tmp_path / "methods/pderl.md").read_text()


def test_the_list_of_results_says_which_runs_have_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    results = importlib.import_module("generate.results")
    run = {"command": "c", "git_commit": "0" * 40, "device": "cpu", "evaluations": [[0, 0, 1.0]]}
    files = {"old": run | {"wall_seconds": []}, "new": run | {"wall_seconds": [1.0]}, "speed": {"rows": []}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    for name in ("old", "new", "new-time"):
        (tmp_path / f"{name}.png").touch()
    told, _, *lines = results._files(tmp_path).splitlines()
    assert told.startswith("1 of the 2 files of runs have no times")
    curves = {line.split("]")[0][3:]: line.split("|")[-2].strip() for line in lines[2:]}
    steps = {name: f"[environment steps](../benchmarks/results/{name}.png)" for name in files}
    assert curves == {
        "new.json": f"{steps['new']}, [time](../benchmarks/results/new-time.png)",
        "old.json": f"{steps['old']}, no times recorded",
        "speed.json": "",
    }
