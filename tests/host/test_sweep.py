"""Sweeps: each member is what a run of it alone would be, and one that fails leaves the others alone."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import ddpg
from popjax.cli import building
from popjax.envs import make
from popjax.evolution.crossover import Distillation
from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.errors import Interrupted, NonFiniteMetric, NotSaved, Refused, TooLarge
from popjax.host.runs import member_subset
from popjax.host.scaling import memory, processes, sweep
from popjax.host.training import train
from popjax.host.training.stopped_members import StoppedMembers
from popjax.methods import independent, pderl
from tests.host import tiny
from tests.host.test_train import OPTIONS, lines

ENV = make("probe/context")
METHOD = tiny.build(ENV, tiny.Config(uneven=True))
SHORT = OPTIONS | {"log_every": 12}  # chunks of one generation, so that members arrive at different times
SWEPT = {"hyper.rate": [0.1, 0.4]}


def test_free_memory_is_that_of_the_narrowest_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of SLURM lies some groups below the root, which has no limit; file cache can be freed."""

    def limit(group: str, most: str, used: int, cache: int) -> None:
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "memory.max").write_text(f"{most}\n")
        (tmp_path / group / "memory.current").write_text(f"{used}\n")
        (tmp_path / group / "memory.stat").write_text(f"anon 1\nfile {cache}\n")

    own = tmp_path / "own"
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)
    assert memory._control_group_bytes() == 2**63
    own.write_text("0::/slurm/job_3/step_0\n")
    limit("slurm", "900", 100, 0)
    limit("slurm/job_3", "500", 300, 50)
    limit("slurm/job_3/step_0", "max", 300, 50)
    assert memory._control_group_bytes() == 250
    own.write_text("4:memory:/elsewhere\n0::/\n")  # in a container the root is the group itself
    limit("", "200", 150, 10)
    assert memory._control_group_bytes() == 60


