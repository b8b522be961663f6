"""Refusals of Configs: no Config lets a value of another type or another word pass."""

from __future__ import annotations

import importlib
import math
import pkgutil
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
from flax import linen as nn

from popjax import agents, evolution, intrinsic, methods, nets
from popjax.arguments import words_of
from popjax.checks import check_hyper, check_least, check_types, nearest_divisor
from popjax.evolution import strategies
from popjax.intrinsic import contrastive
from popjax.methods import ca2e_config
from popjax.nets import recurrent

Color = Literal["red", "blue"]


@dataclass(frozen=True)
class Painting:
    color: Color = "red"
    frame: Color | None = None
    width: int = 1

    def __post_init__(self):
        check_types(self)
        check_least(self, 1, "width")


def test_words_and_none_are_known():
    assert words_of(Color) == ("red", "blue")
    assert words_of(Color | None) == ("red", "blue", None)
    assert words_of(int) == words_of(int | None) == words_of(Color | int) == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"color": "green"}, "color must be one of 'red', 'blue', got 'green'"),
        ({"color": None}, "color must be one of 'red', 'blue', got None"),
        ({"frame": "green"}, "frame must be one of 'red', 'blue', None, got 'green'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_a_refusal_names_field_and_value(wrong, said):
    with pytest.raises(ValueError, match=said):
        Painting(**wrong)


@pytest.mark.parametrize(
    ("hyper", "name", "value"),
    [
        (agents.ppo.Hyper(), "policy_lr", math.inf),
        (agents.ppo.Hyper(), "policy_lr", np.array([1e-3, np.inf])),
        (agents.ddpg.Hyper(), "critic_l2", 1e39),  # infinite in float32
        (agents.sac.Hyper(), "target_entropy", -math.inf),
        (contrastive.Hyper(), "temperature", 0.0),
        (strategies.Hyper(), "std", 0.0),
        (ca2e_config.Hyper(agents.dqn.Hyper()), "importance_exponent", 20.0),
    ],
)
def test_a_value_whose_formula_gives_nan_is_refused(hyper, name, value):
    with pytest.raises(ValueError, match=f"{name} must be in "):
        check_hyper(replace(hyper, **{name: value}))


def test_what_may_never_happen_may_be_infinite():
    check_hyper(agents.ppo.Hyper(target_kl=math.inf, max_grad_norm=math.inf))
    check_hyper(agents.dqn.Hyper(target_period=math.inf))


def test_nearest_divisor():
    assert [nearest_divisor(12, n) for n in (1, 5, 8, 10, 100)] == [1, 4, 6, 12, 12]


def configs(wanted):
    """The fields of every frozen dataclass in the packages that methods are made of whose type is
    ``wanted``."""
    found = {}
    for package in (agents, evolution, intrinsic, methods, nets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.name:
                    names = of_type(kind, wanted)
                    found |= {f"{module.name}.{kind.__name__}.{name}": (kind, name) for name in names}
    return found


def of_type(kind, wanted):
    """The fields of a frozen dataclass, no network's layer, whose type is ``wanted``."""
    if issubclass(kind, nn.Module) or not kind.__dataclass_params__.frozen:
        return []
    hints = get_type_hints(kind)
    return [f.name for f in fields(kind) if wanted(hints[f.name])]


TYPED = {
    name: field
    for name, field in configs(lambda kind: kind is not Any).items()
    # Structs hold arrays, and Search is a part of Configs that are here.
    if not hasattr(field[0], "_flax_dataclass") and field[0].__name__ != "Search"
}
WORDS, SIZES = configs(words_of), configs(lambda kind: kind == tuple[int, ...])
del SIZES["popjax.evolution.search.MultipleFrequencies.frequencies"]  # which are no layers


def test_the_walk_finds_configs():
    assert {"popjax.methods.ce.Config.col_unroll", "popjax.agents.sac.Config.actor_q"} <= set(WORDS)
    assert {"popjax.agents.td3.Config.hidden", "popjax.agents.ddpg.Config.critic_layers"} <= set(SIZES)
    assert len(WORDS) > 30
    assert len(SIZES) > 10


@pytest.mark.parametrize("field", TYPED)
def test_a_value_of_another_type_is_refused(field):
    kind, name = TYPED[field]
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got a value of type object$"):
        replace(kind(), **{name: object()})


@pytest.mark.parametrize("field", WORDS)
def test_a_misspelt_word_is_refused(field):
    kind, name = WORDS[field]
    with pytest.raises(ValueError, match=rf"{name} must be one of .*got 'misspelt'"):
        replace(kind(), **{name: "misspelt"})


INTEGERS = {
    name: (kind, field) for name, (kind, field) in TYPED.items() if get_type_hints(kind)[field] is int
}


@pytest.mark.parametrize("field", INTEGERS)
def test_an_integer_beyond_int32_is_refused(field):
    kind, name = INTEGERS[field]
    with pytest.raises(ValueError, match=rf"{name} must be at most 2147483647, got 2147483648"):
        replace(kind(), **{name: 2**31})


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("sizes", [(0,), (8, -1)])
def test_a_layer_without_units_is_refused(field, sizes):
    kind, name = SIZES[field]
    spelt = " ".join(map(str, sizes))
    with pytest.raises(ValueError, match=f"{name} must have sizes of at least 1, got {spelt}"):
        replace(kind(), **{name: sizes})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (agents.ddpg.Config, "critic_branch"),
        (agents.ddpg.Config, "critic_hidden"),
        (recurrent.Config, "units"),
    ],
)
def test_a_single_width_is_a_size_too(kind, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        replace(kind(), **{name: 0})
