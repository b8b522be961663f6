"""Settings of JAX and of machines that others have: a run is the same, or one line says why there is none."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import cache_key
from jax.experimental.compilation_cache import compilation_cache

from popjax import agents, numerics, remember, rollout, testing
from popjax.agents import a2c, ddpg
from popjax.cli.pretrained import pretrained
from popjax.envs import make
from popjax.host import provenance, terminal
from popjax.host.errors import NonFiniteMetric, Refused
from popjax.host.runs.options import Options, validate
from popjax.host.scaling import shard, sweep
from popjax.host.training import compile_cache, evaluate, program_store, train
from popjax.methods import ca2e, distil, onpolicy
from tests.host import tiny
from tests.host.runs import make_run
from tests.support import equal, slow_except

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"env_steps": 48, "eval_every": 24, "eval_episodes": 2, "quiet": True}


def tiny_run(**more: Any) -> Any:
    env = make("probe/context")
    return train(tiny.build(env), env, **SHORT | more)


def digests(result: Any) -> list[str]:
    return [member["state_sha256"] for member in result.summary["members"]]


@pytest.mark.parametrize(
    "settings",
    [
        [jax.enable_x64(True)],
        [jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")],
        [jax.transfer_guard("disallow")],
    ],
    ids=["64 bits", "strict promotion", "no transfers"],
)
def test_a_run_is_the_same_whatever_the_settings(settings: list[Any]):
    plain = tiny_run()
    with ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting)
        found = tiny_run()
    assert digests(found) == digests(plain)


def test_a_sink_runs_under_the_users_settings():
    env, seen = make("probe/context"), []
    method = tiny.build(env)
    settings = "enable_x64", "numpy_dtype_promotion", "transfer_guard_host_to_device", "debug_infs"

    def found() -> list[Any]:
        return [getattr(jax.config, f"jax_{name}") for name in settings]

    def sink(chunk: int, history: Any, policy: Any) -> None:
        before = found()
        returns, _ = evaluate(method, env, result.state, episodes=2)
        seen.append((before, found(), returns))

    plain, result = found(), tiny_run()
    with other_settings(), jax.debug_infs(True):
        ours = found()
        tiny_run(sinks=[sink], hyper=tiny.Hyper(poison_at=np.inf))
        assert found() == ours
    assert plain != ours
    expected, _ = evaluate(method, env, result.state, episodes=2)
    for before, after, returns in seen:
        assert before == after == ours
        np.testing.assert_array_equal(returns, expected)
    seen.clear()
    tiny_run(sinks=[sink])
    assert [before for before, *_ in seen] == [plain] * len(seen) != []


def test_a_policy_with_memory_trains_and_plays_where_64_bits_are_the_default():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        env = make("gymnax/CartPole-v1")
        agent = a2c.Config(hidden=(4,), lstm=4)
        method = onpolicy.build(env, onpolicy.Config(agent=agent, lanes=2))
        result = train(method, env, **SHORT)
        returns, _ = evaluate(method, env, result.state, episodes=2)
    assert not {str(leaf.dtype) for leaf in jax.tree.leaves(result.state)} & {"float64", "int64"}
    assert np.isfinite(returns).all()


def test_a_step_compiled_by_hand_is_the_same_with_64_bits():
    method = tiny.build(make("probe/context"))

    def played() -> Any:
        state = jax.jit(method.init)(jax.random.key(0), method.hyper)
        return jax.lax.fori_loop(0, 20, lambda _, s: method.step(s), state)

    plain = played()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        equal(played(), plain)


@contextmanager
def other_settings() -> Iterator[None]:
    """Settings of JAX that popjax's own computations do not have."""
    with ExitStack() as stack:
        for setting in (
            jax.enable_x64(True),
            jax.numpy_dtype_promotion("strict"),
            jax.transfer_guard("disallow"),
        ):
            stack.enter_context(setting)
        yield


@pytest.mark.parametrize("options", [{}, {"reward_scale": 2.0}], ids=["plain", "wrapped"])
def test_an_environment_is_the_same_whatever_the_settings(options: dict[str, Any], key: jax.Array):
    env, action = make("tests.own", **options), jnp.float32([0.5])

    def played(env: Any) -> Any:
        state, obs = env.reset(key)
        return obs, env.step(state, action)

    for each in filter(None, (env, env.scored)):
        plain = played(each)
        with other_settings():
            found = played(each)
        equal(found, plain)
    with jax.enable_x64(True):
        made = make("tests.own", **options)
        episode = rollout.episode(env, lambda carry, *_: (carry, action), (), key, record=lambda *_: ())
    assert made.spec == env.spec
    assert episode.total.dtype == jnp.float32


