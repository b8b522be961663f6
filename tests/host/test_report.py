"""The page about runs: what is on it, and the one line that senseless input gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.host.report import charts, measures, population, records, report, write
from popjax.host.report.labels import spread
from popjax.host.report.record import Record
from popjax.host.runs import run_group
from popjax.host.runs.run_group import Entry
from tests.host import runs
from tests.host.runs import make_run

METHODS = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, float, list[Any]]:
    """A report on three methods with five seeds each, the seconds it took, and its figures."""
    root, figures = tmp_path_factory.mktemp("runs"), []
    for place, method in enumerate(METHODS):
        rows = runs.population() if method == "alpha" else []
        level = lambda seed, at, place=place: at * (1 + place) + seed  # noqa: E731
        make_run(root / method, method, level=level, metrics=rows)
    plain = write._picture

    def kept(name: str, figure: Any, caption: str) -> Any:
        figures.append(figure)
        return plain(name, figure, caption)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_picture", kept)
        begun = time.perf_counter()
        made = report([root / method for method in METHODS], root / "out")
        return made, time.perf_counter() - begun, figures


def test_every_figure_is_there(written: Any) -> None:
    made, seconds, _ = written
    views = [f"{view}-alpha-probe-context" for view in ("fitness", "lineage", "transfers")]
    names = ["curves-probe-context", "time-probe-context", "interquartile-mean", "improvement", "profiles"]
    assert list(made.figures) == [*names, *views]
    page = made.page.read_text()
    for name in made.figures:
        assert (made.page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f'id="{name}"' in page
    assert seconds < 30


def test_the_page_needs_nothing_beside_it(written: Any) -> None:
    page = written[0].page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == len(written[0].figures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    assert "&lt;&amp;&gt;" in page  # a command is shown, not interpreted
    for fact in ("1.5 s", "1 min 15 s", "1,234", "500.0 MB", "cpu (x86_64, 2 threads)", "0123456789"):
        assert fact in page


def test_every_axis_is_labelled_and_every_comparison_has_a_legend(written: Any) -> None:
    assert len(written[2]) == len(written[0].figures)
    for figure in written[2]:
        for axes in figure.axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>"
        assert figure.axes[0].get_title(loc="left")
    for figure in written[2][:5]:
        assert len(figure.legends[0].get_texts()) >= 2
    labels = [text.get_text() for text in written[2][0].legends[0].get_texts()]
    assert labels == [f"{method} (5 seeds)" for method in METHODS]
    hours = written[2][1].axes[0].lines[0].get_xdata()
    np.testing.assert_allclose([hours[0], hours[-1]], [1 / 3600, (36 * 19 + 1) / 3600])


def test_the_tables_say_what_the_runs_did(written: Any) -> None:
    """Scores are 14.5 (1 + place) + seed, over the last ten of 20 evaluations."""
    cells = written[0].table
    assert cells.rows == [["probe/context", "16.5 ± 1.6 (5)", "31.0 ± 1.6 (5)", "45.5 ± 1.6 (5)"]]
    assert cells.best == {(0, 3)}
    page = written[0].page.read_text()
    assert "Mean ± standard deviation over seeds; the score of a seed is the mean of its last 10 eval" in page
    assert "<td>alpha &gt; beta</td><td>0.00</td><td>[0.00, 0.00]</td>" in page


def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if shutil.which(name):
            return name
    pytest.skip("no Chromium on this machine")


def test_a_browser_shows_every_figure(written: Any, tmp_path: Path) -> None:
    made = written[0]
    probe = (
        "<script>addEventListener('load', () => { document.body.dataset.found = [...document.images]"
        ".filter(i => i.complete && i.naturalWidth > 300 && i.getBoundingClientRect().width > 300)"
        ".map(i => i.id).join(' ') + ';' + (document.documentElement.scrollWidth <= innerWidth); })</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(made.page.read_text().replace("</body>", f"{probe}</body>"))
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=700,900"]
    command = [browser(), *options, f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found, fits = re.search(r'data-found="([^"]*)"', shown.stdout)[1].split(";")  # type: ignore[index]
    assert found.split() == list(made.figures)
    assert fits == "true"
    subprocess.run(
        [*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("dirty", "told"), [(False, ""), (True, " with changes"), (None, " perhaps with changes")]
)
def test_the_commit_of_a_run_is_told_with_its_changes(dirty: Any, told: str, tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    config = json.loads((root / "config.json").read_text()) | {"git_dirty": dirty}
    (root / "config.json").write_text(json.dumps(config))
    (group,) = records.grouped([one(root)])
    assert write._cost(group, group.records[0])[-1] == "0123456789" + told


def one(root: Path) -> Record:
    """The only record of a run without swept numbers."""
    (found,), _ = records.read(root)
    return found


def test_runs_of_one_configuration_are_pooled(tmp_path: Path) -> None:
    roots = [make_run(tmp_path / "a", seeds=(0, 1)), make_run(tmp_path / "b", seeds=(2,))]
    other = make_run(tmp_path / "c", config={"population": 8})
    groups = records.grouped([one(root) for root in [*roots, other]])
    assert [group.label for group in groups] == ["ours, population 4", "ours, population 8"]
    assert [curve.seed for curve in groups[0].curves] == [0, 1, 2]
    again = make_run(tmp_path / "d", seeds=(1, 2))
    with pytest.raises(Refused, match=r"seed 1 of ours on probe/context is in .*a and .*d"):
        records.grouped([one(root) for root in [*roots, again]])


def test_labels_name_methods_and_pool_only_equals(tmp_path: Path) -> None:
    a = one(make_run(tmp_path / "a"))
    b = one(make_run(tmp_path / "b", config={"population": 8}))
    assert records.methods(records.grouped([a, b], ["A", "B"])) == ["A", "B"]
    with pytest.raises(Refused, match=r"are not seeds of one method 'A': config\.population is 4 and 8"):
        records.grouped([a, b], ["A", "A"])
    with pytest.raises(Refused, match="got 1 for 2 runs"):
        spread([[a], [b]], ["A"])
    many = {f"option{i}": i for i in range(5)}
    c = one(make_run(tmp_path / "c", config={"population": 4} | many))
    assert records.methods(records.grouped([a, c])) == ["a", "c"]


def test_an_option_that_a_method_has_gained_since_had_its_default(tmp_path: Path) -> None:
    tiny, numbers = "tests.host.tiny", {"rate": 0.1, "poison_at": -1.0}
    old = make_run(tmp_path / "old", tiny, seeds=(0,), config={"capacity": 10})
    new = make_run(
        tmp_path / "new", tiny, seeds=(1,), config={"capacity": 10, "uneven": False}, hyper=numbers
    )
    other = make_run(tmp_path / "other", tiny, config={"capacity": 10, "uneven": True}, hyper=numbers)
    found = records.grouped([one(root) for root in (old, new, other)])
    assert [group.label for group in found] == [f"{tiny}, uneven false", f"{tiny}, uneven true"]
    assert [curve.seed for curve in found[0].curves] == [0, 1]
    (pooled,) = records.grouped([one(old), one(new)], ["A", "A"])
    assert len(pooled.curves) == 2


def test_a_run_of_a_method_that_is_not_here_is_reported(tmp_path: Path) -> None:
    for place, uneven in enumerate([{}, {"uneven": False}]):
        make_run(tmp_path / str(place), "nowhere.method", seeds=(place,), config={"capacity": 10} | uneven)
    made = report([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    assert made.table.header[1:] == ["nowhere.method, uneven unset", "nowhere.method, uneven false"]


def test_equal_numbers_are_one_method_however_they_are_written(tmp_path: Path) -> None:
    found = [
        one(make_run(tmp_path / str(place), seeds=(place,), hyper={"rate": rate}))
        for place, rate in enumerate([-1, -1.0, 0.1, 0.10000000149011612])
    ]
    assert [group.label for group in records.grouped(found)] == ["ours, rate -1", "ours, rate 0.1"]
    assert [group.label for group in records.grouped(found[:2])] == ["ours"]
    assert len(records.grouped(found[:2], spread([found[:1], found[1:2]], ["A", "A"]))) == 1


def test_methods_of_different_names_are_not_one_whatever_their_options(tmp_path: Path) -> None:
    found = [one(make_run(tmp_path / name, name, seeds=(place,))) for place, name in enumerate("xy")]
    with pytest.raises(Refused, match=r"not seeds of one method 'A': method is \"x\" and \"y\""):
        records.grouped(found, ["A", "A"])


def test_directories_of_one_name_have_labels_of_their_own(tmp_path: Path) -> None:
    options = [{f"option{i}": i + size for i in range(5)} for size in (10, 20, 30)]
    names = ("expA/run", "expB/run", "other")
    found = [one(make_run(tmp_path / n, config=o)) for n, o in zip(names, options, strict=True)]
    assert records.methods(records.grouped(found)) == list(names)
    more = [one(make_run(tmp_path / "expC" / "other", "other", config=options[0]))]
    labels = ["expA/run", "expB/run", f"{tmp_path.name}/other", "other"]  # not the name of another method
    assert records.methods(records.grouped([*found, *more])) == labels
    tasks = [
        one(make_run(tmp_path / task / name, task=f"probe/{task}", config=chosen))
        for task in "ab"
        for name, chosen in zip(("x", "y"), options, strict=False)
    ]
    assert records.methods(records.grouped(tasks)) == ["x", "y"]  # on both tasks


def test_swept_numbers_are_methods_of_their_own(tmp_path: Path) -> None:
    swept = make_run(tmp_path / "sweep" / "a", seeds=(0, 1))
    lines = [json.loads(line) for line in (swept / "eval.jsonl").read_text().splitlines()]
    rows = [line | {"hyper.rate": rate, "member": 0} for line in lines for rate in (0.1, 0.2)]
    (swept / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_run(tmp_path / "sweep" / "b", config={"population": 8})
    groups = records.grouped(records.read(swept).records)
    assert [group.label for group in groups] == ["ours, rate 0.1", "ours, rate 0.2"]
    assert [len(group.curves) for group in groups] == [2, 2]
    found = records.read(tmp_path / "sweep").records
    assert spread([found], ["A"]) == [
        "A, population 4, rate 0.1",
        "A, population 4, rate 0.2",
        "A, population 8, rate 0.1",
    ]
    page = report([tmp_path / "sweep"], tmp_path / "out").page.read_text()
    assert "ours, population 4, rate 0.2" in page


def test_settings_of_many_swept_numbers_have_labels_of_their_own(tmp_path: Path) -> None:
    swept = make_run(tmp_path / "sweep", seeds=(0, 1))
    lines = [json.loads(line) for line in (swept / "eval.jsonl").read_text().splitlines()]
    settings = [{f"hyper.n{i}": rate for i in range(4)} for rate in (0.1, 0.2)]
    (swept / "eval.jsonl").write_text(
        "".join(json.dumps(line | setting) + "\n" for line in lines for setting in settings)
    )
    groups = records.grouped(records.read(swept).records)
    assert [group.label for group in groups] == [
        "sweep, n0 0.1, n1 0.1, n2 0.1, n3 0.1",
        "sweep, n0 0.2, n1 0.2, n2 0.2, n3 0.2",
    ]


def test_seeds_that_were_not_trained_at_one_time_are_not_drawn_against_it(tmp_path: Path) -> None:
    """Seeds that are added to a finished run begin when the others have ended."""
    run = make_run(tmp_path / "a", seeds=(0, 1))
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for line in lines:
        line["wall_seconds"] += 1e5 * line["seed"]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = report([run], tmp_path / "out")
    assert [name for name in made.figures if name.startswith("time")] == []
    assert "Not drawn against time on probe/context: ours" in made.page.read_text()


@pytest.mark.parametrize("measure", ["minutes", "metric:loss"])
def test_no_method_is_better_by_a_measure_of_which_more_may_be_worse(measure: str, tmp_path: Path) -> None:
    rows = [{"seed": seed, "generation": 1, "env_steps": 100, "loss": 0.5 + seed} for seed in range(5)]
    made = report([make_run(tmp_path / n, n, metrics=rows) for n in "xy"], tmp_path / "out", measure=measure)
    assert made.table.best == frozenset()
    assert "interquartile-mean" in made.figures
    assert "improvement" not in made.figures
    assert "probability of improvement" not in made.page.read_text().lower()


def test_a_seed_without_a_score_is_named_and_does_not_count(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, seeds=(0, 1, 2)) for name in ("a", "b")]
    lines = [json.loads(line) for line in (runs[1] / "eval.jsonl").read_text().splitlines()]
    for line in lines:
        if line["seed"] == 2:
            line |= {"return": None, "returns": [None, "inf"]}
    (runs[1] / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = report(runs, tmp_path / "out", measure="last")
    assert made.table.rows[0][1:] == ["20.0 ± 1.0 (3)", "19.5 ± 0.7 (2)"]
    assert "Without a score: seed 2 of b on probe/context." in made.page.read_text()


def test_methods_without_any_score_are_reported_nevertheless(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name, seeds=(0, 1)) for name in ("a", "b")]
    for run in runs:
        lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
        told = [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in lines]
        (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    made = report(runs, tmp_path / "out", measure="minutes")
    assert made.table.rows[0][1:] == ["", ""]
    assert "Without a score: seed 0, seed 1 of a on probe/context." in made.page.read_text()


def test_methods_are_compared_at_the_steps_that_all_have_reached(tmp_path: Path) -> None:
    done = make_run(tmp_path / "done", "done", level=lambda seed, place: place)
    going = make_run(tmp_path / "going", "going", evaluations=6, finished=False)
    with (going / "eval.jsonl").open("a") as file:
        file.write('{"seed": 0, "gener')  # being written
    groups = records.grouped([one(done), one(going)])
    assert records.budget(groups, "probe/context") == 500
    np.testing.assert_allclose(measures.measure("last10").of(groups[0], 500), 2.5)  # evaluations 0 to 5
    np.testing.assert_allclose(measures.measure("last").of(groups[0], 450), 5)  # the first at or beyond
    page = report([done, going], tmp_path / "out").page.read_text()
    assert "those at 500 environment steps" in page
    assert "steps per seed, the most that all have reached; later evaluations of done do not count." in page
    assert f"Unfinished: {going}" in page


LEVELS = (4.0, 1.0, 0.1)  # growth of a seed's return from one evaluation to the next


def to_goal(root: Path, ends: dict[int, int], **options: Any) -> Path:
    """A run of three seeds that stop at a return of 12; only the third never gets there."""
    level = lambda seed, place: LEVELS[seed] * place  # noqa: E731
    goal = {"stop_at_return": 12.0} | options
    return make_run(root, root.name, seeds=range(len(LEVELS)), level=level, options=goal, ends=ends)


def test_a_seed_that_reached_its_goal_keeps_its_return_and_cuts_nobody_short(tmp_path: Path) -> None:
    run, whole = to_goal(tmp_path / "early", {0: 3, 1: 12}), make_run(tmp_path / "whole", "whole")
    early, _ = groups = records.grouped([one(run), one(whole)])
    assert (early.reached, records.budget(groups, early.task)) == (1900, 1900)
    scores = {name: measures.measure(name).of(early, 1900) for name in ("last", "last10", "area", "minutes")}
    np.testing.assert_allclose(scores["last"], [12, 12, 1.9])
    np.testing.assert_allclose(scores["last10"], [12, (10 + 11 + 8 * 12) / 10, 1.45])
    np.testing.assert_allclose(scores["area"], [(3 * 6 + 16 * 12) / 19, (12 * 6 + 7 * 12) / 19, 0.95])
    np.testing.assert_allclose(scores["minutes"], [109 / 60, 433 / 60, 685 / 60])  # until it stopped
    np.testing.assert_allclose(measures.measure("last").of(early, 200), [8, 2, 0.2])
    for by_time, end in ((False, 1900), (True, 685 / 3600)):
        for best in (False, True):
            places, returns = charts.aligned(early.curves, by_time, best)
            np.testing.assert_allclose([places[0], places[-1]], [1 / 3600 if by_time else 0, end])
            np.testing.assert_allclose(returns[:, -1], [12, 12, 1.9])
    made = report([run, whole], tmp_path / "out", csv=True, measure="last")
    assert made.table.rows[0][1] == "8.6 ± 5.8 (3)"
    assert made.limits == ()
    page = made.page.read_text()
    held = "and the last return counts up to the budget: seed 0, seed 1 of early on probe/context."
    assert held in page
    rows = (tmp_path / "out" / "curves.csv").read_text().splitlines()
    assert len([row for row in rows if row.startswith("early,")]) == 4 + 13 + 20  # only what was made


def test_seeds_that_all_reached_their_goal_are_compared_at_the_budget(tmp_path: Path) -> None:
    ends = {0: 3, 1: 12, 2: 12}
    (group,) = records.grouped([one(to_goal(tmp_path / "run", ends, stop_at_return=1.2))])
    assert group.reached == 1900
    places, returns = charts.aligned(group.curves, by_time=True)
    np.testing.assert_allclose(places[-1], 433 / 3600)
    np.testing.assert_allclose(returns[:, -1], [12, 12, 1.2])


@pytest.mark.parametrize("goal", [None, 13.0])
def test_a_seed_that_ended_before_its_goal_limits_the_comparison(
    goal: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = to_goal(tmp_path / "run", {0: 3}, stop_at_return=goal)
    assert cli.report([str(run), "--out", str(tmp_path / "out")]) == 0
    told = "those at 300 environment steps per seed, the most that all have reached; later evaluations of run"
    assert told in capsys.readouterr().out
    assert told in (tmp_path / "out" / "report.html").read_text()


def test_seeds_without_common_steps_are_not_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", seeds=(0, 1), ends={0: 3})
    lines = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["seed"] == 0 or line["env_steps"] > 300]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    made = report([run, make_run(tmp_path / "b", "theirs")], tmp_path / "out")
    page = made.page.read_text()
    assert "Not drawn on probe/context: ours; no step lies between the first and the last" in page
    assert "curves-probe-context" in made.figures
    assert report([run], tmp_path / "alone").figures == ()


@pytest.mark.parametrize("methods", [("one",), ("one", "two")])
def test_a_single_method_or_seed_is_not_compared(tmp_path: Path, methods: tuple[str, ...]) -> None:
    seeds = (0, 1) if len(methods) == 1 else (0,)
    roots = [make_run(tmp_path / name, name, seeds=seeds) for name in methods]
    made = report(roots, tmp_path / "out")
    assert made.figures == ("curves-probe-context", "time-probe-context")
    page = made.page.read_text()
    assert "Comparison" not in page
    assert "Populations" not in page


def test_runs_without_times_have_no_curve_against_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    rows = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    kept = [{name: row[name] for name in row if not name.endswith("_seconds")} for row in rows]
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    made = report([run], tmp_path / "out")
    assert made.figures == ("curves-probe-context",)
    assert "Not drawn against time on probe/context: ours; no times were recorded" in made.page.read_text()


@pytest.mark.parametrize("status", ["failed", "frozen"])  # as it is called now, and as it was
def test_a_failed_member_cuts_nobody_else_short(status: str, tmp_path: Path) -> None:
    root = make_run(tmp_path / "ours", seeds=(0, 1))
    lines = [json.loads(line) for line in (root / "eval.jsonl").read_text().splitlines()]
    kept = [line | {"member": line["seed"]} for line in lines if line["seed"] == 0 or line["generation"] < 3]
    (root / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    summary = json.loads((root / "summary.json").read_text())
    rows = [
        {"member": 0, "seed": 0, "status": "finished", "reason": None},
        {"member": 1, "seed": 1, "status": status, "reason": "critic_loss is nan in generation 3"},
    ]
    (root / "summary.json").write_text(json.dumps(summary | {"members": rows}))
    (group,) = records.grouped(records.read(root).records)
    assert [curve.seed for curve in group.curves] == [0]
    assert group.reached == summary["env_steps"]
    page = report([root], tmp_path / "out").page.read_text()
    reason = "since a metric became non-finite: member 1 (seed 1): critic_loss is nan in generation 3."
    assert f"In {root}, failed members are left out, {reason}" in page


def test_a_member_that_failed_in_a_run_that_goes_on_cuts_nobody_else_short(tmp_path: Path) -> None:
    """There is no summary yet; the checkpoint tells."""
    root = make_run(tmp_path / "ours", seeds=(0, 1))
    lines = [json.loads(line) for line in (root / "eval.jsonl").read_text().splitlines()]
    kept = [line | {"member": line["seed"]} for line in lines if line["seed"] == 0 or line["generation"] < 3]
    (root / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    reached = json.loads((root / "summary.json").read_text())["env_steps"]
    (root / "summary.json").unlink()
    failed = {"1": {"reason": "critic_loss is nan in generation 3", "checkpoint": 2}}
    checkpoint.save(root / "checkpoints", 5, {"x": jnp.zeros(2)}, {"failed": failed})
    checkpoint.save(root / "checkpoints", 6, {"x": jnp.zeros(2)}, {"failed": failed}, keep=[5])
    (root / "checkpoints" / "6" / "manifest.json").write_text("cut off")
    (group,) = records.grouped(records.read(root).records)
    assert [curve.seed for curve in group.curves] == [0]
    assert group.reached == reached
    page = report([root], tmp_path / "out").page.read_text()
    assert "since a metric became non-finite: member 1 (seed 1): critic_loss is nan in generation 3." in page


def test_settings_that_differ_in_a_sign_have_files_of_their_own() -> None:
    names = ["fitness ours, rate 1.0", "fitness ours, rate -1.0", "fitness ours, rate 1e-05", "x 1e+05"]
    assert [write._slug(name) for name in names] == [
        "fitness-ours-rate-1-0",
        "fitness-ours-rate-minus-1-0",
        "fitness-ours-rate-1e-05",
        "x-1eplus05",
    ]


def test_methods_are_compared_on_common_tasks(tmp_path: Path) -> None:
    here = [make_run(tmp_path / name, name, task="probe/a", seeds=(0,)) for name in ("x", "y")]
    there = [make_run(tmp_path / f"{name}2", name, task="probe/b") for name in ("x", "y")]
    lonely = make_run(tmp_path / "x3", "x", task="probe/c")
    page = report([*here, *there, lonely], tmp_path / "out").page.read_text()
    assert (
        "Scores are scaled from 0 to 1 within each task: probe/a 14.5 to 14.5; probe/b 14.5 to 18.5." in page
    )
    assert "Left out, since not all methods ran on them: probe/c." in page
    with pytest.raises(
        Refused, match=r"different tasks .*: x on probe/a; y on probe/b; report them separately"
    ):
        report([here[0], there[1]], tmp_path / "out")


def test_a_lineage_needs_every_generation(tmp_path: Path) -> None:
    every = one(make_run(tmp_path / "a", metrics=runs.population()))
    some = one(make_run(tmp_path / "b", metrics=runs.population(spacing=5)))
    kinds = [[kind for kind, _, _ in population.figures("", population.rows(r))] for r in (every, some)]  # type: ignore[arg-type]
    assert kinds == [["fitness", "lineage", "transfers"], ["fitness", "transfers"]]
    assert "Only one generation in 5 was recorded" in report([some.root], tmp_path / "out").page.read_text()


def test_ancestors_are_followed_to_the_beginning(tmp_path: Path) -> None:
    """Slot 2 is the best at the end; it is a child of 0 and 1, and 1 was cloned from 3; 0 was an outsider."""
    parents = [[[-1, -1], [3, -1], [2, -1], [3, -1]], [[0, -1], [1, -1], [0, 1], [3, -1]], [[0, -1]] * 4]
    found = population.Rows(
        0,
        np.array([1, 2, 3]),
        {
            "fitness": np.array([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]),
            "parents": np.array(parents),
        },
    )
    axes = population.lineage("who", found).axes[0]
    drawn = {
        c.get_label(): [tuple(map(tuple, p.vertices.astype(int))) for p in c.get_paths()]
        for c in axes.collections
    }
    assert set(drawn["ancestors of the last best"]) == {
        ((2, 0), (3, 2)),
        ((2, 1), (3, 2)),
        ((1, 3), (2, 1)),
    }
    assert set(drawn["child of two"]) == {((2, 0), (3, 2)), ((2, 1), (3, 2))}
    entries = next(line for line in axes.lines if line.get_label() == "an outsider enters")
    assert (entries.get_xdata().tolist(), entries.get_ydata().tolist()) == ([2], [0])


def test_what_has_not_begun_is_named_and_the_others_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a directory of runs all that is below it is taken, whatever its depth."""
    root = tmp_path / "all"
    make_run(root / "near", seeds=(0, 1))
    make_run(root / "deeper" / "far", config={"population": 8})
    young = make_run(root / "young", config={"population": 16}, finished=False)
    (young / "eval.jsonl").write_text("")
    run_group.write(root, "a command", [Entry(name, ()) for name in ("near", "deeper", "young", "later")])
    run_group.write(root / "deeper", "a command", [Entry(name, ()) for name in ("far", "further")])
    partly = make_run(root / "partly", config={"population": 32}, finished=False)
    rows = [json.loads(line) for line in (partly / "eval.jsonl").read_text().splitlines()]
    kept = [row | {"member": row["seed"]} for row in rows if row["seed"] not in (2, 4)]
    (partly / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert cli.report([str(root), "--out", str(tmp_path / "out")]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not begun yet: ")]
    assert shown == [
        f"not begun yet: {line}"
        for line in (
            f"run {root}/deeper/further",
            f"run {root}/later",
            f"run {root}/young",
            f"member 2 (seed2) of {root}/partly",
            f"member 4 (seed4) of {root}/partly",
        )
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Not begun yet: run {root}/deeper/further; run {root}/later;" in page
    assert all(f"ours, population {size}" in page for size in (4, 8, 32))


def test_a_label_is_one_method_on_tasks_with_constants_of_their_own(tmp_path: Path) -> None:
    for label, size in (("x", 4), ("y", 8)):
        for task, batch in (("probe/a", 1), ("probe/b", 2)):
            config = {"population": size, "batch": batch}
            make_run(tmp_path / label / task[-1], task=task, config=config)
    made = report([tmp_path / "x", tmp_path / "y"], tmp_path / "out", ["X", "Y"])
    assert made.table.header == ["task", "X", "Y"]
    assert [row[0] for row in made.table.rows] == ["probe/a", "probe/b"]
    assert all(all(row) for row in made.table.rows)


def test_many_methods_are_told_apart() -> None:
    look = charts.styles([str(i) for i in range(20)])
    assert len(set(look.values())) == 20


def test_bad_input_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = make_run(tmp_path / "young", evaluations=1)
    (empty / "eval.jsonl").unlink()
    alien = tmp_path / "alien"
    alien.mkdir()
    (alien / "config.json").write_text("{}")
    torn, cut = make_run(tmp_path / "torn"), make_run(tmp_path / "cut")
    with (torn / "eval.jsonl").open("a") as file:
        file.write('{"seed": 0, "gener\n')
    (cut / "summary.json").write_text('{"env_steps": ')
    cases = [
        ([str(torn)], f"line 101 of {torn / 'eval.jsonl'} is not JSON: remove that line"),
        ([str(cut)], f"{cut / 'summary.json'} is not JSON: remove it"),
        ([], "at least one run directory"),
        ([str(tmp_path / "nowhere")], "holds no run"),
        ([str(alien)], "lacks method, env, options"),
        ([str(empty)], "has no evaluations yet"),
        (["--oot", "x"], "did you mean --out?"),
    ]
    for argv, part in cases:
        assert cli.report([*argv, "--out", str(tmp_path / "out")]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        assert part in error
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``runs/*`` has it beside runs: a note, an earlier report, a run that has just begun."""
    make_run(tmp_path / "a", level=lambda seed, place: 7.0)
    make_run(tmp_path / "b", "theirs")
    (tmp_path / "notes.txt").write_text("the good one is a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    young = make_run(tmp_path / "young", evaluations=1)
    (young / "eval.jsonl").unlink()
    report([tmp_path / "a"], tmp_path / "report")
    everything = sorted(map(str, tmp_path.iterdir()))
    labels = [f"name of {Path(path).name}" for path in everything]
    assert cli.report([*everything, "--out", str(tmp_path / "report"), "--labels", *labels]) == 0
    shown = capsys.readouterr().out
    for name in ("notes.txt", "empty", "other", "young", "report"):
        assert f"skipped: {tmp_path / name}" in shown
    assert "name of a" in shown
    assert "name of b" in shown
    assert "name of young" not in shown
    assert cli.report([str(tmp_path / name) for name in ("empty", "notes.txt")]) == 2
    assert "there is no run to report" in capsys.readouterr().err
    assert cli.report([str(tmp_path / "a"), str(tmp_path / "aa")]) == 2
    assert f"{tmp_path / 'aa'} holds no run" in capsys.readouterr().err


def test_the_command_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_run(tmp_path / "a")
    assert cli.report([str(root), "--out", str(tmp_path / "out"), "--labels", "Ours"]) == 0
    shown = capsys.readouterr().out
    assert "16.5 ± 1.6 (5)" in shown
    assert "Ours" in shown
    assert f"{tmp_path / 'out' / 'report.html'}: 2 figures" in shown


def test_labels_are_drawn_as_they_are_written_and_have_files_of_their_own(tmp_path: Path) -> None:
    labels = [r"loss $\frac$", "_mine", "a b", "a-b", "基线", "x" * 300, "y" * 300]
    for place in range(len(labels)):
        rows = runs.population() if place > 1 else []
        make_run(tmp_path / str(place), "ours", level=lambda seed, at, p=place: float(p + at), metrics=rows)
    made = report([tmp_path / str(place) for place in range(len(labels))], tmp_path / "out", labels)
    assert len(set(made.figures)) == len(made.figures)
    files = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert files == {f"{name}.png" for name in made.figures}
    assert list(made.table.header[1:]) == labels


def test_a_legend_has_labels_that_begin_with_an_underscore() -> None:
    with charts.literal_text():
        figure, axes = charts.canvas("$x", 3.0)
        axes.plot([1], [1], label=charts._shown("_mine"))
        charts.legend(axes, 1)
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_mine"]
    assert not figure.axes[0].title.get_parse_math()


def test_curves_as_csv(tmp_path: Path) -> None:
    import csv

    make_run(tmp_path / "ours", seeds=(0, 3), evaluations=3)
    report([tmp_path / "ours"], tmp_path / "page")
    assert not (tmp_path / "page" / "curves.csv").exists()
    report([tmp_path / "ours"], tmp_path / "page", csv=True)
    with (tmp_path / "page" / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["env_steps"], row["return"]) for row in rows[:3]] == [
        ("0", "0", "0.0"),
        ("0", "100", "1.0"),
        ("0", "200", "2.0"),
    ]
    assert [(row["seed"], row["return"]) for row in rows[3:]] == [("3", "3.0"), ("3", "4.0"), ("3", "5.0")]
    assert {(row["method"], row["task"]) for row in rows} == {("ours", "probe/context")}


def test_a_curve_of_one_point_is_seen() -> None:
    def marker(steps: list[int]) -> str:
        curve = records.Curve(0, np.array(steps), np.zeros(len(steps)))
        group = records.Group("A", "task", (), (curve,))
        return charts.learning_curves("task", [group], charts.styles(["A"])).axes[0].lines[0].get_marker()

    assert (marker([5]), marker([5, 6])) == ("o", "None")
