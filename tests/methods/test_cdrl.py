"""Collaborative deep RL: the worked examples, who learns from what and when, and who may teach whom."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import advantage, distributions, normalize, tree
from popjax.advantage import Targets
from popjax.agents import a2c, ppo
from popjax.core import Pretrained, Trajectory, as_arrays
from popjax.distillation import alignment_loss, softened_kl
from popjax.envs import make
from popjax.methods import cdrl, onpolicy
from popjax.methods.cdrl import NEVER
from popjax.methods.cdrl_config import reached, remarks
from popjax.nets import recurrent
from popjax.nets.recurrent import behind, recurrent_actor_critic
from popjax.optimize import adam
from popjax.population import imitation
from popjax.population.imitation import Aligned, Learner, Teacher
from tests.support import Case, same

NET = recurrent.Config(hidden=(4,), units=4)
TINY = cdrl.Config(network=NET, lanes=2, steps=3, align_hidden=(4,))
ALWAYS = {"align_from": 0.0, "distil_from": 0.0, "distil_until": NEVER}
HYPER = as_arrays(cdrl.Hyper())


def env(task="context-discrete"):
    return make(f"probe/{task}")


def frozen(spec=None, seed=5, network=NET):
    """A teacher with opinions: nothing that it says is nearly uniform."""
    spec = spec or env().spec
    net = recurrent_actor_critic(spec.obs_shape, spec.action_dim, network)
    params = net.init(jax.random.key(seed))
    params = jax.tree.map(jnp.add, params, tree.normal_like(jax.random.key(seed), params))
    return imitation.of_network(spec, net, params)


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
    return state.tasks[0].student.params


def told(state):
    """Return the first teacher's part in a step."""
    return state.metrics.distillations[0]


def test_a_student_does_not_begin_with_the_weights_that_a_teacher_of_its_seed_began_with():
    alone, taught = (student(after(0, {}, teacher=who)[0])["policy"] for who in ("none", "frozen"))
    assert not same(alone, taught)
    assert same(alone, student(after(0, {}, teacher="none")[0])["policy"])


# Worked examples 1 and 2.


def test_advantages_and_returns_of_the_worked_example():
    reward, values = jnp.array([0.0, 1, 0]), jnp.array([0.5, 0.6, 0.4])
    no, end, gamma = jnp.zeros(3, bool), jnp.array([False, False, True]), jnp.full(3, 0.99)
    advantages, returns = advantage.targets(reward, gamma, values, jnp.array([0.6, 0.4, 0.3]), no, 1.0)
    np.testing.assert_allclose(advantages, [0.78109, 0.69403, -0.103], atol=1e-5)
    np.testing.assert_allclose(returns, [1.28109, 1.29403, 0.297], atol=1e-5)
    ended = gamma.at[2].set(0.0)
    advantages, returns = advantage.targets(reward, ended, values, jnp.array([0.6, 0.4, 9.0]), end, 1.0)
    np.testing.assert_allclose(advantages, [0.49, 0.4, -0.4], atol=1e-5)
    np.testing.assert_allclose(returns, [0.99, 1, 0], atol=1e-5)


def test_returns_do_not_depend_on_lambda():
    reward, values, no = jnp.array([0.0, 1, 0]), jnp.array([0.5, 0.6, 0.4]), jnp.zeros(3, bool)
    following, gamma = jnp.array([0.6, 0.4, 0.3]), jnp.full(3, 0.99)
    advantages, returns = advantage.targets(reward, gamma, values, following, no, 0.0)
    np.testing.assert_allclose(advantages, [0.094, 0.796, -0.103], atol=1e-5)
    np.testing.assert_allclose(returns, [1.28109, 1.29403, 0.297], atol=1e-5)


def test_actor_critic_loss_of_the_worked_example():
    """Sums over its two rows: twice the losses of A2C, and half the squared error of the values."""
    logits, values, zeros = jnp.array([[0.0, 0, 0], [1, 0, -1]]), jnp.array([0.4, 0.1]), jnp.zeros(2)
    played = Trajectory(zeros, jnp.array([0, 2]), zeros, zeros, zeros, zeros > 0, zeros)
    targets = Targets(jnp.array([0.5, -0.2]), jnp.array([0.9, -0.1]))
    losses = a2c.losses_of(distributions.categorical(), logits, values, played, targets)
    total = 2 * a2c.total(losses, HYPER.value_coef / 2, HYPER.entropy)
    sums = 2 * losses.policy_loss, losses.value_loss, 2 * losses.entropy, total
    np.testing.assert_allclose(sums, [0.067785, 0.145, 1.931008, 0.120975], atol=1e-5)


