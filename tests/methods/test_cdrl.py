"""Collaborative deep RL: the worked examples, who learns from what and when, and who may teach whom."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import normalize, rollout, tree
from popjax.agents import a2c, ppo
from popjax.core import Pretrained, as_arrays
from popjax.envs import make
from popjax.methods import cdrl, onpolicy
from popjax.methods.cdrl import acting, learning, offline
from popjax.methods.cdrl.config import reached
from popjax.nets import recurrent
from popjax.nets.recurrent import Heads, recurrent_actor_critic
from tests.support import Case, same

NET = recurrent.Config(hidden=(4,), units=4)
TINY = cdrl.Config(network=NET, lanes=2, steps=3, align_hidden=(4,))
ALWAYS = {"align_from": 0.0, "distil_from": 0.0, "distil_until": cdrl.NEVER}
HYPER = as_arrays(cdrl.Hyper())


def env(task="context-discrete"):
    return make(f"probe/{task}")


def frozen(spec=None, seed=5, network=NET):
    """A teacher with opinions: nothing that it says is nearly uniform."""
    spec = spec or env().spec
    net = recurrent_actor_critic(spec.obs_shape, spec.action_dim, network)
    params = net.init(jax.random.key(seed))
    params = jax.tree.map(jnp.add, params, tree.normal_like(jax.random.key(seed), params))
    return cdrl.of_network(spec, net, params)


@lru_cache
def compiled(task="context-discrete", **options):
    """(method, init, step) with a teacher that no longer learns, one that does, or none."""
    who = options.pop("teacher", "frozen")
    network = options.get("network", NET)
    teachers = [] if who == "none" else [frozen(env(task).spec, network=network)]
    beside = [env("corridor-discrete")] if who == "both" else []
    method = cdrl.build(env(task), replace(TINY, **options), teachers, beside)
    return method, jax.jit(method.init), jax.jit(method.step)


def after(iterations, hyper, **options):
    """The State before the first and after each of so many iterations."""
    method, init, step = compiled(**options)
    states = [init(jax.random.key(0), replace(method.hyper, **hyper))]
    for _ in range(iterations):
        states.append(step(states[-1]))
    return states


def student(state):
    return state.team[0].learner.params


def rollouts(state, config, task="context-discrete"):
    """What the student's lanes play in the step that begins with ``state``, [N, T]; a lone student's."""
    played_in, network = rollout.autoreset(env(task)), recurrent_actor_critic((1,), 2, NET)
    key = jax.random.split(jax.random.split(state.key)[1], 1)[0]

    def one(lane, key):
        return acting.play(played_in, network, student(state), lane, key, state.hyper, config)[1]

    return jax.vmap(one)(state.team[0].lanes, jax.random.split(key, config.lanes))


# Worked examples 1 and 2.


def test_advantages_and_returns_of_the_worked_example():
    reward, values = jnp.array([0.0, 1, 0]), jnp.array([0.5, 0.6, 0.4])
    no, end = jnp.zeros(3, bool), jnp.array([False, False, True])
    advantages, returns = acting.targets(reward, no, no, values, jnp.array([0.6, 0.4, 0.3]), HYPER)
    np.testing.assert_allclose(advantages, [0.78109, 0.69403, -0.103], atol=1e-5)
    np.testing.assert_allclose(returns, [1.28109, 1.29403, 0.297], atol=1e-5)
    advantages, returns = acting.targets(reward, end, end, values, jnp.array([0.6, 0.4, 9.0]), HYPER)
    np.testing.assert_allclose(advantages, [0.49, 0.4, -0.4], atol=1e-5)
    np.testing.assert_allclose(returns, [0.99, 1, 0], atol=1e-5)


def test_returns_do_not_depend_on_lambda():
    reward, values, no = jnp.array([0.0, 1, 0]), jnp.array([0.5, 0.6, 0.4]), jnp.zeros(3, bool)
    hyper = replace(HYPER, trace_decay=jnp.float32(0))
    advantages, returns = acting.targets(reward, no, no, values, jnp.array([0.6, 0.4, 0.3]), hyper)
    np.testing.assert_allclose(advantages, [0.094, 0.796, -0.103], atol=1e-5)
    np.testing.assert_allclose(returns, [1.28109, 1.29403, 0.297], atol=1e-5)


def test_actor_critic_loss_of_the_worked_example():
    heads = Heads(jnp.array([[0.0, 0, 0], [1, 0, -1]]), jnp.zeros((2, 3)), jnp.array([0.4, 0.1]))
    zeros = jnp.zeros(2)
    advantages, returns = jnp.array([0.5, -0.2]), jnp.array([0.9, -0.1])
    played = acting.Rollout((), zeros, jnp.array([0, 2]), zeros, zeros, zeros, advantages, returns)
    total, (policy, value, entropy) = acting.actor_critic_loss(heads, played, HYPER)
    np.testing.assert_allclose(
        [policy, value, entropy, total], [0.067785, 0.145, 1.931008, 0.120975], atol=1e-5
    )


# Rollouts.


@lru_cache
def played(timeout_bootstrap, length=7):
    """Two lanes of a task that is cut after five steps, and the network that played them."""
    task = rollout.autoreset(_endless())
    network = recurrent_actor_critic((1,), 2, NET)
    params = frozen(task.spec).params
    config = replace(TINY, steps=length, timeout_bootstrap=timeout_bootstrap)

    def one(key):
        lane = rollout.start(task, network.memory, key)
        return acting.play(task, network, params, lane, key, HYPER, config)

    return network, params, *jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 2))


def _endless():
    """``endless`` with two discrete actions: five steps of reward 1, then the time limit."""
    original = env("endless")
    spec = original.spec._replace(discrete=True, action_dim=2)
    return original._replace(step=lambda state, action: original.step(state, jnp.zeros(1)), spec=spec)


def test_a_rollout_runs_across_the_end_of_an_episode_and_memory_starts_anew():
    network, params, lane, rows = played(True)
    np.testing.assert_array_equal(rows.done, [[False] * 4 + [True] + [False] * 2] * 2)
    heads = jax.vmap(network.unroll, (None, 0, 0, 0))(params, rows.memory, rows.obs, rows.done)
    np.testing.assert_allclose(heads[1].policy, rows.logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), heads[0], lane.carry)
    np.testing.assert_allclose(rows.logits[:, 5], rows.logits[:, 0], rtol=1e-5)  # a beginning, again
    assert (jnp.abs(rows.logits[:, 3] - rows.logits[:, 0]) > 1e-3).all()


@pytest.mark.parametrize("bootstrap", [False, True])
def test_what_a_time_limit_is_worth(bootstrap):
    """0, or the value of the true successor with the memory of the episode that was cut."""
    network, params, lane, rows = played(bootstrap)
    memory = jax.tree.map(lambda x: x[0], rows.memory)
    values = []
    for _ in range(6):
        memory, heads = network.step(params, memory, jnp.ones(1))
        values.append(float(heads.value))
    beyond = 0.99 * values[5] if bootstrap else 0.0
    np.testing.assert_allclose(rows.returns[0, 4], 1 + beyond, rtol=1e-4)
    np.testing.assert_allclose(rows.returns[0, 3], 1 + 0.99 * (1 + beyond), rtol=1e-4)
    last = 0.99 * float(network.step(params, jax.tree.map(lambda x: x[0], lane.carry), jnp.ones(1))[1].value)
    np.testing.assert_allclose(rows.returns[0, 6], 1 + last, rtol=1e-4)
    assert abs(values[5]) > 0.1


# Who learns from what (worked example 6), bit for bit.


def heads_moved(before, now):
    return {name for name in before if not same(before[name], now[name])}


def test_rewards_never_touch_the_distillation_head():
    first, second = after(1, {}, teacher="none")
    assert heads_moved(student(first), student(second)) == {"torso", "core", "policy", "value"}


@pytest.mark.parametrize("head", ["distil", "policy"])
def test_teachers_touch_what_is_below_their_head_only(head):
    first, second = after(1, ALWAYS, student_gae=False, align="none", distil_head=head)
    assert heads_moved(student(first), student(second)) == {"torso", "core", head}
    assert second.metrics.distillations[0].distil_loss > 0


def test_alignment_alone_does_not_touch_the_student():
    times = ALWAYS | {"distil_from": cdrl.NEVER}
    first, second = after(1, times, student_gae=False)
    assert same(student(first), student(second))
    assert not same(first.aligners[0].params, second.aligners[0].params)
    assert second.metrics.distillations[0].align_loss > 0
    assert second.metrics.distillations[0].distil_loss == 0


def test_teachers_receive_nothing():
    """One that no longer learns, and one that trains beside the student, whether it teaches or not."""
    (first, second), (_, beside) = (
        after(1, times, teacher="both") for times in (ALWAYS, {"distil_until": 0.0})
    )
    assert same(first.frozen, second.frozen)
    assert first.frozen[1] == ()
    assert same(second.team[1], beside.team[1])
    assert not same(second.team[0], beside.team[0])
    learned = heads_moved(first.team[1].learner.params, second.team[1].learner.params)
    assert learned == {"torso", "core", "policy", "value"}
    assert second.metrics.fitness.shape == (2,)
    assert all(not same(a.params, b.params) for a, b in zip(first.aligners, second.aligners, strict=True))


def test_an_offline_alignment_stays_as_it_is():
    network = recurrent.alignment(2, 2, (4,))
    trained = network.init(jax.random.key(3))
    method = cdrl.build(env(), replace(TINY, align="offline"), [frozen()], alignments=[trained])
    first = method.init(jax.random.key(0), replace(method.hyper, **ALWAYS))
    second = jax.jit(method.step)(first)
    assert same(first.aligners, second.aligners)
    assert same(first.aligners[0].params, trained)
    assert not same(student(first)["distil"], student(second)["distil"])


# When (worked example 7).


def test_times_are_steps_or_fractions_of_the_budget():
    hyper = as_arrays(cdrl.Hyper(budget=200))
    for when, first in ((0.0, 0), (0.25, 50), (1.0, 1), (60.0, 60), (cdrl.NEVER, None)):
        due = [bool(reached(jnp.int32(t), jnp.float32(when), hyper)) for t in range(100)]
        assert due.index(True) == first if first is not None else not any(due)


@pytest.mark.parametrize(("fraction", "step"), [(0.15, 15_000), (0.3, 30_000)])
def test_a_fraction_of_the_budget_is_a_whole_step(fraction, step):
    """In float32 both products are a little more, and a time would come an update late."""
    hyper = as_arrays(cdrl.Hyper(budget=100_000, distil_from=fraction, align_from=0.0))
    assert hyper.distil_from * hyper.budget > step
    assert [bool(reached(jnp.int32(t), hyper.distil_from, hyper)) for t in (step - 1, step)] == [False, True]
    assert cdrl.remarks(env(), TINY, hyper, step, teachers=(1,)) == []
    (late,) = cdrl.remarks(env(), TINY, hyper, step - 1, teachers=(1,))
    assert f"begins at {step:,} environment steps" in late


def test_the_schedule_of_the_worked_example():
    """20-step rollouts of one lane; T1 60, T2 120, and the end at 160: alignment trains from the third update
    to the seventh, distillation from the sixth."""
    times = {"align_from": 60.0, "distil_from": 120.0, "distil_until": 160.0}
    states = after(9, times, lanes=1, steps=20, student_gae=False)
    moved = [not same(a.aligners, b.aligners) for a, b in pairwise(states)]
    learned = [not same(student(a), student(b)) for a, b in pairwise(states)]
    assert moved == [False] * 2 + [True] * 5 + [False] * 2
    assert learned == [False] * 5 + [True] * 2 + [False] * 2
    assert [int(s.env_steps) for s in states] == list(range(0, 200, 20))
    assert states[6].metrics.distillations[0].teacher.sum() == pytest.approx(1, abs=1e-5)
    asked = [bool(s.metrics.distillations[0].teacher.any()) for s in states[1:]]
    assert asked == [False] * 2 + [True] * 5 + [False] * 2  # where nothing is due it is not even asked


@pytest.mark.slow
def test_the_schedule_of_lanes_at_once():
    """Two lanes of 3 steps count 6 at a time: alignment at 12, the second update; distillation at 18, the
    third; the end at 30, the fifth."""
    times = {"align_from": 12.0, "distil_from": 18.0, "distil_until": 30.0}
    states = after(5, times, update_mode="batched", student_gae=False)
    moved = [not same(a.aligners, b.aligners) for a, b in pairwise(states)]
    learned = [not same(student(a), student(b)) for a, b in pairwise(states)]
    assert moved == [False, True, True, True, False]
    assert learned == [False, False, True, True, False]


def test_lanes_count_one_after_the_other():
    """Two lanes of 3 steps: with T1 at 6 the first lane's steps are 3, the second's 6."""
    times = {"align_from": 6.0, "distil_from": cdrl.NEVER, "distil_until": cdrl.NEVER}
    one, both = (after(1, times | {"align_from": t})[-1].aligners[0].optimizer for t in (6.0, 3.0))
    count = [int(x) for x in jax.tree.leaves(one) if x.dtype == jnp.int32]
    assert set(count) == {1}
    assert {int(x) for x in jax.tree.leaves(both) if x.dtype == jnp.int32} == {2}


# Identity (worked example 8).


@pytest.mark.parametrize("mode", ["sequential", pytest.param("batched", marks=pytest.mark.slow)])
def test_a_teacher_equal_to_its_student_has_nothing_to_say(mode):
    """Same task, same parameters, its own memory, no alignment, the policy head: for many rollouts with the
    ends of episodes in them the loss is 0 and the student stays as it is, bit for bit."""
    options = {"student_gae": False, "align": "none", "distil_head": "policy", "update_mode": mode}
    options["network"] = recurrent.Config(hidden=(32,), units=32)  # where sums round differently with shapes
    method, init, _ = compiled("corridor-discrete", steps=20, **options)
    # As users compile it: without LLVM's optimizations the two differ in the last digits.
    step = jax.jit(method.step, compiler_options={"xla_backend_optimization_level": 3})
    state = init(jax.random.key(0), replace(method.hyper, **ALWAYS))
    first = replace(state.team[0], learner=replace(state.team[0].learner, params=state.frozen[0]))
    state = replace(state, team=(first,))
    for _ in range(20):
        state = step(state)
        assert same(student(state), state.frozen[0])
        assert same(state.memories[0], state.team[0].lanes.carry)
        distillation = state.metrics.distillations[0]
        assert float(distillation.distil_loss) == 0
        np.testing.assert_allclose(distillation.aligned, state.metrics.actions, atol=1e-6)
    assert distillation.aligned.any()
    assert int(state.metrics.episodes[0]) >= 2


# Update modes.


def test_with_one_lane_the_update_modes_agree():
    one, other = (
        student(after(2, ALWAYS, lanes=1, update_mode=mode)[-1]) for mode in ("sequential", "batched")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.slow
def test_gradient_points_and_modes_differ_with_several_lanes():
    ends = [
        student(after(1, ALWAYS | {"lr": 1e-2}, update_mode=mode, grad_at=point)[-1])
        for mode, point in (("sequential", "current"), ("sequential", "behaviour"), ("batched", "current"))
    ]
    assert not same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


APART = {"lr": 1e-2, "distil_lr": 4e-3, "align_lr": 2e-2, "temperature": 2.0}
"""Numbers that one in the place of another would show."""


def by_hand(state, config, teacher, hyper, task):
    """One step of the learners, written down from section 6 for one bundle of lanes after the other: a loss
    is the mean over the lanes of a bundle. Lanes are unrolled one by one. Also all norms of gradients."""
    network = recurrent_actor_critic((1,), 2, NET)
    align = recurrent.alignment(2, 2, (4,), config.align_act)
    learner, aligner = state.team[0].learner, state.aligners[0]
    start, rows = learner.params, rollouts(state, config, task)
    everyone = list(range(config.lanes))
    bundles = [everyone] if config.update_mode == "batched" else [[lane] for lane in everyone]
    adam, distil_adam, align_adam = (
        learning.adam(rate, hyper.max_grad_norm) for rate in (hyper.lr, hyper.distil_lr, hyper.align_lr)
    )
    norms = []
    params, moments, distil_moments = start, learner.optimizer, learner.distil_optimizer
    for lanes in bundles:
        each = [(tree.take(rows, lane), tree.take(state.memories[0], lane)) for lane in lanes]
        logits = [teacher.unroll(teacher.params, m, row.obs, row.done)[1] for row, m in each]
        targets = [align.apply(aligner.params, z) for z in logits]
        point = params if config.grad_at == "current" else start

        def heads(p, row):
            return network.unroll(p, row.memory, row.obs, row.done)[1]

        def reward_loss(p):
            return sum(acting.actor_critic_loss(heads(p, row), row, hyper)[0] for row, _ in each) / len(each)

        def align_loss(f):
            aligned = [jax.nn.log_softmax(align.apply(f, z)) for z in logits]
            mine = [jax.nn.log_softmax(row.logits) for row, _ in each]
            first, second = (aligned, mine) if config.align_kl == "code" else (mine, aligned)
            pairs = zip(first, second, strict=True)
            return sum((jnp.exp(p) * (p - q)).sum(-1).mean() for p, q in pairs) / len(each)

        def distil_loss(p):
            heard = [heads(p, row).distil for row, _ in each]
            pairs = zip(targets, heard, strict=True)
            return sum(learning.softened_kl(z, q, hyper.temperature) for z, q in pairs) / len(each)

        losses = (reward_loss, point), (align_loss, aligner.params), (distil_loss, point)
        gradients = [jax.grad(loss)(at) for loss, at in losses]
        norms.append([float(optax.global_norm(gradient)) for gradient in gradients])
        updates, moments = adam.update(gradients[0], moments)
        params = jax.tree.map(jnp.add, params, updates)
        updates, optimizer = align_adam.update(gradients[1], aligner.optimizer)
        aligner = learning.Aligner(jax.tree.map(jnp.add, aligner.params, updates), optimizer)
        updates, distil_moments = distil_adam.update(gradients[2], distil_moments)
        params = jax.tree.map(jnp.add, params, updates)
    return (params, moments, distil_moments, aligner), np.array(norms)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"update_mode": "batched"}, marks=pytest.mark.slow),
        pytest.param({"grad_at": "behaviour"}, marks=pytest.mark.slow),
        pytest.param({"align_kl": "paper", "align_act": "relu"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_is_the_papers(options):
    """With memories of what was before and the ends of episodes in the rollouts. All gradients are clipped,
    but for lanes at once none is; Adam's moments show their scale, which its steps hide."""
    task, norm = "corridor-discrete", 40.0 if options.get("update_mode") == "batched" else 0.003
    before, now = after(3, ALWAYS | APART | {"max_grad_norm": norm}, task=task, steps=4, **options)[-2:]
    config = replace(TINY, steps=4, **options)
    assert all(jnp.abs(x).max() > 0.01 for x in jax.tree.leaves(before.memories))
    expected, norms = by_hand(before, config, frozen(env(task).spec), before.hyper, task)
    if not options:
        assert (norms > norm).all()
    np.testing.assert_allclose(now.metrics.losses.gradient_norm[0], norms[:, 0].mean(), rtol=1e-3)
    learner = now.team[0].learner
    found = learner.params, learner.optimizer, learner.distil_optimizer, now.aligners[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), found, expected)