def test_free_memory_is_also_limited_by_control_groups_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their controllers lie in directories of their own; without a limit a group names a huge number."""

    def limit(group: str, most: int, used: int, cache: int) -> None:
        directory = tmp_path / "memory" / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.limit_in_bytes").write_text(f"{most}\n")
        (directory / "memory.usage_in_bytes").write_text(f"{used}\n")
        (directory / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {cache}\n")

    own = tmp_path / "own"
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", own)
    own.write_text("12:hugetlb,memory:/slurm/job_3/step_0\n4:cpu,cpuacct:/slurm\n1:name=systemd:/x\n0::/x\n")
    limit("", 2**63 - 4096, 10**9, 0)
    assert memory._control_group_bytes() > 2**62
    limit("slurm/job_3", 500, 300, 50)
    limit("slurm/job_3/step_0", 2**63 - 4096, 300, 50)
    assert memory._control_group_bytes() == 250
    own.write_text("12:memory:/docker/outside\n")  # a container sees its own group as the root
    limit("", 200, 150, 10)
    assert memory._control_group_bytes() == 60
    (tmp_path / "memory.max").write_text("90\n")
    (tmp_path / "memory.current").write_text("70\n")
    (tmp_path / "memory.stat").write_text("file 1\n")
    own.write_text("12:memory:/docker/outside\n0::/\n")
    assert memory._control_group_bytes() == 21


def test_a_grid_numbers_its_members_with_the_seeds_running_fastest() -> None:
    members = sweep.grid(7, 2, {"hyper.a": [1.0, 2.0], "hyper.b": [3.0]})
    assert [(m.number, m.seed, dict(m.numbers)) for m in members] == [
        (0, 7, {"hyper.a": 1.0, "hyper.b": 3.0}),
        (1, 8, {"hyper.a": 1.0, "hyper.b": 3.0}),
        (2, 7, {"hyper.a": 2.0, "hyper.b": 3.0}),
        (3, 8, {"hyper.a": 2.0, "hyper.b": 3.0}),
    ]
    assert members[3].name == "hyper.a=2,hyper.b=3,seed8"
    assert [m.number for m in sweep.part(members, (1, 3))] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"swept": {"hyper.rat": [1.0]}},
            "hyper.rat: there is no such hyperparameter; choose from hyper.poison_at",
        ),
        ({"swept": {"hyper.rate": []}}, "--sweep hyper.rate needs at least one value"),
        ({"swept": {"hyper.rate": [0.1, 0.2, 0.1]}}, "hyper.rate=0.1,0.2,0.1 repeats a value"),
        (
            {"swept": {"hyper.rate": [0.1, 0.2], "hyper.rate,hyper.poison_at": [(0.3, -1), (0.4, -2)]}},
            "--sweep hyper.rate is given twice",
        ),
        ({"swept": {"hyper.rate,hyper.rate": [(0.1, 0.2)]}}, "--sweep hyper.rate is given twice"),
        ({"swept": SWEPT, "members": (1, 3)}, "--members 1:3 must lie in the members 0:2"),
        ({"members": (1, 1), "seeds": 3}, "--members 1:1 must lie"),
    ],
)
def test_what_is_no_sweep_is_refused(options: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        train(METHOD, ENV, env_steps=100, **options)


def test_members_equal_single_runs(tmp_path: Path) -> None:
    together = train(METHOD, ENV, env_steps=400, seeds=2, seed=5, swept=SWEPT, run_dir=tmp_path, **OPTIONS)
    rows, evaluations = lines(tmp_path / "metrics.jsonl"), lines(tmp_path / "eval.jsonl")
    finals = json.loads((tmp_path / "summary.json").read_text())["members"]
    for place, member in enumerate(together.members):
        hyper = tiny.Hyper(rate=member.numbers["hyper.rate"])
        alone = train(METHOD, ENV, env_steps=400, seed=member.seed, hyper=hyper, **OPTIONS)
        mine = [row for row in rows if row["member"] == member.number]
        assert {(row["seed"], row["hyper.rate"]) for row in mine} == {(member.seed, hyper.rate)}
        count = alone.history.generation.shape[1]
        np.testing.assert_allclose(
            [row["fitness"] for row in mine[:count]], alone.history.metrics.fitness[0], rtol=1e-5
        )
        shown = [row["return"] for row in evaluations if row["member"] == member.number]
        np.testing.assert_allclose(shown, [e.mean for e in alone.evaluations], rtol=1e-5)
        assert finals[place]["numbers"] == member.numbers
        np.testing.assert_allclose(finals[place]["final_return"], alone.returns[0], rtol=1e-5)
        lane = jax.tree.map(lambda x: x[place : place + 1], together.state)
        assert finals[place]["state_sha256"] == state_arrays.digest(lane)
    assert len({row["final_return"] for row in finals}) == 4
    assert {path.name for path in (tmp_path / "curves").iterdir()} == {
        "hyper.rate=0.1.png",
        "hyper.rate=0.4.png",
    }
    assert len(list((tmp_path / "tensorboard").iterdir())) == 4


def test_members_stand_still_from_the_end_of_the_budget_on(tmp_path: Path) -> None:
    """However long the others take, each is what a run of it alone is; prolonged it goes on from there."""
    options: Any = SHORT | {"seeds": 4, "run_dir": tmp_path / "sweep"}
    result = train(METHOD, ENV, env_steps=600, **options)
    rows = result.summary["members"]
    assert len(set(result.state.generation.tolist())) > 1
    for place, row in enumerate(rows):
        alone = train(METHOD, ENV, env_steps=600, seed=place, **SHORT)
        assert row["status"] == "finished"
        assert row["env_steps"] == alone.summary["env_steps"] == int(result.state.env_steps[place])
        assert row["state_sha256"] == alone.summary["state_sha256"]
        np.testing.assert_array_equal(result.returns[place], alone.returns[0])
        recorded = [r for r in lines(tmp_path / "sweep/metrics.jsonl") if r["member"] == place]
        assert [r["generation"] for r in recorded] == alone.history.generation[0].tolist()
    # Evaluations of the same generation of a member draw alike, wherever the others stand.
    longer = train(METHOD, ENV, env_steps=1200, resume=True, **options)
    straight = train(METHOD, ENV, env_steps=1200, **(options | {"run_dir": None}))
    assert longer.summary["state_sha256"] == straight.summary["state_sha256"]
    np.testing.assert_array_equal(longer.returns, straight.returns)


def three_that_differ() -> Any:
    """A State of three members."""
    members = sweep.grid(0, 3, {})
    return jax.vmap(METHOD.init)(sweep.keys(members), sweep.hypers(METHOD.hyper, members))


def test_members_that_stand_still_share_one_part_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for whom there is none left are in files, which are closed at the end."""
    state = three_that_differ()
    expected, lane = state_arrays.digest(state), memory.tree_bytes(state) // 3
    monkeypatch.setattr(memory, "host_bytes", lambda: 4 * lane + 2)
    files: list[Any] = []
    make = tempfile.TemporaryFile

    def seen(**options: Any) -> Any:
        files.append(make(**options))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", seen)
    stopped = StoppedMembers(state, tmp_path)
    stopped.keep(state, (0, 1))
    assert not files
    stopped.keep(state, (2,))
    assert len(files) == 1
    assert stopped.places == {0, 1, 2}
    assert state_arrays.digest(stopped.put_back(jax.tree.map(jnp.zeros_like, state))) == expected
    stopped.close()
    assert files[0].closed


