"""Numbers as people and libraries write them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from popjax.envs import make
from popjax.host.errors import Refused
from popjax.host.numbers import equal, plain, real, whole
from popjax.host.runs import rundir
from popjax.host.scaling import sweep
from popjax.host.training import train
from tests.host import tiny


@pytest.mark.parametrize(
    "value", [1000, 1000.0, "1000", "1e3", "1_000", np.int64(1000), np.float32(1000), jnp.int32(1000)]
)
def test_whole_numbers_have_many_forms(value: Any):
    found = whole(value)
    assert (found, type(found)) == (1000, int)


def test_integers_of_any_size_are_exact():
    assert whole(str(2**60 + 1)) == 2**60 + 1


@pytest.mark.parametrize("value", [1.5, "1.5", "two", "", "inf", math.nan, "1e400", None, [1, 2]])
def test_what_is_no_whole_number_is_named(value: Any):
    with pytest.raises(ValueError, match="not a whole number") as refusal:
        whole(value)
    assert repr(value) in str(refusal.value)


def test_a_float32_is_the_number_that_was_written():
    assert [real(np.float32(text)) for text in ("0.1", "3e-4", "inf")] == [0.1, 3e-4, math.inf]
    assert real(1 / 3) == 1 / 3


def test_fractions_are_equal_where_they_compute_the_same():
    assert equal(1 / 3, real(np.float32(1 / 3)))
    assert equal([0.1, "inf"], [0.1 + 1e-12, "inf"])
    assert not equal(0.1, 0.1001)
    assert not equal(2**30, 2**30 + 1)
    assert not equal(None, 0.0)
    assert not equal([1.0], [1.0, 1.0])


def test_json_has_neither_infinities_nor_nan():
    value = {"a": np.float32(0.1), "b": (math.inf, -math.inf), 3: jnp.array([1.5, jnp.nan]), "p": Path("x/y")}
    found = json.loads(json.dumps(plain(value), allow_nan=False))
    assert found == {"a": 0.1, "b": ["inf", "-inf"], "3": [1.5, None], "p": "x/y"}
    assert plain(np.bool_(True)) is True
    assert plain(np.int64(2**40)) == 2**40


ENV = make("probe/context")
SHORT: dict[str, Any] = {"eval_every": 24, "eval_episodes": 2, "quiet": True}


def test_counts_of_other_libraries_are_counts(tmp_path: Path):
    method = tiny.build(ENV, tiny.Config(capacity=np.int64(100)))  # type: ignore[arg-type]
    given = {"env_steps": np.int64(48), "seeds": np.int32(2), "log_every": 24.0, "members": (np.int64(0), 1)}
    result = train(method, ENV, run_dir=tmp_path, **SHORT | given)
    assert rundir.read_config(tmp_path)["options"]["env_steps"] == 48
    assert len(result.members) == 1
    with pytest.raises(Refused, match=r"seeds must be an integer or a list of integers, got 1\.5"):
        train(method, ENV, env_steps=48, seeds=1.5)  # type: ignore[arg-type]


def test_a_sweep_is_any_array_and_may_hold_infinity(tmp_path: Path):
    method = tiny.build(ENV)
    swept = {"hyper.rate": np.logspace(-2, -1, 2, dtype=np.float32), "hyper.poison_at": math.inf}
    result = train(method, ENV, env_steps=48, swept=swept, run_dir=tmp_path, log_every=24, **SHORT)  # type: ignore[arg-type]
    assert [member.numbers["hyper.rate"] for member in result.members] == [0.01, 0.1]
    assert sweep.of_config(rundir.read_config(tmp_path)) == result.members

    def strict(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    for file in ("metrics.jsonl", "eval.jsonl"):
        lines = (tmp_path / file).read_text().splitlines()
        rows = [json.loads(line, parse_constant=strict) for line in lines]
        assert {(row["hyper.rate"], row["hyper.poison_at"]) for row in rows} == {(0.01, "inf"), (0.1, "inf")}


def test_a_run_is_resumed_with_the_number_that_was_meant(tmp_path: Path):
    method = tiny.build(ENV)

    def go(rate: Any, steps: int, **more: Any) -> None:
        hyper = method.hyper.replace(rate=rate)
        train(method, ENV, env_steps=steps, hyper=hyper, run_dir=tmp_path, **SHORT, **more)

    go(np.float32(0.3), 24)
    assert rundir.read_config(tmp_path)["hyper"]["rate"] == 0.3
    go(0.3, 48, resume=True)
    go(float(np.float32(0.3)), 72, resume=True)
    with pytest.raises(Refused, match=r"0\.3.* -> 0\.31"):
        go(0.31, 96, resume=True)


def test_numbers_that_differ_in_float32_are_spelt_differently():
    values = [0.1, 1e-4, 0.00012345671, 0.00012345678, 0.9999999, 0.9999998, 3.0, math.inf]
    spelt = [sweep.spell(value) for value in values]
    assert len(set(spelt)) == len(values)
    assert spelt[:2] == ["0.1", "0.0001"]
    assert all(np.float32(text) == np.float32(value) for text, value in zip(spelt, values, strict=True))
