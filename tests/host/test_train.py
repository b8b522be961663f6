"""The training loop: what it computes does not depend on how it was cut into chunks, seeds and processes."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from popjax.envs import make
from popjax.host.checkpoints.state_arrays import digest
from popjax.host.errors import NonFiniteMetric, Refused
from popjax.host.runs import log, rundir
from popjax.host.scaling import memory, sweep
from popjax.host.training import evaluate, summary, train
from popjax.host.training.compiled_programs import chunk_function
from popjax.replay import packed
from tests.host import tiny
from tests.support import equal

ENV = make("probe/context")
OPTIONS = {"eval_every": 100, "checkpoint_every": 120, "log_every": 40, "eval_episodes": 2, "quiet": True}


def lines(path: Path) -> list[dict]:
    """Records but for their times, which no two runs share."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: row[name] for name in row if name not in log.TIMES} for row in rows]


def test_a_chunk_gives_the_same_rows_on_every_device(key: jax.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator stores narrow metrics together."""
    method = tiny.build(ENV, tiny.Config())
    state = method.init(key, method.hyper)
    apart = jax.jit(chunk_function(method, 3))(state)
    monkeypatch.setattr(packed, "platform", lambda: "gpu")
    equal(jax.jit(chunk_function(method, 3))(state), apart)


def test_stopped_and_resumed_equals_straight(tmp_path: Path) -> None:
    method = tiny.build(ENV, tiny.Config(uneven=True))
    straight = train(method, ENV, env_steps=600, seeds=2, run_dir=tmp_path / "a", **OPTIONS)
    train(method, ENV, env_steps=300, seeds=2, run_dir=tmp_path / "b", **OPTIONS)
    resumed = train(method, ENV, env_steps=600, seeds=2, run_dir=tmp_path / "b", resume=True, **OPTIONS)
    assert resumed.summary["state_sha256"] == straight.summary["state_sha256"] == digest(straight.state)
    np.testing.assert_array_equal(resumed.returns, straight.returns)
    rows = lines(tmp_path / "a/metrics.jsonl")
    assert rows == lines(tmp_path / "b/metrics.jsonl")
    for member in straight.summary["members"]:  # the summary ends with what the last row says
        last = [row for row in rows if row["member"] == member["member"]][-1]
        assert member["metrics"] == {name: last[name] for name in member["metrics"]}
        assert "fitness" in member["metrics"]


def test_records_have_times_that_go_on_after_a_resume(tmp_path: Path) -> None:
    method, spent, reached = tiny.build(ENV, tiny.Config(uneven=True)), 0.0, -1
    for budget in (240, 480):
        train(method, ENV, env_steps=budget, seeds=2, run_dir=tmp_path, resume=True, **OPTIONS)
        summary = json.loads((tmp_path / "summary.json").read_text())
        recorded = []
        for name in ("metrics.jsonl", "eval.jsonl"):
            rows = [row for row in log.read_lines(tmp_path / name) if row["member"] == 1]
            train_seconds, wall_seconds = ([row[key] for row in rows] for key in log.TIMES)
            assert train_seconds == sorted(train_seconds)
            assert wall_seconds == sorted(wall_seconds)
            steps = [row["env_steps"] for row in rows]
            assert summary["wall_seconds"] >= wall_seconds[-1] > train_seconds[-1]
            later = [wall for wall, at in zip(wall_seconds, steps, strict=True) if at > reached]
            assert min(later) > spent  # what the first process spent until its last checkpoint counts
            recorded.append(wall_seconds[-1])
        spent, reached = max(recorded), summary["env_steps"]
        trained = max(row["train_seconds"] for row in log.read_lines(tmp_path / "eval.jsonl"))
        taken = sum(summary["env_steps_per_seed"])
        assert trained * summary["steps_per_second"] == pytest.approx(taken, rel=0.02)


def test_training_does_not_depend_on_files_or_evaluation(tmp_path: Path) -> None:
    method = tiny.build(ENV)
    options = OPTIONS | {"log_every": 12}
    with_files = train(method, ENV, env_steps=240, run_dir=tmp_path, **options)
    without = train(method, ENV, env_steps=240, **(options | {"eval_every": 240}))
    assert digest(with_files.state) == digest(without.state)
    assert len(with_files.evaluations) == 4
    assert [e.env_steps for e in without.evaluations] == [0, 240]


def test_a_sweep_of_seeds_equals_single_runs() -> None:
    method = tiny.build(ENV, tiny.Config(uneven=True))
    together = train(method, ENV, env_steps=400, seeds=3, seed=5, **OPTIONS)
    for place in range(3):
        alone = train(method, ENV, env_steps=400, seed=5 + place, **OPTIONS)
        mine = [e for e in together.evaluations if e.seed == 5 + place]
        assert [e.env_steps for e in mine] == [e.env_steps for e in alone.evaluations]
        np.testing.assert_allclose(together.returns[place], alone.returns[0], rtol=1e-5)
        rows = alone.history.generation.shape[1]
        np.testing.assert_array_equal(together.history.env_steps[place, :rows], alone.history.env_steps[0])
        np.testing.assert_allclose(
            together.history.metrics.fitness[place, :rows], alone.history.metrics.fitness[0], rtol=1e-5
        )


def test_the_state_is_updated_in_place() -> None:
    method = tiny.build(ENV, tiny.Config(capacity=1_000_000))
    for seeds in (1, 2):
        members = sweep.grid(0, seeds, {})
        start = sweep.keys(members), sweep.hypers(method.hyper, members)
        shapes = jax.eval_shape(sweep.lift(method.init, seeds), *start)
        chunk = sweep.lift(chunk_function(method, 10), seeds)
        compiled = jax.jit(chunk, donate_argnums=0).lower(shapes).compile()
        analysis, size = compiled.memory_analysis(), memory.tree_bytes(shapes)
        assert size > seeds * 8_000_000
        assert analysis.alias_size_in_bytes > 0.99 * size
        assert analysis.temp_size_in_bytes < 0.01 * size
        assert memory.compiled_bytes(compiled) < 1.02 * size


def test_the_run_directory_holds_everything(tmp_path: Path) -> None:
    result = train(tiny.build(ENV), ENV, env_steps=240, seeds=2, seed=3, run_dir=tmp_path, **OPTIONS)
    names = {path.name for path in tmp_path.iterdir()}
    files = {"config.json", "metrics.jsonl", "eval.jsonl", "best.npz", "curve.png", "summary.json"}
    assert names == files | {"checkpoints", "tensorboard", "lock"}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == result.summary
    assert (summary["method"], summary["env"], summary["seeds"]) == (
        "tests.host.tiny",
        "probe/context",
        [3, 4],
    )
    assert summary["env_steps"] == 252  # the end of the chunk that reached 240
    assert summary["wall_seconds"] > summary["compile_seconds"] > 0
    shares = summary["time_shares"]
    assert set(shares) == {"compiling", "training", "evaluating", "recording", "saving", "other"}
    assert sum(shares.values()) == pytest.approx(1, abs=0.001)
    assert min(shares.values()) >= 0
    assert shares["compiling"] == pytest.approx(
        summary["compile_seconds"] / summary["wall_seconds"], abs=0.01
    )
    rows = lines(tmp_path / "metrics.jsonl")
    assert [row["seed"] for row in rows[:2]] == [3, 4]
    assert [row["member"] for row in rows[:2]] == [0, 1]
    assert set(rows[0]) == {"member", "seed", "generation", "env_steps", "fitness", "losses.loss", "count"}
    assert len(rows[0]["fitness"]) == 3
    assert len(rows) == 2 * result.history.generation.shape[1]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"]["env_steps"] == 240
    assert config["hyper"] == {"rate": 0.1, "poison_at": -1.0}
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "tensorboard").glob("seed*/events*"))) == 2


def test_time_that_a_sink_takes_is_no_time_in_training(tmp_path: Path) -> None:
    slow = partial(train, tiny.build(ENV), ENV, env_steps=240, **OPTIONS)
    found = slow(sinks=[lambda index, history: time.sleep(0.1)]).summary
    assert found["time_shares"]["recording"] * found["wall_seconds"] > 0.1
    assert found["time_shares"]["saving"] == 0  # nowhere to save to


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = tiny.build(ENV)
    options = OPTIONS | {"quiet": False}
    first = train(method, ENV, env_steps=120, run_dir=tmp_path, **options)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    again = train(method, ENV, env_steps=120, run_dir=tmp_path, resume=True, **options)
    assert "has already finished" in capsys.readouterr().err
    assert again.summary == first.summary
    assert digest(again.state) == digest(first.state)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env_steps": 11}, "less than one generation, which may take 12"),
        ({"env_steps": 0}, "--env-steps must be at least 1, got 0"),
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"eval_every": 0}, "--eval-every must be at least 1"),
        ({"eval_episodes": 0}, "--eval-episodes must be at least 1"),
        ({"checkpoint_every": -5}, "--checkpoint-every must be at least 1, got -5"),
        (
            {"env_steps": 2**31 - 1},
            "exceeds 2147[0-9]+, the largest budget that the State can count: let the method count in a",
        ),
        ({"resume": True}, "needs a --run-dir"),
    ],
)
def test_numbers_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        train(tiny.build(ENV), ENV, **({"env_steps": 100} | options))


def test_a_run_that_cannot_fit_allocates_nothing(tmp_path: Path) -> None:
    method = tiny.build(ENV, tiny.Config(capacity=10**12))
    with pytest.raises(Refused, match=r"needs 8.0 TB.*'replay' with 8.0 TB: reduce the replay capacity"):
        train(method, ENV, env_steps=100, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    method = tiny.build(ENV)
    train(method, ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    with pytest.raises(Refused, match=r"already holds a run: add --resume to continue it"):
        train(method, ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)


def test_a_run_that_ended_between_the_check_and_the_lock_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = rundir._locked

    def late(files: rundir.RunDirectory) -> Any:
        files.summary.write_text("{}")
        return locked(files)

    monkeypatch.setattr(rundir, "_locked", late)
    with pytest.raises(Refused, match="already holds a run"), rundir.opened(tmp_path, {}, resume=False):
        pass
    assert not (tmp_path / "config.json").exists()


def test_resuming_with_other_options_names_each(tmp_path: Path) -> None:
    method = tiny.build(ENV)
    train(method, ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    other = {"env_steps": 60, "seeds": 2, "hyper": tiny.Hyper(rate=0.5)}
    with pytest.raises(Refused) as refusal:
        train(method, ENV, run_dir=tmp_path, resume=True, **other, **OPTIONS)
    for part in ("--hyper.rate 0.1 -> 0.5", "--env-steps 120 -> 60"):
        assert part in str(refusal.value)


def test_an_option_that_popjax_has_gained_since_had_its_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = tiny.build(ENV)
    train(method, ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    path = tmp_path / "config.json"
    told = json.loads(path.read_text())
    assert told["config"].pop("capacity") == 1_000
    assert told["hyper"].pop("rate") == pytest.approx(0.1)
    path.write_text(json.dumps(told))
    for other, part in (
        (tiny.build(ENV, tiny.Config(capacity=50)), "--config.capacity 1000 -> 50"),
        (method._replace(hyper=tiny.Hyper(rate=0.5)), "--hyper.rate 0.1 -> 0.5"),
    ):
        with pytest.raises(Refused, match=part):
            train(other, ENV, env_steps=240, run_dir=tmp_path, resume=True, **OPTIONS)
    capsys.readouterr()
    result = train(method, ENV, env_steps=240, run_dir=tmp_path, resume=True, **OPTIONS | {"quiet": False})
    assert "--config.capacity is new: 1000; --hyper.rate is new: 0.1" in capsys.readouterr().err
    straight = train(method, ENV, env_steps=240, **OPTIONS)
    assert digest(result.state) == digest(straight.state)
    assert json.loads(path.read_text())["config"]["capacity"] == 1_000


def test_an_option_of_another_kind_of_agent_is_not_one_that_was_gained() -> None:
    """TD3's options must not count as options of DDPG that an earlier version did not have."""
    ddpg, td3 = (
        {"method": "pderl", "agents": {"agent": kind}, "config": {"agent": config}, "hyper": {}}
        for kind, config in (("ddpg", {"polyak": 0.1}), ("td3", {"polyak": 0.1, "delay": 2}))
    )
    found = [line for _, line in rundir.differences(ddpg, td3)]
    assert found == ["--config.agent ddpg -> td3", "--config.agent.delay unset -> 2"]


def test_a_non_finite_metric_stops_the_run(tmp_path: Path) -> None:
    method = tiny.build(ENV)
    options = {"env_steps": 600, "seeds": 2, "hyper": tiny.Hyper(poison_at=25.0), **OPTIONS}
    with pytest.raises(NonFiniteMetric) as failure:
        train(method, ENV, run_dir=tmp_path, **options)
    text = str(failure.value)
    assert "metric losses.loss of seed 0" in text
    assert "generation 25" in text
    assert "--resume" in text
    assert "generation 21" in text  # 20 x 12 = 240 is the multiple of 120 before; chunks are of 3
    assert (tmp_path / "checkpoints/21").is_dir()
    assert not (tmp_path / "summary.json").exists()
    with pytest.raises(NonFiniteMetric, match="no run directory"):
        train(method, ENV, **options)


def test_sinks_see_every_recorded_generation_once() -> None:
    seen: list[tuple[int, list[int], int]] = []
    train(
        tiny.build(ENV),
        ENV,
        env_steps=120,
        sinks=[lambda index, h: seen.append((index, h.generation[0].tolist(), len(h.evaluations)))],
        **OPTIONS,
    )
    assert seen[0] == (0, [], 1)
    assert [index for index, _, _ in seen] == list(range(len(seen)))
    assert [g for _, generations, _ in seen for g in generations] == [3, 6, 9, 12]


def test_evaluation_is_reproducible_and_leaves_the_state() -> None:
    method = tiny.build(ENV)
    state = train(method, ENV, env_steps=120, seeds=2, **OPTIONS).state
    before = digest(state)
    returns, lengths = evaluate(method, ENV, state, episodes=20, seed=1)
    assert returns.shape == lengths.shape == (2, 20)
    np.testing.assert_array_equal(evaluate(method, ENV, state, episodes=20, seed=1)[0], returns)
    assert not np.array_equal(evaluate(method, ENV, state, episodes=20, seed=2)[0], returns)
    assert digest(state) == before
    with pytest.raises(Refused, match="--episodes"):
        evaluate(method, ENV, state, episodes=0)


def test_going_on_with_other_versions_or_on_another_device_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another version, device or number of threads may compute other bits."""
    options = {**OPTIONS, "quiet": False}
    train(tiny.build(ENV), ENV, env_steps=120, run_dir=tmp_path, **options)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    here, config["device"] = config["device"], "cpu (x86_64, 3 threads)"
    config["versions"]["jax"] = "0.0.1"
    file.write_text(json.dumps(config))
    capsys.readouterr()
    train(tiny.build(ENV), ENV, env_steps=240, run_dir=tmp_path, resume=True, **options)
    changes = f"jax 0.0.1 -> {jax.__version__}; device cpu (x86_64, 3 threads) -> {here}"
    assert f"continuing with --env-steps 120 -> 240; {changes}" in capsys.readouterr().err


def test_a_curve_that_cannot_be_drawn_leaves_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(summary, "learning_curve", failing)
    result = train(tiny.build(ENV), ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    assert json.loads((tmp_path / "summary.json").read_text()) == result.summary
    assert capsys.readouterr().err == "no learning curve was drawn: RuntimeError: no font\n"


def test_a_run_that_was_killed_at_its_curve_draws_it_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(summary, "learning_curve", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny.build(ENV), ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    train(tiny.build(ENV), ENV, env_steps=120, run_dir=tmp_path, resume=True, **OPTIONS)
    assert (tmp_path / "curve.png").exists()
    assert (tmp_path / "summary.json").exists()
