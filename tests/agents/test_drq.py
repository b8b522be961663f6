"""DrQ: the shapes and the order of jaxrl2's, and that it finds what only a picture shows."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import distributions, testing, tree
from popjax.agents import drq, sac
from popjax.core import Spec, Transition, as_arrays
from popjax.nets import images
from tests.agents.by_hand import blend, norm
from tests.support import close, equal

SPEC = Spec("none", (64, 64, 9), 2, 1, obs_dtype=jnp.uint8, stack=3)
SMALL = SPEC._replace(obs_shape=(31, 31, 3), stack=1)
CONFIG = drq.Config(hidden=(8,), latent=5, shift=2)


def a_batch(spec: Spec = SMALL, size: int = 4) -> Transition:
    chance = np.random.default_rng(0)
    obs, next_obs = (jnp.uint8(chance.integers(0, 256, (size, *spec.obs_shape))) for _ in range(2))
    action = jnp.float32(chance.uniform(-1, 1, (size, spec.action_dim)))
    return Transition(obs, action, jnp.float32(chance.normal(size=size)), jnp.full(size, 0.99), next_obs)


@lru_cache
def fresh(**numbers: float) -> tuple[Any, Any, Any, Any]:
    """(agent, hyper, a state whose targets and actor are not those of its critics, its compiled learn)."""
    agent, hyper = drq.build(SMALL, CONFIG), as_arrays(drq.Hyper(**numbers))
    init = jax.jit(agent.init)
    state, other = (init(jax.random.key(seed), hyper) for seed in (5, 6))
    return agent, hyper, replace(state, target_critics=other.critics), jax.jit(agent.learn)


def count(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def test_shapes_are_those_of_the_paper() -> None:
    agent = drq.build(SPEC)
    state = jax.eval_shape(agent.init, jax.random.key(0), as_arrays(drq.Hyper()))
    assert count(state.actor["convolutions"]) == count(state.critics["convolutions"]) == 390_144
    assert images.places((64, 64, 9), drq.CONVOLUTIONS) == 2304
    assert images.places((84, 84, 9), drq.CONVOLUTIONS) == 4096
    sides = [images.places((64, 64, 9), drq.CONVOLUTIONS[:n]) for n in (1, 2, 3, 4)]
    assert sides == [31**2 * 32, 15**2 * 64, 7**2 * 128, 3**2 * 256]
    latent = 2304 * 50 + 50 + 2 * 50
    assert count(state.actor["latent"]) == count(state.critics["latent"]) == latent
    hidden = 256 * 256 + 256
    head = (50 + 2 + 1) * 256 + hidden + 257
    assert count(state.critics["heads"]) == 2 * head
    assert count(state.actor) == 390_144 + latent + 51 * 256 + hidden + 2 * 257 * 2


def test_numbers_are_those_of_the_paper() -> None:
    hyper = drq.Hyper()
    assert (hyper.discount, hyper.polyak) == (0.99, 0.005)
    assert (hyper.init_temperature, hyper.target_entropy) == (0.1, -0.5)
    assert (hyper.actor_lr, hyper.critic_lr, hyper.temperature_lr) == (3e-4, 3e-4, 3e-4)
    assert hyper.max_grad_norm == np.inf
    assert (drq.Config().latent, drq.Config().shift, drq.Config().hidden) == (50, 4, (256, 256))


def test_networks_begin_orthogonal_with_gain_root_two() -> None:
    _, _, state, _ = fresh()
    kernel = state.critics["convolutions"]["Conv_1"]["Dense_0"]["linear"]["kernel"]
    assert kernel.shape == (9 * 32, 64)
    close(kernel.T @ kernel, 2 * jnp.eye(64), atol=1e-4)
    for params in (state.actor, state.critics):
        for path, x in jax.tree.leaves_with_path(params):
            if "bias" in jax.tree_util.keystr(path):
                assert not x.any()


def test_a_shift_by_the_padding_changes_nothing() -> None:
    image = a_batch().obs[0]
    equal(drq.crop(image, jnp.array([4, 4]), 4), image)


def test_a_shift_repeats_the_edge() -> None:
    image = jnp.arange(12, dtype=jnp.uint8).reshape(3, 4, 1)
    left = drq.crop(image, jnp.array([1, 2]), 1)
    assert left[..., 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    down = drq.crop(image, jnp.array([0, 1]), 1)
    assert down[..., 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)], "edge")
    for row in range(9):
        for column in range(9):
            expected = padded[row : row + 3, column : column + 4]
            equal(drq.crop(image, jnp.array([row, column]), 4), expected)


def test_shifts_are_uniform_and_of_each_image_by_itself() -> None:
    ramp = jnp.broadcast_to(jnp.arange(9, dtype=jnp.uint8)[:, None, None], (9, 9, 1))
    batch = jnp.broadcast_to(ramp, (2000, 9, 9, 1))
    seen = drq.shifted(jax.random.key(0), batch, 2)
    offsets = np.asarray(seen[:, 4, 4, 0], int) - 4
    shares = [(offsets == offset).mean() for offset in range(-2, 3)]
    np.testing.assert_allclose(shares, 0.2, atol=0.04)


def test_a_step_is_in_the_order_of_jaxrl2(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded: the shifted images and the key of every draw; by them losses are computed anew."""
    agent, hyper, state, _ = fresh()
    batch, shift, draw = a_batch(), drq.shifted, distributions.squashed_sample
    seen, drawn = [], []

    def shifted(key: Any, images: Any, pad: int) -> Any:
        seen.append(shift(key, images, pad))
        return seen[-1]

    def sample(key: Any, mean: Any, log_std: Any) -> Any:
        drawn.append(key)
        return draw(key, mean, log_std)

    monkeypatch.setattr(drq, "shifted", shifted)
    monkeypatch.setattr(distributions, "squashed_sample", sample)

    @jax.jit
    def both(state: Any) -> Any:
        after, losses = agent.learn(state, batch, hyper, key)
        (obs, next_obs), (key_critic, key_actor) = seen, drawn
        copied = {**state.actor, "convolutions": state.critics["convolutions"]}
        action, log_prob = draw(key_critic, *agent.actor.apply(copied, next_obs))
        value = agent.critic.apply(state.target_critics, next_obs, action).mean(0) - 0.1 * log_prob
        error = agent.critic.apply(state.critics, obs, batch.action) - (batch.reward + 0.99 * value)

        def cost(params: Any) -> Any:
            action, log_prob = draw(key_actor, *agent.actor.apply(params, obs))
            value = agent.critic.apply(state.critics, obs, action).mean(0)
            return (0.1 * log_prob - value).mean(), -log_prob.mean()

        (actor_loss, entropy), gradient = jax.value_and_grad(cost, has_aux=True)(copied)
        found = (error**2).mean(), actor_loss, entropy
        return after, losses, found, gradient, cost(state.actor)[0]

    after, losses, found, gradient, blind = both(state)
    assert (len(seen), len(drawn)) == (2, 2)
    close((losses.critic_loss, losses.actor_loss, losses.entropy), found, rtol=1e-3)
    assert float(blind) != pytest.approx(float(found[1]), rel=1e-2)
    assert norm(gradient["convolutions"]) == 0
    assert norm(gradient["latent"]) > 0
    close(after.target_critics, blend(state.target_critics, after.critics, 0.005), atol=1e-6)
    # Adam's first step is its rate, against the sign of entropy minus target.
    close(after.log_temperature, jnp.log(0.1) - 3e-4 * jnp.sign(found[2] + 0.5 * 2), rtol=1e-4)


