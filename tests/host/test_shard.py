"""Several devices: the same results, and nothing that keeps one device waiting for another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax._src import cache_key

from popjax.cli import grid
from popjax.cli.expand import expanded
from popjax.core import lapack, stacked_fields
from popjax.devices import default_device
from popjax.envs import dynamics, make
from popjax.host import provenance
from popjax.host.scaling import shard
from popjax.methods import independent
from popjax.replay import packed

ROOT = Path(__file__).parents[2]
DEVICES = "--xla_force_host_platform_device_count"
FLAGS = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICES))


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the findings of ``on_devices`` in a process with four devices."""
    found = run("tests.host.on_devices", 4, str(tmp_path_factory.mktemp("devices")))
    assert found["devices"] == 4
    return found


def run(module: str, devices: int, *argv: str) -> dict[str, Any]:
    """Return the output of a module in a process with so many devices."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{FLAGS} {DEVICES}={devices}",
    }
    command = [sys.executable, "-m", module, *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_members_are_bitwise_the_same_on_any_number_of_devices(answer: dict[str, Any]) -> None:
    one = answer["members"]["1"]
    assert [row["status"] for row in one["members"]].count("failed") == 4
    for name in ("2", "4", "moved"):
        other = answer["members"][name]
        assert [row["state_sha256"] for row in other["members"]] == [
            row["state_sha256"] for row in one["members"]
        ]
        assert other["final_return"] == one["final_return"]


def test_a_program_of_members_holds_no_collective_and_one_of_a_population_does(
    answer: dict[str, Any],
) -> None:
    assert answer["sweep_collectives"] == 0
    assert answer["naive_collectives"] > 0  # so that the search finds them
    assert answer["population_collectives"] > 0


def test_a_member_that_stands_still_is_taken_from_the_device_that_has_it(answer: dict[str, Any]) -> None:
    """No device hears of it but its own, and no room is needed but that of the member."""
    found = answer["stopped"]
    assert found["programs"] == 4  # two members taken and put back
    assert found["collectives"] == 0
    assert found["temporaries"] <= found["lane"]
    assert found["right"]
    assert found["lies"]
    assert found["in_place"]


@pytest.mark.slow
def test_members_of_a_real_method_learn_alike_on_two_devices_which_never_speak() -> None:
    """For several devices XLA divides where for one it multiplies by the inverse: the last digits differ."""
    found = run("tests.host.real_on_devices", 2)
    assert found["devices"] == 2
    assert found["difference"] < 1e-4
    assert found["collectives"] == 0
    population = found["population"]
    assert population["told"] < population["observations"] / 10
    assert population["own"] < 0.6 * population["all"]


def test_a_population_is_the_same_on_any_number_of_devices(answer: dict[str, Any]) -> None:
    found = answer["population"]
    for n in (1, 2, 4):
        assert found[str(n)]["devices"] == [n, n]
        np.testing.assert_allclose(found[str(n)]["weights"], found["1"]["weights"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["resumed"], found["straight"], rtol=1e-4, atol=1e-5)


def test_a_replay_is_spread_with_its_agents_unless_they_share_it() -> None:
    for shared in (False, True):
        config = independent.Config(population=4, capacity=300, shared_replay=shared)
        method = independent.build(make("probe/context"), config)
        state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
        assert ("replay" in stacked_fields(state)) is not shared
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), state)
        assert ("replay" in stacked_fields(shapes)) is not shared


def test_a_run_on_one_device_keeps_to_the_default_one(answer: dict[str, Any]) -> None:
    """The others may be someone else's. Programs stored for one device are not taken for another."""
    found = answer["default"]
    third = {name: [2] for name in ("fresh", "stored", "resumed", "loaded")}
    assert found["places"] == {"first": [0]} | third
    assert found["asked"] == [2]  # for its memory
    assert len(set(found["digests"])) == 1
    assert found["several"] == [0, 1]