# Memories of teachers.


def test_a_teacher_remembers_along_the_students_episodes():
    """From the first step on, long before it teaches."""
    states = after(3, {"distil_from": cdrl.NEVER, "align_from": cdrl.NEVER}, task="corridor-discrete")
    teacher = frozen(env("corridor-discrete").spec)
    memory = tree.repeat(teacher.memory, TINY.lanes)
    for before, now in pairwise(states):
        rows = rollouts(before, TINY, "corridor-discrete")
        memory, _ = jax.vmap(teacher.unroll, (None, 0, 0, 0))(teacher.params, memory, rows.obs, rows.done)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), now.memories[0], memory)


@pytest.mark.slow
def test_a_teacher_with_the_students_memory():
    """As in the authors' code: it reads every rollout from what the student remembered, and keeps nothing."""
    task = "corridor-discrete"
    teacher = frozen(env(task).spec)
    *_, before, now = after(3, ALWAYS, task=task, teacher_state="student")
    rows = rollouts(before, TINY, task)
    assert now.memories == ((),)
    logits = jax.vmap(teacher.unroll, (None, 0, 0, 0))(teacher.params, rows.memory, rows.obs, rows.done)[1]
    expected = jax.nn.softmax(logits).mean((0, 1))
    np.testing.assert_allclose(now.metrics.distillations[0].teacher, expected, atol=1e-5)
    nothing = tree.repeat(teacher.memory, TINY.lanes)
    anew = jax.vmap(teacher.unroll, (None, 0, 0, 0))(teacher.params, nothing, rows.obs, rows.done)[1]
    assert jnp.abs(jax.nn.softmax(anew).mean((0, 1)) - expected).max() > 1e-3
    other = recurrent.Config(hidden=(4,), units=6)
    with pytest.raises(ValueError, match=r"\(4,\).*\(6,\).*as many units"):
        cdrl.build(env(), replace(TINY, teacher_state="student"), [frozen(network=other)])
    without = replace(NET, recurrent=False)
    with pytest.raises(ValueError, match="has no memory: say own"):
        cdrl.build(env(), replace(TINY, teacher_state="student"), [frozen(network=without)])


