"""MuJoCo Playground's tasks against Playground itself, from the states of 256 steps of random play.

The default run compiles CartpoleBalance. All tasks, about twenty minutes on two cores:

    pytest -m "slow or not slow" tests/envs/test_playground.py
"""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from popjax import envs, remember
from popjax.core import Spec
from tests.envs import truth

playground = pytest.importorskip("mujoco_playground")

QUICK = "CartpoleBalance"
TASKS = [
    pytest.param(task, marks=() if task == QUICK else pytest.mark.slow) for task in envs.tasks("playground")
]


@pytest.mark.parametrize("task", TASKS)
def test_one_step_equals_playground(task):
    truth.assert_equals_the_library("playground", task)


def test_an_episode_equals_playground(key):
    """Same key and actions: what a state carries from step to step is enough."""
    env = envs.make(f"playground/{QUICK}")
    raw = playground.registry.load(QUICK, config_overrides={"impl": "jax"})
    actions = jax.random.uniform(key, (10, 1), minval=-1)
    step, raw_step = jax.jit(env.step), jax.jit(raw.step)
    state, obs = jax.jit(env.reset)(key)
    raw_state = jax.jit(raw.reset)(jax.random.PRNGKey(0))
    assert jnp.allclose(obs, raw_state.obs)
    for action in actions:
        state, timestep = step(state, action)
        raw_state = raw_step(raw_state, action)
        assert jnp.allclose(timestep.next_obs, raw_state.obs, rtol=1e-5, atol=1e-5)
        assert float(timestep.reward) == pytest.approx(float(raw_state.reward), abs=1e-5)
        assert bool(timestep.terminated) == bool(raw_state.done)


def test_reacher_is_made_although_playground_misreads_the_version_of_mujoco():
    spec = envs.make("playground/ReacherEasy").spec
    assert (spec.obs_shape, spec.action_dim, spec.dt) == ((6,), 2, pytest.approx(0.02))


def test_the_spec_follows_the_options():
    env = envs.make(f"playground/{QUICK}", episode_length=7, ctrl_dt=0.02, sim_dt=0.005)
    spec = Spec(f"playground/{QUICK}", obs_shape=(5,), action_dim=1, episode_length=7, dt=0.02)
    assert env.spec == spec
    assert envs.make(f"playground/{QUICK}").spec.episode_length == 1000


def test_a_state_holds_what_a_step_depends_on_and_keeps_its_form(key):
    env = envs.make(f"playground/{QUICK}")
    state, _ = jax.eval_shape(env.reset, key)
    after, _ = jax.eval_shape(env.step, state, jnp.zeros(1))
    leaves = jax.tree.leaves(state)
    for a, b in zip(leaves, jax.tree.leaves(after), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) < 200


@pytest.mark.slow
def test_warp_plays_across_resets(key):
    pytest.importorskip("warp", reason="impl=warp needs it: pip install 'popjax[warp]'")
    env = envs.make(f"playground/{QUICK}", impl="warp", episode_length=3)
    _, (_, _, timestep) = jax.jit(jax.vmap(lambda key: truth.random_play(env, key, 7)))(
        jax.random.split(key, 4)
    )
    assert jnp.isfinite(timestep.obs).all()
    assert timestep.truncated.sum() == 4 * 2


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("cheetahrun", {}, "did you mean 'CheetahRun'"),
        (QUICK, {"ctl_dt": 1}, "no option 'ctl_dt'; did you mean 'ctrl_dt'"),
        (QUICK, {"impl": "c"}, "no impl 'c'; choose from jax, warp"),
        (QUICK, {"sim_dt": "fast"}, "playground/CartpoleBalance: .*sim_dt"),
        (QUICK, {"ctrl_dt": "x"}, "option ctrl_dt must be a number, got 'x'"),
        (
            QUICK,
            {"ctrl_dt": 0.004, "sim_dt": 0.01},
            "ctrl_dt must be sim_dt or a multiple, got 0.004 s and 0.01",
        ),
        (
            QUICK,
            {"ctrl_dt": 0.015, "sim_dt": 0.01},
            "ctrl_dt must be sim_dt or a multiple, got 0.015 s and 0.01",
        ),
        (QUICK, {"ctrl_dt": 0.0}, "ctrl_dt must be sim_dt or a multiple, got 0 s"),
        (QUICK, {"episode_length": 2.7}, "option episode_length must be an integer, got 2.7"),
        (QUICK, {"vision": True}, "no option 'vision'"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(task, options, message):
    with pytest.raises(ValueError, match=message):
        envs.make(f"playground/{task}", **options)


def test_several_observations_are_refused(monkeypatch):
    class Two:
        action_size = 1

        def reset(self, key):
            return playground.State(None, {"state": key, "pixels": key}, 0, 0, {}, {})

    suite = playground.dm_control_suite
    monkeypatch.setattr(suite, "load", lambda *args, **options: Two())
    with pytest.raises(ValueError, match="observes pixels, state; popjax needs one array"):
        envs.make(f"playground/{QUICK}")


def test_without_playground_the_extra_is_named_and_other_suites_are_found(monkeypatch):
    remember.forget()  # which keeps the task where a test before made it
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(ValueError, match=r"needs MuJoCo Playground: pip install 'popjax\[playground\]'"):
        envs.make("playground/CheetahRun")
    with pytest.raises(ValueError, match="did you mean 'probe/corridor'"):
        envs.make("corridor")


def test_without_warp_its_package_is_named():
    program = (
        "import sys; sys.modules['warp'] = None\nfrom popjax import envs\n"
        "try: envs.make('playground/CartpoleBalance', impl='warp')\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("needs Warp: pip install 'popjax[warp]'")