def test_the_actor_sees_as_the_critics_did_before_the_step(key: Any) -> None:
    _, hyper, state, learn = fresh()
    assert norm(tree_gap(state.actor["convolutions"], state.critics["convolutions"])) > 0
    after, _ = learn(state, a_batch(), hyper, key)
    equal(after.actor["convolutions"], state.critics["convolutions"])
    assert norm(tree_gap(after.critics["convolutions"], state.critics["convolutions"])) > 0
    again, _ = learn(after, a_batch(), hyper, key)
    equal(again.actor["convolutions"], after.critics["convolutions"])


def tree_gap(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def test_who_adopts_a_policy_sees_as_it_does(key: Any) -> None:
    agent, hyper, state, learn = fresh()
    other = jax.jit(agent.init)(jax.random.key(9), hyper)
    policy = agent.policy(other)
    adopted = agent.adopt(state, policy)
    equal(agent.policy(adopted), policy)
    after, _ = learn(adopted, a_batch(), hyper, key)
    equal(agent.policy(after)["convolutions"], policy["convolutions"])


@pytest.mark.slow
def test_the_contract_of_agents_is_kept() -> None:
    testing.check_agent(drq.build(SMALL, CONFIG), SMALL, drq.Hyper())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"discrete": True}, "drq needs continuous actions; none has 2 discrete ones"),
        ({"obs_shape": (4,)}, r"drq needs images; none has observations of shape \(4,\): use sac"),
        ({"obs_shape": (24, 24, 3)}, r"images of \(24, 24, 3\) are too small"),
        ({"obs_shape": (9, 64, 64)}, "channels"),
    ],
)
def test_what_it_cannot_see_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("channels", r"look like images \[C, H, W\]")):
        drq.build(SPEC._replace(**changed))


@pytest.mark.slow
def test_the_goal_in_the_picture_is_reached(key: Any) -> None:
    """A stripe says where the best action lies: reward 1 - |action - place|, one step an episode."""
    agent = drq.build(SMALL._replace(action_dim=1), replace(CONFIG, hidden=(32,), shift=0))
    hyper = as_arrays(replace(drq.Hyper(), actor_lr=1e-3, critic_lr=1e-3, init_temperature=0.01))

    def pictures(place: Any) -> Any:
        columns = jnp.linspace(-1, 1, 31)
        stripe = jnp.abs(columns - place[:, None]) < 0.15
        return jnp.broadcast_to(255 * stripe[:, None, :, None], (len(place), 31, 31, 3)).astype(jnp.uint8)

    def update(state: Any, key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, 3)
        place, action = (jax.random.uniform(k, (32,), minval=-0.8, maxval=0.8) for k in keys[:2])
        obs = pictures(place)
        rows = Transition(obs, action[:, None], 1 - jnp.abs(action - place), jnp.zeros(32), obs)
        return agent.learn(state, rows, hyper, keys[2])

    state, _ = jax.jit(lambda s, keys: jax.lax.scan(update, s, keys))(
        agent.init(key, hyper), jax.random.split(key, 1000)
    )
    places = jnp.array([-0.6, 0.0, 0.6])
    mean, _ = agent.actor.apply(agent.policy(state), pictures(places))
    np.testing.assert_allclose(jnp.tanh(mean)[:, 0], places, atol=0.2)
    assert tree.take(agent.value(state, pictures(places), places[:, None]), 0) > 0.7


def test_a_learner_of_vectors_names_who_sees_images() -> None:
    with pytest.raises(ValueError, match=r"sac needs vector observations; .*: learn with drq"):
        sac.build(SPEC)