# Who may teach.


def test_teachers_of_other_tasks_are_refused_with_the_numbers():
    here = env().spec
    wide = here._replace(name="wide", obs_shape=(3,), action_dim=4)
    with pytest.raises(ValueError, match=r"wide reads observations \(3,\).*\(1,\).*pad_observations"):
        cdrl.build(env(), TINY, [frozen(wide)])
    image = here._replace(name="image", obs_shape=(10, 10, 1))
    with pytest.raises(ValueError, match=r"\(10, 10, 1\).*\(1,\).*no adapter"):
        cdrl.build(env(), replace(TINY, pad_observations=True), [frozen(image)])
    padded = replace(TINY, pad_observations=True, align="none")
    with pytest.raises(ValueError, match=r"wide has 4 actions.* has 2.*pad_actions"):
        cdrl.build(env(), padded, [frozen(wide)])
    with pytest.raises(ValueError, match="0 trained alignment networks for align offline with 1"):
        cdrl.build(env(), replace(TINY, align="offline"), [frozen()])
    other = recurrent.alignment(2, 2, (5,)).init(jax.random.key(0))
    with pytest.raises(ValueError, match="alignment network has shapes"):
        cdrl.build(env(), replace(TINY, align="offline"), [frozen()], alignments=[other])
    with pytest.raises(ValueError, match="continuous"):
        cdrl.build(env("delay"), TINY)
    with pytest.raises(ValueError, match=r"context-discrete has no params.*teacher_envs"):
        cdrl.build(env(), TINY, [frozen()._replace(params=None)])
    with pytest.raises(ValueError, match="would learn from nothing"):
        cdrl.build(env(), replace(TINY, student_gae=False))
    with pytest.raises(ValueError, match=r"align none; align online"):
        cdrl.Config(pad_actions=True)
    with pytest.raises(ValueError, match="'both'"):
        cdrl.Config(align_kl="both")


