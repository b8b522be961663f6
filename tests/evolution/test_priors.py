"""Hyperparameters that evolve: how they are written, drawn, perturbed and refused."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax.agents import dqn, ppo, sac
from popjax.core import as_arrays
from popjax.evolution import priors

UP = jnp.array([True, False])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hyper.actor_lr=1e-5:1e-2:log", priors.Prior("actor_lr", 1e-5, 1e-2, log=True)),
        ("hyper.actor-lr = 0.1:0.2", priors.Prior("actor_lr", 0.1, 0.2)),
        ("hyper.discount=0.9:0.999:log", priors.Prior("discount", 0.9, 0.999, log=True, top=1.0)),
        ("hyper.polyak=0.001:0.1", priors.Prior("polyak", 0.001, 0.1)),
        ("hyper.target_entropy=-2:-0.1", priors.Prior("target_entropy", -2.0, -0.1)),
        ("hyper.discount=0.99,0.9", priors.Prior("discount", 0.9, 0.99, top=1.0, choices=(0.9, 0.99))),
    ],
)
def test_a_prior_is_read_as_it_is_written(text, expected):
    assert priors.parse(text, sac.Hyper()) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "hyper.actor_rl=1:2",
            "evolve hyper.actor_rl: there is no such hyperparameter; did you mean hyper.actor_lr?",
        ),
        ("hyper.actor_lr", "evolve 'hyper.actor_lr' has no values: write hyper.NAME=LOW:HIGH"),
        ("hyper.actor_lr=fast:slow", "hyper.actor_lr=fast:slow is not made of numbers"),
        ("hyper.actor_lr=1e-3", "needs two bounds or several values"),
        ("hyper.actor_lr=1:2:3", "needs two bounds or several values"),
        ("hyper.actor_lr=1e-2:1e-3", "give different values, the lower bound first"),
        ("hyper.actor_lr=0.1,0.1", "give different values"),
        ("hyper.actor_lr=-1:1", "hyper.actor_lr=-1:1 must stay in [0, 3.40282e+38] and be finite"),
        ("hyper.actor_lr=1:inf", "must stay in [0, 3.40282e+38] and be finite"),
        ("hyper.discount=0.9:1.5", "hyper.discount=0.9:1.5 must stay in [0, 1]"),
        ("hyper.actor_lr=0:1:log", "a log scale needs hyper.actor_lr above 0"),
        ("hyper.discount=0.9:1:log", "a log scale needs 1 - discount above 0"),
        ("hyper.hidden=1:2", "hyper.hidden: that is a shape, fixed while a program runs"),
        ("config.agent.hidden=1:2", "config.agent.hidden: that is a shape"),
    ],
)
def test_what_is_no_prior_is_refused_in_one_line(text, told):
    with pytest.raises(ValueError, match=re.escape(told)) as refusal:
        priors.parse(text, sac.Hyper(), ("hidden",))
    assert "\n" not in str(refusal.value)


def test_a_number_is_given_once():
    with pytest.raises(ValueError, match=r"evolve hyper\.clip is given 2 times"):
        priors.parse_all(["hyper.clip=0.1:0.2", "hyper.clip=0.1:0.3"], ppo.Hyper())


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("hyper.actor_lr=1e-5:1e-2:log", 1e-3, [1.2e-3, 8e-4]),
        ("hyper.actor_lr=1e-5:1e-3", 1e-3, [1e-3, 8e-4]),
        ("hyper.discount=0.9:0.999", 0.99, [0.988, 0.992]),
        ("hyper.discount=0.989:0.991", 0.99, [0.989, 0.991]),
        ("hyper.target_entropy=-2:0", -1.0, [-1.2, -0.8]),
        ("hyper.polyak=0.001,0.005,0.1", 0.005, [0.1, 0.001]),
        ("hyper.polyak=0.001,0.005", 0.005, [0.005, 0.001]),
    ],
)
def test_a_number_is_perturbed_inside_its_bounds(text, value, expected):
    moved = priors.perturb(priors.parse(text, sac.Hyper()), jnp.full(2, value), UP, 0.8, 1.2)
    np.testing.assert_allclose(moved, expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("text", "middle"),
    [
        ("hyper.lr=1e-4:1e-2:log", 1e-3),
        ("hyper.lr=1:3", 2.0),
        ("hyper.discount=0.9:0.999:log", 0.99),
        ("hyper.discount=0.9:0.99", 0.945),
        ("hyper.exploration=0.01,0.1,0.2", 0.1),
    ],
)
def test_draws_fill_the_prior_evenly(text, middle, key):
    """Half of them lie below the median of the distribution, and all within its bounds."""
    prior = priors.parse(text, dqn.Hyper())
    drawn = np.asarray(priors.draw(prior, key, 4000))
    assert prior.low <= drawn.min() <= drawn.max() <= np.float32(prior.high)
    if prior.choices:
        assert sorted(set(drawn.tolist())) == [np.float32(x) for x in prior.choices]
        assert abs((drawn == np.float32(middle)).mean() - 1 / 3) < 0.04
    else:
        assert abs((drawn < middle).mean() - 0.5) < 0.04


def test_only_those_who_explore_change_and_a_quarter_of_them_is_drawn_anew(key):
    own = priors.parse_all(["hyper.actor_lr=1e-6:1:log", "hyper.polyak=1e-6:1:log"], sac.Hyper())
    many = 2000
    hyper = as_arrays(sac.Hyper()).replace(actor_lr=jnp.full(many, 1e-3), polyak=jnp.full(many, 1e-3))
    which = jnp.arange(many) % 2 == 0
    after = jax.jit(lambda: priors.explore(own, key, hyper, which, 0.25, 0.8, 1.2))()
    for prior in own:
        moved = np.asarray(getattr(after, prior.name))
        assert (moved[1::2] == np.float32(1e-3)).all()
        near = [np.isclose(moved[::2], x, rtol=1e-5).mean() for x in (8e-4, 1.2e-3)]
        assert all(abs(share - 0.375) < 0.04 for share in near)
    assert not np.array_equal(after.actor_lr, after.polyak)
    assert after.critic_lr == hyper.critic_lr


def test_numbers_that_everyone_has_already_are_kept(key):
    own = priors.parse_all(["hyper.actor_lr=1e-5:1e-2:log", "hyper.polyak=0.1:0.2"], sac.Hyper())
    given = jnp.array([1e-5, 2e-5, 3e-5])
    hyper = priors.begin(own, key, as_arrays(sac.Hyper()).replace(actor_lr=given), 3)
    np.testing.assert_array_equal(hyper.actor_lr, given)
    assert len(set(hyper.polyak.tolist())) == 3