# Rollouts.


@lru_cache
def played(length=7):
    """Two lanes of a task that is cut after five steps, and the network that played them: its parameters, its
    lanes afterwards, the rollouts and their targets."""
    task, network = _endless(), recurrent_actor_critic((1,), 2, NET)
    method = cdrl.build(task, replace(TINY, steps=length))
    params = frozen(task.spec).policy.params
    state = method.init(jax.random.key(1), method.hyper)
    first = replace(state.tasks[0], student=replace(state.tasks[0].student, params=params))
    after = jax.jit(method.step)(replace(state, tasks=(first,))).tasks[0]
    return network, params, after.lanes, after.played, after.targets


def _endless():
    """``endless`` with two discrete actions: five steps of reward 1, then the time limit."""
    original = env("endless")
    spec = original.spec._replace(discrete=True, action_dim=2)
    return original._replace(step=lambda state, action: original.step(state, jnp.zeros(1)), spec=spec)


def test_a_rollout_runs_across_the_end_of_an_episode_and_memory_starts_anew():
    network, params, lanes, rows, _ = played()
    np.testing.assert_array_equal(rows.done.T, [[False] * 4 + [True] + [False] * 2] * 2)
    memories, heads = network.unroll(params, tree.take(rows.memory, 0), rows.obs, rows.done)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(heads.policy, rows.outputs.policy, **close)
    np.testing.assert_allclose(heads.value, rows.outputs.value, **close)
    after = behind(network, memories, rows.done)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], **close), after, lanes.memory)
    logits = rows.outputs.policy
    np.testing.assert_allclose(logits[5], logits[0], rtol=1e-5)  # a beginning, again
    assert (jnp.abs(logits[3] - logits[0]) > 1e-3).all()


def test_a_time_limit_is_an_end_and_the_last_row_is_none():
    """No value counts behind the limit; behind the rollout that of the next observation does."""
    network, params, lanes, _, targets = played()
    returns = targets.returns[:, 0]
    np.testing.assert_allclose(returns[3:5], [1 + 0.99, 1], rtol=1e-4)
    after = jax.tree.map(lambda x: x[0, 0], lanes.memory)
    last = 0.99 * float(network.step(params, after, jnp.ones(1))[1].value)
    np.testing.assert_allclose(returns[6], 1 + last, rtol=1e-4)
    assert abs(last) > 0.05


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
    assert told(second).distil_loss > 0


def test_alignment_alone_does_not_touch_the_student():
    times = ALWAYS | {"distil_from": NEVER}
    first, second = after(1, times, student_gae=False)
    assert same(student(first), student(second))
    assert not same(first.guides[0].aligner.params, second.guides[0].aligner.params)
    assert told(second).align_loss > 0
    assert told(second).distil_loss == 0


@pytest.mark.slow
def test_teachers_receive_nothing():
    """One that no longer learns, and one that trains beside the student, whether it teaches or not."""
    (first, second), (_, beside) = (
        after(1, times, teacher="both") for times in (ALWAYS, {"distil_until": 0.0})
    )
    assert same([guide.frozen for guide in first.guides], [guide.frozen for guide in second.guides])
    assert first.guides[1].frozen == ()
    assert same(second.tasks[1], beside.tasks[1])
    assert not same(second.tasks[0], beside.tasks[0])
    learned = heads_moved(first.tasks[1].student.params, second.tasks[1].student.params)
    assert learned == {"torso", "core", "policy", "value"}
    assert second.metrics.fitness.shape == (2,)
    pairs = zip(first.guides, second.guides, strict=True)
    assert all(not same(a.aligner.params, b.aligner.params) for a, b in pairs)


