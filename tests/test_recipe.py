"""The record that a method module exports."""

from __future__ import annotations

from dataclasses import replace

import cloudpickle
import jax
import jax.numpy as jnp
import pytest

import popjax
from popjax import envs
from popjax.agents import drq, td3
from popjax.core import Env, Spec, Unfit
from popjax.host.recipes import METHODS, recipe
from popjax.host.runs import origins
from popjax.intrinsic import rnd
from popjax.methods import ca2e, cspc, dice, independent, pderl
from popjax.recipe import Recipe, defaults, kinds_of, recorded
from tests.host import tiny


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_an_attribute_that_exports_a_recipe(name):
    module = getattr(popjax, name)
    found = recipe(name)
    assert found is module.METHOD
    assert found.build is module.build
    assert isinstance(found.config(), module.Config)
    kinds = kinds_of(found, found.config())
    config, hyper = defaults(found, kinds)
    assert config == found.config()
    assert type(hyper) is type(found.hyper(config))


def test_a_method_remembers_the_call_that_made_it():
    env = envs.make("probe/context")
    method = independent.build(env)
    assert method.built == (independent.build, env, independent.Config(), {"schedule": ()})
    assert method.built.build is independent.METHOD.build
    discrete = envs.make("probe/corridor-discrete")
    assert ca2e.build(discrete).built.further == {"priors": ()}


def test_the_outermost_build_is_remembered():
    @recorded
    def build(env, config="own"):
        return pderl.build(env)

    method = build(envs.make("probe/context"))
    assert (method.built.build, method.built.config) == (build, "own")


def test_a_method_and_its_environment_can_be_sent_to_another_process():
    """By cloudpickle, as submitit, Ray and joblib do."""
    env = envs.make("gymnax/Pendulum-v1")
    method = independent.build(env, independent.Config(agent=td3.Config(hidden=(8,))))
    theirs, there = cloudpickle.loads(cloudpickle.dumps((method, env)))
    assert origins.describe(theirs, there) == origins.describe(method, env)
    ours, same = (jax.eval_shape(each.init, jax.random.key(0), each.hyper) for each in (method, theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(same)


def test_a_build_without_a_config_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match=r"build\(env\) takes no Config; let it take \(env, config\)"):

        @recorded
        def build(env):
            return pderl.build(env)


def test_agents_are_named_by_their_configs():
    kinds = kinds_of(cspc.METHOD, cspc.Config(evolution=None))
    assert kinds == {"off_policy": "sac2018", "on_policy": "ppo", "evolution": "none", "drive": "none"}
    assert defaults(cspc.METHOD, kinds)[0] == cspc.Config(evolution=None)
    with pytest.raises(ValueError, match=r"agent must be one of ddpg\.Config, td3\.Config, .* got 3"):
        independent.Config(agent=3)
    with pytest.raises(ValueError, match="agent is of type Config; use one of ddpg, td3"):
        kinds_of(independent.METHOD, independent.Config(agent=tiny.Config()))


def test_a_preset_is_taken_where_it_has_the_agents():
    small, large = independent.Config(population=1), independent.Config(population=9)
    numbers, default = tiny.Hyper(rate=0.9), tiny.Hyper(rate=0.1)
    preset = popjax.Preset(large, numbers, 1)
    own = Recipe(
        independent.build,
        lambda agent=small.agent, drive=None: independent.Config(agent=agent, drive=drive),
        lambda config: default,
        agents=independent.METHOD.agents,
        preset=lambda task: preset if task == "mine" else None,
    )
    kinds = {"agent": "sac", "drive": "none"}
    assert defaults(own, kinds, "mine") == (large, numbers)
    assert defaults(own, kinds, "another") == (small, default)
    assert defaults(own, kinds | {"agent": "td3"}, "mine") == (
        independent.Config(agent=td3.Config()),
        default,
    )
    curious = replace(large, drive=rnd.Config())
    assert defaults(own, kinds | {"drive": "rnd"}, "mine") == (curious, numbers), "a drive is an addition"


def test_a_drive_leaves_the_other_numbers_of_a_preset_alone():
    """The paper's standard deviation of mutation on Ant is 0.01."""
    alone, curious = (
        defaults(pderl.METHOD, {"agent": "ddpg", "drive": drive}, "gym/Ant-v4") for drive in ("none", "rnd")
    )
    assert curious[1].mutation_std == alone[1].mutation_std == 0.01
    assert curious[1].drive == rnd.Hyper()
    assert curious[0] == replace(alone[0], drive=rnd.Config())


PICTURE, GAME = ((84, 84, 9), False), ((84, 84, 4), True)


@pytest.mark.parametrize(
    ("method", "config", "task", "advice"),
    [
        (independent, independent.Config(), ((3,), True), "set --config.agent dqn"),
        (independent, independent.Config(), GAME, "set --config.agent dqn"),
        (independent, independent.Config(), PICTURE, "set --config.agent drq"),
        (independent, independent.Config(agent=drq.Config()), GAME, "set --config.agent dqn"),
        (ca2e, None, PICTURE, "use a method whose agents can be drq, such as independent"),
        (dice, dice.Config(), ((3,), True), "use a method whose agents can be dqn, such as independent"),
        (pderl, pderl.Config(), GAME, "set --config.agent dqn"),
    ],
)
def test_who_cannot_play_a_task_is_told_an_option_of_this_method_that_can(method, config, task, advice):
    shape, discrete = task
    nothing = None
    spec = Spec(
        "task", shape, 3, 9, discrete=discrete, obs_dtype=jnp.uint8 if len(shape) == 3 else jnp.float32
    )
    with pytest.raises(ValueError, match=rf"(observations|actions); .*: {advice}$") as refusal:
        method.build(Env(nothing, nothing, spec), *([] if config is None else [config]))
    assert "\n" not in str(refusal.value)


def test_a_learner_by_itself_names_a_kind_that_can_play():
    with pytest.raises(Unfit, match="2 discrete ones: learn with dqn"):
        td3.build(Spec("task", (3,), 2, 9, discrete=True))