def test_policies_of_finished_runs_are_the_same_whatever_the_settings(tmp_path: Path, key: jax.Array):
    env = make("probe/context")
    tiny_run(run_dir=tmp_path)

    def answers() -> Any:
        policy = pretrained(tmp_path)
        (graded,), (prior,) = distil.grade(env, [policy], 2), ca2e.measure(env, [policy], key, 2)
        return policy.params, graded.mean_return, prior.mean_return

    plain = answers()
    with other_settings():
        found = answers()
    equal(found, plain)


def test_checks_hold_whatever_the_settings():
    env = make("probe/context")
    method, agent = tiny.build(env), agents.build(env.spec, ddpg.Config(hidden=(4,)))
    with other_settings():
        testing.check_env(env, steps=3)
        testing.check_members(method, steps=2)
        testing.check_in_place(method, 2.0)
        testing.check_agent(agent, env.spec, ddpg.Hyper())


@pytest.mark.parametrize(
    ("env_steps", "log_every", "end"),
    [(200, 40, 200), (225, 40, 240), (240, 100, 240), (200, 100, 240), (225, 1000, 400), (200, 1000, 200)],
)
def test_a_method_is_asked_about_the_end_of_a_run_in_whole_chunks(env_steps: int, log_every: int, end: int):
    asked: list[int] = []
    method = tiny.build(make("probe/context"))._replace(steps_bound=40, accepts=asked.append)
    validate(Options(env_steps=env_steps, log_every=log_every), method)
    assert asked == [end]


@pytest.mark.parametrize("generator", slow_except(["unsafe_rbg"], ["rbg", "unsafe_rbg"]))
def test_a_member_is_the_run_of_its_seed_alone_with_any_generator(generator: str):
    with jax.default_prng_impl(generator):
        assert not sweep.vmappable()
        both, alone = tiny_run(seeds=2), tiny_run(seed=1)
        assert digests(both)[1] == digests(alone)[0]
        env = make("probe/context")
        method = tiny.build(env)
        every, _ = evaluate(method, env, both.state, episodes=3)
        one, _ = evaluate(method, env, alone.state, episodes=3, members=[1])
    np.testing.assert_array_equal(every[1:], one)


def test_another_generator_within_a_process_maps_members_anew():
    env = make("probe/context")
    method = tiny.build(env)
    evaluate(method, env, tiny_run(seeds=2).state, episodes=2)
    with jax.default_prng_impl("rbg"):
        both, alone = tiny_run(seeds=2), tiny_run(seed=1)
    assert digests(both)[1] == digests(alone)[0]


def test_an_evaluation_keeps_no_values_of_its_trace():
    env = make("probe/context")
    method, result = tiny.build(env), tiny_run()
    remember.forget()
    with jax.check_tracer_leaks(True):
        returns, _ = evaluate(method, env, result.state, episodes=3)
    assert returns.shape == (1, 3)


@pytest.fixture
def checks_for_nan() -> Iterator[None]:
    """JAX checks every result for NaN and infinities in all threads, as environment variables ask."""
    jax.config.update("jax_debug_nans", True)
    jax.config.update("jax_debug_infs", True)
    yield
    jax.config.update("jax_debug_nans", False)
    jax.config.update("jax_debug_infs", False)


def test_infinite_hyperparameters_train_where_jax_checks_for_infinities(
    tmp_path: Path, request: pytest.FixtureRequest
):
    hyper = tiny.Hyper(poison_at=np.inf)
    plain = tiny_run(hyper=hyper)
    request.getfixturevalue("checks_for_nan")
    run: dict[str, Any] = {"hyper": hyper, "run_dir": tmp_path, "checkpoint_every": 12}
    tiny_run(**run | {"env_steps": 24})
    assert digests(tiny_run(**run, resume=True)) == digests(plain)
    assert pretrained(tmp_path).env_steps == 48


def test_a_metric_that_becomes_nan_is_named_where_jax_checks_for_nan(checks_for_nan: None):
    with pytest.raises(NonFiniteMetric, match=r"loss of seed 0 became NaN or infinite in generation 2"):
        tiny_run(hyper=tiny.Hyper(poison_at=2.0))


def test_a_step_by_hand_is_checked_for_nan_as_the_user_asks(checks_for_nan: None):
    method = tiny.build(make("probe/context"))
    state = method.init(jax.random.key(0), tiny.Hyper(poison_at=1.0))
    with pytest.raises(FloatingPointError):
        method.step(state)


def test_a_command_overrules_checks_for_nan(checks_for_nan: None):
    assert numerics.standardize() == ["JAX_DEBUG_NANS=True", "JAX_DEBUG_INFS=True"]
    assert not jax.config.jax_debug_nans  # type: ignore[attr-defined]


def test_training_without_compilation_is_refused():
    with jax.disable_jit(), pytest.raises(Refused, match="unset it"):
        tiny_run()