@pytest.mark.slow
def test_an_offline_alignment_stays_as_it_is():
    run = run_of_align(frozen())
    method = cdrl.build(env(), replace(TINY, align="offline"), [frozen()], alignments=[run])
    first = method.init(jax.random.key(0), replace(method.hyper, **ALWAYS))
    second = jax.jit(method.step)(first)
    assert same(first.guides[0].aligner, second.guides[0].aligner)
    assert same(first.guides[0].aligner.params, run.policy.params.alignment)
    assert not same(student(first)["distil"], student(second)["distil"])


# When (worked example 7).


def test_times_are_steps_or_fractions_of_the_budget():
    hyper = as_arrays(cdrl.Hyper(budget=200))
    for when, first in ((0.0, 0), (0.25, 50), (1.0, 1), (60.0, 60), (NEVER, None)):
        due = [bool(reached(jnp.int32(t), jnp.float32(when), hyper)) for t in range(100)]
        assert due.index(True) == first if first is not None else not any(due)


@pytest.mark.parametrize(("fraction", "step"), [(0.15, 15_000), (0.3, 30_000)])
def test_a_fraction_of_the_budget_is_a_whole_step(fraction, step):
    """In float32 both products are a little more, and a time would come an update late."""
    hyper = as_arrays(cdrl.Hyper(budget=100_000, distil_from=fraction, align_from=0.0))
    assert hyper.distil_from * hyper.budget > step
    assert [bool(reached(jnp.int32(t), hyper.distil_from, hyper)) for t in (step - 1, step)] == [
        False,
        True,
    ]
    assert remarks(env(), TINY, hyper, step, teachers=(1,)) == []
    (late,) = remarks(env(), TINY, hyper, step - 1, teachers=(1,))
    assert f"begins at {step:,} environment steps" in late


def test_the_schedule_of_the_worked_example():
    """20-step rollouts of one lane; T1 60, T2 120, and the end at 160: alignment trains from the third update
    to the seventh, distillation from the sixth."""
    times = {"align_from": 60.0, "distil_from": 120.0, "distil_until": 160.0}
    states = after(9, times, lanes=1, steps=20, student_gae=False)
    moved = [not same(a.guides[0].aligner, b.guides[0].aligner) for a, b in pairwise(states)]
    learned = [not same(student(a), student(b)) for a, b in pairwise(states)]
    assert moved == [False] * 2 + [True] * 5 + [False] * 2
    assert learned == [False] * 5 + [True] * 2 + [False] * 2
    assert [int(s.env_steps) for s in states] == list(range(0, 200, 20))
    assert told(states[6]).teacher.sum() == pytest.approx(1, abs=1e-5)
    asked = [bool(told(s).teacher.any()) for s in states[1:]]
    assert asked == [False] * 2 + [True] * 5 + [False] * 2  # where nothing is due it is not even asked


@pytest.mark.slow
def test_the_schedule_of_lanes_at_once():
    """Two lanes of 3 steps count 6 at a time: alignment at 12, the second update; distillation at 18, the
    third; the end at 30, the fifth."""
    times = {"align_from": 12.0, "distil_from": 18.0, "distil_until": 30.0}
    states = after(5, times, update_mode="batched", student_gae=False)
    moved = [not same(a.guides[0].aligner, b.guides[0].aligner) for a, b in pairwise(states)]
    learned = [not same(student(a), student(b)) for a, b in pairwise(states)]
    assert moved == [False, True, True, True, False]
    assert learned == [False, False, True, True, False]


@pytest.mark.slow
def test_lanes_count_one_after_the_other():
    """Two lanes of 3 steps: with T1 at 6 the first lane's steps are 3, the second's 6."""
    times = {"align_from": 6.0, "distil_from": NEVER, "distil_until": NEVER}
    one, both = (after(1, times | {"align_from": t})[-1].guides[0].aligner.optimizer for t in (6.0, 3.0))
    count = [int(x) for x in jax.tree.leaves(one) if x.dtype == jnp.int32]
    assert set(count) == {1}
    assert {int(x) for x in jax.tree.leaves(both) if x.dtype == jnp.int32} == {2}


# Identity (worked example 8).


