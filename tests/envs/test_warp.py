"""Physics in Warp: its refusals, and lanes that become one call. The suites' tests compare its steps."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import envs, remember
from popjax.cli.jax_setup import DETERMINISTIC
from popjax.envs import warp


@pytest.fixture
def present(monkeypatch):
    from mujoco import mjx  # noqa: F401
    from mujoco.mjx import warp

    jnp.zeros(1).block_until_ready()  # XLA reads its flags now, and not those of a test
    monkeypatch.setattr(warp, "WARP_INSTALLED", True)
    return monkeypatch


def _skip_without_suite(name):
    """Skip where the task's library is absent, as dm_control is on Python 3.13."""
    library = {"playground": "mujoco_playground", "dmc": "dm_control"}.get(name.partition("/")[0])
    if library:
        pytest.importorskip(library)


@pytest.mark.parametrize("name", ["gym/Reacher-v4", "dmc/pendulum-swingup", "playground/PendulumSwingup"])
def test_without_warp_the_extra_is_named(name, present):
    _skip_without_suite(name)
    remember.forget()
    present.setattr("mujoco.mjx.warp.WARP_INSTALLED", False)
    with pytest.raises(ValueError, match=rf"^{name} with impl=warp needs Warp: pip install 'popjax\[warp\]'"):
        envs.make(name, impl="warp")


@pytest.mark.parametrize("name", ["gym/Reacher-v4", "dmc/pendulum-swingup"])
def test_another_implementation_is_refused(name):
    _skip_without_suite(name)
    with pytest.raises(ValueError, match=f"^{name} has no impl 'c'; choose from jax, warp$"):
        envs.make(name, impl="c")


@pytest.mark.parametrize("flag", [*DETERMINISTIC, "--xla_gpu_deterministic_ops --xla_gpu_autotune_level=0"])
def test_the_same_bits_every_time_are_not_promised(flag, present, tmp_path):
    present.setenv("XLA_FLAGS", f"--xla_gpu_autotune_level=0 {flag}")
    with pytest.raises(ValueError, match=r"^gym/Hopper-v4: impl=warp .* out --determini") as refusal:
        warp.check("gym/Hopper-v4", "warp")
    assert "\n" not in str(refusal.value)
    warp.check("gym/Hopper-v4", "jax")
    (tmp_path / "flags").write_text(flag)
    present.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    with pytest.raises(ValueError, match="impl=warp does not compute the same bits"):
        warp.check("gym/Hopper-v4", "warp")


def test_a_tpu_is_refused(present):
    present.setattr(warp, "default_device", lambda: SimpleNamespace(platform="tpu"))
    with pytest.raises(ValueError, match="runs on NVIDIA GPUs and CPUs, not on a tpu"):
        warp.check("gym/Hopper-v4", "warp")


def test_all_lanes_are_one_call_whatever_they_are_mapped_over():
    counts = []

    def together(xs):
        counts.append(len(xs["x"]))
        return {"sum": xs["x"].sum(-1) + xs["same"], "none": xs["none"]}

    one = warp._all_lanes(together)
    x, none = jnp.arange(24.0).reshape(3, 4, 2), jnp.zeros((3, 4, 0))
    mapped = jax.vmap(jax.vmap(lambda x, none: one({"x": x, "same": jnp.float32(1), "none": none})))
    found = jax.jit(mapped)(x, none)
    assert counts[-1] == 12
    np.testing.assert_array_equal(found["sum"], x.sum(-1) + 1)
    assert found["none"].shape == (3, 4, 0)
    alone = one({"x": jnp.ones(3), "same": jnp.float32(0), "none": none[0, 0]})
    np.testing.assert_array_equal(alone["sum"], 3.0)
    assert counts[-1] == 1