def run_of_align(teacher, spec=None, **options):
    """What a run of ``align`` leaves, with ``teacher``."""
    config = offline.Config(align_hidden=(4,), **options)
    network = recurrent.alignment(2, 2, (4,), config.align_act)
    params = {"alignment": network.init(jax.random.key(3)), "teacher": teacher.params}
    return Pretrained("A", spec or env().spec, None, params, config=config)


def test_a_trained_alignment_is_for_one_task_teacher_and_activation():
    config, make_records = replace(TINY, align="offline"), cdrl.RUNS["alignment"].make
    run = run_of_align(frozen())
    (record,) = make_records(env(), [run])
    state = cdrl.build(env(), config, [frozen()], alignments=[record]).init(jax.random.key(0), cdrl.Hyper())
    assert same(state.aligners[0].params, run.params["alignment"])
    for wrong, told in (
        (run_of_align(frozen(), align_act="relu"), "align_act relu, not elu"),
        (run_of_align(frozen(seed=6)), "another teacher than that of probe/context-discrete"),
    ):
        with pytest.raises(ValueError, match=told):
            cdrl.build(env(), config, [frozen()], alignments=make_records(env(), [wrong]))
    for wrong, told in (
        (run_of_align(frozen(), env("corridor-discrete").spec), "corridor-discrete.* not for probe/context"),
        (run._replace(config=TINY), "A is no run of align"),
    ):
        with pytest.raises(ValueError, match=told):
            make_records(env(), [wrong])
        with pytest.raises(ValueError, match=told):
            cdrl.build(env(), config, [frozen()], alignments=[cdrl.Finished(wrong)])