@pytest.mark.slow
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
    teacher = state.guides[0].frozen
    first = replace(state.tasks[0], student=replace(state.tasks[0].student, params=teacher))
    state = replace(state, tasks=(first,))
    for _ in range(20):
        state = step(state)
        assert same(student(state), teacher)
        assert same(state.guides[0].memory, tree.take(state.tasks[0].lanes.memory, 0))
        distillation = told(state)
        assert float(distillation.distil_loss) == 0
        np.testing.assert_allclose(distillation.aligned, state.metrics.actions, atol=1e-6)
    assert distillation.aligned.any()
    assert int(state.metrics.episodes[0]) >= 2


# Update modes.


@pytest.mark.slow
def test_with_one_lane_the_update_modes_agree():
    one, other = (
        student(after(2, ALWAYS, lanes=1, update_mode=mode)[-1]) for mode in ("sequential", "batched")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.slow
def test_the_update_modes_differ_with_several_lanes():
    ends = [
        student(after(1, ALWAYS | {"lr": 1e-2}, update_mode=mode)[-1]) for mode in ("sequential", "batched")
    ]
    assert not same(*ends)


APART = {"lr": 1e-2, "distil_lr": 4e-3, "align_lr": 2e-2, "temperature": 2.0}
"""Numbers that one in the place of another would show."""


def actor_critic_loss(heads, row, targets, hyper):
    """Of A3C: a sum over the rows of a lane."""
    log_pi = jax.nn.log_softmax(heads.policy)
    chosen = jnp.take_along_axis(log_pi, row.action[:, None], 1)[:, 0]
    values = 0.5 * jnp.square(heads.value - targets.returns).sum()
    entropy = -(jnp.exp(log_pi) * log_pi).sum()
    return -(chosen * targets.advantages).sum() + hyper.value_coef * values - hyper.entropy * entropy


def lane(tree_, i):
    """The ``i``-th lane of rollouts [T, N]."""
    return jax.tree.map(lambda x: x[:, i], tree_)


def by_hand(before, now, config, teacher, hyper):
    """One step of the learners from the rollouts that it played, written down from section 6 for one bundle
    of lanes after the other: a loss is the mean over the lanes of a bundle. Lanes are unrolled one by one.
    Also all norms of gradients."""
    network = recurrent_actor_critic((1,), 2, NET)
    align = recurrent.alignment(2, 2, (4,))
    learner, aligner = before.tasks[0].student, before.guides[0].aligner
    start, rows, worth = learner.params, now.tasks[0].played, now.tasks[0].targets
    everyone = list(range(config.lanes))
    bundles = [everyone] if config.update_mode == "batched" else [[i] for i in everyone]
    rates = hyper.lr, hyper.distil_lr, hyper.align_lr
    rewards_adam, distil_adam, align_adam = (adam(rate, hyper.max_grad_norm) for rate in rates)
    norms = []
    params, moments, distil_moments = start, learner.optimizer, learner.distil_optimizer
    for lanes in bundles:
        each = [(lane(rows, i), lane(worth, i), tree.take(before.guides[0].memory, i)) for i in lanes]
        logits = [teacher.unroll(teacher.params, memory, row.obs, row.done)[1] for row, _, memory in each]
        targets = [align.apply(aligner.params, z) for z in logits]
        point = params

        def heads(p, row):
            return network.unroll(p, tree.take(row.memory, 0), row.obs, row.done)[1]

        def reward_loss(p):
            losses = [actor_critic_loss(heads(p, row), row, its, hyper) for row, its, _ in each]
            return sum(losses) / len(each)

        def align_loss(f):
            pairs = zip(logits, each, strict=True)
            losses = [
                alignment_loss(
                    align.apply(f, z), row.outputs.policy, config.align_kl, temperature=hyper.temperature
                )
                for z, (row, *_) in pairs
            ]
            return sum(losses) / len(each)

        def distil_loss(p):
            heard = [heads(p, row).distil for row, *_ in each]
            pairs = zip(targets, heard, strict=True)
            return sum(softened_kl(z, q, hyper.temperature) for z, q in pairs) / len(each)

        losses = (reward_loss, point), (align_loss, aligner.params), (distil_loss, point)
        gradients = [jax.grad(loss)(at) for loss, at in losses]
        norms.append([float(optax.global_norm(gradient)) for gradient in gradients])
        updates, moments = rewards_adam.update(gradients[0], moments)
        params = jax.tree.map(jnp.add, params, updates)
        updates, optimizer = align_adam.update(gradients[1], aligner.optimizer)
        aligner = Learner(jax.tree.map(jnp.add, aligner.params, updates), optimizer)
        updates, distil_moments = distil_adam.update(gradients[2], distil_moments)
        params = jax.tree.map(jnp.add, params, updates)
    return (params, moments, distil_moments, aligner), np.array(norms)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"update_mode": "batched"}, marks=pytest.mark.slow),
        pytest.param({"align_kl": "paper"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_is_the_papers(options):
    """With memories of what was before and the ends of episodes in the rollouts. All gradients are clipped,
    but for lanes at once none is; Adam's moments show their scale, which its steps hide."""
    task, norm = "corridor-discrete", 40.0 if options.get("update_mode") == "batched" else 0.003
    before, now = after(3, ALWAYS | APART | {"max_grad_norm": norm}, task=task, steps=4, **options)[-2:]
    config = replace(TINY, steps=4, **options)
    assert all(jnp.abs(x).max() > 0.01 for x in jax.tree.leaves(before.guides[0].memory))
    expected, norms = by_hand(before, now, config, frozen(env(task).spec).policy, before.hyper)
    if not options:
        assert (norms > norm).all()
    np.testing.assert_allclose(now.metrics.gradient_norm[0], norms[:, 0].mean(), rtol=1e-3)
    learner = now.tasks[0].student
    found = learner.params, learner.optimizer, learner.distil_optimizer, now.guides[0].aligner
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), found, expected)


