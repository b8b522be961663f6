"""The help of agents' options, which is the comment behind each field of their Configs."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from popjax import agents

MODULES = {**agents.AGENTS, **agents.ON_POLICY_AGENTS}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_values_that_it_quotes_are_values_of_options(module: ModuleType) -> None:
    types = get_type_hints(module.Config).values()
    known = {value for each in types if get_origin(each) is Literal for value in get_args(each)}
    comments = [line.partition("#")[2] for line in inspect.getsource(module.Config).splitlines()]
    quoted = {word for text in comments for word in re.findall(r'"(\w+)"', text)}
    assert quoted <= known
