"""Stored programs are those that tracing would give, and are found only where that gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import popjax
from popjax import remember
from popjax.agents import a2c
from popjax.host.runs.options import Options
from popjax.host.scaling import shard, sweep
from popjax.host.training import program_store
from popjax.methods import onpolicy
from tests.host import tiny

SMALL: dict[str, Any] = {"env_steps": 40, "eval_every": 40, "eval_episodes": 1, "quiet": True}
CONFIG = onpolicy.Config(agent=a2c.Config(hidden=(8,)), lanes=2, steps=5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store for this process, which promises what the command line does."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    set_cache(str(tmp_path / "cache"), 1e6)
    monkeypatch.setattr(program_store, "_enabled", True)
    remember.forget()
    yield tmp_path / "cache/popjax-programs"
    set_cache(*before)
    remember.forget()


def set_cache(directory: str | None, least_seconds: float) -> None:
    """Let JAX's cache be in ``directory`` and keep what compiles for ``least_seconds`` or more."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()


def untraced() -> tuple[Any, Any]:
    """Forget this process's programs; return the same run, which fails where one is traced."""

    def refuse(*_: Any) -> None:
        raise AssertionError("traced again")

    remember.forget()
    method, env = built()
    return method._replace(init=refuse, step=refuse), env


def built(config: Any = CONFIG, task: str = "gymnax/CartPole-v1", **options: Any) -> tuple[Any, Any]:
    env = popjax.make(task, **options)
    return onpolicy.build(env, config), env


def probe() -> Any:
    """A user's own environment."""
    return popjax.make("probe/context")._replace(origin=None)