# Memories of teachers.


@pytest.mark.slow
def test_a_teacher_remembers_along_the_students_episodes():
    """From the first step on, long before it teaches."""
    states = after(3, {"distil_from": NEVER, "align_from": NEVER}, task="corridor-discrete")
    teacher = frozen(env("corridor-discrete").spec).policy
    memory = tree.repeat(teacher.memory, TINY.lanes)
    for now in states[1:]:
        rows = now.tasks[0].played
        memory, _ = teacher.unroll(teacher.params, memory, rows.obs, rows.done)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), now.guides[0].memory, memory)


@pytest.mark.slow
def test_a_teacher_with_the_students_memory():
    """As in the authors' code: it reads every rollout from what the student remembered, and keeps nothing."""
    task = "corridor-discrete"
    teacher = frozen(env(task).spec).policy
    now = after(3, ALWAYS, task=task, teacher_state="student")[-1]
    rows = now.tasks[0].played
    assert now.guides[0].memory == ()

    def probabilities(memory):
        logits = teacher.unroll(teacher.params, memory, rows.obs, rows.done)[1]
        return jax.nn.softmax(logits).mean((0, 1))

    expected = probabilities(tree.take(rows.memory, 0))
    np.testing.assert_allclose(told(now).teacher, expected, atol=1e-5)
    anew = probabilities(tree.repeat(teacher.memory, TINY.lanes))
    assert jnp.abs(anew - expected).max() > 1e-3
    other = recurrent.Config(hidden=(4,), units=6)
    with pytest.raises(ValueError, match=r"\(4,\).*\(6,\).*the same number of units"):
        cdrl.build(env(), replace(TINY, teacher_state="student"), [frozen(network=other)])
    without = replace(NET, recurrent=False)
    with pytest.raises(ValueError, match="has no memory; set own"):
        cdrl.build(env(), replace(TINY, teacher_state="student"), [frozen(network=without)])


