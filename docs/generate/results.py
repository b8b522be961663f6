"""Tables of returns and scores, from ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import reproduced
from generate.tables import Load, loader, table


def parts(root: Path) -> dict[str, str]:
    """Return part -> Markdown: a table for each place in the pages that shows results."""
    folder = root / "benchmarks/results"
    load = loader(folder)
    made = {
        "results-runs": _runs(load),
        "results-breakout": _scored(load, "minatar-breakout", _CA2E, "dqn", "apex", "ca2e"),
        "results-asterix": _asterix(load),
        "results-reacher": _scored(load, "ca2e-reacher", _CA2E, "ddpg", "apex", "ca2e"),
        "results-hopper": _scored(load, "ca2e-hopper", _CA2E, "ddpg", "apex", "ca2e"),
        "results-ce": _collaboration_returns(load),
        "results-distilled": _distilled(load),
        "results-transfer": _transfer(load),
        "reproduced": reproduced.page(folder / "reproduce", "../benchmarks/results/reproduce"),
        "files": _files(folder),
    }
    for task in ("swimmer", "hopper"):
        made[f"results-cspc-{task}"] = _team(load, task)
    for pair in ("cartpole", "rooms"):
        made[f"results-distillation-{pair}"] = _protocols(load(f"distillation-{pair}"))
    return made


_CA2E = {
    "dqn": "DQN, one actor (`independent`)",
    "ddpg": "DDPG, one actor",
    "apex": "8 nature actors, no prior ones",
    "ca2e": "CA2E, 5 + 3",
}
_RUNS = {
    "pderl-pendulum": "(`make demo`)",
    "sac-pendulum": "",
    "td3-pendulum": "",
    "cem-rl-pendulum": "",
    "cem-rl-swimmer": "",
    "ppo-cartpole": "",
    "ppo-inverted_pendulum": "",
    "minatar-breakout-a2c": "",
    "pderl-inverted_pendulum": "",
    "es-inverted_pendulum": "(Open_ES)",
    "es-pendulum": "(Sep_CMA_ES)",
    "sixth-method-pendulum": "",
    "pderl-hopper": "(the paper's preset)",
    "gym-swimmer-pderl": "",
    "gym-swimmer-erl": "",
    "gym-swimmer-td3": "",
    "es-swimmer": "(CMA_ES)",
    "cem-swimmer": "(CEM alone)",
}


def _runs(load: Load) -> str:
    rows = []
    for name, note in _RUNS.items():
        found = load(name)
        summary, evaluations = found["summary"], found["evaluations"]
        start = [row[2] for row in evaluations if row[1] == 0]
        label = f"`{summary['method']}`{_agent(found)} on `{summary['env']}` {note}".strip()
        steps = f"{summary['env_steps']:,}" + (" each" if len(summary["seeds"]) > 1 else "")
        rows.append((label, steps, _each([sum(start) / len(start)]), _each(summary["final_return"])))
    return table(
        ["run", "environment steps", "return at the start", "at the end, by seed"], rows, range(1, 4)
    )


def _agent(found: Any) -> str:
    """Return the kind of agent of a run of plain agents, such as ", SAC"."""
    words, summary = found["command"].split(), found["summary"]
    if "--config.agent" in words:
        return f", {words[words.index('--config.agent') + 1].upper()}"
    kind = (summary.get("agents") or {}).get("agent")
    return f", {kind.upper()}" if kind and summary["method"] in ("independent", "onpolicy") else ""


def _each(values: Iterable[float | None], digits: int | None = None) -> str:
    """Return numbers as people write them beside one another: whole from 10 on."""
    values = list(values)
    small = all(x is not None and abs(x) < 20 for x in values)
    places = (1 if small else 0) if digits is None else digits
    return ", ".join("" if x is None else f"{x:.{places}f}".replace("-0.0", "0.0") for x in values)


def _scored(load: Load, prefix: str, labels: dict[str, str], *names: str) -> str:
    found = [(labels[name], load(f"{prefix}-{name}")) for name in names]
    rows = [(label, _each(each["area"]), _each(each["score"]["scores"])) for label, each in found]
    return table(
        ["method", "area under the curve, by seed", "mean of the last ten evaluations, by seed"], rows
    )


def _asterix(load: Load) -> str:
    rows = []
    for name in ("dqn", "apex", "one-step", "ca2e"):
        found = load(f"minatar-asterix-{name}")
        if name != "one-step":
            rows.append((_CA2E[name], _each(found["area"]), _each(found["summary"]["final_return"])))
            continue
        exponents = [member["numbers"]["hyper.priority_exponent"] for member in found["summary"]["members"]]
        for exponent in sorted(set(exponents), reverse=True):
            which = [place for place, other in enumerate(exponents) if other == exponent]
            replay = "uniform replay" if exponent == 0 else "priorities"
            area, final = (
                _each(values[i] for i in which)
                for values in (found["area"], found["summary"]["final_return"])
            )
            rows.append((f"8 nature actors, one-step returns, {replay}", area, final))
    return table(["method", "area under the curve, by seed", "return at the end, by seed"], rows)


def _team(load: Load, task: str) -> str:
    rows = []
    for name in ("cspc", "sac", "ppo", "cem"):
        found = load(f"cspc-{task}-{name}")
        best = [member["metrics"]["best_score"] for member in found["summary"]["members"]]
        final = found["summary"]["final_return"]
        rows.append((name.upper(), _each(final, 0), _each(best, 0), _each(found["area"], 0)))
    header = ["agents", "return at the end, by seed", "best score", "area under the curve up to 160,000"]
    return table(header, rows)


def _collaboration_returns(load: Load) -> str:
    rows = []
    for prefix, task in (
        ("gymnax-pendulum", "gymnax/Pendulum-v1"),
        ("ce-swingup", "dmc/pendulum-swingup"),
        ("ce-cheetah", "dmc/cheetah-run"),
    ):
        for name, label in (("sac", "SAC"), ("replica", "Replica"), ("ce", "Collaborative Exploration")):
            found = load(f"{prefix}-{name}")
            score, steps = found["score"], found["summary"]["env_steps"]
            low, high = score["iqm_95"]
            scores = _each(score["scores"], 0)
            rows.append(
                (f"`{task}`", label, f"{steps:,}", f"{score['iqm']:.0f} [{low:.0f}, {high:.0f}]", scores)
            )
    header = ["task", "method", "environment steps", "interquartile mean [95%]", "by seed"]
    return table(header, rows, (2,))


_PROTOCOLS = {
    "a3c": "A3C, no teacher",
    "kd-policy": "KD-policy",
    "kd-distill": "KD-distill",
    "kd-late": "KD-distill from 0.3 of the budget on, as in online alignment",
    "untrained": "KD-distill, untrained teacher",
    "offline": "offline alignment",
    "online": "online alignment",
    "concurrent": "concurrent (cA3C)",
}


def _protocols(found: Any) -> str:
    rows = []
    small = found["protocols"]["a3c"]["mean"] < 20
    digits = 2 if small else 0
    for name, label in _PROTOCOLS.items():
        each = found["protocols"][name]
        beside = sum(each["costs_beyond"].values())
        final = f"{each['mean']:.{digits}f} ± {each['std']:.{digits}f}"
        over = _each(_means(each["curve"]), digits)
        rows.append((label, final, over, f"{beside:,}" if beside else ""))
    header = [
        "protocol",
        "score at the end, mean ± standard deviation",
        "over the run, by seed",
        "steps besides the student's, over all seeds",
    ]
    return table(header, rows, (3,))


def _means(curve: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over the run of each seed, of rows (environment steps, score of each seed)."""
    return [sum(column) / len(column) for column in list(zip(*curve, strict=True))[1:]]


