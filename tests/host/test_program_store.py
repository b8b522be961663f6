"""Stored programs are those that tracing would give, and are found only where that gives the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import struct
from jax.experimental.compilation_cache import compilation_cache

import popjax
from popjax import cli, importing, remember
from popjax.agents import a2c
from popjax.cli import jax_setup
from popjax.host.runs.options import Options
from popjax.host.scaling import shard, sweep
from popjax.host.training import compiled_programs, program_store
from popjax.methods import onpolicy
from tests.host import tiny
from tests.support import slow_except

SMALL: dict[str, Any] = {"env_steps": 40, "eval_every": 40, "eval_episodes": 1, "quiet": True}
BEGUN = program_store._begun
CONFIG = onpolicy.Config(agent=a2c.Config(hidden=(8,)), lanes=2, steps=5)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store for this process, which promises what the command line does."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    set_cache(str(tmp_path / "cache"), 1e6)
    monkeypatch.setattr(program_store, "_traces_alone", True)
    monkeypatch.setattr(importing, "_foreign", set())
    monkeypatch.setattr(program_store, "_begun", lambda: 2**63)  # a source may just have been edited
    remember.forget()
    yield tmp_path / "cache/popjax"
    set_cache(*before)
    remember.forget()


def set_cache(directory: str | None, least_seconds: float) -> None:
    """Let JAX's cache be in ``directory`` and keep what compiles for ``least_seconds`` or more."""
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    compilation_cache.reset_cache()


def refuse(*_: Any) -> None:
    """Stand in for what must not happen."""
    raise AssertionError("traced again")


def untraced() -> tuple[Any, Any]:
    """Forget this process's programs; return the same run, which fails where one is traced."""

    remember.forget()
    method, env = built()
    return method._replace(init=refuse, step=refuse), env


def built(config: Any = CONFIG, task: str = "probe/context", **options: Any) -> tuple[Any, Any]:
    env = popjax.make(task, **options)
    return onpolicy.build(env, config), env


def probe() -> Any:
    """A user's own environment."""
    return popjax.make("probe/context")._replace(origin=None)