@pytest.mark.parametrize("chosen", [None, "3"])
def test_small_factorizations_have_a_thread_each_unless_the_user_says_otherwise(chosen: str | None):
    environment = {name: text for name, text in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    ask = "import popjax, os; print(os.environ['OPENBLAS_NUM_THREADS'])"
    told = subprocess.run(
        [sys.executable, "-c", ask],
        env=environment | ({"OPENBLAS_NUM_THREADS": chosen} if chosen else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == (chosen or "1")


def command(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = ["independent", "--env", "probe/endless", "--env-steps", "60", "--config.agent", "ddpg"]
    script = ROOT / "scripts" / "run.py"
    return subprocess.run(
        [sys.executable, str(script), *argv],
        env=os.environ | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda"),
        ({"JAX_PLATFORMS": "abacus"}, "'abacus'"),
        ({"JAX_DEFAULT_PRNG_IMPL": "dice"}, '"dice" for JAX flag jax_default_prng_impl'),
        ({"JAX_ENABLE_X64": "maybe"}, "'maybe' for environment 'JAX_ENABLE_X64'"),
    ],
)
def test_what_jax_cannot_start_with_is_one_line(tmp_path: Path, environment: dict[str, str], word: str):
    if "gpu" in {device.platform for device in jax.devices()}:
        pytest.skip("there is CUDA here")
    done = command(tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_command_overrules_settings_of_jax_that_change_programs_and_says_so(tmp_path: Path):
    done = command(tmp_path, JAX_ENABLE_X64="1")
    assert done.returncode == 0
    assert "JAX_ENABLE_X64=True is overruled" in done.stderr


@pytest.mark.parametrize("unset", [None, ""])
@pytest.mark.parametrize("home", [None, "file"])
def test_without_a_home_directory_programs_are_not_kept(
    home: str | None,
    unset: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """A container's user may have none, or / without permission to write."""

    def found() -> Path:
        if home is None:
            raise RuntimeError("Could not determine home directory.")
        (tmp_path / home).touch()
        return tmp_path / home

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", found)
    compile_cache._complain_once.cache_clear()
    with cache_directory(unset):
        for _ in range(2):
            compile_cache.keep_compiled()
            assert jax.config.jax_compilation_cache_dir == unset  # type: ignore[attr-defined]
            assert program_store._directory() is None
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("compiled programs are not kept (")
    assert (str(tmp_path) in told) == (home is not None)


@pytest.mark.parametrize("unset", [None, ""])
def test_programs_are_kept_in_the_usual_place_unless_another_is_named(
    unset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with cache_directory(unset):
        compile_cache.keep_compiled()
        assert program_store._directory() == tmp_path / "popjax/jax/popjax"


@contextmanager
def cache_directory(directory: str | None) -> Iterator[None]:
    """JAX's cache of compiled programs is in ``directory``."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", directory)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


def test_text_is_written_and_read_whatever_the_locale(tmp_path: Path):
    """The locale is ASCII: Python would read and write every file in it."""
    make_run(tmp_path / "run")
    (tmp_path / "options.yaml").write_text("wandb: läuft", encoding="utf-8")
    program = """
import locale
from popjax.cli import expand
from popjax.host.report import report
assert locale.getpreferredencoding() != "utf-8"
assert expand.expanded(["--options", "options.yaml"]) == ["--wandb", "l\\xe4uft"]
report(["run"], "page", ["\\u03b2"], csv=True)
"""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = os.environ | ascii_alone | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=120)
    assert "β,probe/context" in (tmp_path / "page/curves.csv").read_text(encoding="utf-8")


def test_files_of_text_name_their_encoding():
    """Otherwise it is that of the locale. Metadata of a package are read by a function without a choice."""
    unnamed = [
        f"{file.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for folder in ("popjax", "scripts", "benchmarks", "docs")
        for file in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and opens_text(call)
    ]
    assert unnamed == []


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file of text without naming an encoding."""
    function = ast.unparse(call.func)
    if function in ("os.open", "distribution.read_text"):
        return False
    modes = {
        each.value
        for each in [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        if isinstance(each, ast.Constant)
    }
    named = any(word.arg == "encoding" for word in call.keywords)
    opens = function.rpartition(".")[2] in ("open", "fdopen", "read_text", "write_text")
    return opens and not named and not modes & {"rb", "wb", "ab", "r+b"}


def test_a_terminal_that_knows_ascii_alone_is_written_to(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    terminal.write_any_text()
    print("1.0 ± 0.5 … 本")
    sys.stdout.flush()
    assert written.getvalue() == b"1.0 +- 0.5 ... ?\n"


@pytest.mark.parametrize(
    ("variables", "threads"),
    [({}, shard.cores()), ({"NPROC": "3"}, 3), ({"PJRT_NPROC": "5", "NPROC": "3"}, 5)],
)
def test_the_threads_of_xla_are_recorded_and_tell_programs_apart(
    variables: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NPROC", "PJRT_NPROC"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert f", {threads} thread" in provenance.device_name()
    assert threads in program_store._facts_of(tuple(jax.devices()))
    compile_cache.keep_compiled()
    assert cache_key.custom_hook() == f"{threads} threads"