def _distilled(load: Load) -> str:
    rows = []
    for row in load("distilled-policies")["rows"]:
        teacher, student = row["deployed_by_the_teachers_run"], row["student"]
        method = row["teacher"]["command"].split()[2].upper()
        rows.append((f"`{row['env']}`", method, *(_each(x["mean"] for x in y) for y in (teacher, student))))
    return table(["task", "population", "return of the deployed policy", "of the distilled policy"], rows)


def _transfer(load: Load) -> str:
    rows = [
        (f"`{row['method']}`, seed {row['seed']}", *(f"{row[x]:.0f}" for x in ("on_device", "gymnasium")))
        for row in load("gym-swimmer-transfer")["rows"]
    ]
    return table(["policy", "return on the device", "in Gymnasium"], rows, (1, 2))


def _files(folder: Path) -> str:
    """Return file -> the command that measured it, its commit and hardware, and the curves of a run."""
    rows, runs, timed = [], 0, 0
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        command = found.get("command") or found.get("evaluated_by") or "; ".join(found.get("commands", []))
        commit = found.get("git_commit") or found.get("commit") or ""
        machine = found.get("device") or found.get("hardware") or found.get("summary", {}).get("hardware", "")
        runs += "evaluations" in found
        timed += "evaluations" in found and bool(found.get("wall_seconds"))
        file = f"[{path.name}]({_RESULTS}/{path.name})"
        rows.append((file, f"`{command}`", f"`{commit[:8]}`", machine, _curves(path, found)))
    told = (
        f"{runs - timed} of the {runs} files of runs have no times of evaluations, so there is no curve of"
        " their return against wall-clock time; the last column says which."
    )
    header = ["file", "command", "commit", "hardware", "return of a run against"]
    return f"{told}\n\n{table(header, rows)}"


_RESULTS = "../benchmarks/results"


def _curves(path: Path, found: Mapping[str, Any]) -> str:
    """Return links to the curves that a run has, and what it lacks; "" for anything but a run."""
    if "evaluations" not in found:
        return ""
    kinds = {"environment steps": path.stem, "time": f"{path.stem}-time"}
    curves = [
        f"[{what}]({_RESULTS}/{name}.png)"
        for what, name in kinds.items()
        if path.with_name(f"{name}.png").exists()
    ]
    untimed = [] if found.get("wall_seconds") else ["no times recorded"]
    return ", ".join([*curves, *untimed])