@pytest.mark.parametrize(
    ("directory", "remedy"), [(True, "--resume continues from the newest"), (False, "in TMPDIR")]
)
def test_a_full_disk_under_a_member_that_stands_still_is_one_line(
    directory: bool, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process hears of it, as the others would wait."""
    told: list[int] = []
    monkeypatch.setattr(processes, "largest", lambda number: told.append(number) or number)
    monkeypatch.setattr(memory, "host_bytes", lambda: 0)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    state = three_that_differ()
    with pytest.raises(NotSaved, match=rf"could not be kept in {tmp_path} \(No space left.*{remedy}") as line:
        StoppedMembers(state, tmp_path if directory else None).keep(state, (1,))
    assert "\n" not in str(line.value)
    assert told == [1]


def test_a_part_of_a_sweep_equals_that_part_of_the_whole() -> None:
    whole = train(METHOD, ENV, env_steps=240, seeds=2, swept=SWEPT, **OPTIONS)
    part = train(METHOD, ENV, env_steps=240, seeds=2, swept=SWEPT, members=(1, 3), **OPTIONS)
    assert [row["member"] for row in part.summary["members"]] == [1, 2]
    for mine, theirs in zip(part.summary["members"], whole.summary["members"][1:3], strict=True):
        assert mine["numbers"] == theirs["numbers"]
        np.testing.assert_allclose(mine["final_return"], theirs["final_return"], rtol=1e-5)


POISON = {"hyper.poison_at": [-1.0, 25.0, -2.0]}


def test_a_member_that_fails_is_marked_while_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, options = tiny.build(ENV), OPTIONS | {"quiet": False}
    result = train(method, ENV, env_steps=600, swept=POISON, run_dir=tmp_path, **options)
    said = [line for line in capsys.readouterr().err.splitlines() if "has failed" in line]
    assert len(said) == 1
    assert "member 1 (hyper.poison_at=25,seed0) has failed: metric losses.loss became NaN" in said[0]
    assert "in generation 25; its last good checkpoint is that of generation 21; 2 others continue" in said[0]
    rows = result.summary["members"]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert [row["env_steps"] for row in rows] == [612, 288, 612]  # the chunk before ended at generation 24
    assert rows[1]["final_return"] is None
    assert rows[1]["last_good_checkpoint"] == 21
    assert np.isnan(result.returns[1])
    assert not np.isnan(result.returns[[0, 2]]).any()
    assert {21, 51} <= set(checkpoint.generations(tmp_path / "checkpoints"))  # it is kept for the failed one
    undisturbed = train(method, ENV, env_steps=600, swept={"hyper.poison_at": [-1.0, -3.0, -2.0]}, **OPTIONS)
    for place in (0, 2):
        assert rows[place]["state_sha256"] == undisturbed.summary["members"][place]["state_sha256"]
    recorded = [row["generation"] for row in lines(tmp_path / "metrics.jsonl") if row["member"] == 1]
    assert recorded[-1] == 24  # what was finite stays on record
    assert max(row["generation"] for row in lines(tmp_path / "eval.jsonl") if row["member"] == 1) <= 24


def made_by(directory: Path, **facts: str) -> None:
    """Let ``config.json`` say something else of what made the run."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def test_a_failed_member_is_deployed_as_its_last_good_checkpoint_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, beside the others, and as the beginning of another run."""
    method, options = tiny.build(ENV), OPTIONS | {"checkpoint_every": 240}
    train(method, ENV, env_steps=600, swept=POISON, run_dir=tmp_path / "all", **options)
    made_by(tmp_path / "all", method="tests.host.tiny")
    good = train(method, ENV, env_steps=252, hyper=tiny.Hyper(poison_at=25.0), **OPTIONS).state.weight[0]
    for member, place in ((None, 1), (1, 0)):
        loaded = building.load(tmp_path / "all", member)
        assert loaded.env_steps[place] == 252
        np.testing.assert_allclose(loaded.state.weight[place], good, rtol=1e-5)
        assert "member 1 has failed: metric losses.loss" in capsys.readouterr().err
    with member_subset.detached(tmp_path / "all", tmp_path / "one", (1, 2)):
        arrays, extra = checkpoint.rows(tmp_path / "one/checkpoints/21")
    np.testing.assert_allclose(arrays["weight"][0], good, rtol=1e-5)
    assert extra["env_steps"] == [252]
    with pytest.raises(NonFiniteMetric, match="generation 25"):
        train(
            method,
            ENV,
            env_steps=600,
            swept=POISON,
            members=(1, 2),
            run_dir=tmp_path / "one",
            resume=True,
            **options,
        )


def test_a_member_that_failed_before_its_first_checkpoint_is_deployed_as_it_began(tmp_path: Path) -> None:
    swept = {"hyper.poison_at": [-1.0, 3.0]}
    result = train(tiny.build(ENV), ENV, env_steps=240, swept=swept, run_dir=tmp_path / "all", **OPTIONS)
    assert result.summary["members"][1]["last_good_checkpoint"] is None
    made_by(tmp_path / "all", method="tests.host.tiny")
    loaded = building.load(tmp_path / "all")
    assert loaded.env_steps == [252, 0]
    assert loaded.state.generation.tolist() == [21, 0]
    with (
        pytest.raises(Refused, match=r"member 1 has failed: .* has no checkpoint: leave it out"),
        member_subset.detached(tmp_path / "all", tmp_path / "one", None),
    ):
        pass


def test_a_failed_member_stays_so_after_a_resume(tmp_path: Path) -> None:
    method = tiny.build(ENV)
    straight = train(method, ENV, env_steps=600, swept=POISON, run_dir=tmp_path / "a", **OPTIONS)
    train(method, ENV, env_steps=400, swept=POISON, run_dir=tmp_path / "b", **OPTIONS)
    resumed = train(method, ENV, env_steps=600, swept=POISON, run_dir=tmp_path / "b", resume=True, **OPTIONS)
    assert resumed.summary["members"] == straight.summary["members"]
    assert resumed.summary["state_sha256"] == straight.summary["state_sha256"]
    assert 21 in checkpoint.generations(tmp_path / "b/checkpoints")


def test_a_run_with_members_that_an_earlier_popjax_froze_is_refused(tmp_path: Path) -> None:
    method, options = tiny.build(ENV), OPTIONS | {"swept": POISON, "run_dir": tmp_path}
    train(method, ENV, env_steps=240, **options)
    arrays, extra = checkpoint.rows(tmp_path / "checkpoints/21")
    checkpoint.write_arrays(tmp_path / "checkpoints", 21, arrays, extra | {"frozen": {"1": "it was NaN"}})
    made_by(tmp_path, git_commit="c0ffee")
    for _ in range(2):  # the refusal leaves config.json as it was
        with pytest.raises(Refused, match="stopped; check out commit c0ffee to resume it"):
            train(method, ENV, env_steps=600, resume=True, **options)


@pytest.mark.slow
def test_what_a_failed_member_leaves_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    """Only which checkpoint is its last good one does: a signal makes more of them."""
    method, options = tiny.build(ENV, tiny.Config(uneven=True)), OPTIONS | {"env_steps": 600, "swept": POISON}
    straight = train(method, ENV, run_dir=tmp_path / "a", **options)

    def stop(index: int, history: Any) -> None:
        if index == 1:
            signal.raise_signal(signal.SIGTERM)

    reached = []
    while True:  # at the end of every chunk
        with contextlib.suppress(Interrupted):
            resumed = train(
                method, ENV, run_dir=tmp_path / "b", resume=bool(reached), sinks=[stop], **options
            )
            break
        reached.append(checkpoint.generations(tmp_path / "b/checkpoints")[0])
    assert 24 in reached  # right before the failure in generation 25
    assert resumed.summary["members"][1].pop("last_good_checkpoint") == 24
    assert 0 < straight.summary["members"][1].pop("last_good_checkpoint") < 21
    assert resumed.summary["members"] == straight.summary["members"]
    assert resumed.summary["state_sha256"] == straight.summary["state_sha256"]
    assert lines(tmp_path / "a/metrics.jsonl") == lines(tmp_path / "b/metrics.jsonl")
    assert lines(tmp_path / "a/eval.jsonl") == lines(tmp_path / "b/eval.jsonl")


def test_the_last_member_that_goes_on_may_fail_when_the_others_have_finished(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = SHORT | {"quiet": False, "seeds": 4}
    slowest = int(train(METHOD, ENV, env_steps=600, **options).state.generation.max())
    result = train(METHOD, ENV, env_steps=600, hyper=tiny.Hyper(poison_at=float(slowest)), **options)
    assert "the others have finished" in capsys.readouterr().err
    assert {row["status"] for row in result.summary["members"]} == {"finished", "failed"}


def test_a_run_ends_when_all_members_have_failed() -> None:
    with pytest.raises(NonFiniteMetric, match="generation 10"):
        train(tiny.build(ENV), ENV, env_steps=240, swept={"hyper.poison_at": [4.0, 10.0]}, **OPTIONS)


def test_a_sweep_that_cannot_fit_says_how_many_members_do(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny.build(ENV, tiny.Config(capacity=100_000))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3_300_000)
    with pytest.raises(TooLarge) as fault:
        train(method, ENV, env_steps=240, seeds=8, **OPTIONS)
    assert fault.value.fitting == 3
    train(method, ENV, env_steps=240, seeds=8, members=(0, 3), **OPTIONS)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 3_100_000)  # 0.8 MB each
    with pytest.raises(TooLarge):  # one member more lies there while it is put back
        train(method, ENV, env_steps=240, seeds=8, members=(0, 3), **OPTIONS)


@pytest.mark.slow
def test_members_whose_episodes_are_of_any_length_do_not_depend_on_those_beside_them() -> None:
    """A run of one alone is compiled without the axis of the members and rounds otherwise."""
    config = pderl.Config(
        population=4,
        memory=12,
        mutation_batch=4,
        capacity=200,
        batch=2,
        distillation=Distillation(batch=4, epochs=1),
        agent=ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4),
    )
    env = make("probe/corridor")
    method = pderl.build(env, config)
    options: Any = {"eval_every": 200, "log_every": 1, "quiet": True, "env_steps": 300}
    result = train(method, env, seeds=4, **options)
    assert len(set(result.state.generation.tolist())) > 1
    pairs = [train(method, env, seed=seed, seeds=2, **options) for seed in (0, 2)]
    rows = [row for pair in pairs for row in pair.summary["members"]]
    for row, theirs in zip(result.summary["members"], rows, strict=True):
        assert (row["env_steps"], row["state_sha256"]) == (theirs["env_steps"], theirs["state_sha256"])
    alone = train(method, env, seed=0, **options)
    assert alone.summary["env_steps"] == rows[0]["env_steps"]
    first = jax.tree.map(lambda x: x[:1], result.state)
    for name in ("actors", "learner"):
        chex.assert_trees_all_close(getattr(first, name), getattr(alone.state, name), rtol=1e-3, atol=1e-4)


def test_a_list_of_numbers_that_does_not_fit_is_told_before_training(tmp_path: Path) -> None:
    """From Python as on the command line."""
    small = independent.Config(agent=ddpg.Config(hidden=(4,)), population=3, capacity=10, warmup=5, batch=2)
    method = independent.build(ENV, small)
    hyper = method.hyper.replace(actor_lr=np.ones(2, np.float32))
    with pytest.raises(Refused, match=r"hyper.actor_lr has 2 values, and there are 3 individuals") as line:
        train(method, ENV, env_steps=240, hyper=hyper, run_dir=tmp_path / "run")
    assert "\n" not in str(line.value)
    assert not (tmp_path / "run").exists()
