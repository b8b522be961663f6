"""Nothing is compiled twice: not by a second call of ``train`` or ``evaluate``, nor for an equal method."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

import popjax
from popjax.agents import td3
from popjax.envs.episodic import episodic
from popjax.host.training import program_store
from popjax.methods import independent
from popjax.remember import Remembered, remembered
from tests.host import tiny

SMALL: dict[str, Any] = {"env_steps": 40, "eval_every": 40, "eval_episodes": 1, "quiet": True}


def method(capacity: int = 100) -> tuple[Any, Any]:
    """A method and its environment."""
    env = popjax.make("probe/context")
    return tiny.build(env, tiny.Config(capacity)), env


@pytest.fixture(autouse=True)
def _nothing_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier process has compiled does not count."""
    monkeypatch.setattr(program_store, "_directory", lambda: None)


@pytest.fixture(scope="module")
def compilations() -> Callable[[], Any]:
    """A context that counts compilations inside it."""
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))

    @contextmanager
    def counted() -> Iterator[list[str]]:
        seen.clear()
        made: list[str] = []
        yield made
        made += [name for name in seen if name.endswith("backend_compile_duration")]

    return counted


def test_numbers_are_data(compilations: Callable[[], Any]) -> None:
    ours, env = method()
    popjax.train(ours, env, **SMALL)
    with compilations() as made:
        for rate in (0.2, 0.3):
            popjax.train(ours, env, hyper=ours.hyper.replace(rate=rate), seed=3, **SMALL)
        popjax.train(ours, env, **SMALL | {"env_steps": 80})  # as long a chunk
    assert not made


def test_shapes_and_options_are_not(compilations: Callable[[], Any]) -> None:
    ours, env = method()
    popjax.train(ours, env, **SMALL)
    for change in ({"seeds": 2}, {"eval_episodes": 2}, {"log_every": 20}):
        with compilations() as made:
            popjax.train(ours, env, **SMALL | change)
        assert made, change
    with compilations() as made:
        popjax.train(*method(capacity=101), **SMALL)
    assert made


def test_a_run_goes_on_with_the_programs_it_began_with(
    compilations: Callable[[], Any], tmp_path: Path
) -> None:
    ours, env = method(capacity=102)
    for name in ("first", "second"):  # the first also compiles what reads a checkpoint
        popjax.train(ours, env, run_dir=tmp_path / name, **SMALL)
        with compilations() as made:
            popjax.train(ours, env, run_dir=tmp_path / name, resume=True, **SMALL | {"env_steps": 80})
    assert not made


def test_physics_is_traced_once() -> None:
    """By the programs of ``init``, a chunk and the evaluation, whatever the number of their lanes."""
    traced: list[str] = []

    def reset(key: Any) -> Any:
        traced.append("reset")
        return jax.numpy.zeros(()), jax.numpy.zeros(1)

    def move(state: Any, action: Any) -> Any:
        traced.append("step")
        return state + 1, (state + action[0])[None], action[0], state > 5

    env = episodic(popjax.core.Spec("own/line", (1,), 1, 10), reset, move)
    popjax.train(tiny.build(env), env, seeds=3, **SMALL)
    assert sorted(traced) == ["reset", "step"]


def test_evaluate_in_a_loop(compilations: Callable[[], Any]) -> None:
    ours, env = method()
    state = popjax.train(ours, env, **SMALL).state
    first = popjax.evaluate(ours, env, state, episodes=2)
    with compilations() as made:
        for seed in range(3):
            popjax.evaluate(ours, env, state, episodes=2, seed=seed)
        popjax.evaluate(ours, env, state, episodes=2, members=[5])
        assert (popjax.evaluate(ours, env, state, episodes=2)[0] == first[0]).all()
    assert not made


def test_equal_calls_give_one_object() -> None:
    calls: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> object:
        calls.append((args, kwargs))
        return object()

    make.__module__ = "popjax.mine"
    make = remembered(make)
    assert make(1, a=2) is make(1, a=2)
    different = [make(1), make(1.0), make(True), make((1,)), make((1.0,))]
    assert len(set(map(id, different))) == len(different)
    assert make([1]) is not make([1])  # has no hash

    def real() -> Any:
        agent = td3.Config(hidden=(8,))
        return independent.build(popjax.make("probe/endless"), independent.Config(agent=agent, batch=8))

    assert real() is real()


def test_what_a_user_may_have_edited_is_made_anew() -> None:
    env = popjax.make("probe/context")
    assert tiny.build(env) is not tiny.build(env)  # a method outside popjax

    @dataclass(frozen=True)
    class Wide(td3.Config):
        hidden: tuple[int, ...] = (8,)

    config = independent.Config(agent=Wide(), batch=8)
    assert independent.build(env, config) is not independent.build(env, config)


def test_only_the_latest_are_kept() -> None:
    kept: Remembered[object] = Remembered(2)
    first, second = kept.get("first", object), kept.get("second", object)
    assert kept.get("first", object) is first
    kept.get("third", object)
    assert kept.get("first", object) is first
    assert kept.get("second", object) is not second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "code", "kept"),
    [
        ({}, "", True),
        ({}, "import jax; jax.jit(lambda x: x + 1)(1.0); ", True),  # JAX has settled where before
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "", False),
        ({"JAX_COMPILATION_CACHE_DIR": "elsewhere"}, "", False),
    ],
)
def test_programs_are_kept_on_disk(
    tmp_path: Path, environment: dict[str, str], code: str, kept: bool
) -> None:
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    everything = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    code += (
        "from tests.host.test_compiled_once import SMALL, method, popjax; popjax.train(*method(), **SMALL)"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=inherited | everything | {"PYTHONPATH": root} | environment,
        check=True,
        timeout=300,
    )
    assert any((tmp_path / "cache" / "popjax" / "jax").glob("*")) == kept
    assert (tmp_path / "elsewhere").exists() == ("JAX_COMPILATION_CACHE_DIR" in environment)
