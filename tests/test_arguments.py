"""Arguments of the wrong type: one line that names the argument, what it takes and what it got."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import popjax
from popjax.agents import ddpg, ppo, td3
from popjax.arguments import checked, fits, told, typed, wanted
from popjax.checks import check_hyper
from popjax.host.deploy import export_policy
from popjax.methods import onpolicy
from tests.host import tiny

ENV = popjax.make("probe/context")
METHOD = tiny.build(ENV)
CARTPOLE = popjax.make("gymnax/CartPole-v1")
PPO = onpolicy.build(CARTPOLE, onpolicy.Config(agent=ppo.Config(hidden=(4,)), lanes=2, steps=4))
SHORT: dict[str, Any] = {
    "env_steps": 24,
    "eval_every": 24,
    "eval_episodes": 1,
    "log_every": 24,
    "quiet": True,
}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"env": "probe/context"},
            "env must be a popjax.core.Env, which popjax.make returns, got 'probe/context'",
        ),
        ({"method": popjax.pderl}, "method must be a popjax.core.Method, .*, got a value of type module"),
        ({"env_steps": None}, "env_steps must be an integer, got None"),
        ({"seeds": "abc"}, "seeds must be an integer or a list of integers, got 'abc'"),
        ({"seeds": [1, "a"]}, "seeds must be an integer or a list of integers, got .*'a'"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"seed": jax.random.key(0)}, "seed must be an integer, got a value of type"),
        ({"hyper": METHOD.hyper.replace(rate=jax.random.key(0))}, "hyper.rate must be a number, got a value"),
        ({"eval_every": 1.5}, "eval_every must be an integer, got 1.5"),
        ({"eval_episodes": "5"}, "eval_episodes must be an integer, got '5'"),
        ({"checkpoint_every": [1]}, r"checkpoint_every must be an integer, got \[1\]"),
        ({"log_every": float("nan")}, "log_every must be an integer, got nan"),
        ({"keep_checkpoints": float("inf")}, "keep_checkpoints must be an integer, got inf"),
        ({"stop_at_return": "high"}, "stop_at_return must be a number or None, got 'high'"),
        ({"max_minutes": "5"}, "max_minutes must be a number or None, got '5'"),
        ({"hyper": {"rate": 0.1}}, "hyper must be a tests.host.tiny.Hyper, got {'rate': 0.1}"),
        ({"hyper": tiny.Hyper}, "hyper must be a tests.host.tiny.Hyper, got the class tests.host.tiny.Hyper"),
        ({"hyper": METHOD.hyper.replace(rate="fast")}, "hyper.rate must be a number, got 'fast'"),
        ({"swept": ["hyper.rate"]}, "swept must be a dictionary or None, got .*rate"),
        ({"swept": {3: [0.1]}}, "a name in swept must be a string, got 3"),
        (
            {"swept": {"hyper.rate": "0.1"}},
            r"swept\['hyper.rate'\] must be a number or a list of .*, got '0.1'",
        ),
        ({"members": 3}, "members must be two integers or None, got 3"),
        ({"members": ("a", 1)}, r"members must be two integers or None, got \('a', 1\)"),
        ({"devices": 1.5}, "devices must be an integer or a string, got 1.5"),
        ({"run_dir": 5}, "run_dir must be a string or a path or None, got 5"),
        ({"resume": "yes"}, "resume must be True or False, got 'yes'"),
        (
            {"sinks": print},
            "sinks must be a list of functions, got a value of type builtin_function_or_method",
        ),
        ({"sinks": [3]}, r"sinks must be a list of functions, got \[3\]"),
        ({"name": 3}, "name must be a string or None, got 3"),
        ({"command": ["popjax"]}, "command must be a string or None, got "),
        ({"quiet": 1}, "quiet must be True or False, got 1"),
    ],
)
def test_train_refuses_a_wrong_type_before_it_computes(given, said, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "eval_shape", None)  # nothing is traced, and nothing written
    method, env = given.pop("method", METHOD), given.pop("env", ENV)
    with pytest.raises(popjax.Refused, match=said) as refusal:
        popjax.train(method, env, **{**SHORT, "run_dir": tmp_path / "run", **given})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 160
    assert not (tmp_path / "run").exists()


def test_every_argument_of_train_has_a_wrong_type_that_is_refused():
    """So has one that is added later."""

    class Odd:
        """A value that fits no type."""

    for name in inspect.signature(popjax.train).parameters:
        given = {"method": METHOD, "env": ENV, **SHORT, name: Odd()}
        with pytest.raises(popjax.Refused, match=f"^{name} must be .*, got a value of type"):
            popjax.train(**given)


STATE = METHOD.init(jax.random.key(0), METHOD.hyper)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: popjax.evaluate(METHOD, "probe/context", STATE), "env must be a popjax.core.Env"),
        (lambda: popjax.evaluate(METHOD, ENV, None), "state must be a State of the method, .*, got None"),
        (
            lambda: popjax.evaluate(METHOD, ENV, SimpleNamespace()),
            "state must be .*, got a value of type types.",
        ),
        (lambda: popjax.evaluate(METHOD, ENV, STATE, episodes="a"), "episodes must be an integer, got 'a'"),
        (
            lambda: popjax.evaluate(METHOD, ENV, STATE, members=0),
            "members must be a list of integers or None",
        ),
        (
            lambda: popjax.evaluate(METHOD, ENV, STATE, members=[0, 1]),
            "members must have one number for each policy of the state, 1 in all",
        ),
        (
            lambda: popjax.evaluate(PPO, CARTPOLE, STATE),
            "state is that of another method, .*; evaluate it with the method that trained it",
        ),
        (
            lambda: popjax.evaluate(PPO, ENV, PPO.init(jax.random.key(0), PPO.hyper)),
            r"probe/context has observations .* but the method was built for gymnax/CartPole-v1 with"
            r" observations \(4,\) and 2 discrete actions; build it for this task",
        ),
        (lambda: popjax.load(5), "run_dir must be a string or a path, got 5"),
        (lambda: popjax.pretrained(None), "run_dir must be a string or a path, got None"),
        (lambda: popjax.pretrained("run", seed="a"), "seed must be an integer or None, got 'a'"),
        (lambda: popjax.report("runs", "page"), "run_dirs must be a list of strings or paths, got 'runs'"),
        (lambda: popjax.report(["runs"], 5), "out must be a string or a path, got 5"),
        (lambda: popjax.report(["a"], "b", labels="abc"), "labels must be a list of strings, got 'abc'"),
        (
            lambda: popjax.report(["a"], "b", statistic="x"),
            "statistic must be one of 'mean', 'median', 'iqm', got",
        ),
        (
            lambda: popjax.learning_curve([1], "a.png", title="t"),
            "evaluations must be a list of .*Evaluation, got",
        ),
        (lambda: export_policy(METHOD, ENV, STATE, 3, {}), "out must be a string or a path, got 3"),
        (lambda: popjax.make(5), "name must be a string, got 5"),
        (lambda: popjax.tasks(["probe"]), r"suite must be a string, got \['probe'\]"),
        (
            lambda: popjax.pderl.build("probe/context"),
            "env must be a popjax.core.Env, which popjax.make returns",
        ),
        (
            lambda: popjax.pderl.build(ENV, popjax.es.Config()),
            "config must be a popjax.methods.pderl_config.Config,",
        ),
        (lambda: popjax.pbt.build(ENV, 3), "config must be one of pbt_config.OffPolicyConfig, .* got 3"),
        (lambda: popjax.distil.grade(ENV, "run"), "policies must be a list of .*Pretrained, .* got 'run'"),
        (lambda: popjax.ca2e.measure(ENV, [], "key"), "key must be an array, got 'key'"),
        (lambda: popjax.testing.check_env("probe/context"), "env must be a popjax.core.Env"),
        (lambda: popjax.testing.check_method(METHOD, "x"), "env must be a popjax.core.Env"),
        (lambda: popjax.pderl.Config(population="10"), "population must be an integer, got '10'"),
        (lambda: popjax.pderl.Config(batch=128.0), "batch must be an integer, got 128.0"),
        (lambda: ddpg.Config(hidden=64), "hidden must be a list of integers, got 64"),
        (
            lambda: popjax.pderl.Config(agent=ddpg),
            "agent must be one of ddpg.Config, .* or a Config of your own, got",
        ),
    ],
)
def test_other_functions_refuse_a_wrong_type(call, said):
    with pytest.raises(ValueError, match=said) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_numbers_of_other_libraries_arrive_as_integers():
    @typed()
    def call(
        count: int, sizes: int | Sequence[int], part: tuple[int, int] | None = None, rate: float = 0.0
    ) -> Any:
        return count, sizes, part, rate

    answer = call(1e3, np.arange(2), [jnp.int32(1), 2.0], np.float32(0.5))
    assert answer == (1000, (0, 1), (1, 2), 0.5)
    assert {type(x) for x in jax.tree.leaves(answer[:3])} == {int}
    assert call(np.int64(7), 2.0)[:2] == (7, 2)


def test_numbers_and_words_of_other_libraries_fit():
    assert fits(jnp.bfloat16(2), float)
    assert fits(np.str_("mean"), Literal["mean", "max"])
    assert not fits(1, Literal[True])
    assert not fits(True, Literal[1])
    assert checked("x", 10**400, int) == 10**400


def test_a_hyper_may_hold_what_is_no_number():
    @struct.dataclass
    class Hyper:
        rate: float = 0.1
        schedule: Any = struct.field(pytree_node=False, default=abs)

    check_hyper(Hyper())
    with pytest.raises(ValueError, match=r"hyper\.rate must be a number, got 'fast'"):
        check_hyper(Hyper(rate="fast"))


def test_missing_arguments_and_unknown_annotations_are_pythons():
    @typed()
    def call(one: Nowhere, other: Any, third=None) -> None: ...  # type: ignore[name-defined] # noqa: F821

    call(1, 2, "three")
    with pytest.raises(TypeError, match=r"call\(\) missing 1 required positional argument: 'other'"):
        call(1)


@pytest.mark.parametrize(
    ("kind", "fitting", "others", "words"),
    [
        (bool, [True, np.bool_(False), jnp.bool_(True)], [0, "yes", None], "True or False"),
        (int, [3, np.int64(3), jnp.int32(3)], [True, 3.0, "3", None], "an integer"),
        (float, [3, 0.5, np.float32(3), jnp.float32(1)], [True, "3", 1j, np.ones(2)], "a number"),
        (str | Path, ["a", Path("a")], [b"a", 3], "a string or a path"),
        (Literal["red", 1], ["red", 1], ["blue", True, None], "one of 'red', 1"),
        (Sequence[int], [[1], (), range(3), np.arange(3)], [[1.5], {1}, 3, np.ones(2)], "a list of integers"),
        (Sequence[Sequence[float]], [[[1.0]], np.ones((2, 2))], [[1.0]], "a list of lists of numbers"),
        (tuple[int, ...], [(1, 2), [1]], [("a",), 1, "12"], "a list of integers"),
        (tuple[float, float], [(1, 2.0), [1, 2]], [(1,), (1, 2, 3), 1], "two numbers"),
        (tuple[int, str], [(1, "a")], [("a", 1)], "(an integer, a string)"),
        (Mapping[str, int], [{"a": 1}, {}], [[("a", 1)], None], "a dictionary"),
        (Callable[..., Any], [print, Path], [3, None], "a function"),
        (Sequence[Callable[..., Any]], [[print]], [print, [3]], "a list of functions"),
        (jax.Array, [jnp.ones(2), np.ones(2)], [[1.0], 1.0], "an array"),
        (td3.Config, [td3.Config()], [ddpg.Config(), td3.Config], "a popjax.agents.td3.Config"),
        (
            td3.Config | ddpg.Config | None,
            [td3.Config(), tiny.Config(), None],
            [td3.Config, 3],
            "one of td3.Config, ddpg.Config or a Config of your own or None",
        ),
        (Any, [3, None, print], [], "anything"),
    ],
)
def test_types_and_their_words(kind, fitting, others, words):
    assert all(fits(value, kind) for value in fitting)
    assert not any(fits(value, kind) for value in others)
    assert wanted(kind) == words


def test_a_value_is_told_in_one_short_line():
    assert told("a\nb") == r"'a\nb'"
    assert told(np.ones(3)) == "a value of type numpy.ndarray"
    assert told(ddpg.Config) == "the class popjax.agents.ddpg.Config"
    assert len(told(list(range(1000)))) < 70
