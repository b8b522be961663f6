"""A program of the command line: one method with its options, understood from the arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import tyro

from popjax.cli import building, narrow, parse, per_agent, pretrained
from popjax.host import recipes
from popjax.host.errors import Refused
from popjax.host.runs.options import Options
from popjax.recipe import Recipe, defaults, kinds_of
from popjax.spelling import nearest


class Program(NamedTuple):
    """A parsed program: name and Recipe of the method, kinds of its agents, runs and further tasks that it
    builds on, and arguments."""

    name: str
    recipe: Recipe
    kinds: dict[str, str]
    runs: dict[str, list[str]]
    tasks: dict[str, list[str]]
    arguments: Any


def understand(name: str, argv: list[str]) -> Program:
    """Return the parsed arguments of one program, without those that several programs share."""
    recipe = recipes.recipe(name)
    task = parse.peel(argv, "--env")[0]
    runs, rest = pretrained.peel_runs(recipe, argv)
    tasks, rest = _peel_envs(recipe, rest)
    kinds, rest = _peel_agents(recipe, rest, task)
    try:
        config, hyper = defaults(recipe, kinds, task)
    except ValueError as refusal:
        raise Refused(building.one_line(refusal)) from None
    preset = recipe.preset(task) if task else None
    options = Options(env_steps=preset.env_steps if preset else recipe.budget(config))
    default = parse.RunArguments(parse.Common(tyro.MISSING, options), config, hyper)
    arguments = _parsed(rest, default, name, recipe, kinds)
    if preset:
        given = arguments.common.env_option
        env_option = (*building.preset_options(recipe, task, parse.key_values(given)), *given)
        arguments = replace(arguments, common=replace(arguments.common, env_option=env_option))
    elif parse.peel(rest, "--env-steps")[0] is None:  # --config may have changed it
        options = replace(arguments.common.options, env_steps=recipe.budget(arguments.config))
        arguments = replace(arguments, common=replace(arguments.common, options=options))
    _refuse_other_options(recipe, arguments.common, tasks)
    tasks = {
        option: [building.with_preset(recipe, option, text) for text in texts]
        for option, texts in tasks.items()
    }
    return Program(name, recipe, kinds, runs, tasks, arguments)


def shared_help() -> None:
    """Print the options that all methods share and exit."""
    methods = ", ".join(recipes.METHODS)
    parse.parse(
        parse.Common,
        ["--help"],
        program="popjax train METHOD",
        description=(
            f"Trains a population-based reinforcement learning method. METHOD is one of: {methods}. "
            "All methods share these options; popjax train METHOD --help adds the options of one method."
        ),
    )


def _peel_envs(recipe: Recipe, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Take the tasks of every option in ``recipe.envs`` out of ``argv``; return them and the rest."""
    found = {}
    for option in recipe.envs:
        found[option], argv = parse.peel_all(argv, f"--{option}")
    return found, argv


def _peel_agents(
    recipe: Recipe, argv: list[str], task: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Take ``--config.FIELD KIND``, the kinds of agent that a method lets the user choose, out of
    ``argv``."""
    given = {}
    for field in recipe.agents:
        given[field], argv = parse.peel(argv, _option(field))
    preset = recipe.preset(task) if task else None
    kinds = kinds_of(recipe, preset.config if preset else recipe.config())
    if recipe.kinds and task and None in given.values():
        options = parse.key_values(parse.peel_all(argv, "--env-option")[0])
        kinds |= recipe.kinds(building.make_env(task, options).spec)
    kinds |= {field: kind for field, kind in given.items() if kind is not None}
    for field, kind in kinds.items():
        if kind not in recipe.agents[field]:
            raise Refused(f"unknown {field} {kind!r}{nearest(kind, recipe.agents[field])}")
    return kinds, argv


def _option(field: str) -> str:
    return f"--config.{field.replace('_', '-')}"


def _parsed(
    argv: list[str],
    default: parse.RunArguments[Any, Any],
    name: str,
    recipe: Recipe,
    kinds: Mapping[str, str],
) -> parse.RunArguments[Any, Any]:
    """Return ``default`` with the options in ``argv``, among which are no runs, further tasks and kinds."""
    config = narrow.narrowed(default.config, recipe.agents)
    hyper = narrow.narrowed(default.hyper, narrow.open_fields(default.hyper))
    common = replace(default.common, options=narrow.narrowed(default.common.options, {}))
    beyond = _beyond(recipe)
    given, rest = per_agent.taken(argv)
    shape: Any = parse.RunArguments
    arguments = parse.parse(
        shape[type(config), type(hyper)],
        rest,
        program=f"popjax train {name}",
        default=parse.RunArguments(common, config, hyper),
        description="\n".join(
            [*_about(recipe, name, kinds), *(f"{option}: {line}" for option, line in beyond.items())]
        ),
        others=list(beyond),
    )
    return parse.RunArguments(
        replace(arguments.common, options=narrow.widened(arguments.common.options)),
        narrow.widened(arguments.config),
        per_agent.put(narrow.widened(arguments.hyper), given),
    )


def _about(recipe: Recipe, name: str, kinds: Mapping[str, str]) -> list[str]:
    """Return the paragraphs of a method's help before its options: what it is, and its choices of agents."""
    text = inspect.getdoc(inspect.getmodule(recipe.build)) or f"Train {name} and write a run directory."
    return [" ".join(text.partition("\n\n")[0].split())] + [
        f"{_option(field)} {narrow.one_of(recipe.agents[field])} (here: {kind}); {_option(field)} NAME --help"
        " shows the options of NAME."
        for field, kind in kinds.items()
    ]


def _beyond(recipe: Recipe) -> dict[str, str]:
    """Return a method's options other than its Config and Hyper, with their texts in ``--help``."""
    return {f"--{name}": known.help for name, known in recipe.runs.items()} | {
        f"--{name}": ("A further task, with its own options: 'SUITE/TASK KEY=VALUE ...'. May be repeated.")
        for name in recipe.envs
    }


def _refuse_other_options(recipe: Recipe, common: Any, tasks: Mapping[str, Sequence[str]]) -> None:
    """Raise Refused if a further task has the name of the run's own task, but the run has other options.

    Further tasks take their defaults and the options of the method's preset, so two different tasks would
    share a name.
    """
    plain = parse.key_values(building.preset_options(recipe, common.env, {}))
    for option, names in tasks.items():
        if common.env in names and parse.key_values(common.env_option) != plain:
            raise Refused(
                f"--{option} {common.env}: --env-option applies only to --env, so this task has its defaults;"
                f" leave out --env-option, or give the task its own: --{option} '{common.env} KEY=VALUE'"
            )