def test_remarks_on_times_at_which_nothing_is_distilled():
    def told(env_steps, config=TINY, teachers=(1,), **numbers):
        found = cdrl.remarks(env(), config, cdrl.Hyper(**numbers), env_steps, teachers=teachers)
        return " | ".join(found)

    assert "begins at 4,000,000 environment steps and the run ends at 300,000; --hyper.budget 300000" in told(
        300_000
    )
    assert told(300_000, teachers=()) == ""
    assert told(4_000_000) == ""
    assert told(300_000, budget=300_000) == ""
    assert "--hyper.budget" not in told(100, distil_from=200.0, align_from=0.0)
    assert told(100, distil_from=np.inf) == ""
    one = told(100, budget=100, distil_until=1.0)
    assert "distil_until 1 is the first environment step" in one
    assert "distil_until is at 1 environment steps" in one
    early = {"budget": 100, "distil_from": 0.0, "align_from": 0.2}
    assert "begins at 0 environment steps, before alignment networks" in told(100, **early)
    assert told(100, replace(TINY, align="none"), **early) == ""
    sweep = {"budget": 100, "align_from": np.array([0.0, 0.3]), "distil_from": np.array([0.1, 0.2])}
    assert "begins at 20 environment steps, before" in told(100, **sweep)


@pytest.mark.parametrize("actions", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_wider_teacher_through_adapters(actions):
    """It sees zeros where the student's task has no component; probabilities stay those of a policy."""
    wide = env().spec._replace(name="wide", obs_shape=(3,), action_dim=actions)
    config = replace(TINY, pad_observations=True, pad_actions=True, align="none")
    method = cdrl.build(env(), config, [frozen(wide)])
    state = jax.jit(method.step)(method.init(jax.random.key(0), replace(method.hyper, **ALWAYS)))
    distillation = state.metrics.distillations[0]
    assert distillation.teacher.shape == (actions,)
    assert distillation.aligned.shape == (2,)
    np.testing.assert_allclose([distillation.teacher.sum(), distillation.aligned.sum()], 1, rtol=1e-5)
    assert np.isfinite(distillation.distil_loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.team[0].learner.params))


