"""Expansion of arguments: options in a file and values drawn at random, as if they had been typed."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from popjax.cli.parse import key_values, peel, peel_all, swept
from popjax.host import paths
from popjax.host.errors import Refused
from popjax.host.scaling.sweep import spell

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_DISTRIBUTION = re.compile(rf"(uniform|loguniform)\(({_NUMBER}),({_NUMBER})\)")
_SAMPLES = 10
_TEXT = re.compile(r"[-+]?0[\d_]+|[^:]+:.*")  # no number, in YAML
_SEVERAL = ("env", "seeds")  # take all their values at once; other lists repeat the option
_PAIRS = ("env-option", "launcher-option", "sweep")  # take KEY=VALUE


def expanded(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with the options of ``--options FILE`` and with the values that ``--sweep`` draws.

    Raises:
        Refused: the file or a distribution cannot be read, an option has a value and is swept, or a name is
            swept twice.
    """
    file, own = peel(argv, "--options")
    words = drawn(_gathered([*_from_file(paths.path(file), own), *own] if file is not None else own))
    _check_swept(words)
    return words


def _check_swept(argv: Sequence[str]) -> None:
    """Check that no option is given a value and is swept as well: one of the two would be ignored."""
    texts, rest = peel_all(argv, "--sweep")
    if both := sorted(_names(rest) & _swept_names(swept(texts))):
        raise Refused(f"{both[0]} is both given a value and swept: leave out one of them")