def path(method: Any, env: Any, seeds: int = 1, options: Options | None = None) -> Path | None:
    """Return the path of the programs of a run."""
    members = sweep.grid(0, seeds, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    return program_store.of(method, env, start, options or Options(), shard.chosen(1)).path


def test_stored_programs_train_as_traced_ones(tmp_path: Path) -> None:
    straight = popjax.train(*built(), **SMALL | {"env_steps": 80}, run_dir=tmp_path / "a")
    popjax.train(*built(), **SMALL, run_dir=tmp_path / "b")
    again = popjax.train(*untraced(), **SMALL | {"env_steps": 80})
    resumed = popjax.train(*untraced(), **SMALL | {"env_steps": 80}, run_dir=tmp_path / "b", resume=True)
    with pytest.raises(AssertionError, match="traced again"):
        popjax.train(*untraced(), **SMALL, seeds=2)
    assert straight.summary["state_sha256"] == again.summary["state_sha256"]
    assert straight.summary["state_sha256"] == resumed.summary["state_sha256"]
    assert straight.returns.tolist() == again.returns.tolist() == resumed.returns.tolist()


def test_a_fresh_run_finds_what_a_resumed_one_has_stored(tmp_path: Path, cache: Path) -> None:
    popjax.train(*built(), **SMALL, run_dir=tmp_path / "a")
    for file in cache.iterdir():
        file.unlink()
    remember.forget()
    popjax.train(*built(), **SMALL | {"env_steps": 80}, run_dir=tmp_path / "a", resume=True)
    assert sorted(file.name.partition("-")[2] for file in cache.iterdir()) == ["chunk", "evaluation"]
    remember.forget()
    popjax.train(*built(), **SMALL)
    assert sorted(file.name.partition("-")[2] for file in cache.iterdir()) == ["chunk", "evaluation", "init"]


def test_the_state_is_donated_to_a_stored_program() -> None:
    popjax.train(*built(), **SMALL)
    remember.forget()
    (file,) = program_store._directory().glob("*-chunk")  # type: ignore[union-attr]
    store = program_store.Store(file.with_name(file.name.removesuffix("-chunk")), shard.chosen(1))
    chunk, init = store.load("chunk"), store.load("init")
    method, _ = built()
    members = sweep.grid(0, 1, {})
    state = init(sweep.keys(members), sweep.hypers(method.hyper, members))  # type: ignore[misc]
    chunk(state)  # type: ignore[misc]
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_what_jax_has_in_its_cache_is_not_stored_as_well(cache: Path) -> None:
    """XLA writes such programs without some of their functions, or not at all."""
    set_cache(str(cache.parent), 0.0)
    first = popjax.train(*built(), **SMALL)
    for file in cache.iterdir():
        file.unlink()
    for _ in range(2):
        remember.forget()
        jax.clear_caches()
        assert popjax.train(*built(), **SMALL).summary["state_sha256"] == first.summary["state_sha256"]
        assert not list(cache.iterdir())


@pytest.mark.parametrize("broken", [b"", b"not a program"])
def test_a_broken_file_is_compiled_again(cache: Path, broken: bytes) -> None:
    first = popjax.train(*built(), **SMALL)
    whole = {file: file.stat().st_size for file in cache.iterdir()}
    for file in whole:
        file.write_bytes(broken)
    remember.forget()
    assert popjax.train(*built(), **SMALL).summary["state_sha256"] == first.summary["state_sha256"]
    assert all(file.stat().st_size > len(broken) for file in whole)


def test_other_programs_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    own = path(*built())
    assert own == path(*built())
    others = [
        path(*built(CONFIG.__class__(agent=CONFIG.agent, lanes=3, steps=5))),
        path(*built(onpolicy.Config(agent=a2c.Config(hidden=(9,)), lanes=2, steps=5))),
        path(*built(task="gymnax/Acrobot-v1")),
        path(*built(max_steps_in_episode=7)),
        path(*built(action_repeat=2)),
        path(*built(), seeds=2),
        path(*built(), options=Options(eval_episodes=2)),
        path(*built(), options=Options(log_every=500)),
    ]
    with jax.default_matmul_precision("highest"):
        others.append(path(*built()))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_math=true")
    others.append(path(*built()))
    monkeypatch.undo()
    monkeypatch.setattr(program_store, "_enabled", True)
    monkeypatch.setattr(program_store, "_sources", lambda: [("sac.py", 1, 2)])
    others.append(path(*built()))
    assert len({own, *others}) == 1 + len(others)
    assert None not in others
    assert path(*built(), options=Options(keep_checkpoints=5)) == others[-1]  # it is of no program


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edited_package"
    package.mkdir()
    (package / "__init__.py").write_text("RATE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program_store, "_TRACED", ("edited_package", "absent_package"))
    before = list(program_store._sources())
    (package / "__init__.py").write_text("RATE = 2.5\n")
    assert before != list(program_store._sources())


def test_only_what_popjax_alone_defines_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    method, env = built()
    assert path(method, env) is not None
    changed = env._replace(step=lambda state, action: env.step(state, action))
    assert path(onpolicy.build(changed, CONFIG), changed) is None
    own = popjax.make("tests.host.test_program_store:probe")
    assert path(onpolicy.build(own, CONFIG), own) is None
    context = popjax.make("probe/context")
    assert path(tiny.build(context, tiny.Config()), context) is None
    monkeypatch.setattr(program_store, "_enabled", False)  # as in a notebook
    assert path(method, env) is None


def test_without_a_cache_on_disk_nothing_is_stored() -> None:
    for directory in ("gs://bucket/cache", None):
        set_cache(directory, 1e6)
        assert path(*built()) is None


def test_programs_that_call_into_this_process_are_not_stored() -> None:
    def host(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), x)

    def lowered(function: Callable[..., Any], *shape: int) -> str:
        return jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).as_text()

    assert not program_store._loadable(lowered(host))
    assert program_store._loadable(lowered(jnp.sin))
    assert program_store._loadable(lowered(jnp.linalg.qr, 2, 2))
    assert not program_store._loadable('%0 = stablehlo.custom_call @"wp.step"(%arg0)')


def test_the_least_recently_used_programs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_store, "LIMIT", 250)
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    program_store._write(tmp_path / "newest", bytes(100))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "newest"]


def test_the_command_line_starts_from_stored_programs(tmp_path: Path) -> None:
    """In new processes, where LAPACK, which makes orthogonal parameters, has not been called before."""
    summaries = []
    for name in ("a", "b"):
        arguments = "onpolicy --env gymnax/CartPole-v1 --env-steps 100 --eval-every 50 --config.agent ppo"
        arguments += " --config.lanes 2 --config.steps 10 --config.agent.hidden 8 --run-dir"
        subprocess.run(
            [sys.executable, "-m", "popjax", "train", *arguments.split(), tmp_path / name],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "kept")},
            check=True,
        )
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    first, second = summaries
    assert first["state_sha256"] == second["state_sha256"]
    assert second["compile_seconds"] < first["compile_seconds"] / 2
    assert len(list((tmp_path / "kept/popjax-programs").iterdir())) == 3
