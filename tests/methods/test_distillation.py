"""Alignment before distillation, any finished run as one policy, and runs that build on runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli
from popjax.agents import a2c
from popjax.core import Pretrained
from popjax.envs import make
from popjax.methods import cdrl, distil, onpolicy
from popjax.methods.cdrl import offline
from popjax.nets import recurrent
from popjax.nets.recurrent import recurrent_actor_critic
from tests.support import Case, equal

NET = recurrent.Config(hidden=(8,), units=8)
FORWARD = replace(NET, recurrent=False)


def taught(act, task, memory=(), params=(), config=None):
    """A finished run of a task, written by hand."""
    return Pretrained("a run", make(task).spec, act, params, memory, config=config)


def mirrored(params, memory, obs, key, scale):
    """The best action of ``context``; ``params`` is a gain of 1."""
    return memory, params * obs / 2


def mirrored_discrete(params, memory, obs, key, scale):
    return memory, (obs[0] > 0).astype(jnp.int32)


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
        for act in (mirrored_discrete, lambda p, m, obs, key: (m, (obs[0] < 0).astype(jnp.int32)))
    )
    graded = distil.grade(env, [bad, good], episodes=4)
    assert [g.mean_return for g in graded] == [0, 1]
    method, state, _ = run_distil("probe/context-discrete", SMALL, 40, graded)
    for obs, best in ((-1.0, 0), (1.0, 1)):
        assert int(method.act(method.policy(state), (), jnp.array([obs]), jax.random.key(0), 0.0)[1]) == best


def test_the_best_individual_of_a_population_is_the_teacher():
    """Not the one that the run would deploy."""
    env, gains = make("probe/context"), jnp.array([-1.0, 1.0, 0.0])
    run = taught(mirrored, "probe/context", params=gains[0])._replace(individuals=gains)
    (graded,) = distil.grade(env, [run], episodes=4)
    assert (graded.individual, graded.mean_return) == (1, 1.0)
    assert graded.teacher.params == 1
    assert distil.build(env, SMALL, [graded]).init(jax.random.key(0), distil.Hyper()).frozen == 1


def test_a_teachers_logits_say_more_than_its_actions():
    """The student takes over the probabilities, softened, and not only which is the largest."""
    env = make("probe/context-discrete")
    network = recurrent_actor_critic((1,), 2, FORWARD)
    params = network.init(jax.random.key(3))
    params["policy"]["bias"] = jnp.array([1.5, 0.0])
    params["policy"]["kernel"] *= 100
    run = taught(None, "probe/context-discrete", params=params, config=cdrl.Config(network=FORWARD))
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
    with pytest.raises(ValueError, match="a run is not"):
        distil.build(env, config, (distil.Graded(run._replace(config=None), -1, 0.0),))


def test_logits_of_a_teacher_with_a_memory():
    """Its policy's memory alone goes along the lanes; where it acts, that of its value network does too."""
    env, agent = make("probe/corridor-discrete"), a2c.Config(hidden=(4,), lstm=3)
    its = a2c.build(env.spec, agent)
    params = its.policy(its.init(jax.random.key(0), a2c.Hyper()))
    run = Pretrained("a run", env.spec, None, params, its.memory, config=onpolicy.Config(agent=agent))
    method = distil.build(env, replace(SMALL, labels="logits"), (distil.Graded(run, -1, 0.0),))
    seen = jax.jit(method.step)(method.init(jax.random.key(0), distil.Hyper())).seen
    teacher = cdrl.of_run(cdrl.Finished(run))
    lanes = jax.tree.map(lambda x: x[:4], seen.rows)
    for obs, done, label in zip(lanes.obs, lanes.done, lanes.label, strict=True):
        said = teacher.unroll(params, teacher.memory, obs, done)[1]
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
    """What the teacher said long ago is contradicted, and the student believes it: what is fresh differs in
    nothing yet, the batches that are drawn do."""
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
    with pytest.raises(ValueError, match="discrete actions, which probe/context has not"):
        distil.build(env, config, [distil.Graded(taught(mirrored, "probe/context"), -1, 0.0)])


# Offline alignment.


def opinionated(task, seed):
    env = make(task)
    network = recurrent_actor_critic((1,), 2, NET)
    params = network.init(jax.random.key(seed))
    params["policy"]["kernel"] *= 200
    params["policy"]["bias"] = jnp.array([0.0, 1.5])
    return env, cdrl.of_network(env.spec, network, params)