def _gathered(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with every ``--evolve PRIOR`` as one of the values of ``--config.evolve``.

    Raises:
        Refused: there is a ``--config.evolve`` already.
    """
    evolving, rest = peel_all(argv, "--evolve")
    if evolving and any(argument.partition("=")[0] == "--config.evolve" for argument in rest):
        raise Refused("--evolve and --config.evolve set the same option; use --evolve for all")
    return [*rest, "--config.evolve", *evolving] if evolving else rest


def _from_file(path: Path, own: Sequence[str]) -> Iterator[str]:
    """Yield the options in a file, except those that the command line (``own``) sets or sweeps itself; of a
    ``--sweep`` that varies several together, it must set them all."""
    texts, rest = peel_all(own, "--sweep")
    given = _names(rest) | _swept_names(texts)

    def overridden(tokens: Sequence[str]) -> bool:
        option = tokens[0][2:]
        if option == "sweep" and tokens[1:]:
            return _swept_names(tokens[1:]) <= given
        return option not in _PAIRS and _bare(tokens[0]) in given

    found = list(_tokens(_read(path)))
    kept = [tokens for tokens in found if not overridden(tokens)]
    drawn_before, drawn_now = (any(map(_is_distribution, all_tokens)) for all_tokens in (found, kept))
    if drawn_before and not drawn_now and not any("(" in text for text in texts):
        kept = [tokens for tokens in kept if tokens[0] != "--samples"]
    for tokens in kept:
        yield from tokens


def _is_distribution(tokens: Sequence[str]) -> bool:
    return tokens[0] == "--sweep" and any("(" in text for text in tokens[1:])


def _names(argv: Sequence[str]) -> set[str]:
    """Return the bare names of the options in ``argv``."""
    return {_bare(argument) for argument in argv if argument.startswith("--")}


def _swept_names(texts: Iterable[str]) -> set[str]:
    """Return the bare names of the options in ``texts``, values of ``--sweep``."""
    return {_bare(f"--{name.strip()}") for text in texts for name in text.partition("=")[0].split(",")}


def _bare(argument: str) -> str:
    """Return the name of an option without "no-"."""
    return re.sub(r"(^--|\.)no-", r"\1", argument.partition("=")[0].replace("_", "-"))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors of Windows begin a file with a mark
        if path.suffix == ".toml":
            content: Any = tomllib.loads(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            content = _yaml(text)
        else:
            raise Refused(f"--options {path}: write a .toml, .json or .yaml file")
    except OSError as error:
        raise Refused(f"--options {path}: {error.strerror}") from None
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"--options {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise Refused(f"--options {path} must be a table of options by name")
    return content


def _yaml(text: str) -> Any:
    """Parse YAML 1.1, but without its numbers in base 60 and 8: it reads 4:00:00 as 14400, and 010 as 8."""
    import yaml

    class Loader(yaml.SafeLoader):
        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            if kind is yaml.ScalarNode and implicit[0] and _TEXT.fullmatch(value):
                return self.DEFAULT_SCALAR_TAG
            return super().resolve(kind, value, implicit)

    return yaml.load(text, Loader)


def _tokens(content: Mapping[str, Any], prefix: str = "") -> Iterator[list[str]]:
    """Yield each option in nested tables as the words that one would type."""
    for key, value in content.items():
        name = prefix + str(key).replace("_", "-")
        if isinstance(value, Mapping) and name in _PAIRS:
            pairs, spelt = (_flat(value), _spelt) if name == "sweep" else (value.items(), _literal)
            yield from ([f"--{name}", f"{inner}={spelt(one)}"] for inner, one in pairs)
        elif isinstance(value, Mapping):
            yield from _tokens(value, f"{name}.")
        elif isinstance(value, bool):
            group, dot, last = name.rpartition(".")
            if value or dot:
                yield [f"--{group}{dot}{'' if value else 'no-'}{last}"]
        elif isinstance(value, list) and ("." in name or name in _SEVERAL):
            yield [f"--{name}", *map(str, value)]
        elif isinstance(value, list):
            yield from ([f"--{name}", str(one)] for one in value)
        elif value is not None:
            yield [f"--{name}", str(value)]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested tables by dotted name; unquoted, TOML nests ``hyper.rate``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _spelt(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _literal(value: Any, listed: bool = False) -> str:
    """Spell a value so that ``key_values`` reads it again. Text is in quotes if it is ``listed``, except
    numbers, since YAML takes 1e-3 for text."""
    if isinstance(value, list):
        return f"[{', '.join(_literal(item, listed=True) for item in value)}]"
    text = isinstance(value, str) and isinstance(key_values([f"item={value}"])["item"], str)
    return repr(value) if listed and text else str(value)


def drawn(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with the distributions in ``--sweep`` replaced by ``--samples N`` points, by default
    10.

    Hyperparameters with distributions vary together. Equal ``--seed`` gives equal draws.

    Raises:
        Refused: ``--samples`` is given without a distribution or is not a count, or a distribution is not
            valid.
    """
    count, rest = peel(argv, "--samples")
    texts, rest = peel_all(rest, "--sweep")
    random = [
        (name.strip(), _DISTRIBUTION.fullmatch(value.replace(" ", "")))
        for name, _, value in (text.partition("=") for text in texts)
        if "(" in value
    ]
    fixed = [text for text in texts if "(" not in text]
    written = [word for text in fixed for word in ("--sweep", text)]
    if not random:
        if count is not None:
            raise Refused("--samples needs --sweep hyper.NAME=loguniform(LOW,HIGH) or uniform(LOW,HIGH)")
        return [*rest, *written]
    count = count or str(_SAMPLES)
    if not count.isdigit() or int(count) < 1:
        raise Refused(f"--samples must be a whole number of at least 1, got {count!r}")
    seed = _number(peel(rest, "--seed")[0] or "0")
    # One generator for each name: further points follow on those of a smaller --samples.
    columns = [
        _draws(name, match, int(count), np.random.default_rng([seed, place]))
        for place, (name, match) in enumerate(random)
    ]
    points = ",".join(":".join(map(spell, row)) for row in zip(*columns, strict=True))
    names = ",".join(name for name, _ in random)
    return [*rest, *written, "--sweep", f"{names}={points}"]


def _draws(name: str, match: re.Match[str] | None, count: int, generator: np.random.Generator) -> np.ndarray:
    if match is None:
        raise Refused(f"--sweep {name} needs loguniform(LOW,HIGH) or uniform(LOW,HIGH), in numbers")
    kind, low, high = match[1], float(match[2]), float(match[3])
    if kind == "loguniform" and not low > 0:
        raise Refused(f"--sweep {name}={match[0]}: both bounds must be above 0")
    if not low < high:
        raise Refused(f"--sweep {name}={match[0]}: the lower bound must come first")
    if kind == "uniform":
        return generator.uniform(low, high, count)
    return np.exp(generator.uniform(np.log(low), np.log(high), count))


def _number(text: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        raise Refused(f"--seed must be a number, got {text!r}") from None
