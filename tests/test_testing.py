"""The public checks find what they say that they find, and name it."""

from __future__ import annotations

import types
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from popjax import agents, testing
from popjax.agents import a2c, ddpg, dqn, ppo, sac, sac2018, td3
from popjax.core import Choice, Env, Spec, Timestep, Transition, as_arrays
from popjax.envs import make
from popjax.methods import independent
from tests.host import crowd, tiny
from tests.support import slow_except

ENV = make("probe/context")
METHOD = crowd.build(4)


def stepped(**changes):
    """METHOD with ``changes`` to the State behind every step, functions of the State before and after it."""

    def step(before):
        after = METHOD.step(before)
        return after.replace(**{name: change(before, after) for name, change in changes.items()})

    return METHOD._replace(step=step)


def begun(**changes):
    """METHOD with other leaves in its first State, functions of it."""

    def init(key, hyper):
        state = METHOD.init(key, hyper)
        return state.replace(**{name: change(state) for name, change in changes.items()})

    return METHOD._replace(init=init)


class Clock:
    """An impure number."""

    def __init__(self):
        self.time = 0

    def __call__(self, x):
        self.time += 1
        return np.float32(x + self.time)


def ticking(before, after):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    return after.shared + jax.pure_callback(Clock(), shape, 0.0, vmap_method="sequential")


def meddling(before, after):
    """A number that depends on the other members of a sweep."""
    shape = jax.ShapeDtypeStruct((12,), jnp.float32)
    return jax.pure_callback(
        lambda x: np.full_like(x, x.sum()), shape, after.shared, vmap_method="expand_dims"
    )


@struct.dataclass
class Nothing:
    """A Hyper without numbers."""


def without_numbers():
    """Return METHOD with its numbers built in."""
    return METHOD._replace(
        init=lambda key, hyper: METHOD.init(key, as_arrays(METHOD.hyper)).replace(hyper=hyper),
        step=lambda s: METHOD.step(s.replace(hyper=as_arrays(METHOD.hyper))).replace(hyper=s.hyper),
        hyper=Nothing(),
    )


def acting(action):
    return METHOD._replace(act=lambda params, memory, obs, key, scale: Choice(memory, action, action, 0.0))