def test_tasks_of_one_environment_play_side_by_side():
    """Its step stands in the program once, however many tasks are played in it."""
    places = []

    def counted(original):
        def step(state, action):
            places.append(original.spec.name)
            return original.step(state, action)

        return original._replace(step=step)

    here, there = counted(env()), counted(env("corridor-discrete"))
    for beside in ([], [here], [here, there, here]):
        method = cdrl.build(here, replace(TINY, align="none"), teacher_envs=beside)
        state = jax.eval_shape(method.init, jax.random.key(0), method.hyper)
        places.clear()
        jax.eval_shape(method.step, state)
        assert len(set(places)) == len(places) == len({here, *beside})
    assert jax.eval_shape(method.step, state).metrics.fitness.shape == (4,)


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
    with pytest.raises(ValueError, match="0 trained alignment networks for 1 teachers: align offline"):
        cdrl.build(env(), replace(TINY, align="offline"), [frozen()])
    with pytest.raises(ValueError, match="1 trained alignment networks for 0 teachers"):
        cdrl.build(env(), TINY, [frozen()], alignments=[run_of_align(frozen())])
    run = run_of_align(frozen(), hidden=(5,))
    with pytest.raises(ValueError, match="alignment network of A has shapes"):
        cdrl.build(env(), replace(TINY, align="offline"), [frozen()], alignments=[run])
    with pytest.raises(ValueError, match="continuous"):
        cdrl.build(env("delay"), TINY)
    with pytest.raises(ValueError, match="context-discrete has no logits over discrete actions"):
        cdrl.build(env(), TINY, [Teacher(frozen().policy._replace(unroll=None))])
    with pytest.raises(ValueError, match="would learn from nothing"):
        cdrl.build(env(), replace(TINY, student_gae=False))
    with pytest.raises(ValueError, match=r"align none; unset it, since align online"):
        cdrl.Config(pad_actions=True)
    with pytest.raises(ValueError, match="'both'"):
        cdrl.Config(align_kl="both")


def run_of_align(teacher, spec=None, hidden=(4,)):
    """Return the result of a run of ``align``, with ``teacher``."""
    params = recurrent.alignment(2, 2, hidden).init(jax.random.key(3))
    aligned = Aligned(teacher.policy.params, params)
    return Teacher(Pretrained("A", spec or env().spec, None, aligned))


def test_a_trained_alignment_is_for_one_task_and_teacher():
    config, make_records = replace(TINY, align="offline"), cdrl.METHOD.runs["alignment"].make
    run = run_of_align(frozen()).policy
    (record,) = make_records(env(), [run])
    state = cdrl.build(env(), config, [frozen()], alignments=[record]).init(jax.random.key(0), cdrl.Hyper())
    assert same(state.guides[0].aligner.params, run.params.alignment)
    with pytest.raises(ValueError, match="another teacher than probe/context-discrete"):
        cdrl.build(env(), config, [frozen()], alignments=[run_of_align(frozen(seed=6))])
    for wrong, error in (
        (run_of_align(frozen(), env("corridor-discrete").spec), "A is a run of probe/corridor.*--alignment"),
        (Teacher(run._replace(params=run.params.alignment)), "A is not a run of align"),
    ):
        with pytest.raises(ValueError, match=error):
            make_records(env(), [wrong.policy])
        with pytest.raises(ValueError, match=error):
            cdrl.build(env(), config, [frozen()], alignments=[wrong])


def test_remarks_on_times_at_which_nothing_is_distilled():
    def told(env_steps, config=TINY, teachers=(1,), **numbers):
        found = remarks(env(), config, cdrl.Hyper(**numbers), env_steps, teachers=teachers)
        return " | ".join(found)

    assert (
        "begins at 4,000,000 environment steps and the run ends at 300,000; set --hyper.budget 300000"
        in told(300_000)
    )
    assert told(300_000, teachers=()) == ""
    assert told(4_000_000) == ""
    assert told(300_000, budget=300_000) == ""
    assert "--hyper.budget" not in told(100, distil_from=200.0, align_from=0.0)
    assert told(100, distil_from=np.inf) == ""
    one = told(100, budget=100, distil_until=1.0)
    assert "distil_until 1 is the first environment step" in one
    assert "distil_from is not before distil_until, 1 environment steps" in one
    early = {"budget": 100, "distil_from": 0.0, "align_from": 0.2}
    assert "begins at 0 environment steps, before alignment networks" in told(100, **early)
    assert told(100, replace(TINY, align="none"), **early) == ""
    sweep = {"budget": 100, "align_from": np.array([0.0, 0.3]), "distil_from": np.array([0.1, 0.2])}
    assert "begins at 20 environment steps, before" in told(100, **sweep)


