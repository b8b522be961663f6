"""Environments that do not fit their Spec are named with the field; its time limit holds for all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from popjax import envs, rollout
from popjax.contract import check_env, checked
from popjax.core import Env, Spec, Timestep
from popjax.methods import independent, pderl

FALSE = jnp.bool_(False)


def point(
    *, spec=Spec("mine/point", (3,), 3, 20), obs=lambda s: s, reward=lambda s: s.sum(), ended=lambda s: FALSE
):
    """A point that is pushed about; never says that its time is over."""

    def step(s, action):
        s = s + 0.1 * action
        return s, Timestep(obs(s), obs(s), reward(s), ended(s), FALSE)

    def reset(key):
        s = jax.random.normal(key, (3,))
        return s, obs(s)

    return Env(reset, step, spec)


def answering(step):
    return point()._replace(step=step)


GOOD = Timestep(jnp.zeros(3), jnp.zeros(3), jnp.float32(0), FALSE, FALSE)
FAULTS = {
    "another shape": (
        point(spec=Spec("mine/point", (4,), 3, 20)),
        r"mine/point: reset: the observation must be float32 \[4\], got float32 \[3\]; let obs_shape",
    ),
    "another type": (
        point(obs=lambda s: s.astype(jnp.uint8)),
        r"mine/point: reset: the observation must be float32 \[3\], got uint8 \[3\]",
    ),
    "observation is a dict": (
        point(obs=lambda s: {"position": s}),
        r"mine/point: reset: the observation must be float32 \[3\], got dict",
    ),
    "reset without state": (
        point()._replace(reset=lambda key: jnp.zeros(3)),
        r"mine/point: reset must return \(state, observation\), got float32 \[3\]",
    ),
    "only the successor has another shape": (
        answering(lambda s, a: (s, GOOD.replace(next_obs=s[:2]))),
        r"mine/point: step: next_obs must be float32 \[3\], got float32 \[2\]",
    ),
    "done as a number": (
        point(ended=lambda s: (s.max() > 5).astype(jnp.float32)),
        r"mine/point: step: terminated must be bool \[\], got float32 \[\]; return a scalar bool",
    ),
    "truncated for every component": (
        answering(lambda s, a: (s, GOOD.replace(truncated=s > 5))),
        r"mine/point: step: truncated must be bool \[\], got bool \[3\]",
    ),
    "cut as a number": (
        answering(lambda s, a: (s, GOOD.replace(cut=jnp.float32(0)))),
        r"mine/point: step: cut must be bool \[\], got float32 \[\]",
    ),
    "reward with an axis": (
        point(reward=lambda s: s[:1]),
        r"mine/point: step: reward must be float32 \[\], got float32 \[1\]",
    ),
    "reward is a count": (
        point(reward=lambda s: jnp.int32(1)),
        r"mine/point: step: reward must be float32 \[\], got int32 \[\]",
    ),
    "Gymnasium's five answers": (
        answering(lambda s, a: (s, s.sum(), FALSE, FALSE, {})),
        r"mine/point: step must return \(state, Timestep\), got tuple of 5",
    ),
    "observation in place of a Timestep": (
        answering(lambda s, a: (s, s)),
        r"mine/point: step must return \(state, Timestep\), got float32 \[3\] second",
    ),
    "state grows": (
        answering(lambda s, a: (jnp.zeros(4), GOOD)),
        r"mine/point: step must return state as float32 \[3\], as it was given, got float32 \[4\]",
    ),
    "state of another structure": (
        answering(lambda s, a: ((s, s), GOOD)),
        r"mine/point: step must return a state of the structure PyTreeDef\(\*\), got PyTreeDef",
    ),
    "no limit": (
        point(spec=Spec("mine/point", (3,), 3, 0)),
        "mine/point: episode_length of the Spec must be an integer from 1 to 2,147,483,647, got 0",
    ),
    "limit beyond int32": (
        point(spec=Spec("mine/point", (3,), 3, 2**31)),
        "mine/point: episode_length of the Spec must be an integer from 1 to 2,147,483,647, got 2147483648",
    ),
    "limit left out": (
        point(spec=Spec("mine/point", (3,), 3, None)),
        "mine/point: episode_length of the Spec must be an integer from 1 to 2,147,483,647, got None",
    ),
    "endless": (
        point(spec=Spec("mine/point", (3,), 3, float("inf"))),
        "mine/point: episode_length of the Spec must be an integer from 1 to 2,147,483,647, got inf",
    ),
    "unknown limit": (
        point(spec=Spec("mine/point", (3,), 3, float("nan"))),
        "mine/point: episode_length of the Spec must be an integer from 1 to 2,147,483,647, got nan",
    ),
    "shape as a number": (
        point(spec=Spec("mine/point", 3, 3, 20)),
        "mine/point: obs_shape of the Spec must be a tuple of integers from 1 to 2,147,483,647, got 3",
    ),
    "shape of a half": (
        point(spec=Spec("mine/point", (3.5,), 3, 20)),
        r"mine/point: obs_shape of the Spec must be a tuple of integers from 1 to .*, got \(3.5,\)",
    ),
    "half an action": (
        point(spec=Spec("mine/point", (3,), 1.5, 20)),
        "mine/point: action_dim of the Spec must be an integer from 1 to 2,147,483,647, got 1.5",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_field(fault):
    env, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        check_env(env)


@pytest.mark.parametrize("method", [independent, pderl])
def test_methods_name_it_before_anything_is_allocated(method):
    env, message = FAULTS["reward with an axis"]
    built = method.build(env)
    state = jax.eval_shape(built.init, jax.random.key(0), built.hyper)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(built.step, state)


@pytest.mark.parametrize("name", ["gymnax/Pendulum-v1", "gymnax/Breakout-MinAtar", "probe/corridor-discrete"])
def test_environments_by_name_fit(name):
    check_env(envs.make(name))


def test_python_numbers_become_arrays_of_the_declared_types(key):
    env = checked(answering(lambda s, a: (s, Timestep(s, s, 1, False, np.bool_(True)))))
    state, _ = env.reset(key)
    _, timestep = jax.eval_shape(env.step, state, jnp.zeros(3))
    assert (timestep.reward.dtype, timestep.reward.weak_type) == (jnp.float32, False)
    assert timestep.terminated.dtype == timestep.truncated.dtype == bool


def stand(carry, obs, key):
    return carry, jnp.zeros(3)


def test_the_limit_of_the_spec_truncates_where_the_environment_does_not(key):
    def collected(key):
        env = rollout.autoreset(point())
        return rollout.collect(env, stand, rollout.start(env, (), key), key, 45)[1]

    obs, _, timestep = jax.jit(collected)(key)
    assert np.flatnonzero(timestep.truncated).tolist() == [19, 39]
    assert not timestep.terminated.any()
    assert (timestep.next_obs[19] == obs[19]).all()  # the true successor of a point at rest
    assert not (obs[20] == obs[19]).any()  # a new episode
    played = jax.jit(lambda key: rollout.episode(point(), stand, (), key))(key)
    assert int(played.length) == 20
    assert np.flatnonzero(played.steps[2].truncated).tolist() == [19]


def test_an_end_of_its_own_starts_the_count_anew(key):
    """Pushed for five steps, the point ends its episode once; at rest it is truncated 20 steps later."""
    env = rollout.autoreset(point(ended=lambda s: s[0] > 2))

    def pushed_at_first(steps, obs, key):
        return steps + 1, jnp.where(steps < 5, 10.0, 0.0) * jnp.ones(3)

    def run(key):
        return rollout.collect(env, pushed_at_first, rollout.start(env, jnp.int32(0), key), key, 45)[1][2]

    timestep = jax.jit(run)(key)
    (end,) = np.flatnonzero(timestep.terminated)
    assert np.flatnonzero(timestep.truncated).tolist()[0] == end + 20


class Label:
    """A static part of a state, made anew in every step: equal to another of the same text."""

    def __init__(self, text):
        self.text = text

    def __eq__(self, other):
        return self.text == other.text

    def __hash__(self):
        return hash(self.text)


@struct.dataclass
class Labelled:
    place: jax.Array
    label: Label = struct.field(pytree_node=False)


@pytest.mark.parametrize("text", ["same", "other"])
def test_static_parts_of_a_state_are_compared_by_what_they_are(text):
    def reset(key):
        return Labelled(jnp.zeros(3), Label("same")), jnp.zeros(3)

    def step(state, action):
        return Labelled(state.place, Label(text)), GOOD

    env = checked(Env(reset, step, Spec("mine/labelled", (3,), 3, 20)))
    play = lambda: env.step(env.reset(jax.random.key(0))[0], jnp.zeros(3))  # noqa: E731
    if text == "same":
        assert play()[0].label == Label("same")
    else:
        with pytest.raises(ValueError, match="step must return a state of the structure"):
            play()