def runs(method: Any, env: Any, seeds: int = 1, options: Options | None = None) -> dict[str, str]:
    """Return the names of a run's programs."""
    members = sweep.grid(0, seeds, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    return dict(program_store.of(method, env, start, options or Options(), shard.chosen(1)).runs)


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


def test_a_fresh_run_finds_what_a_resumed_one_has_stored(tmp_path: Path, store: Path) -> None:
    popjax.train(*built(), **SMALL, run_dir=tmp_path / "a")
    shutil.rmtree(store)
    remember.forget()
    popjax.train(*built(), **SMALL | {"env_steps": 80}, run_dir=tmp_path / "a", resume=True)
    assert [len(list((store / part).iterdir())) for part in ("runs", "texts")] == [2, 2]
    remember.forget()
    popjax.train(*built(), **SMALL)
    assert [len(list((store / part).iterdir())) for part in ("runs", "texts")] == [3, 3]


def test_a_stored_chunk_takes_over_the_state() -> None:
    popjax.train(*built(), **SMALL)
    method, env = built()
    members = sweep.grid(0, 1, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    options = Options(env_steps=40, eval_every=40, eval_episodes=1)
    loaded = program_store.of(method, env, start, options, shard.chosen(1)).loaded
    state = loaded["init"](*start)
    loaded["chunk"](state)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_program_is_found_by_its_text_where_sources_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start after that traces nothing again."""
    popjax.train(*built(), **SMALL)
    monkeypatch.setattr(program_store, "_sources", lambda: [("sac.py", 1, 2)])
    with pytest.raises(AssertionError, match="traced again"):
        popjax.train(*untraced(), **SMALL)
    remember.forget()
    with monkeypatch.context() as patch:
        patch.setattr(compiled_programs, "_compiled", refuse)
        popjax.train(*built(), **SMALL)
    popjax.train(*untraced(), **SMALL)


def test_programs_of_one_text_differ_in_arguments_that_they_do_not_read(store: Path) -> None:
    """An evaluation reads no replay."""
    env = popjax.make("probe/context")
    set_cache(str(store.parent), 0.0)
    for capacity in (10, 20):
        popjax.train(tiny.build(env, tiny.Config(capacity)), env, **SMALL)
    assert len(list((store / "texts").iterdir())) == 5  # JAX's own cache has the second evaluation


@struct.dataclass
class Losses:
    """A class that differs from ``tiny.Losses`` by its module alone."""

    loss: Any


def kept(value: Any, directory: Path, compile_it: Callable[..., Any] | None = None) -> jax.stages.Compiled:
    """Return a program of a value from the store in ``directory``, or one that ``compile_it`` makes."""
    lowered = jax.jit(lambda value: jax.tree.map(jnp.sin, value)).lower(value)
    kept_for_a_run = program_store.Store(directory, {"chunk": "run"}, shard.chosen(1))
    return kept_for_a_run.compiled("chunk", lowered, compile_it or lowered.compile)


def test_classes_of_one_name_do_not_share_programs(tmp_path: Path) -> None:
    """Such as those of a script and of its copy, which would be imported."""
    ones = jnp.ones(2)
    kept(tiny.Losses(ones), tmp_path)
    assert type(kept(tiny.Losses(ones), tmp_path, refuse)(tiny.Losses(ones))) is tiny.Losses
    with pytest.raises(AssertionError, match="traced again"):
        kept(Losses(ones), tmp_path, refuse)


def test_a_program_of_other_structures_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class may have been defined anew."""
    ones = jnp.ones(2)
    kept(tiny.Losses(ones), tmp_path)
    monkeypatch.setattr(program_store, "_hash", lambda *_: next((tmp_path / "texts").iterdir()).name)
    assert type(kept(Losses(ones), tmp_path)(Losses(ones))) is Losses


def test_what_cannot_be_pickled_is_not_stored(store: Path) -> None:
    @struct.dataclass
    class Local:
        value: Any
        function: Any = struct.field(pytree_node=False, default=None)

    for value in Local(jnp.ones(2)), (Local(jnp.ones(3), lambda x: x), 1.0):
        kept(value, store)(value)
    assert not store.exists()


def test_what_has_changed_since_the_process_began_names_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been imported before."""
    now = time.time_ns()
    monkeypatch.setattr(program_store, "_begun", BEGUN)
    monkeypatch.setattr(program_store, "_sources", lambda: [("sac.py", 1, 2), ("td3.py", 1, now)])
    assert not runs(*built())
    monkeypatch.setattr(program_store, "_sources", lambda: [("sac.py", 1, 2), ("td3.py", 1, now // 2)])
    assert runs(*built())


def test_a_process_begins_no_later_than_its_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some containers, processes begin in the future."""
    monkeypatch.setattr(program_store.psutil.Process, "create_time", lambda _: time.time() + 86_400)
    assert BEGUN() < program_store._IMPORTED * 1e9 < time.time() * 1e9


def test_finding_programs_counts_as_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    popjax.train(*built(), **SMALL)
    sources = list(program_store._sources())

    def slow() -> list[tuple[str, int, int]]:
        time.sleep(3.0)
        return sources

    monkeypatch.setattr(program_store, "_sources", slow)
    assert popjax.train(*untraced(), **SMALL).summary["compile_seconds"] > 3.0


@pytest.mark.slow
def test_quick_programs_are_stored_for_runs_alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JAX does, which does not keep what it compiles in less than a second."""
    monkeypatch.setattr(program_store, "_traces_alone", False)
    popjax.train(*built(), **SMALL)
    assert not store.exists()
    set_cache(str(store.parent), 0.0)
    monkeypatch.setattr(program_store, "_hits", lambda: 0)
    remember.forget()
    jax.clear_caches()
    popjax.train(*built(), **SMALL)
    assert len(list((store / "texts").iterdir())) == 3
    assert not (store / "runs").exists()


def test_what_jax_has_in_its_cache_is_not_stored_as_well(store: Path) -> None:
    """XLA writes such programs without some of their functions, or not at all."""
    set_cache(str(store.parent), 0.0)
    first = popjax.train(*built(), **SMALL)
    shutil.rmtree(store)
    for _ in range(2):
        remember.forget()
        jax.clear_caches()
        assert popjax.train(*built(), **SMALL).summary["state_sha256"] == first.summary["state_sha256"]
        assert not store.exists()


@pytest.mark.parametrize("broken", slow_except([b"not a program"], [b"", b"not a program"]))
def test_a_broken_file_is_compiled_again(store: Path, broken: bytes) -> None:
    first = popjax.train(*built(), **SMALL)
    for file in (store / "texts").iterdir():
        file.write_bytes(broken)
    remember.forget()
    assert popjax.train(*built(), **SMALL).summary["state_sha256"] == first.summary["state_sha256"]
    assert all(file.stat().st_size > len(broken) for file in (store / "texts").iterdir())


def test_a_disk_that_cannot_be_written_is_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_permitted(*_: Any, **__: Any) -> None:
        raise PermissionError

    mkstemp = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", not_permitted)
    popjax.train(*built(), **SMALL)
    assert not list(store.glob("*/*"))
    remember.forget()
    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    popjax.train(*built(), **SMALL)
    monkeypatch.setattr(os, "utime", not_permitted)
    popjax.train(*untraced(), **SMALL)


def test_other_programs_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    own = runs(*built())
    assert own == runs(*built())
    assert own == runs(*built(), options=Options(keep_checkpoints=5))
    others = [
        runs(*built(onpolicy.Config(agent=CONFIG.agent, lanes=3, steps=5))),
        runs(*built(onpolicy.Config(agent=a2c.Config(hidden=(9,)), lanes=2, steps=5))),
        runs(*built(task="gymnax/Acrobot-v1")),
        runs(*built(task="gymnax/Acrobot-v1", max_steps_in_episode=7)),
        runs(*built(action_repeat=2)),
        runs(*built(), seeds=2),
    ]
    with jax.default_matmul_precision("highest"):
        others.append(runs(*built()))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_math=true")
        others.append(runs(*built()))
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_sources", lambda: [("sac.py", 1, 2)])
        others.append(runs(*built()))
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_packages", lambda: ["numpy-3.0.dist-info"])
        others.append(runs(*built()))
    for name in ("chunk", "evaluation", "init"):
        assert len({other[name] for other in [own, *others]}) == 1 + len(others)


def test_a_program_is_named_by_the_options_that_change_it() -> None:
    own = runs(*built())
    chunk, evaluation = (
        runs(*built(), options=each) for each in (Options(log_every=500), Options(eval_episodes=2))
    )
    assert {name for name in own if own[name] != chunk[name]} == {"chunk"}
    assert {name for name in own if own[name] != evaluation[name]} == {"evaluation"}


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edited_package"
    package.mkdir()
    (package / "__init__.py").write_text("RATE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(program_store, "_TRACED", ("edited_package", "absent_package"))
    before = list(program_store._sources())
    (package / "__init__.py").write_text("RATE = 2.5\n")
    assert before != list(program_store._sources())
    edited = list(program_store._sources())
    (package / ".#__init__.py").symlink_to("user@host.1234")  # an editor's lock
    assert list(program_store._sources()) == edited


def test_runs_that_depend_on_more_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    method, env = built()
    assert runs(method, env)
    changed = env._replace(step=lambda state, action: env.step(state, action))
    assert not runs(onpolicy.build(changed, CONFIG), changed)
    context = popjax.make("probe/context")
    assert not runs(tiny.build(context, tiny.Config()), context)
    assert not runs(*built(task="gym/InvertedPendulum-v5", xml_file="inverted_pendulum.xml"))
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_traces_alone", False)  # as in a notebook
        assert not runs(method, env)
    own = popjax.make("tests.host.test_program_store:probe")
    assert not runs(onpolicy.build(own, CONFIG), own)
    assert not runs(method, env)  # the module that has been imported may have changed anything


def test_a_command_line_within_another_program_promises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a notebook, which may have replaced anything before."""
    told: list[bool] = []
    monkeypatch.setattr(jax_setup, "_alone", False)
    monkeypatch.setattr(program_store, "trace_nobody_elses_code", lambda: told.append(True))
    assert cli.run(["onpolicy", "--env", "probe/absent"]) == 2
    assert not told
    monkeypatch.setattr(sys, "argv", ["popjax", "onpolicy", "--env", "probe/absent"])
    assert cli.run() == 2
    assert told


def test_without_a_cache_on_disk_nothing_is_stored() -> None:
    for directory in ("gs://bucket/cache", None):
        set_cache(directory, 1e6)
        assert not runs(*built())
    popjax.train(*built(), **SMALL)


def test_programs_that_call_into_this_process_are_not_stored() -> None:
    def host(x: jax.Array) -> jax.Array:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.float32), x)

    def lowered(function: Callable[..., Any], *shape: int) -> str:
        return jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).as_text()

    assert not program_store._loadable(lowered(host))
    assert program_store._loadable(lowered(jnp.sin))
    assert program_store._loadable(lowered(jnp.linalg.qr, 2, 2))
    assert not program_store._loadable('%0 = stablehlo.custom_call @"wp.step"(%arg0)')
    assert not program_store._loadable('%0 = stablehlo.custom_call @"::step"(%arg0)')
    assert not program_store._loadable('%1 = "stablehlo.send"(%arg0, %0) <{is_host_transfer = true}>')


def test_the_least_recently_used_programs_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_store, "LIMIT", 250)
    for age, name in enumerate(("new", "old", "older")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (time.time() - age - 1,) * 2)
    for name in (".left", "unused"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    program_store._write(tmp_path / "newest", bytes(100))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "newest", "old"]


def test_a_full_disk_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        program_store._write(tmp_path / "file", bytes(100))
    assert not list(tmp_path.iterdir())


def test_the_command_line_starts_from_stored_programs(tmp_path: Path) -> None:
    """In new processes, where LAPACK, which makes orthogonal parameters, has not been called before."""
    summaries = []
    for name in ("a", "b"):
        arguments = "onpolicy --env probe/context --env-steps 100 --eval-every 50 --config.agent ppo"
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
    assert len(list((tmp_path / "kept/popjax/texts").iterdir())) == 3
