"""Runs that end before their budget, callbacks that see the policy, and what is kept of both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.envs import make
from popjax.host.checkpoints import checkpoint
from popjax.host.deploy import chosen_policy
from popjax.host.errors import Refused
from popjax.host.runs import best_policies, log, run_group, rundir
from popjax.host.runs.history import Evaluation
from popjax.host.scaling.sweep import Member
from popjax.host.training import loop, summary, train
from tests.host import tiny

ENV = make("probe/corridor")
METHOD = tiny.build(ENV)
OPTIONS: dict[str, Any] = {"eval_every": 24, "eval_episodes": 2, "checkpoint_every": 48, "log_every": 24}


def run(tmp_path: Path | None = None, **options: Any) -> Any:
    where = None if tmp_path is None else tmp_path / "run"
    return train(METHOD, ENV, **OPTIONS | {"env_steps": 240, "quiet": True, "run_dir": where} | options)


def test_a_sink_that_answers_true_ends_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, seeds=2, sinks=[lambda index, _: index == 3])
    assert result.summary["env_steps"] == 72
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["members"]
    assert [(row["status"], row["reason"]) for row in rows] == [("stopped", "a sink returned True")] * 2
    assert checkpoint.generations(tmp_path / "run" / "checkpoints")[0] == 6
    whole = run(tmp_path, seeds=2, resume=True)
    assert whole.summary["state_sha256"] == run(seeds=2).summary["state_sha256"]
    assert [row["status"] for row in whole.summary["members"]] == ["finished"] * 2


@pytest.mark.parametrize("answer", [None, False, 1, "yes", np.ones(3), np.float32(1)])
def test_no_other_answer_ends_it(answer: Any) -> None:
    assert run(env_steps=48, sinks=[lambda *_: answer]).summary["env_steps"] == 48
    assert log.says_stop(np.bool_(True))


def test_time_is_up(tmp_path: Path) -> None:
    result = run(tmp_path, max_minutes=1e-9)
    assert (result.summary["env_steps"], result.summary["members"][0]["reason"]) == (
        0,
        "--max-minutes has passed",
    )
    assert not run_group.finished(tmp_path / "run", 240)
    whole = run(tmp_path, resume=True, max_minutes=60.0)
    assert whole.summary["state_sha256"] == run().summary["state_sha256"]
    assert run_group.finished(tmp_path / "run", 240)


def test_members_stop_at_a_return_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(seeds=4)
    curves = {n: [e.mean for e in plain.evaluations if e.member == n] for n in range(4)}
    wanted = sorted(max(curve) for curve in curves.values())[-2]  # not everyone gets there
    stopped = run(tmp_path, seeds=4, stop_at_return=wanted)
    for place, curve in curves.items():
        first = next((i for i, value in enumerate(curve) if value >= wanted), None)
        row = stopped.summary["members"][place]
        assert row["env_steps"] == (240 if first is None else 24 * first)
        reached = first is not None and first < 10
        assert row["status"] == ("stopped" if reached else "finished")
        assert row["reason"] == (f"reached a return of {wanted:g}" if reached else None)
        alone = run(seed=place, stop_at_return=wanted).summary["members"][0]
        assert row["state_sha256"] == alone["state_sha256"]
    assert {row["status"] for row in stopped.summary["members"]} == {"stopped", "finished"}
    capsys.readouterr()
    run(tmp_path, seeds=4, resume=True, stop_at_return=wanted, quiet=False)
    assert "leave out --stop-at-return or raise it to continue it" in capsys.readouterr().err
    (tmp_path / "run" / "summary.json").unlink()  # as if the run had been killed after its last checkpoint
    again = run(tmp_path, seeds=4, resume=True, stop_at_return=wanted)
    for name in ("status", "reason", "state_sha256"):
        assert [row[name] for row in again.summary["members"]] == [
            row[name] for row in stopped.summary["members"]
        ]
    on = run(tmp_path, seeds=4, resume=True, stop_at_return=None)  # each goes on from where it stands
    assert on.summary["state_sha256"] == plain.summary["state_sha256"]


def test_the_curve_of_a_run_leaves_out_failed_members_and_knows_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean would end where the first seed fails or reaches the goal."""
    drawn: list[tuple[set[int], float]] = []
    broken = lambda rows: {1: (rows.generation[1, -1], "losses.loss")} if 1 in rows.active else {}  # noqa: E731
    monkeypatch.setattr(loop, "non_finite", broken)
    monkeypatch.setattr(
        summary,
        "learning_curve",
        lambda made, path, title, stop_at_return: drawn.append(({e.member for e in made}, stop_at_return)),
    )
    result = run(tmp_path, seeds=3, env_steps=48, stop_at_return=1e9)
    assert [row["status"] for row in result.summary["members"]] == ["finished", "failed", "finished"]
    assert drawn == [({0, 2}, 1e9)]


