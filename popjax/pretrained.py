"""Finished runs as ingredients of a new one: their policies, from the command line and from config.json.

A method that builds on finished runs has a table ``RUNS``: option -> ``Ingredient``. ``--prior RUN_DIR`` once
for each run, gives it their policies; ``RUN_DIR:SEED`` that of one seed, otherwise of the seed that was last
evaluated best. What the method makes of them goes to its ``build`` and, but for the policies themselves, into
config.json, from which the method can be built again when the runs that it came from are gone: the policies'
parameters lie in its own State.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from popjax import parse
from popjax.host import rundir
from popjax.host.errors import Refused

if TYPE_CHECKING:
    from popjax.core import Env, Ingredient, Pretrained


def peel_runs(module: ModuleType, argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The run directories of every option in the module's ``RUNS``, out of ``argv``, and what remains."""
    found = {}
    for name in getattr(module, "RUNS", {}):
        found[name], argv = parse.peel_all(argv, f"--{name}")
    return found, argv


def take(
    module: ModuleType, env: Env, runs: dict[str, list[str]], resumed: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the runs: what ``build`` is given, by keyword, and what config.json keeps of it.

    Of a run that is ``resumed`` the facts come from its directory, and the policies, too, where a checkpoint
    of it holds them.

    Raises:
        Refused: a directory holds no whole run, or the resumed run was given others.
        Fault: a run does not fit the task.
    """
    before = rundir.read_config(resumed).get("runs", {}) if resumed and runs else None
    built: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    for name, arguments in runs.items():
        ingredient = module.RUNS[name]
        if before is not None and resumed is not None:
            kept[name] = _same(name, arguments, before.get(name, []))
            if any((resumed / "checkpoints").glob("*")):
                built |= rebuild(module, {name: kept[name]})
            else:
                built[ingredient.keyword] = tuple(
                    _record(ingredient, _policy(f"{entry['run']}:{entry['seed']}")[0], entry)
                    for entry in kept[name]
                )
            continue
        loaded = [_policy(argument) for argument in arguments]
        try:
            records = ingredient.make(env, [policy for policy, _ in loaded])
        except ValueError as refusal:
            raise parse.Fault(f"--{name}: {' '.join(str(refusal).split())}") from None
        built[ingredient.keyword] = tuple(records)
        kept[name] = [
            {**origin, **_facts(record)} for (_, origin), record in zip(loaded, records, strict=True)
        ]
    return built, kept


def rebuild(module: ModuleType, kept: dict[str, Any]) -> dict[str, Any]:
    """What ``build`` was given, from ``kept``; the policies' parameters are zeros in the right shapes, to be
    replaced by those in a checkpoint."""
    built = {}
    for name, entries in kept.items():
        ingredient = module.RUNS[name]
        built[ingredient.keyword] = tuple(_record(ingredient, _shapes(entry), entry) for entry in entries)
    return built


def _record(ingredient: Ingredient, policy: Pretrained, entry: dict[str, Any]) -> Any:
    """What ``ingredient.make`` made of the policy before."""
    return ingredient.record(policy, **{fact: entry[fact] for fact in ingredient.record._fields[1:]})


def _same(name: str, arguments: list[str], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``before``, if ``arguments`` name the same runs."""
    given = [_split(argument) for argument in arguments]
    known = [(Path(entry["run"]), entry["seed"]) for entry in before]
    if len(given) != len(known) or any(
        path != old or seed not in (None, number)
        for (path, seed), (old, number) in zip(given, known, strict=True)
    ):
        were = " ".join(f"{path}:{seed}" for path, seed in known) or "none"
        raise Refused(f"the run was begun with other runs; --{name} was {were}")
    return before


def _facts(record: Any) -> dict[str, Any]:
    """All but the policy, which comes first."""
    return dict(list(record._asdict().items())[1:])


def _policy(argument: str) -> tuple[Pretrained, dict[str, Any]]:
    """The policy in ``RUN_DIR`` or ``RUN_DIR:SEED``, and where it comes from."""
    from popjax import cli, tree
    from popjax.core import Pretrained

    path, seed = _split(argument)
    run = cli.load(path)
    first, count = run.saved["options"]["seed"], run.saved["options"]["seeds"]
    seed = _best_seed(path, first) if seed is None else seed
    if not first <= seed < first + count:
        raise parse.Fault(f"{path} has the seeds {first} to {first + count - 1}, not {seed}")
    state = tree.take(run.state, seed - first)
    env_steps = run.env_steps[seed - first]
    policy = Pretrained(
        name=argument,
        spec=run.env.spec,
        act=run.method.act,
        params=run.method.policy(state),
        memory=run.method.memory,
        env_steps=env_steps,
        state=state,
        config=run.config,
    )
    return policy, {"run": str(path), "seed": seed, "env_steps": env_steps, "config": run.saved}


def _shapes(entry: dict[str, Any]) -> Pretrained:
    """The policy that ``entry`` tells of, with zeros for numbers."""
    import jax
    import jax.numpy as jnp

    from popjax import cli
    from popjax.core import Pretrained

    env, method, config, hyper = cli.rebuilt(entry["config"])
    state = jax.eval_shape(method.init, jax.random.key(0), hyper)

    def zeros(shapes: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return Pretrained(
        name=entry["run"],
        spec=env.spec,
        act=method.act,
        params=zeros(jax.eval_shape(method.policy, state)),
        memory=method.memory,
        env_steps=entry["env_steps"],
        state=state,
        config=config,
    )


def _split(argument: str) -> tuple[Path, int | None]:
    path, colon, seed = argument.rpartition(":")
    if colon and seed.isdecimal() and not Path(argument).exists():
        return Path(path), int(seed)
    return Path(argument), None


def _best_seed(path: Path, first: int) -> int:
    """The seed whose last evaluation returned most; the first where none was evaluated."""
    last = {}
    records = path / "eval.jsonl"
    if records.exists():
        for line in records.read_text().splitlines():
            row = json.loads(line)
            last[row["seed"]] = row["return"]
    return max(last, key=lambda seed: last[seed]) if last else first