@pytest.mark.parametrize(
    ("module", "options"),
    [(a2c, {}), (ppo, {}), (ppo, {"normalize_obs": True})],
    ids=["a2c", "ppo", "ppo with whitening"],
)
def test_an_on_policy_agent_says_what_it_acts_by(module, options):
    """Logits of observations as it sees them."""
    spec, config = env().spec, module.Config(hidden=(4,), **options)
    agent, obs = module.build(spec, config), 3 + 2 * jax.random.normal(jax.random.key(1), (5, 1))
    learner = agent.init(jax.random.key(0), module.Hyper())
    learner = replace(learner, actor=tree.normal_like(jax.random.key(2), learner.actor))
    if options:
        learner = replace(learner, observations=normalize.update(learner.observations, obs))
    params = agent.policy(learner)
    teacher = cdrl.of_agent(spec, config, params)
    behind, logits = teacher.unroll(params, teacher.memory, obs, jnp.arange(5) == 2)
    assert behind == ()
    keys = jax.random.split(jax.random.key(3), 5)
    _, _, action, log_prob = jax.vmap(lambda key, x: agent.act(params, (), x, key, 1.0))(keys, obs)
    said = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]
    np.testing.assert_allclose(said, log_prob, rtol=1e-4)
    run = Pretrained("a run", spec, None, params, config=onpolicy.Config(agent=config))
    assert same(cdrl.of_run(cdrl.Finished(run)).params, params)


