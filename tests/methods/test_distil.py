"""Any finished run as one policy, and runs that build on runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.agents import a2c
from popjax.cli import building
from popjax.core import Choice, Pretrained
from popjax.envs import make
from popjax.host.runs import origins
from popjax.methods import cdrl, distil
from popjax.nets import recurrent
from popjax.nets.recurrent import recurrent_actor_critic
from popjax.population import imitation
from tests.support import Case, equal

NET = recurrent.Config(hidden=(8,), units=8)
FORWARD = replace(NET, recurrent=False)


def taught(act, task, params=()):
    """A finished run of a task, written by hand: it has a signature of acting and nothing else."""
    return Pretrained("a run", make(task).spec, act, params)


def choice(memory, action):
    return Choice(memory, action, action, jnp.float32(0))


def mirrored(params, memory, obs, key, scale):
    """The best action of ``context``; ``params`` is a gain of 1."""
    return choice(memory, params * obs / 2)


def mirrored_discrete(params, memory, obs, key, scale):
    return choice(memory, (obs[0] > 0).astype(jnp.int32))


def run_distil(task, config, iterations, teachers, **numbers):
    env = make(task)
    method = distil.build(env, config, teachers)
    hyper = replace(method.hyper, lr=1e-2, teacher_steps=200.0, **numbers)
    state = jax.jit(method.init)(jax.random.key(0), hyper)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), s.metrics), s, length=iterations))
    return method, *run(state)


SMALL = distil.Config(network=FORWARD, lanes=4, steps=4)


def test_a_policy_with_continuous_actions_is_copied():
    env = make("probe/context")
    graded = distil.grade(env, [taught(mirrored, "probe/context", params=jnp.float32(1))], episodes=4)
    assert graded[0].mean_return == pytest.approx(1, abs=1e-5)
    method, state, rows = run_distil("probe/context", SMALL, 60, graded)
    assert rows.fresh_loss[1] > 0.01 > 100 * rows.fresh_loss[-1]
    for obs in (-1.0, 1.0):
        action = method.act(method.policy(state), method.memory, jnp.array([obs]), jax.random.key(0), 0.0)[1]
        np.testing.assert_allclose(action, [obs / 2], atol=0.03)
    assert int(state.env_steps) == 60 * 16


def test_a_policy_with_discrete_actions_is_copied_and_the_best_of_several():
    env = make("probe/context-discrete")
    good, bad = (
        taught(act, "probe/context-discrete")
        for act in (
            mirrored_discrete,
            lambda p, m, obs, key, scale: choice(m, (obs[0] < 0).astype(jnp.int32)),
        )
    )
    graded = distil.grade(env, [bad, good], episodes=4)
    assert [g.mean_return for g in graded] == [0, 1]
    method, state, _ = run_distil("probe/context-discrete", SMALL, 40, graded)
    for obs, best in ((-1.0, 0), (1.0, 1)):
        assert int(method.act(method.policy(state), (), jnp.array([obs]), jax.random.key(0), 0.0)[1]) == best


@pytest.mark.parametrize("first", [-1.0, np.nan])
def test_the_best_individual_of_a_population_is_the_teacher(first):
    """Not the one that the run would deploy, nor one that has diverged."""
    env, gains = make("probe/context"), jnp.array([first, 1.0, 0.0])
    run = taught(mirrored, "probe/context", params=gains[0])._replace(individuals=gains)
    (graded,) = distil.grade(env, [run], episodes=4)
    assert (graded.individual, graded.mean_return) == (1, 1.0)
    assert graded.teacher.params == 1
    assert distil.build(env, SMALL, [graded]).init(jax.random.key(0), distil.Hyper()).frozen == 1


def test_the_best_teacher_is_that_of_the_task_s_own_rewards():
    """Clipped to 0.9, the returns of the two better individuals would be equal."""
    env, gains = make("probe/context", reward_clip=0.9), jnp.array([0.0, 0.5, 1.0])
    runs = [taught(mirrored, "probe/context")._replace(individuals=gains[i : i + 2]) for i in (0, 1)]
    graded = distil.grade(env, runs, episodes=4)
    assert [(g.individual, round(g.mean_return, 4)) for g in graded] == [(1, 0.9375), (1, 1.0)]


def test_a_teachers_logits_say_more_than_its_actions():
    """The student takes over the probabilities, softened, and not only which is the largest."""
    env = make("probe/context-discrete")
    network = recurrent_actor_critic((1,), 2, FORWARD)
    params = network.init(jax.random.key(3))
    params["policy"]["bias"] = jnp.array([1.5, 0.0])
    params["policy"]["kernel"] *= 100
    run = imitation.of_network(env.spec, network, params).policy
    config = replace(SMALL, labels="logits")
    graded = (distil.Graded(run, -1, 0.0),)
    method, state, _ = run_distil("probe/context-discrete", config, 80, graded, temperature=2.0)
    for obs in (-1.0, 1.0):
        theirs, mine = (
            network.step(p, (), jnp.array([obs]))[1].policy for p in (params, method.policy(state))
        )
        softened = jax.nn.softmax(theirs / 2)
        np.testing.assert_allclose(jax.nn.softmax(mine), softened, atol=0.05)
        assert jnp.abs(softened - jax.nn.softmax(theirs)).max() > 0.1
        assert 0.1 < softened[0] < 0.9
    without = taught(mirrored_discrete, "probe/context-discrete")
    with pytest.raises(ValueError, match="a run has no logits"):
        distil.build(env, config, (distil.Graded(without, -1, 0.0),))


def test_logits_of_a_teacher_with_a_memory():
    """They are those of an unroll along the rows of each lane."""
    env, agent = make("probe/corridor-discrete"), a2c.Config(hidden=(4,), lstm=3)
    its = a2c.build(env.spec, agent)
    params = its.policy(its.init(jax.random.key(0), a2c.Hyper()))
    run = imitation.of_agent(env.spec, its, params).policy
    method = distil.build(env, replace(SMALL, labels="logits"), (distil.Graded(run, -1, 0.0),))
    seen = jax.jit(method.step)(method.init(jax.random.key(0), distil.Hyper())).seen
    lanes = jax.tree.map(lambda x: x[:4], seen.rows)
    for obs, done, label in zip(lanes.obs, lanes.done, lanes.label, strict=True):
        said = its.unroll(params, its.memory, obs, done)[1]
        np.testing.assert_allclose(label, said, rtol=1e-4, atol=1e-6)


def test_the_teacher_plays_first_and_the_student_later():
    env = make("probe/context")
    graded = (distil.Graded(taught(mirrored, "probe/context", params=jnp.float32(1)), -1, 1.0),)
    method = distil.build(env, SMALL, graded)
    step = jax.jit(method.step)

    def fitness(**numbers):
        return float(
            step(method.init(jax.random.key(0), replace(method.hyper, **numbers))).metrics.fitness[0]
        )

    assert fitness(teacher_share=1.0) == pytest.approx(1, abs=1e-6)
    assert fitness(teacher_share=0.0) < 0.99


def test_all_that_was_seen_is_learned_from():
    """An answer of the teacher of long ago is contradicted, and the student believes it: what is fresh
    differs in nothing yet, the batches that are drawn do."""
    config = replace(SMALL, capacity=100, batch=8, updates=4)
    graded = (distil.Graded(taught(mirrored, "probe/context", params=jnp.float32(1)), -1, 1.0),)
    method, state, _ = run_distil("probe/context", config, 10, graded)
    assert (int(state.seen.size), int(state.seen.position)) == (40, 40)
    label = state.seen.rows.label
    contradicted = replace(state, seen=replace(state.seen, rows=replace(state.seen.rows, label=-label)))
    step = jax.jit(method.step)
    true, false = step(state), step(contradicted)
    assert float(true.metrics.fresh_loss) == float(false.metrics.fresh_loss)
    assert float(true.metrics.distil_loss) < 0.1 < float(false.metrics.distil_loss)
    np.testing.assert_array_equal(false.seen.rows.label[:40], -label[:40])
    np.testing.assert_array_equal(false.seen.rows.label[40:44], true.seen.rows.label[40:44])
    assert not np.array_equal(
        true.learner.params["policy"]["kernel"], false.learner.params["policy"]["kernel"]
    )


def test_what_was_seen_is_never_copied():
    graded = (distil.Graded(taught(mirrored, "probe/context", params=jnp.float32(1)), -1, 1.0),)
    method = distil.build(make("probe/context"), replace(SMALL, capacity=1_000_000), graded)
    state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
    memory = jax.jit(method.step, donate_argnums=0).lower(state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.1 * memory.argument_size_in_bytes
    assert memory.alias_size_in_bytes > 0.99 * memory.output_size_in_bytes


def test_what_cannot_be_distilled_is_refused():
    env = make("probe/context")
    with pytest.raises(ValueError, match="--teacher RUN_DIR"):
        distil.build(env)
    with pytest.raises(ValueError, match=r"1 continuous actions; probe/context-discrete has .*2 discrete"):
        distil.grade(make("probe/context-discrete"), [taught(mirrored, "probe/context")])
    another = taught(mirrored, "probe/delay")  # of equal shapes
    with pytest.raises(ValueError, match=r"a run of probe/delay .*; probe/context has .* the same task"):
        distil.grade(env, [another])
    with pytest.raises(ValueError, match="a run of probe/delay"):
        distil.build(env, SMALL, [distil.Graded(another, -1, 1.0)])
    config = replace(SMALL, labels="logits")
    with pytest.raises(ValueError, match="discrete actions, which probe/context does not have"):
        distil.build(env, config, [distil.Graded(taught(mirrored, "probe/context"), -1, 0.0)])


# The command line.


def run(*arguments):
    return cli.run([*map(str, arguments), "--eval-episodes", "1"])


TINY = ("--config.network.hidden", 4, "--config.network.units", 4, "--config.lanes", 2, "--config.steps", 4)


@pytest.mark.slow
def test_runs_that_build_on_runs(tmp_path, capsys):
    """A baseline; with its policy as a teacher; an alignment trained with both; distillation through it; and
    the first as one deployable policy. Each can be loaded again."""
    here, there = "probe/context-discrete", "probe/corridor-discrete"
    budget, thin = ("--env-steps", 24), ("--config.align-hidden", 4)
    paths = {name: tmp_path / name for name in ("expert", "beside", "align", "offline", "one")}

    def start(method, env, name, *options):
        assert run(method, "--env", env, *budget, "--run-dir", paths[name], *options) == 0, (
            capsys.readouterr()
        )

    start("cdrl", here, "expert", *TINY)
    start("cdrl", here, "beside", *TINY, *thin, "--teacher-env", there, "--teacher", paths["expert"])
    start("align", here, "align", *thin, "--config.lanes", 2, "--config.steps", 4,
          "--teacher", paths["beside"], "--expert", paths["expert"])  # fmt: skip
    start("cdrl", here, "offline", *TINY, *thin, "--config.align", "offline",
          "--teacher", paths["beside"], "--alignment", paths["align"])  # fmt: skip
    start("distil", here, "one", "--teacher", paths["expert"], *TINY, "--config.labels", "logits")
    config = json.loads((paths["beside"] / "config.json").read_text())
    assert config["envs"] == {"teacher-env": [there]}
    loaded = building.load(paths["offline"])
    trained = building.load(paths["align"]).state.learner.params
    equal(loaded.state.guides[0].aligner.params, trained)
    assert len(building.load(paths["beside"]).state.tasks) == 2
    assert run("cdrl", "--env", here, *budget, *TINY, *thin, "--run-dir", paths["beside"], "--resume",
               "--teacher", paths["expert"]) == 2  # fmt: skip
    assert "--teacher-env" in capsys.readouterr().err


OUTSIDE = """
from dataclasses import dataclass, replace

