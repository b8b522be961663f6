"""Policies as files: they act without popjax as they did with it, or say why they cannot."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli, tree
from popjax.agents import a2c, ddpg, dqn, ppo, sac, td3
from popjax.core import Spec
from popjax.envs import make
from popjax.envs.episodic import episodic
from popjax.host.deploy import chosen_policy, export, export_policy
from popjax.host.deploy.numpy_export import NotPlain, numpy_program
from popjax.host.errors import Refused
from popjax.methods import ce, es, independent, onpolicy, pderl
from popjax.population.learners import Multihead
from tests.support import equal


def task(discrete: bool = False) -> Any:
    """Observations of four numbers, two components of an action or three discrete ones."""

    def reset(key: Any) -> Any:
        place = jax.random.normal(key, (4,))
        return place, place

    def step(place: Any, action: Any) -> Any:
        return place, place, jnp.float32(0), jnp.bool_(False)

    return episodic(Spec("probe/four", (4,), 3 if discrete else 2, 5, discrete=discrete), reset, step)


@lru_cache
def built(kind: str) -> tuple[Any, Any, Any]:
    """Environment, method and State [2, ...] of two untrained members, with weights as of trained ones."""
    env = task(discrete=kind == "categorical")
    match kind:
        case "td3":
            method = independent.build(env, independent.Config(agent=td3.Config(hidden=(8, 8)), capacity=300))
        case "sac":
            method = independent.build(env, independent.Config(agent=sac.Config(hidden=(8,)), capacity=300))
        case "categorical":
            method = onpolicy.build(env, onpolicy.Config(agent=a2c.Config(hidden=(8, 8))))
        case "ppo":
            config = ppo.Config(hidden=(8, 8), normalize_obs=True)
            method = onpolicy.build(env, onpolicy.Config(agent=config, steps=8))
        case "es":
            method = es.build(env, es.Config(population=4, hidden=(8, 8)))
        case "pderl":
            small = ddpg.Config(hidden=(8, 8), critic_branch=4, critic_hidden=4)
            config = pderl.Config(population=4, capacity=1000, memory=9, batch=8, agent=small)
            method = pderl.build(env, config)
        case _:
            config = ce.Config(capacity=1000, batch=8, **CE[kind])
            method = ce.build(env, config)
    state = jax.jit(jax.vmap(method.init, (0, None)))(jax.random.split(jax.random.key(0)), method.hyper)
    state = jax.tree.map(lambda x: 4 * x if x.dtype == jnp.float32 and x.ndim > 2 else x, state)
    if kind in ("ppo", "es"):
        seen = state.agents.observations if kind == "ppo" else state.statistics
        seen = replace(seen, mean=seen.mean + 0.5, low=seen.low + 1e-6, variance=seen.variance * 0.1)
        if kind == "ppo":
            state = replace(state, agents=replace(state.agents, observations=seen))
        else:
            state = replace(state, statistics=seen)
    return env, method, state


CE: dict[str, Any] = {
    "multihead": {"learner": Multihead(hidden=(8,))},
    "votes": {"learner": sac.Config(hidden=(8,)), "col_eval": "q"},
}
ORIGIN = {"method": "ours", "seed": 6, "env_steps": 10}
PLAIN = ("td3", "sac", "categorical", "ppo", "es", "pderl")

SCRIPT = """
import importlib.util, sys
import numpy as np
from functools import lru_cache
from pathlib import Path
sys.modules["popjax"] = None  # importing it fails, as where it is not installed
observations = np.load("observations.npy")
for name in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(name, Path(name) / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    np.save(name + ".numpy.npy", module.act(observations))
    assert module.act(observations[0]).shape == module.act(observations)[0].shape
assert "jax" not in sys.modules
from jax import export
for name in sys.argv[1:]:
    policy = export.deserialize(bytearray((Path(name) / "policy.stablehlo").read_bytes()))
    assert policy.platforms == ("cpu", "cuda", "tpu")
    assert policy.call(observations[:7]).shape[0] == 7
    np.save(name + ".jax.npy", policy.call(observations))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A directory of policies that another process has acted with, and what they do in popjax."""
    root, actions = tmp_path_factory.mktemp("policies"), {}
    observations = np.asarray(3 * jax.random.normal(jax.random.key(1), (100, 4)))
    np.save(root / "observations.npy", observations)
    for kind in PLAIN:
        env, method, state = built(kind)
        assert export_policy(method, env, tree.take(state, slice(1, 2)), root / kind, ORIGIN) is None
        params = method.policy(tree.take(state, 1))
        act = jax.vmap(lambda obs, m=method, p=params: m.act(p, m.memory, obs, jax.random.key(9), 0.0)[1])
        actions[kind] = np.asarray(act(observations))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *PLAIN], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return root, actions


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_a_policy_acts_alike_without_popjax(exported: Any, kind: str, library: str) -> None:
    root, actions = exported
    found = np.load(root / f"{kind}.{library}.npy")
    np.testing.assert_allclose(found, actions[kind], atol=1e-5)
    assert found.shape == ((100,) if kind == "categorical" else (100, 2))
    assert len(np.unique(found.round(4), axis=0)) > 2  # it acts by what it sees


def test_the_conventions_are_told(exported: Any) -> None:
    root = exported[0]
    facts = json.loads((root / "td3" / "policy.json").read_text())
    assert facts["observation"] == {"shape": [4], "dtype": "float32"}
    assert facts["action"] == {"kind": "continuous", "components": 2, "low": -1.0, "high": 1.0}
    assert (facts["seed"], facts["env_steps"]) == (6, 10)
    assert json.loads((root / "categorical" / "policy.json").read_text())["action"]["count"] == 3
    needs = f'pip install "jax=={jax.__version__}" flatbuffers'
    assert needs in (root / "sac" / "README.md").read_text()
    assert "[batch, 4] -> [batch, 2]" in (root / "sac" / "README.md").read_text()
    assert "an integer from 0 to" in (root / "categorical" / "README.md").read_text()
    arrays = np.load(root / "td3" / "policy.npz")
    assert {arrays[name].shape for name in arrays.files} >= {
        (4, 8),
        (8, 8),
        (8, 2),
    }  # the weights, as they are


def test_a_policy_that_numpy_cannot_compute_has_no_program_for_it(tmp_path: Path) -> None:
    env, method, state = built("td3")
    (tmp_path / "policy.npz").write_bytes(b"of another policy")

    def ordered(p: Any, m: Any, obs: Any, key: Any, scale: Any) -> Any:
        return m, jnp.sort(method.act(p, m, obs, key, scale)[1])

    reason = export_policy(method._replace(act=ordered), env, tree.take(state, slice(1)), tmp_path, ORIGIN)
    assert reason == "it uses sort, which has no translation"
    assert reason in (tmp_path / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "policy.json", "policy.stablehlo"]


def test_options_of_the_environment_are_told(tmp_path: Path) -> None:
    env, method, state = built("td3")
    options = {"size": 3, "action_repeat": 4, "frame_stack": 1}
    export_policy(method, env, tree.take(state, slice(1)), tmp_path, ORIGIN | {"env_options": options})
    assert json.loads((tmp_path / "policy.json").read_text())["env_options"] == options
    told = (tmp_path / "README.md").read_text()
    assert "options size=3, action_repeat=4, frame_stack=1.\n- Repeat each action for 4 steps" in told
    assert "latest" not in told


def test_frames_of_bits_differ_among_the_observations_of_a_comparison() -> None:
    env = make("gymnax/Breakout-MinAtar")
    seen = export.probes(env)
    assert seen.dtype == np.bool_
    assert len(np.unique(seen.reshape(len(seen), -1), axis=0)) > 190
    plain, *flipped = np.split(seen, 4)
    np.testing.assert_allclose([(plain ^ part).mean() for part in flipped], [0.03, 0.1, 0.3], atol=0.01)


def test_policies_that_remember_or_draw_are_refused(tmp_path: Path) -> None:
    env, method, state = built("votes")
    with pytest.raises(Refused, match="this policy has a memory"):
        export_policy(method, env, tree.take(state, slice(1)), tmp_path / "out", ORIGIN)
    env, method, state = built("td3")
    method = method._replace(act=lambda p, m, obs, key, scale: (m, jax.random.uniform(key, (2,))))
    with pytest.raises(Refused, match="draws its actions at random"):
        export_policy(method, env, tree.take(state, slice(1)), tmp_path / "out", ORIGIN)
    method = method._replace(act=lambda p, m, obs, key, scale: (m, jnp.full(2, jnp.nan)))
    with pytest.raises(Refused, match="actions are not finite numbers: it has diverged"):
        export_policy(method, env, tree.take(state, slice(1)), tmp_path / "out", ORIGIN)
    assert not (tmp_path / "out").exists()


def acting(policy: Any, observations: np.ndarray, directory: Path) -> np.ndarray:
    """Actions of the translation of ``policy``."""
    source, arrays = numpy_program(policy, observations[0])
    (directory / "policy.py").write_text(source)
    np.savez(directory / "policy.npz", **arrays)
    return runpy.run_path(str(directory / "policy.py"))["act"](observations)


WEIGHTS = jnp.linspace(-1.0, 1.0, 24)


@pytest.mark.parametrize(
    "policy",
    [
        lambda obs: jax.nn.softmax(obs @ WEIGHTS.reshape(12, 2)),
        lambda obs: jax.nn.elu(obs - obs.mean()) / (obs.std(ddof=1) + 1e-6),
        lambda obs: jax.nn.swish(jnp.einsum("ij,kj->ki", obs.reshape(3, 4), WEIGHTS.reshape(6, 4))),
        lambda obs: jnp.argmax(jnp.where(obs > 0, obs, -obs)),
        lambda obs: jnp.concatenate([jnp.pad(obs, (1, 2))[::2], jnp.clip(obs, -0.5, jnp.inf)]).T,
        lambda obs: obs.astype(jnp.int32) ** 3,
        lambda obs: jnp.tanh(obs) + 0.0 * jnp.exp(obs),
    ],
    ids=["softmax", "norm", "einsum", "argmax", "shapes", "integers", "nothing"],
)
def test_operations_are_those_of_jax(policy: Any, tmp_path: Path) -> None:
    observations = np.asarray(jax.random.normal(jax.random.key(0), (20, 12)))
    found, wanted = acting(policy, observations, tmp_path), np.asarray(jax.vmap(policy)(observations))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_images_are_seen_alike(tmp_path: Path) -> None:
    agent = dqn.build(Spec("probe/image", (10, 10, 3), 3, 5, discrete=True))
    params = agent.policy(agent.init(jax.random.key(0), dqn.Hyper()))

    def policy(obs: Any) -> Any:
        return agent.act(params, (), obs, jax.random.key(0), 0.0).action

    observations = np.asarray(jax.random.bernoulli(jax.random.key(1), 0.3, (30, 10, 10, 3)), np.float32)
    np.testing.assert_array_equal(acting(policy, observations, tmp_path), jax.vmap(policy)(observations))


def test_what_has_no_translation_matters_only_where_it_is_used(tmp_path: Path) -> None:
    def policy(obs: Any) -> Any:
        jnp.sort(obs)
        return 2 * obs

    np.testing.assert_array_equal(acting(policy, np.ones((2, 3), np.float32), tmp_path), np.full((2, 3), 2))
    with pytest.raises(NotPlain, match="it uses sort"):
        numpy_program(lambda obs: policy(jnp.sort(obs)), np.ones(3, np.float32))
    with pytest.raises(NotPlain, match="it uses while"):
        numpy_program(lambda obs: jax.lax.while_loop(jnp.any, lambda x: x - 1, obs), np.ones(3, np.float32))


def test_one_individual_takes_the_policys_place() -> None:
    _, method, state = built("pderl")
    for index in (0, 3):
        alone = chosen_policy.individual(method, state, index)
        chosen = alone.policy(tree.take(state, 1))
        equal(chosen, tree.take(tree.take(state, 1).actors, index))
    for index in (-1, 4):
        with pytest.raises(Refused, match=rf"in 0 to 3 for a population of 4, got {index}"):
            chosen_policy.individual(method, state, index)
    _, method, state = built("votes")
    with pytest.raises(Refused, match="offers no policies of individuals"):
        chosen_policy.individual(method, state, 0)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.METHODS, "tiny", "tests.host.tiny")
    root = tmp_path / "run"
    train = ["tiny", "--env", "probe/context", "--env-steps", "24", "--seeds", "2", "--run-dir", str(root)]
    assert cli.run(train) == 0
    capsys.readouterr()
    assert cli.evaluate([str(root), "--individual", "2", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["individual"] == 2
    assert cli.evaluate([str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] != shown["mean"]
    assert cli.evaluate([str(root), "--individual", "2"]) == 0
    assert "(individual 2)" in capsys.readouterr().out
    assert cli.evaluate([str(root), "--individual", "3"]) == 2
    assert "in 0 to 2 for a population of 3, got 3" in capsys.readouterr().err
    for command in (cli.evaluate, lambda argv: cli.export([*argv, "--out", str(tmp_path / "none")])):
        assert command([str(root), "--individual", "2", "--checkpoint", "best"]) == 2
        assert "the policy that the method chose, no individuals" in capsys.readouterr().err

    out = tmp_path / "policy"
    assert cli.export([str(root), "--out", str(out), "--member", "1", "--individual", "2"]) == 0
    assert "policy.py" in capsys.readouterr().out
    facts = json.loads((out / "policy.json").read_text())
    assert (facts["method"], facts["member"], facts["seed"]) == ("tiny", 1, 1)
    assert (facts["individual"], facts["env_steps"], facts["env_options"]) == (2, 24, {})
    assert "member 1, seed 1, individual 2" in (out / "README.md").read_text()
    assert cli.export([str(root), "--out", str(out), "--member", "2"]) == 2
    assert cli.export([str(root)]) == 2
    assert "--out" in capsys.readouterr().err
