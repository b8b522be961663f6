"""What a Config refuses, and that no Config with a choice of words lets another word pass."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, get_type_hints

import pytest
from flax import linen as nn

from popjax import agents, evolution, intrinsic, methods, nets
from popjax.checks import check_choices, check_least, choices, nearest_divisor

Color = Literal["red", "blue"]


@dataclass(frozen=True)
class Painting:
    color: Color = "red"
    frame: Color | None = None
    width: int = 1

    def __post_init__(self):
        check_choices(self)
        check_least(self, 1, "width")


def test_words_and_none_are_known():
    assert choices(Color) == ("red", "blue")
    assert choices(Color | None) == ("red", "blue", None)
    assert choices(int) == choices(int | None) == choices(Color | int) == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"color": "green"}, "color is one of 'red', 'blue', got 'green'"),
        ({"color": None}, "color is one of 'red', 'blue', got None"),
        ({"frame": "green"}, "frame is one of 'red', 'blue', None, got 'green'"),
        ({"width": 0}, "width must be at least 1, got 0"),
    ],
)
def test_a_refusal_names_field_and_value(wrong, said):
    with pytest.raises(ValueError, match=said):
        Painting(**wrong)


def test_nearest_divisor():
    assert [nearest_divisor(12, n) for n in (1, 5, 8, 10, 100)] == [1, 4, 6, 12, 12]


def configs():
    """Every frozen dataclass with a choice of words in the packages that methods are made of."""
    found = {}
    for package in (agents, evolution, intrinsic, methods, nets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for kind in vars(importlib.import_module(module.name)).values():
                if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.name:
                    found |= {f"{module.name}.{kind.__name__}.{name}": (kind, name) for name in worded(kind)}
    return found


def worded(kind):
    """The fields of a dataclass, no network's layer, that choose among words."""
    if issubclass(kind, nn.Module):
        return []
    hints = get_type_hints(kind)
    return [f.name for f in fields(kind) if choices(hints[f.name])]


CONFIGS = configs()


def test_the_walk_finds_configs():
    assert {"popjax.methods.pderl.config.Config.crossover", "popjax.agents.sac.Config.actor_q"} <= set(
        CONFIGS
    )
    assert len(CONFIGS) > 30


@pytest.mark.parametrize("field", CONFIGS)
def test_a_misspelt_word_is_refused(field):
    kind, name = CONFIGS[field]
    with pytest.raises(ValueError, match=rf"{name} is one of .*got 'misspelt'"):
        replace(kind(), **{name: "misspelt"})