def test_a_default_device_may_be_the_name_of_a_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with GPUs too, as far as one without can tell."""
    gpus = [SimpleNamespace(platform="gpu", device_kind="H200", client=None)]
    (cpu, *_) = cpus = jax.local_devices()
    asked = {None: gpus, "cpu": cpus}
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: asked[backend])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert default_device() is gpus[0]
    assert provenance.device_name() == "H200"
    for told in ("cpu", cpu):
        with jax.default_device(told):
            assert default_device() is cpu
            assert shard.chosen("all") == tuple(cpus)
            assert provenance.device_name().startswith("cpu (")
            assert packed.platform() == dynamics.platform() == "cpu"
            assert cache_key.custom_hook() == f"{shard.threads()} threads"


def test_slices_of_a_sweep_divide_over_the_devices(answer: dict[str, Any]) -> None:
    slices = answer["slices"]
    assert slices["runs"] == ["members0to3", "members4to7"]  # four would fit
    assert slices["codes"] == [0, 2, 2, 2, 2]
    found = slices["found"]
    assert "--devices must be in 1 to 4" in found["many"]["said"]
    assert (
        "--slice 3: 3 members do not divide evenly over 2 devices; use --slice 2 or 4"
        in (found["three"]["said"])
    )
    assert "9 members of the sweep do not divide evenly over 2 devices" in found["nine"]["said"]
    assert not any(found[name]["made"] for name in ("many", "three", "nine"))
    assert "4 members of a slice in" in slices["again"]
    assert "do not divide evenly over 3 devices: use --devices 1 or 2 or 4" in slices["again"]


def test_what_does_not_divide_is_refused_with_the_sizes_that_would(answer: dict[str, Any]) -> None:
    members, individuals, nothing, many = answer["refusals"]
    assert members == (
        "6 members of the sweep do not divide evenly over 4 devices: use --devices 1 or 2 or 3,"
        " or 4 or 8 members of the sweep"
    )
    assert "6 individuals of the population do not divide evenly over 4 devices" in individuals
    assert "no population to spread; use --devices 1" in nothing
    assert "--devices must be in 1 to 4" in many


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PROGRAM = """
import os
import jax
from popjax import cli
cli.METHODS["tiny"] = "tests.host.tiny"
code = cli.run()
print(os.environ.get("NPROC"), jax.device_count())
raise SystemExit(code)
"""


def on_cpu(*argv: str, seeds: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own that nobody told of devices or threads but ``argv``."""
    command = [sys.executable, "-c", PROGRAM, "tiny", "--env=probe/context", "--env-steps=600"]
    command.append(f"--seeds={seeds}")
    mine = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    theirs = {n: v for n, v in os.environ.items() if n not in ("JAX_NUM_CPU_DEVICES", "NPROC")}
    return subprocess.run(
        [*command, *argv], cwd=ROOT, env=theirs | mine | environment, capture_output=True, text=True
    )


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_a_cpu_is_divided_into_as_many_devices_as_are_asked_for(tmp_path: Path) -> None:
    done = on_cpu("--devices=2", f"--run-dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["None", "2"]


@pytest.mark.skipif(CORES < 2 or not lapack.SPLITS, reason="needs two cores and a jaxlib that splits batches")
def test_a_population_on_several_devices_of_a_cpu_has_threads_for_its_batches(tmp_path: Path) -> None:
    done = on_cpu("--devices=2", f"--run-dir={tmp_path}", seeds=1)
    assert int(done.stdout.split()[-2]) >= 16, done.stderr


@pytest.mark.parametrize(
    ("argv", "axis"),
    [
        ("--env-steps 600", "population"),
        ("--seeds 1", "population"),
        ("--seeds=8", "sweep"),
        ("--seeds 3 5", "sweep"),
        ("--seeds 0 1", "sweep"),
        ("--seeds=0 1 --env-steps 600", "sweep"),
        ("--seeds 2e0", "sweep"),
        ("--seeds 1e0", "population"),
        ("--seeds 0 1 --seeds 1", "population"),
        ("--seeds", "population"),
        ("--sweep hyper.step=1,2", "sweep"),
        ("--seeds 01 --sweep hyper.step=1", "population"),
        ("--sweep config.size=1,2", "population"),
        ("--seeds 8 --slice 1", "population"),
        ("--seeds 8 --members 0:1", "population"),
    ],
)
def test_the_axis_to_spread_is_known_from_the_arguments(argv: str, axis: str) -> None:
    assert grid.spread_axis(expanded(argv.split())) == axis


def test_a_cpu_is_divided_into_no_more_devices_than_it_has_cores(tmp_path: Path) -> None:
    done = on_cpu("--devices", str(2 * CORES), f"--run-dir={tmp_path}")
    assert done.returncode == 2
    assert f"--devices must be in 1 to {CORES}" in done.stderr
    assert "Traceback" not in done.stderr


def test_who_divided_the_cpu_is_left_alone(tmp_path: Path) -> None:
    done = on_cpu("--devices=2", f"--run-dir={tmp_path}", JAX_NUM_CPU_DEVICES="1")
    assert "--devices must be in 1 to 1" in done.stderr
    done = on_cpu("--devices=2", f"--run-dir={tmp_path}", XLA_FLAGS=f"{FLAGS} {DEVICES}=4")
    assert done.stdout.split()[-1] == "4", done.stderr