SLIPS = {
    "a type changes": (
        stepped(shared=lambda s, t: t.shared.astype(jnp.bfloat16)),
        r"State.shared is float32 \[12\] before a step and bfloat16 \[12\] after it",
    ),
    "the structure changes": (
        stepped(shared=lambda s, t: {"a": t.shared}),
        r"adds \[\"State.shared\['a'\]\"\] and removes \['State.shared'\]",
    ),
    "a weak type": (
        begun(shared=lambda s: jnp.broadcast_to(jnp.asarray(1.0), (12,))),
        r"State.shared weak float32 \[12\]; give it a dtype",
    ),
    "a State of another kind": (
        METHOD._replace(init=lambda key, hyper: {"key": key}),
        "State must be a flax.struct.dataclass, got dict",
    ),
    "no fitness": (
        begun(metrics=lambda s: {"return": s.metrics.fitness}),
        r"must have a field fitness \[P\]",
    ),
    "steps as a float": (
        begun(env_steps=lambda s: jnp.float32(0)),
        "env_steps must be a counting.Count, or int32",
    ),
    "an old key": (begun(key=lambda s: jnp.zeros(2, jnp.uint32)), "typed key of jax.random.key, got uint32"),
    "numbers as integers": (begun(hyper=lambda s: crowd.Hyper(jnp.int32(1))), r"hyper.noise must be float32"),
    "another population": (
        begun(keys=lambda s: s.keys[:3]),
        r"\['keys'\] is key.* \[3\].*with the 4",
    ),
    "too many steps": (stepped(env_steps=lambda s, t: t.env_steps + 1), "counted 11 .* steps_bound 10"),
    "steps that run back": (stepped(env_steps=lambda s, t: s.env_steps - 1), "a step counted -1"),
    "no steps": (stepped(env_steps=lambda s, t: s.env_steps), "env_steps is still 0 after 5 steps"),
    "no generations": (stepped(generation=lambda s, t: s.generation), "generation is 0 after 5 steps; add 1"),
    "a clock": (stepped(shared=ticking), "the same key gives another State"),
    "no randomness": (
        METHOD._replace(init=lambda key, hyper: METHOD.init(jax.random.key(3), hyper)),
        "another key gives the same State",
    ),
    "nothing": (METHOD, None),
    "numbers of the method": (
        METHOD._replace(step=lambda s: METHOD.step(s.replace(hyper=METHOD.hyper)).replace(hyper=s.hyper)),
        "other values in hyper change nothing in 5 steps",
    ),
    "members that mix": (
        stepped(shared=meddling),
        r"State.shared of member 0 of a sweep is .* from",
    ),
    "members that mix from the third step on": (
        stepped(shared=lambda s, t: jnp.where(s.generation < 2, t.shared, meddling(s, t))),
        r"member 0 of a sweep is .* from that of a single run after step 5",
    ),
    "no numbers": (without_numbers(), None),
    "a number of 0": (METHOD._replace(hyper=crowd.Hyper(noise=0.0)), None),
    "too many actions": (
        acting(jnp.zeros(2)),
        r"float32 \[2\], where probe/context takes float32 \[1\]",
    ),
    "an action out of range": (acting(jnp.full(1, 2.0)), r"which must be in -1 to 1"),
    "no Choice": (
        METHOD._replace(act=lambda p, m, obs, key, scale: (m, jnp.zeros(1))),
        "act must return a core.Choice, got tuple",
    ),
    "another memory": (
        METHOD._replace(act=lambda p, m, obs, key, scale: Choice({"h": obs}, jnp.zeros(1), 0.0, 0.0)),
        "a memory whose structure differs",
    ),
    "too few individuals": (
        METHOD._replace(individuals=lambda s: s.weights[:3]),
        r"individuals gives parameters float32 \[3, 12\], where policies of 4 are float32 \[4, 12\]",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_what_is_wrong_with_a_method_is_named(slip):
    method, message = SLIPS[slip]
    if message is None:
        testing.check_method(method, ENV)
        return
    with pytest.raises(ValueError, match=message) as refusal:
        testing.check_method(method, ENV)
    assert "\n" not in str(refusal.value)


def test_a_copied_replay_is_noticed():
    method = tiny.build(ENV, tiny.Config(capacity=100_000))
    testing.check_in_place(method, 0.3)

    def step(state):
        return method.step(state.replace(replay=jnp.sort(state.replay, axis=0)))

    with pytest.raises(ValueError, match=r"of which 0\.3 is allowed; a large leaf is copied"):
        testing.check_in_place(method._replace(step=step), 0.3)


def line(
    obs=lambda place: place, reward=lambda place: place.sum(), counts=lambda place, action: place + action
):
    """An environment on a line, with a slip."""

    def step(place, action):
        place = counts(place, action)
        return place, Timestep(place, obs(place), reward(place), jnp.bool_(False), jnp.bool_(False))

    def reset(key):
        place = jax.random.normal(key, (1,))
        return place, place

    return Env(reset, step, Spec("own/line", (1,), 1, 20))


def among_lanes(place, action):
    """A step that depends on the lanes beside it."""
    mixed = lambda x: np.full_like(x, x.sum())  # noqa: E731
    return jax.pure_callback(mixed, jax.ShapeDtypeStruct((1,), jnp.float32), place, vmap_method="expand_dims")


ENV_SLIPS = {
    "a reward with an axis": (
        line(reward=lambda place: place),
        r"own/line: step: reward must be float32 \[\]",
    ),
    "no finite reward": (
        line(reward=lambda place: jnp.log(place.sum() * 0)),
        "reward is not finite in step 1",
    ),
    "a reset": (line(obs=lambda place: place * 0), "obs differs from next_obs"),
    "a clock": (
        line(counts=lambda place, action: ticking(None, types.SimpleNamespace(shared=place))),
        "the same key gives another episode",
    ),
    "lanes that mix": (line(counts=among_lanes), "an episode differs in lanes side by side"),
}


@pytest.mark.parametrize("slip", ENV_SLIPS)
def test_what_is_wrong_with_an_environment_is_named(slip):
    env, message = ENV_SLIPS[slip]
    with pytest.raises(ValueError, match=message) as refusal:
        testing.check_env(env)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "name", ["probe/delay", "probe/corridor-discrete", "gymnax/Pendulum-v1", "tests.own"]
)
def test_environments_keep_their_contract(name):
    testing.check_env(make(name))


def jumping(marked):
    """Walk a line that is observed anew every third step, as behind a lost life; ``marked`` as cut or not."""

    def step(state, action):
        place, steps = state[0] + action, state[1] + 1
        jumps = steps % 3 == 0
        no = jnp.bool_(False)
        return (place, steps), Timestep(place - jumps, place, place.sum(), no, no, jumps & marked)

    def reset(key):
        place = jax.random.normal(key, (1,))
        return (place, jnp.int32(0)), place

    return Env(reset, step, Spec("own/jumping", (1,), 1, 20))


def test_observations_may_differ_behind_a_cut_alone():
    testing.check_env(jumping(True))
    with pytest.raises(ValueError, match="own/jumping: obs differs from next_obs"):
        testing.check_env(jumping(False))


SMALL = {
    "ddpg": ddpg.Config(hidden=(4,), critic_branch=4, critic_hidden=4),
    "td3": td3.Config(hidden=(4,), policy_delay=1),
    "sac": sac.Config(hidden=(4,)),
    "sac2018": sac2018.Config(hidden=(4,)),
    "whitened": sac.Config(hidden=(4,), normalize_obs=True),
    "dqn": dqn.Config(hidden=(4,)),
    "a2c": a2c.Config(hidden=(4,)),
    "a2c_lstm": a2c.Config(hidden=(4,), lstm=3),
    "ppo": ppo.Config(hidden=(4,), minibatches=1, policy_epochs=1, value_epochs=1),
}


@lru_cache
def an_agent(name):
    config, spec = SMALL[name], make("probe/corridor-discrete" if name == "dqn" else "probe/context").spec
    on_policy = type(config) in (a2c.Config, ppo.Config)
    agent = agents.build_on_policy(spec, config) if on_policy else agents.build(spec, config)
    return agent, spec, agents.default_hyper(config)


QUICK = ("ddpg", "sac", "dqn", "a2c_lstm", "ppo")
"""One agent of each kind; the others are variants of these."""


@pytest.mark.parametrize("name", slow_except(QUICK, SMALL))
def test_agents_keep_their_contract(name):
    testing.check_agent(*an_agent(name))


class Boxed(NamedTuple):
    """A State that is no dataclass."""

    state: object


def boxed(agent):
    def unboxed(function):
        return lambda box, *given: function(box.state, *given)

    readers = {name: unboxed(getattr(agent, name)) for name in ("policy", "value", "values")}
    return agent._replace(
        **readers,
        init=lambda key, hyper: Boxed(agent.init(key, hyper)),
        learn=lambda box, *given: (Boxed((after := agent.learn(box.state, *given))[0]), after[1]),
        adopt=lambda box, policy, value=None: Boxed(agent.adopt(box.state, policy, value)),
        inherit=lambda box, other: Boxed(agent.inherit(box.state, other.state)),
    )


def test_any_pytree_is_an_agents_state():
    agent, spec, hyper = an_agent("td3")
    testing.check_agent(boxed(agent), spec, hyper)


def never_greedy(agent):
    return lambda params, memory, obs, key, scale: agent.act(params, memory, obs, key, 1.0)


def always_greedy(agent):
    return lambda params, memory, obs, key, scale: agent.act(params, memory, obs, key, 0.0)


def forgetful_unroll(agent):
    """An ``unroll`` that goes on with the memory of an episode that has ended."""
    return lambda params, memory, obs, done: agent.unroll(params, memory, obs, done & False)


def stuck_unroll(agent):
    return lambda params, memory, obs, done: (memory, agent.unroll(params, memory, obs, done)[1])


AGENT_SLIPS = {
    "nothing learned": ("sac", "learn", lambda a: lambda s, rows, hyper, key: (s, ()), "the state unchanged"),
    "rewards ignored": (
        "td3",
        "learn",
        lambda a: lambda s, rows, hyper, key: a.learn(s, replace(rows, reward=rows.reward * 0), hyper, key),
        "the same state whatever the reward; read it from the batch",
    ),
    "the end of episodes ignored": (
        "dqn",
        "learn",
        lambda a: (
            lambda s, rows, hyper, key: a.learn(
                s, replace(rows, discount=jnp.full_like(rows.discount, hyper.discount)), hyper, key
            )
        ),
        "the same state whatever the discount",
    ),
    "always greedy": ("ddpg", "act", always_greedy, "at scale 1 with 16 keys; draw by actions.sample"),
    "always greedy on policy": ("a2c", "act", always_greedy, "at scale 1 with 16 keys"),
    "never greedy": ("sac", "act", never_greedy, "draws at random at scale 0"),
    "outputs of another network": (
        "sac",
        "outputs",
        lambda a: lambda params, obs: jax.tree.map(lambda x: x + 1, a.outputs(params, obs)),
        "mode of outputs is .*; act by actions.mode",
    ),
    "nothing adopted": ("sac", "adopt", lambda a: lambda s, p, value=None: s, "does not act by that policy"),
    "adopts no value": ("ddpg", "adopt", lambda a: lambda s, p: a.adopt(s, p), "must take .*value=None"),
    "keeps its own state value": (
        "a2c",
        "adopt",
        lambda a: lambda s, p, value=None: a.adopt(s, p),
        "keeps its own state value",
    ),
    "a value of each component": (
        "sac",
        "value",
        lambda a: lambda s, obs, action: obs,
        r"value gives float32",
    ),
    "values of the last critic": (
        "td3",
        "values",
        lambda a: lambda s, obs, action: a.values(s, obs, action)[-1],
        r"values gives float32 \[24\] for \[24\] observations; give \[K",
    ),
    "the value minus the target": (
        "dqn",
        "td_error",
        lambda a: lambda s, rows: -a.td_error(s, rows),
        "does not rise with the reward; give the target minus the value",
    ),
    "the mean error": (
        "dqn",
        "td_error",
        lambda a: lambda s, rows: a.td_error(s, rows).mean(),
        r"td_error gives float32 \[\] for \[24\] transitions",
    ),
    "no weights": (
        "dqn",
        "learn",
        lambda a: lambda s, rows, hyper, key: a.learn(s, plainly(rows), hyper, key),
        "learn ignores weights",
    ),
    "observes what nobody has seen": (
        "whitened",
        "observe",
        lambda a: lambda s, obs, valid: a.observe(s, obs, valid | True),
        "by observations that are not valid",
    ),
    "observes in another type": (
        "whitened",
        "observe",
        lambda a: lambda s, obs, valid: jax.tree.map(lambda x: x.astype(jnp.bfloat16), s),
        "is float32 .* before observe and bfloat16",
    ),
    "inherits nothing": ("td3", "inherit", lambda a: lambda s, other: s, "does not act as other does"),
    "explores in each lane": (
        "dqn",
        "exploration",
        lambda a: lambda hyper, steps: jnp.full(2, hyper.exploration),
        r"exploration gives float32 \[2\]",
    ),
    "explores less and less": (
        "dqn",
        "exploration",
        lambda a: lambda hyper, steps: 1 - steps / 1000,
        r"exploration gives .* after 1e\+06 environment steps",
    ),
    "a memory that never begins anew": ("a2c_lstm", "unroll", forgetful_unroll, "restart the memory"),
    "a memory that stays": ("a2c_lstm", "unroll", stuck_unroll, "unroll in two parts differs"),
    "no memory behind the rows": (
        "a2c_lstm",
        "unroll",
        lambda a: lambda *given: ((), a.unroll(*given)[1]),
        "unroll returns a memory of another shape",
    ),
}


def plainly(rows):
    return Transition(rows.obs, rows.action, rows.reward, rows.discount, rows.next_obs)


@pytest.mark.parametrize("slip", AGENT_SLIPS)
def test_what_is_wrong_with_an_agent_is_named(slip):
    name, field, broken, message = AGENT_SLIPS[slip]
    agent, spec, hyper = an_agent(name)
    with pytest.raises(ValueError, match=message) as refusal:
        testing.check_agent(agent._replace(**{field: broken(agent)}), spec, hyper)
    assert "\n" not in str(refusal.value)


def test_an_agent_without_a_discount_is_named():
    agent, spec, _ = an_agent("sac")
    with pytest.raises(ValueError, match="Hyper has no number discount"):
        testing.check_agent(agent, spec, crowd.Hyper())


def test_an_agent_of_single_transitions_with_a_memory_is_refused_by_check_and_methods(monkeypatch):
    agent, spec, hyper = an_agent("sac")
    recurrent = agent._replace(memory={"h": jnp.zeros(3)})
    message = r"cannot have a memory, got {'h': \(3,\)}; make it an OnPolicyAgent"
    with pytest.raises(ValueError, match=message):
        testing.check_agent(recurrent, spec, hyper)
    monkeypatch.setattr(sac, "build", lambda spec, config: recurrent)
    with pytest.raises(ValueError, match=message):
        independent.build(ENV, independent.Config(agent=sac.Config(hidden=(5,))))