def test_a_callback_sees_the_policy_of_every_member() -> None:
    seen: list[Any] = []
    result = run(seeds=2, sinks=[lambda index, history, policy: seen.append(policy)])
    last = jax.vmap(METHOD.policy)(result.state)
    jax.tree.map(np.testing.assert_array_equal, seen[-1], last)
    assert len(seen) == 11
    assert (np.asarray(seen[0]) != np.asarray(seen[-1])).any()


def test_only_who_needs_three_arguments_gets_the_policy() -> None:
    def two(index: int, history: Any, verbose: bool = False) -> None: ...
    def three(index: int, history: Any, policy: Any, *, verbose: bool = False) -> None: ...
    def any_number(*arguments: Any) -> None: ...

    assert [log.sees_policy(f) for f in (two, three, any_number, [].append)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("options", "said"), [({"max_minutes": 0.0}, "above 0"), ({"keep_checkpoints": 0}, "at least 1")]
)
def test_senseless_ends_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        run(**options)


def test_more_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, keep_checkpoints=4)
    assert checkpoint.generations(tmp_path / "run" / "checkpoints") == [20, 16, 12, 8]


def test_the_best_policy_is_kept(tmp_path: Path) -> None:
    seen: list[Any] = []
    result = run(tmp_path, seeds=3, sinks=[lambda index, history, policy: seen.append(policy)])
    shapes = jax.eval_shape(METHOD.policy, jax.eval_shape(METHOD.init, jax.random.key(0), METHOD.hyper))
    policies, steps = best_policies.load(tmp_path / "run" / "best.npz", shapes, [0, 2])
    for row, number in enumerate((0, 2)):
        mine = [e for e in result.evaluations if e.member == number and e.env_steps]
        first = max(mine, key=lambda e: e.mean)
        assert steps[row] == first.env_steps
        expected = jax.tree.map(lambda x: x[number], seen[first.env_steps // 24])
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[row], policies), expected)


def test_a_member_that_was_never_evaluated_has_no_best_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that fails early, whose weights are NaN when others have their first evaluation."""
    files = rundir.RunDirectory(tmp_path)
    state = jax.vmap(METHOD.init, (0, None))(jax.random.split(jax.random.key(0), 2), METHOD.hyper)
    policies = jax.vmap(METHOD.policy)(state)
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.nan), policies)
    kept = best_policies.Best(files.best, [Member(4, 0), Member(7, 1)], lambda _: broken)
    kept.see(None, [Evaluation(0, 1, 24, (3.0,), (5,), 4), Evaluation(0, 1, 24, (math.nan,), (5,), 7)])
    kept.save()
    method, chosen, steps = chosen_policy.with_best(METHOD, (state, [48, 12]), files, [4, 7])
    assert steps == [24, 12]
    assert "member 7 was never evaluated after training began" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(method.policy)(chosen), policies)
    last = jax.tree.map(lambda x: x[1:], state)
    with pytest.raises(Refused, match="no policy of member 7: none was evaluated"):
        chosen_policy.with_best(METHOD, (last, [12]), files, [7])


def test_the_best_policy_survives_a_resume(tmp_path: Path) -> None:
    run(tmp_path, sinks=[lambda index, _: index == 4])
    run(tmp_path, resume=True)
    train(METHOD, ENV, **OPTIONS, env_steps=240, quiet=True, run_dir=tmp_path / "whole")
    with np.load(tmp_path / "run" / "best.npz") as halves, np.load(tmp_path / "whole" / "best.npz") as whole:
        assert set(halves.files) == set(whole.files)
        for name in whole.files:
            np.testing.assert_array_equal(halves[name], whole[name])


def test_sinks_are_a_list_of_functions_whose_answer_may_be_an_array(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="sinks must be a list of functions"):
        run(tmp_path, sinks=lambda index, _: None)
    assert not (tmp_path / "run").exists()
    assert run(sinks=[lambda index, _: jax.numpy.bool_(index == 3)]).summary["env_steps"] == 72


def test_a_continued_member_takes_its_best_policy_along(tmp_path: Path) -> None:
    from popjax.host.runs.member_subset import detached

    run(tmp_path, seeds=3)
    with detached(tmp_path / "run", tmp_path / "alone", (1, 2)):
        pass
    with (
        np.load(tmp_path / "run" / "best.npz") as all_of_them,
        np.load(tmp_path / "alone" / "best.npz") as one,
    ):
        for name in all_of_them.files:
            np.testing.assert_array_equal(one[name], all_of_them[name][1:2])
