"""Records of a run come back as arrays."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import popjax
from popjax.host.errors import Refused
from popjax.host.runs import tables
from tests.host import tiny
from tests.host.runs import make_run

ENV = popjax.make("probe/context")
OPTIONS = {"env_steps": 48, "eval_every": 24, "eval_episodes": 3, "log_every": 12, "quiet": True}


def test_evaluations_metrics_and_summary_are_those_of_the_result(tmp_path):
    swept = {"hyper.rate": [0.1, 0.2]}
    result = popjax.train(tiny.build(ENV), ENV, swept=swept, seeds=2, run_dir=tmp_path / "run", **OPTIONS)
    run = popjax.load(tmp_path / "run")
    assert run.config["method"] == "tests.host.tiny"
    assert run.summary["state_sha256"] == result.summary["state_sha256"]
    assert run.evaluations["returns"].shape == (len(result.evaluations), 3)
    assert run.evaluations["env_steps"].tolist() == [e.env_steps for e in result.evaluations]
    np.testing.assert_allclose(run.evaluations["return"], [e.mean for e in result.evaluations])
    first = run.metrics["member"] == 0
    np.testing.assert_allclose(run.metrics["fitness"][first], result.history.metrics.fitness[0], rtol=1e-6)
    assert run.metrics["losses.loss"].dtype == np.float64
    assert {"member", "seed", "generation", "env_steps"} <= set(run.metrics)


def test_numbers_that_json_has_not_are_floats():
    columns = tables._columns([{"a": 1.0, "b": [1, 2]}, {"a": None, "b": [3]}, {"a": "inf", "b": []}])
    np.testing.assert_array_equal(columns["a"], [1.0, np.nan, np.inf])
    assert columns["b"].tolist() == [[1, 2], [3], []]
    assert tables._columns([]) == {}


def test_a_frame_where_pandas_is_there(tmp_path):
    popjax.train(tiny.build(ENV), ENV, run_dir=tmp_path / "run", **OPTIONS)
    run = popjax.load(tmp_path / "run")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(Refused, match="pip install pandas"):
            run.frame()
    else:
        assert list(run.frame("metrics")["fitness"].iloc[0]) == run.metrics["fitness"][0].tolist()
    with pytest.raises(Refused, match="no table 'curves'; use evaluations or metrics"):
        run.frame("curves")


def test_what_cannot_be_loaded_is_told(tmp_path):
    with pytest.raises(Refused, match="holds no run"):
        popjax.load(tmp_path)
    (tmp_path / "index.json").write_text(
        json.dumps({"command": "", "runs": [{"directory": "a", "argv": []}]})
    )
    with pytest.raises(Refused, match="holds several runs; load one of a"):
        popjax.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "eval.jsonl", "metrics.jsonl"])
def test_a_broken_record_is_refused(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text('{"env_steps": \n')
    with pytest.raises(Refused, match=f"{name} (cannot be read|is not JSON)"):
        popjax.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "eval.jsonl", "metrics.jsonl"])
def test_a_file_of_a_run_that_cannot_be_opened_is_refused(name, tmp_path):
    root = make_run(tmp_path / "run")
    (root / name).unlink()
    (root / name).mkdir()  # a missing permission would not keep root out
    with pytest.raises(Refused, match=rf"run/{name} cannot be read: .*Is a directory"):
        popjax.load(root)


def test_a_state_without_members_is_evaluated_as_one():
    method = tiny.build(ENV)
    plain = jax.jit(method.init)(jax.random.key(0), method.hyper)
    one = jax.tree.map(lambda x: x[None], plain)
    alone, member = (popjax.evaluate(method, ENV, state, episodes=2)[0] for state in (plain, one))
    assert alone.shape == (1, 2)
    np.testing.assert_array_equal(alone, member)
