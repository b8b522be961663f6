"""What ``benchmarks/compile.py`` compiles."""

from __future__ import annotations

import json

import jax
import pytest

import popjax
from benchmarks import compile as benchmark
from popjax.host.recipes import METHODS


def test_every_built_in_method_is_compiled():
    assert {case.method for case in benchmark.CASES.values()} == METHODS.keys()


@pytest.mark.parametrize("name", ["align", "distil", "cdrl", "pbt"])
def test_a_case_is_built_with_what_its_method_needs(name):
    case = benchmark.CASES[name]
    task = case.task if name in benchmark.DISCRETE else "gymnax/Pendulum-v1"
    method = benchmark.build(name, benchmark.marked(popjax.make(task)))
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    step = jax.make_jaxpr(method.step)(state).jaxpr
    assert benchmark.places(step, "population_count") >= 1
    assert benchmark.places(step, "clz") >= 1


def test_rows_of_other_tasks_and_the_remark_stay(tmp_path, monkeypatch):
    file = tmp_path / "compile.json"
    monkeypatch.setattr(benchmark, "told", lambda what, case, task, **_: {"case": case, "env": task})
    benchmark.main(benchmark.Arguments(cases=("sac",), starts=False, out=file))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"remark": "alone on its core"}))
    other = benchmark.Arguments(cases=("sac",), env="gymnax/Pendulum-v1", starts=False, out=file)
    benchmark.main(other)
    found = json.loads(file.read_text())
    assert [row["env"] for row in found["rows"]] == [benchmark.HOPPER, "gymnax/Pendulum-v1"]
    assert found["remark"] == "alone on its core"
