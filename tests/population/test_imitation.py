"""Teachers and students of the layer: what a teacher says, and who learns from it when."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from popjax import tree
from popjax.core import Choice, Pretrained, Spec
from popjax.envs import make
from popjax.nets import recurrent
from popjax.population import imitation, learning, tutoring
from tests.support import close, same

TASK = make("probe/corridor-discrete").spec
NETWORK = recurrent.recurrent_actor_critic((1,), 2, recurrent.Config(hidden=(4,), units=4))
KEY = jax.random.key(0)


def teacher(spec=TASK):
    return imitation.of_network(spec, NETWORK, NETWORK.init(jax.random.key(1))).policy


def constant(action, spec):
    """A policy that always acts alike, and has nothing but the signature of acting."""
    act = lambda params, memory, obs, key, scale: Choice(memory, action, action, jnp.float32(0))  # noqa: E731
    return Pretrained("constant", spec, act, ())


def test_a_run_that_builds_on_others_does_not_begin_as_they_did():
    """Neither with the key of an equal seed nor with one that a run of that seed draws from, and neither if
    those already build on others."""
    first = {"config": {"runs": {}}}
    second = {"config": {"runs": {"teacher": [first]}}}
    built = [teacher()._replace(origin=origin) for origin in (None, first, second)]
    assert jnp.array_equal(*map(jax.random.key_data, (imitation.own_key(KEY, ()), KEY)))
    keys = [KEY, imitation.own_key(KEY, built[:1]), imitation.own_key(KEY, built[1:])]
    drawn = [key for begun in keys for key in (begun, *jax.random.split(begun, 8))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in drawn}) == 3 * 9
    assert same(imitation.own_key(KEY, built[:1]), imitation.own_key(KEY, built[1:2]))


def test_a_step_is_taken_where_it_is_due():
    """For each member of a sweep, and not computed where it is due for none."""
    taken = []

    def update(state):
        jax.debug.callback(lambda: taken.append(1), ordered=False)
        return state + 1, -state

    once = jax.vmap(lambda state, due: learning.once(update, state, due, jnp.float32(7)))
    state = jnp.array([3.0, 5.0])
    some = once(state, jnp.array([True, False]))
    np.testing.assert_array_equal(some, [[4, 5], [-3, 7]])
    jax.effects_barrier()
    assert taken
    taken.clear()
    none = once(state, jnp.array([False, False]))
    np.testing.assert_array_equal(none, [[3, 5], [7, 7]])
    jax.effects_barrier()
    assert not taken


def test_a_teacher_says_its_action_or_its_logits():
    action = imitation.telling(constant(jnp.int32(1), TASK), "actions")((), (), jnp.zeros(1), KEY, 0.0)
    np.testing.assert_array_equal(action.said, [-np.inf, 0])
    assert int(action.action) == 1
    continuous = make("probe/context").spec
    told = imitation.telling(constant(jnp.array([0.5]), continuous), "actions")(
        (), (), jnp.zeros(1), KEY, 0.0
    )
    np.testing.assert_array_equal(told.said, [0.5])
    policy, obs = teacher(), jnp.array([0.3])
    told = imitation.telling(policy, "logits")(policy.params, policy.memory, obs, KEY, 0.0)
    memory, heads = NETWORK.step(policy.params, NETWORK.memory, obs)
    close((told.memory, told.said), (memory, heads.policy))
    assert int(told.action) == int(jnp.argmax(heads.policy))
    with pytest.raises(ValueError, match="constant has no logits"):
        imitation.telling(constant(jnp.int32(1), TASK), "logits")


def test_a_teacher_follows_as_if_it_acted():
    """Bit for bit, and anew behind the end of an episode of each lane."""
    policy, obs = teacher(), jax.random.normal(KEY, (3, 2, 1))
    done = jnp.array([[False, False], [True, False], [False, False]])
    memory = tree.repeat(policy.memory, 2)
    after = jax.jit(lambda m: imitation.follow(policy, policy.params, m, obs, done))(memory)
    step = jax.jit(jax.vmap(NETWORK.step, (None, 0, 0)))
    for row, ended in zip(obs, done, strict=True):
        memory = tree.where(~ended, step(policy.params, memory, row)[0], policy.memory)
    assert same(after, memory)


def test_a_teacher_reads_other_observations_cropped_or_padded():
    policy = teacher(TASK._replace(name="narrow"))
    wide = Spec("wide", (3,), 2, 5, discrete=True)
    with pytest.raises(ValueError, match=r"narrow reads observations \(1,\); those of wide are \(3,\): set"):
        imitation.reading(policy, wide, pad=False)
    reads = imitation.reading(policy, wide, pad=True)
    obs = jnp.array([[0.2, 5.0, -7.0]])
    found = reads.unroll(policy.params, policy.memory, obs, jnp.zeros(1, bool))
    close(found, policy.unroll(policy.params, policy.memory, obs[:, :1], jnp.zeros(1, bool)))
    choice = reads.act(policy.params, policy.memory, obs[0], KEY, 0.0)
    close(choice, policy.act(policy.params, policy.memory, obs[0, :1], KEY, 0.0))


@pytest.mark.parametrize(("actions", "expected"), [(2, [1.0, 2.0]), (4, [1.0, 2.0, 3.0, -np.inf])])
def test_actions_one_by_one(actions, expected):
    student, other = TASK._replace(action_dim=actions), TASK._replace(action_dim=3)
    network = tutoring.one_by_one(student, other, pad=True)
    np.testing.assert_array_equal(network.apply((), jnp.array([1.0, 2.0, 3.0])), expected)
    with pytest.raises(ValueError, match=rf"has 3 actions, .* has {actions}: align"):
        tutoring.one_by_one(student, other, pad=False)


def test_a_student_takes_the_optimizers_steps():
    """Down the gradient on the batches that were drawn, whose last loss it tells."""
    optimizer, batches = optax.sgd(0.5), jnp.array([1.0, 3.0])
    learner = imitation.beginner(jnp.float32(0), optimizer)

    def loss(params, batch):
        return 0.5 * jnp.square(params - batch)

    one, first = imitation.study(optimizer, loss, lambda key: batches[0], learner, 1, KEY)
    assert (float(one.params), float(first)) == (0.5, 0.5)
    two, last = imitation.study(optimizer, loss, lambda key: batches[1], one, 2, KEY)
    assert (float(two.params), float(last)) == (0.5 + 1.25 + 0.625, 0.5 * 1.25**2)
