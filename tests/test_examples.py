"""The example of a method outside the package: it trains, and every command takes its run."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import popjax
from popjax import cli, counting, tree
from popjax.agents import dqn, sac
from popjax.evolution.crossover import Distillation
from popjax.population import offpolicy
from popjax.testing import check_method
from tests.support import same

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from examples import sixth_method  # noqa: E402

SMALL = sixth_method.Config(
    agent=sac.Config(hidden=(8,)),
    population=3,
    capacity=600,
    batch=8,
    warmup=20,
    interval=30,
    memory=40,
    distillation=Distillation(batch=8, epochs=1),
)
OPTIONS = [
    *(
        "--env",
        "probe/corridor",
        "--config.agent.hidden",
        "8",
        "--config.population",
        "3",
        "--config.warmup",
        "20",
    ),
    *("--config.capacity", "600", "--config.batch", "8", "--config.interval", "30", "--config.memory", "40"),
    *("--config.distillation.batch", "8", "--config.distillation.epochs", "1", "--eval-episodes", "2"),
]


@lru_cache
def compiled(task, agent):
    method = sixth_method.build(popjax.make(task), replace(SMALL, agent=agent))
    return method, jax.jit(method.init), jax.jit(method.step)


@pytest.mark.slow
def test_it_keeps_the_contract_of_a_method():
    env = popjax.make("probe/corridor")
    check_method(sixth_method.build(env, SMALL), env, steps=24)


def test_it_has_at_most_150_lines():
    assert len((ROOT / "examples/sixth_method.py").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    ("task", "agent"),
    [
        pytest.param("probe/corridor", SMALL.agent, marks=pytest.mark.slow),
        pytest.param("probe/corridor-discrete", dqn.Config(hidden=(8,)), id="dqn"),
    ],
)
def test_every_part_of_it_happens(task, agent):
    """Transfers, a child of the two best, and a student that comes closer to the best agent."""
    method, init, step = compiled(task, agent)
    state = init(jax.random.key(0), method.hyper.replace(gap=0.0))
    losses, crossed, transferred = [], 0, 0
    for _ in range(60):
        before, state = state, step(state)
        losses.append(float(state.metrics.student_loss))
        transferred += int(state.metrics.transfers.sum())
        for slot, (first, second) in enumerate(np.asarray(state.metrics.parents).tolist()):
            if second >= 0:
                crossed += 1
                ranked = np.argsort(-state.metrics.fitness, stable=True).tolist()
                assert [first, second, slot] == [ranked[0], ranked[1], ranked[-1]]
    assert transferred > 0 or task == "probe/corridor-discrete"  # whose returns may all be the same
    assert crossed > 0
    assert np.mean(losses[-10:]) < np.mean(losses[:5])
    assert same(method.policy(state), state.student.params)
    assert not same(before.student.params, state.student.params)


def test_an_agent_that_normalizes_observations_is_refused():
    config = replace(SMALL, agent=sac.Config(hidden=(8,), normalize_obs=True))
    with pytest.raises(ValueError, match="choose an agent that does not normalize observations"):
        sixth_method.build(popjax.make("probe/corridor"), config)


@pytest.mark.parametrize("last", [jnp.nan, 900.0])
def test_an_agent_that_has_diverged_gives_no_policy_and_takes_the_best_ones(last):
    """Whatever its last episode returned, as it may have diverged since; exchanges are due after 60 steps."""
    method, init, step = compiled("probe/corridor", SMALL.agent)
    state = init(jax.random.key(0), method.hyper)
    actor = jax.tree.map(lambda x: x.at[0].set(jnp.nan), state.agents.actor)
    state = replace(state, agents=replace(state.agents, actor=actor))
    returns = jnp.array([[last], [0.0], [500.0]])  # of the last episodes; the gap is 100
    account = replace(state.lanes.account, latest=returns, episodes=jnp.ones((3, 1), jnp.int32))
    lanes = replace(state.lanes, account=account)
    after = step(replace(state, lanes=lanes, env_steps=counting.none() + 57))
    np.testing.assert_array_equal(after.metrics.transfers, [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(after.metrics.parents, [[2, 1], [2, -1], [2, -1]])
    assert tree.finite((after.student.params, method.policy(after)), 0)


def test_every_command_takes_its_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    run = str(tmp_path / "run")
    name = "examples.sixth_method"
    mine = [name, *OPTIONS]
    common = [*mine, "--run-dir", run, "--seeds", "2"]
    assert cli.run([*common, "--env-steps", "90"]) == 0
    assert cli.run([*common, "--env-steps", "120", "--resume"]) == 0
    assert json.loads((Path(run) / "config.json").read_text())["method"].startswith(name)
    assert cli.evaluate([run, "--episodes", "2"]) == 0
    assert cli.report([run, "--out", str(tmp_path / "report")]) == 0
    assert cli.export([f"{run}", "--out", str(tmp_path / "policy")]) == 0


@pytest.mark.slow
def test_its_run_is_a_teacher_and_swept(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run, mine = str(tmp_path / "run"), ["examples.sixth_method", *OPTIONS]
    assert cli.run([*mine, "--run-dir", run, "--env-steps", "60"]) == 0
    student = ["distil", "--env", "probe/corridor", "--teacher", f"{run}:0", "--env-steps", "64"]
    sizes = ["--config.lanes", "2", "--config.steps", "4", "--config.updates", "1", "--config.batch", "2"]
    assert cli.run([*student, *sizes, "--run-dir", str(tmp_path / "student")]) == 0
    swept = [
        "--log-every",
        "30",
        "--sweep",
        "hyper.gap=1,10",
        "--env-steps",
        "60",
        "--run-dir",
        str(tmp_path / "sweep"),
    ]
    assert cli.run([*mine, *swept]) == 0


@pytest.mark.slow
def test_its_run_is_filmed(tmp_path, monkeypatch):
    pytest.importorskip("pygame")
    monkeypatch.chdir(ROOT)
    run, film = str(tmp_path / "run"), tmp_path / "film.gif"
    task = ["--env", "gymnax/Pendulum-v1", "--env-option", "max_steps_in_episode=10"]
    argv = ["examples.sixth_method", *task, *OPTIONS[2:], "--env-steps", "60", "--run-dir", run]
    assert cli.run(argv) == 0
    assert cli.evaluate([run, "--episodes", "1", "--video", str(film)]) == 0
    assert film.read_bytes().startswith(b"GIF89a")


def test_the_method_of_the_documentation_keeps_its_contract_and_transfers_policies(tmp_path, monkeypatch):
    page = (ROOT / "docs/extending/method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "method_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    build = importlib.import_module("method_of_the_docs").build
    env = popjax.make("probe/corridor")
    config = offpolicy.Config(agent=SMALL.agent, population=3, capacity=60, batch=8, warmup=100)
    method = build(env, config)
    check_method(method, env, members=False)
    state = jax.jit(method.init)(jax.random.key(0), method.hyper)
    returns = jnp.array([[0.0], [450.0], [500.0]])  # of the last episodes; the gap is 100
    account = replace(state.lanes.account, latest=returns, episodes=jnp.ones((3, 1), jnp.int32))
    after = jax.jit(method.step)(replace(state, lanes=replace(state.lanes, account=account)))
    before, policies = method.individuals(state), method.individuals(after)
    for taker, source in enumerate([2, 1, 2]):
        assert same(tree.take(policies, taker), tree.take(before, source))