def test_an_on_policy_agent_teaches():
    spec, config = env().spec, a2c.Config(hidden=(4,))
    params = a2c.build(spec, config).actor.init(jax.random.key(0))
    teacher = cdrl.of_agent(spec, config, params)
    state = cdrl.build(env(), TINY, [teacher]).init(jax.random.key(0), cdrl.Hyper())
    assert same(state.frozen[0], params)
    run = Pretrained("a run", spec, None, params, config=onpolicy.Config(agent=config))
    assert same(cdrl.of_run(cdrl.Finished(run)).params, params)
    with pytest.raises(ValueError, match=r"a run is not.*Config"):
        cdrl.of_run(cdrl.Finished(run._replace(config=TINY.network)))


def test_an_on_policy_agent_with_a_memory_teaches():
    """Its logits along rows in which an episode ends are those by which it acts, step by step."""
    spec, config = env().spec, a2c.Config(hidden=(4,), lstm=3)
    agent = a2c.build(spec, config)
    params = agent.policy(agent.init(jax.random.key(0), a2c.Hyper()))
    teacher = cdrl.of_agent(spec, config, params)
    obs, done = jax.random.normal(jax.random.key(1), (5, 1)), jnp.arange(5) == 2
    step, memory, expected = jax.jit(agent.actor.step), agent.memory[0], []
    for t in range(5):
        memory, logits = step(params[0], memory, obs[t])
        expected.append(logits)
        memory = agent.memory[0] if done[t] else memory
    behind, logits = jax.jit(teacher.unroll)(teacher.params, teacher.memory, obs, done)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(behind, memory, rtol=1e-5, atol=1e-6)
    ended = teacher.unroll(teacher.params, teacher.memory, obs, jnp.arange(5) == 4)[0]
    assert same(ended, agent.memory[0])