import jax.numpy as jnp
from flax import struct

from popjax.core import Choice, Method, as_arrays, stacked
from popjax.recipe import Recipe, recorded


@dataclass(frozen=True)
class Config:
    size: int = 1


@struct.dataclass
class Hyper:
    gain: float = 0.5


@struct.dataclass
class Metrics:
    fitness: object


@struct.dataclass
class State:
    key: object
    hyper: Hyper
    env_steps: object
    generation: object
    metrics: Metrics
    gains: object = stacked()


@recorded
def build(env, config=Config()):
    def init(key, hyper):
        hyper, zero = as_arrays(hyper), jnp.int32(0)
        gains = hyper.gain * jnp.array([-1.0, 1.0])
        return State(key, hyper, zero, zero, Metrics(jnp.zeros(2)), gains)

    def act(gain, memory, obs, key, scale):
        return Choice(memory, gain * obs, gain * obs, jnp.float32(0))

    return Method(
        init=init,
        step=lambda s: replace(s, env_steps=s.env_steps + 1, generation=s.generation + 1),
        policy=lambda s: s.gains[0],
        act=act,
        hyper=Hyper(),
        steps_bound=1,
        individuals=lambda s: s.gains,
    )


METHOD = Recipe(build, Config, lambda config: Hyper())
"""


def test_a_run_of_a_method_outside_the_package_is_distilled(tmp_path, monkeypatch, capsys):
    """It deploys the worse of its two individuals; the better one is the teacher."""
    (tmp_path / "outside.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    task, teacher, student = ("--env", "probe/context"), tmp_path / "teacher", tmp_path / "student"
    assert run("outside", *task, "--env-steps", 4, "--run-dir", teacher) == 0, capsys.readouterr()
    small = (*TINY, "--config.batch", 8, "--config.updates", 8, "--hyper.lr", 0.01)
    assert run("distil", *task, "--env-steps", 400, "--run-dir", student, "--teacher", teacher, *small) == 0
    (taught_by,) = json.loads((student / "config.json").read_text())["runs"]["teacher"]
    assert (taught_by["individual"], taught_by["mean_return"]) == (1, 1.0)
    found = building.load(student)
    for obs in (-1.0, 1.0):
        params = found.method.policy(jax.tree.map(lambda x: x[0], found.state))
        action = found.method.act(
            params, found.method.memory, jnp.array([obs]), jax.random.key(0), 0.0
        ).action
        np.testing.assert_allclose(action, [obs / 2], atol=0.2)
    capsys.readouterr()
    here = ("--env", "probe/context-discrete", "--env-steps", 4, "--run-dir", tmp_path / "refused")
    assert run("cdrl", *here, "--teacher", teacher) == 2
    assert "has no logits over discrete actions" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_a_teacher_goes_on_where_it_was_although_the_teacher_is_gone(tmp_path, capsys):
    """The same State as without the break, of a student that is taught through an alignment before and
    after it; another teacher than that is refused."""
    # A chunk follows from the intervals, and the budgets differ.
    here = ("cdrl", "--env", "probe/corridor-discrete", *TINY, "--config.align-hidden", 4, "--log-every", 16)
    times = ("--hyper.align-from", 0, "--hyper.distil-from", 0, "--hyper.distil-until", "inf")
    teacher = tmp_path / "teacher"
    assert run(*here, "--env-steps", 16, "--run-dir", teacher) == 0

    def taught(name, steps, *options):
        return run(*here, *times, "--teacher", teacher, "--env-steps", steps, "--run-dir", tmp_path / name,
                   *options)  # fmt: skip

    assert taught("whole", 64) == 0
    assert taught("half", 32) == 0
    before = building.load(tmp_path / "half").state
    assert np.abs(before.guides[0].memory[1]).max() > 0
    shutil.rmtree(teacher)
    assert taught("half", 64, "--resume") == 0
    digests = [
        json.loads((tmp_path / name / "summary.json").read_text())["state_sha256"]
        for name in ("whole", "half")
    ]
    assert digests[0] == digests[1]
    after = building.load(tmp_path / "half").state
    assert not np.array_equal(before.tasks[0].student.params["distil"]["bias"],
                              after.tasks[0].student.params["distil"]["bias"])  # fmt: skip
    capsys.readouterr()
    teacher = tmp_path / "whole"
    assert taught("half", 96, "--resume") == 2
    assert "was begun with other runs" in capsys.readouterr().err


def test_a_teacher_of_another_shape_is_refused_in_one_line(tmp_path, capsys):
    tasks = ("--env", "probe/context-discrete", "--teacher-env", "gymnax/CartPole-v1")
    assert run("cdrl", *tasks, "--env-steps", 999, "--run-dir", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "(4,)" in error
    assert "(1,)" in error
    assert not (tmp_path / "run").exists()


def test_options_of_the_task_do_not_reach_a_further_one(tmp_path, capsys):
    task = "gymnax/CartPole-v1"
    options = ("--env", task, "--env-option", "max_steps_in_episode=50", "--teacher-env", task)
    assert run("cdrl", *options, "--env-steps", 999, "--run-dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert f"--teacher-env {task}: --env-option applies only to --env" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_further_task_has_options_of_its_own(capsys):
    text = "gymnax/CartPole-v1 max_steps_in_episode=50"
    (env,) = building.further_envs(cdrl.METHOD, {"teacher-env": [text]})["teacher_envs"]
    assert (env.spec.name, env.spec.episode_length) == ("gymnax/CartPole-v1", 50)
    assert origins._task(env) == text, "config.json names it so that the run can be built again"
    for wrong, said in (
        ("gymnax/CartPole-v1 50", "--teacher-env needs KEY=VALUE"),
        (" ", "--teacher-env needs SUITE/TASK"),
    ):
        assert run("cdrl", "--env", "gymnax/CartPole-v1", "--env-steps", 999, "--teacher-env", wrong) == 2
        assert said in capsys.readouterr().err


def test_the_help_names_what_a_method_builds_on(capsys):
    assert cli.run(["cdrl", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--teacher: A run of cdrl" in shown
    assert "--teacher-env: A further task, with its own options: 'SUITE/TASK KEY=VALUE ...'" in shown


def a_case():
    network = recurrent.Config(hidden=(4,), units=4)
    config = distil.Config(network=network, lanes=2, steps=3, capacity=4, batch=3, updates=2, labels="logits")
    env = make("probe/corridor-discrete")
    teacher = recurrent_actor_critic((1,), env.spec.action_dim, network)
    run = imitation.of_network(env.spec, teacher, teacher.init(jax.random.key(7))).policy
    return Case(
        lambda: distil.build(env, config, [distil.Graded(run, -1, 0.0)]),
        population=1,
        alone=False,
        slow_members=True,
    )


CASES = {"distil": a_case()}