@pytest.mark.slow
@pytest.mark.parametrize("actions", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_wider_teacher_through_adapters(actions):
    """It sees zeros where the student's task has no component; probabilities stay those of a policy."""
    wide = env().spec._replace(name="wide", obs_shape=(3,), action_dim=actions)
    config = replace(TINY, pad_observations=True, pad_actions=True, align="none")
    method = cdrl.build(env(), config, [frozen(wide)])
    state = jax.jit(method.step)(method.init(jax.random.key(0), replace(method.hyper, **ALWAYS)))
    distillation = told(state)
    assert distillation.teacher.shape == (actions,)
    assert distillation.aligned.shape == (2,)
    np.testing.assert_allclose([distillation.teacher.sum(), distillation.aligned.sum()], 1, rtol=1e-5)
    assert np.isfinite(distillation.distil_loss)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(student(state)))


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
    teacher = imitation.of_agent(spec, agent, params).policy
    after, logits = teacher.unroll(params, teacher.memory, obs, jnp.arange(5) == 2)
    assert after == ()
    keys = jax.random.split(jax.random.key(3), 5)
    choice = jax.vmap(lambda key, x: agent.act(params, (), x, key, 1.0))(keys, obs)
    said = jnp.take_along_axis(jax.nn.log_softmax(logits), choice.sampled[:, None], 1)[:, 0]
    np.testing.assert_allclose(said, choice.log_prob, rtol=1e-4)


@pytest.mark.parametrize(("task", "teaches"), [("context-discrete", True), ("context", False)])
def test_a_run_of_on_policy_agents_teaches_if_its_actions_are_discrete(task, teaches):
    method = onpolicy.build(env(task), onpolicy.Config(agent=a2c.Config(hidden=(4,))))
    params = method.policy(method.init(jax.random.key(0), method.hyper))
    run = Pretrained("a run", env(task).spec, method.act, params, method.memory, unroll=method.unroll)
    if not teaches:
        with pytest.raises(ValueError, match="a run has no logits over discrete actions"):
            imitation.of_runs(env(), [run])
        return
    state = cdrl.build(env(), TINY, imitation.of_runs(env(), [run])).init(jax.random.key(0), cdrl.Hyper())
    assert same(state.guides[0].frozen, params)


def test_an_on_policy_agent_with_a_memory_teaches():
    """Its logits along rows in which an episode ends are those by which it acts, step by step."""
    spec, config = env().spec, a2c.Config(hidden=(4,), lstm=3)
    agent = a2c.build(spec, config)
    params = agent.policy(agent.init(jax.random.key(0), a2c.Hyper()))
    teacher = imitation.of_agent(spec, agent, params).policy
    obs, done = jax.random.normal(jax.random.key(1), (5, 1)), jnp.arange(5) == 2
    step, memory, expected = jax.jit(agent.actor.step), agent.memory[0], []
    for t in range(5):
        memory, logits = step(params[0], memory, obs[t])
        expected.append(logits)
        memory = agent.memory[0] if done[t] else memory
    after, logits = jax.jit(teacher.unroll)(teacher.params, teacher.memory, obs, done)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after[0], memory)
    lanes = jax.tree.map(lambda x: jnp.stack([x, 2 * x], 1), obs), jnp.stack([done, done], 1)
    both = teacher.unroll(teacher.params, tree.repeat(teacher.memory, 2), *lanes)[1]
    np.testing.assert_allclose(both[:, 0], logits, rtol=1e-5, atol=1e-6)
    ended = teacher.unroll(teacher.params, teacher.memory, obs, jnp.arange(5) == 4)[0]
    assert same(ended[0], agent.memory[0])


# Learning.


def test_scores_are_those_of_the_last_hundred_episodes():
    """``context-discrete`` has episodes of one step, with rewards 1 and 0."""
    _, init, step = compiled(teacher="none", lanes=2, steps=20)
    state, rewards = init(jax.random.key(0), cdrl.Hyper()), []
    for _ in range(4):
        state = step(state)
        rewards += np.asarray(state.tasks[0].played.reward).ravel().tolist()
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


@pytest.mark.slow
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


def a_case(population, teachers=(), teacher_envs=(), **marks):
    def build():
        method = cdrl.build(env(), TINY, teachers, teacher_envs)
        return method._replace(hyper=replace(method.hyper, align_from=0.0, distil_from=0.0))

    return Case(build, population, alone=False, **marks)


CASES = {
    "cdrl": a_case(2, teacher_envs=[env("corridor-discrete")], slow_members=True),
    "cdrl_finished": a_case(1, teachers=[frozen(env("corridor-discrete").spec)], slow=True),
}