# Learning.


def test_scores_are_those_of_the_last_hundred_episodes():
    """``context-discrete`` has episodes of one step, with rewards 1 and 0."""
    _, init, step = compiled(teacher="none", lanes=2, steps=20)
    state, rewards = init(jax.random.key(0), cdrl.Hyper()), []
    for _ in range(4):
        rows = rollouts(state, replace(TINY, steps=20))
        state = step(state)
        rewards += np.asarray(rows.reward).T.ravel().tolist()
        assert float(state.metrics.score[0]) == pytest.approx(np.mean(rewards[-100:]), abs=1e-6)
    assert int(state.metrics.episodes[0]) == 160


def test_without_a_teacher_it_learns():
    method = cdrl.build(env(), replace(TINY, lanes=8, steps=5))
    hyper = replace(method.hyper, lr=1e-2)
    state = jax.jit(method.init)(jax.random.key(0), hyper)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), s.metrics.score), s, length=200)[0])
    state = run(state)
    assert float(state.metrics.score[0]) > 0.9
    for obs, best in ((-1.0, 0), (1.0, 1)):
        assert (
            int(method.act(student(state), method.memory, jnp.array([obs]), jax.random.key(0), 0.0)[1])
            == best
        )


@pytest.mark.parametrize(
    ("remembers", "low", "high"), [(True, 0.95, 1.0), pytest.param(False, -0.3, 0.3, marks=pytest.mark.slow)]
)
def test_what_was_shown_three_steps_ago_is_known_to_those_who_remember(remembers, low, high):
    """bsuite's memory length: reward 1 for the action that was shown at the beginning, else -1."""
    network = replace(NET, hidden=(8,), units=16, recurrent=remembers)
    config = replace(TINY, network=network, lanes=16, steps=10, update_mode="batched")
    method = cdrl.build(make("gymnax/MemoryChain-bsuite", memory_length=3), config)
    state = jax.jit(method.init)(jax.random.key(0), replace(method.hyper, lr=5e-3))
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: (method.step(s), None), s, length=200)[0])
    assert low <= float(run(state).metrics.score[0]) <= high


TINY = recurrent.Config(hidden=(4,), units=4)


def a_finished_run(task):
    """A finished run of ``cdrl`` with a memory, whose network has learned nothing."""
    spec = make(task).spec
    network = recurrent.recurrent_actor_critic((1,), spec.action_dim, TINY)
    params = network.init(jax.random.key(7))
    return Pretrained("a run", spec, None, params, network.memory, config=cdrl.Config(network=TINY))


def a_case(teacher, population, **marks):
    config = cdrl.Config(network=TINY, lanes=2, steps=3, align_hidden=(4,))

    def build():
        method = cdrl.build(make("probe/context-discrete"), config, **teacher)
        return method._replace(hyper=replace(method.hyper, align_from=0.0, distil_from=0.0))

    return Case(build, population, alone=False, **marks)


def a_case_of_align():
    config = offline.Config(lanes=2, steps=3, updates=2, batch=4, capacity=20, align_hidden=(4,))
    runs = [
        cdrl.Finished(a_finished_run(f"probe/{task}")) for task in ("context-discrete", "corridor-discrete")
    ]
    build = partial(offline.build, make("probe/corridor-discrete"), config, runs[:1], runs[1:])
    return Case(build, population=1, alone=False, slow=True)


CASES = {
    "cdrl": a_case({"teacher_envs": [make("probe/corridor-discrete")]}, population=2, slow_members=True),
    "cdrl_finished": a_case(
        {"teachers": [cdrl.Finished(a_finished_run("probe/corridor-discrete"))]}, population=1, slow=True
    ),
    "align": a_case_of_align(),
}