@lru_cache
def aligned():
    """The teacher knows the wrong way about what the expert does."""
    env, expert = opinionated("probe/corridor-discrete", 1)
    unroll = expert.unroll

    def other(params, memory, obs, done):
        memory, logits = unroll(params, memory, obs, done)
        return memory, logits[..., ::-1]

    teacher = expert._replace(unroll=other)
    config = offline.Config(lanes=2, steps=10, updates=4, batch=20, capacity=400, align_hidden=(16,))
    method = offline.build(env, config, [teacher], [expert])
    hyper = replace(method.hyper, align_lr=1e-2)
    state = jax.jit(method.init)(jax.random.key(3), hyper)  # a network that begins far off
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), s.metrics), s, length=60))
    return method, expert, *run(state)


def test_an_alignment_network_turns_a_teacher_into_the_expert():
    method, expert, state, rows = aligned()
    assert rows.fresh_loss[1] > 0.1 > 20 * rows.fresh_loss[-1]
    np.testing.assert_allclose(rows.aligned[-1], rows.expert[-1], atol=0.03)
    assert np.abs(rows.teacher[-1] - rows.expert[-1]).max() > 0.1
    assert int(state.env_steps) == 60 * 20
    assert rows.fitness[-1, 0] > 0
    memory, own = method.memory, method.memory
    for obs in (0.0, 0.5, 0.0):
        memory, action = method.act(method.policy(state), memory, jnp.array([obs]), jax.random.key(0), 0.0)[
            :2
        ]
        own, logits = expert.unroll(expert.params, own, jnp.array([[obs]]), jnp.zeros(1, bool))
        assert int(action) == int(jnp.argmax(logits))


def test_alignment_needs_one_of_each():
    env, expert = opinionated("probe/corridor-discrete", 1)
    with pytest.raises(ValueError, match=r"got 1 and 0.*--expert"):
        offline.build(env, offline.Config(), [expert])
    wide = expert._replace(spec=expert.spec._replace(action_dim=3))
    with pytest.raises(ValueError, match=r"and 3 actions, not of probe/corridor-discrete with .* and 2"):
        offline.build(env, offline.Config(), [expert], [wide])
    other = make("probe/context-discrete")  # of equal shapes; the teacher may be of another task
    with pytest.raises(ValueError, match=r"of probe/corridor-discrete .* not of probe/context-discrete"):
        offline.build(other, offline.Config(), [expert], [expert])


# The command line.


def run(*arguments):
    return cli.run([*map(str, arguments), "--eval-episodes", "1"])


TINY = ("--config.network.hidden", 4, "--config.network.units", 4, "--config.lanes", 2, "--config.steps", 4)


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
    loaded = cli.load(paths["offline"])
    trained = cli.load(paths["align"]).state.learner.params
    equal(loaded.state.aligners[0].params, trained)
    assert len(cli.load(paths["beside"]).state.team) == 2
    assert run("cdrl", "--env", here, *budget, *TINY, *thin, "--run-dir", paths["beside"], "--resume",
               "--teacher", paths["expert"]) == 2  # fmt: skip
    assert "--teacher-env" in capsys.readouterr().err


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
    before = cli.load(tmp_path / "half").state
    assert np.abs(before.memories[0][1]).max() > 0
    shutil.rmtree(teacher)
    assert taught("half", 64, "--resume") == 0
    digests = [
        json.loads((tmp_path / name / "summary.json").read_text())["state_sha256"]
        for name in ("whole", "half")
    ]
    assert digests[0] == digests[1]
    after = cli.load(tmp_path / "half").state
    assert not np.array_equal(before.team[0].learner.params["distil"]["bias"],
                              after.team[0].learner.params["distil"]["bias"])  # fmt: skip
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
    assert f"--teacher-env {task}: --env-option is for --env alone" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_help_names_what_a_method_builds_on(capsys):
    assert cli.run(["cdrl", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--teacher: A finished run of cdrl" in shown
    assert "--teacher-env: A further task, SUITE/TASK" in shown


def a_case():
    network = recurrent.Config(hidden=(4,), units=4)
    config = distil.Config(network=network, lanes=2, steps=3, capacity=4, batch=3, updates=2, labels="logits")
    env = make("probe/corridor-discrete")
    teacher = recurrent.recurrent_actor_critic((1,), env.spec.action_dim, network)
    params = teacher.init(jax.random.key(7))
    run = Pretrained("a run", env.spec, None, params, teacher.memory, config=cdrl.Config(network=network))
    return Case(lambda: distil.build(env, config, [distil.Graded(run, -1, 0.0)]), population=1, alone=False)


CASES = {"distil": a_case()}
