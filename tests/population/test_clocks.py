"""Remarks on rates that are 0 too early and on exploration that ends too late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from popjax.agents import a2c, ddpg, dqn, ppo, td3
from popjax.envs import make
from popjax.methods import ca2e, ce, erl, independent, onpolicy, pbt, pderl
from popjax.population.schedules import Scheduled

ENV = make("probe/context-discrete")


def of(recipe, config, env_steps, **numbers):
    """Remarks of a method's agents ``config`` with hyperparameters of ``numbers``."""
    hyper = recipe.hyper(config)
    return recipe.remarks(ENV, config, hyper.replace(**numbers), env_steps)


def test_a_rate_that_is_0_before_the_end_is_told():
    config = onpolicy.Config()
    assert of(onpolicy.METHOD, config, 10_000_000) == [], "that of Baselines is 0 at its very end"
    assert of(onpolicy.METHOD, config, 1_000_000, anneal_updates=49_990.0) == []
    (told,) = of(onpolicy.METHOD, config, 20_000_000)
    assert told.startswith(
        "the rate is 0 after 500,000 gradient steps, which take 10,000,000 of 20,000,000 env"
    )
    assert "--hyper.anneal-updates 1000000 to reach 0 at the end, or 0 for a constant rate" in told
    assert of(onpolicy.METHOD, config, 20_000_000, anneal_updates=1_000_000.0) == []
    assert of(onpolicy.METHOD, config, 20_000_000, anneal_updates=0.0) == []
    assert of(onpolicy.METHOD, replace(config, population=2), 20_000_000) == []
    assert of(onpolicy.METHOD, replace(config, lanes=8), 20_000_000) == []
    assert of(onpolicy.METHOD, replace(config, steps=1), 10_000_000)
    each = np.array([0.0, 1e9, 500.0])
    assert (
        "after 500 gradient"
        in of(onpolicy.METHOD, replace(config, population=3), 10**6, anneal_updates=each)[0]
    )


def test_rollouts_of_ppo_count_alike():
    config = onpolicy.Config(agent=ppo.Config(), lanes=1, steps=2_048)
    assert (
        of(onpolicy.METHOD, config, 1_000_000)
        == of(onpolicy.METHOD, config, 10**6, anneal_rollouts=488.0)
        == []
    )
    (told,) = of(onpolicy.METHOD, config, 10_000_000, anneal_rollouts=488.0)
    assert "0 after 488 rollouts" in told
    assert "--hyper.anneal-rollouts 4883" in told


def test_exploration_that_outlasts_the_run_is_told():
    config = independent.Config(agent=dqn.Config())
    assert of(independent.METHOD, config, 1_000_000) == []
    (told,) = of(independent.METHOD, config, 250_000)
    assert told.startswith(
        "exploration falls over 1,000,000 environment steps, but here there are 250,000: at"
    )
    assert "a probability of about 0.77; lower --hyper.exploration-steps or raise --env-steps" in told
    pair = replace(config, population=2)
    assert "steps of each agent, but here there are 500,000" in of(independent.METHOD, pair, 1_000_000)[0]
    assert "about 0.55" in of(independent.METHOD, pair, 1_000_000, exploration=np.array([0.05, 0.1]))[0]
    assert of(independent.METHOD, pair, 10**6, exploration_steps=np.array([10.0, 500_000.0])) == []
    assert of(independent.METHOD, config, 250_000, exploration_steps=250_000.0) == []
    assert of(independent.METHOD, config, 250_000, exploration=1.0) == [], "it does not fall at all"
    assert of(independent.METHOD, independent.Config(agent=td3.Config()), 1_000) == []


def test_what_a_search_sets_is_not_told():
    config = pbt.configured(dqn.Config(), population=2)
    assert of(pbt.METHOD, config, 1_000_000), "the exploration at the end evolves, not when that is"
    assert of(pbt.METHOD, replace(config, evolve=("hyper.exploration_steps=10:100",)), 1_000_000) == []
    followed = Scheduled(None, {"names": ["exploration_steps"]})
    hyper, plain = dqn.Hyper(), independent.Config(agent=dqn.Config())
    assert independent.METHOD.remarks(ENV, plain, hyper, 1_000, schedule=[followed]) == []
    assert of(pbt.METHOD, pbt.configured(a2c.Config()), 10**9)


def test_every_method_with_dqn_tells_of_its_exploration():
    config = ca2e.METHOD.config(agent=dqn.Config())
    (told, _) = of(ca2e.METHOD, config, 500_000)
    assert "a probability of about 0.55; lower --hyper.agent.exploration-steps" in told
    assert len(of(ca2e.METHOD, replace(config, schedule="constant"), 500_000)) == 1
    alone = replace(config, nature_actors=1, prior_actors=0, exploration=(0.2,))
    assert "a probability of about 0.15" in of(ca2e.METHOD, alone, 500_000)[0]
    assert of(ca2e.METHOD, replace(alone, agent=ddpg.BASELINES), 500_000) == []
    config = ce.METHOD.config(learner=dqn.Config())
    assert of(ce.METHOD, config, 500_000) == of(ce.METHOD, ce.METHOD.config(), 100) == []
    assert "--hyper.learner.exploration-steps" in of(ce.METHOD, config, 400_000)[0]
    for recipe in (pderl.METHOD, erl.METHOD):
        config = recipe.config(agent=dqn.Config())
        assert of(recipe, config, 1_000_000) == []
        assert "--hyper.agent.exploration-steps" in of(recipe, config, 999_000)[0]


@pytest.mark.parametrize("recipe", [independent.METHOD, ce.METHOD, ca2e.METHOD], ids=["dqn", "ce", "ca2e"])
def test_the_papers_games_are_long_enough(recipe):
    preset = recipe.preset("atari/pong")
    found = recipe.remarks(ENV, preset.config, preset.hyper, preset.env_steps)
    assert not [line for line in found if "exploration" in line]
