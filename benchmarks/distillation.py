"""Distillation across tasks: every protocol of CDRL for a pair of tasks with different actions.

    python benchmarks/distillation.py --pair cartpole --env-steps 300000
    python benchmarks/distillation.py --pair minatar --env-steps 5000000

A teacher learns the source task; then the target task is learned without it, with its logits on the policy
head (KD-policy), on the distillation head (KD-distill), through an alignment network that was trained before
(offline) or is trained meanwhile (online), and with a teacher that learns its own task meanwhile
(concurrent). The protocol "untrained" is KD-distill with an untrained teacher: it shows what a second
gradient does to the layers that the heads share, whatever its content. The protocol "kd-late" begins when
online distillation does, without its alignment. The homogeneous protocols have a teacher of the target task
itself, which trains alongside the student (kd-only) or was trained before (kd-gae).

All seeds of a protocol are one program. Times are the paper's, as fractions of the budget. Scores are the
paper's: mean return of the last 100 training episodes of the policy that samples.

Writes ``distillation-PAIR.json`` and ``.png`` to --out. The tasks stand in for the paper's Atari games, and
the results are labelled with them.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import record
from popjax import counting
from popjax.core import Env, Method, Params, Pretrained, as_arrays
from popjax.envs import make
from popjax.methods import align, cdrl
from popjax.nets import recurrent
from popjax.population.imitation import Teacher

PAIRS = {
    "rooms": ("gymnax/CartPole-v1", "gymnax/FourRooms-misc"),
    "cartpole": ("gymnax/FourRooms-misc", "gymnax/CartPole-v1"),
    "minatar": ("gymnax/Breakout-MinAtar", "gymnax/Asterix-MinAtar"),
}
POINTS = 100  # points of a curve
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arguments:
    """Choices of what is run."""

    pair: Literal["rooms", "cartpole", "minatar"] = "cartpole"
    env_steps: int = 300_000
    """Budget of the student [environment steps]."""
    teacher_steps: int | None = None
    """Budget of a teacher that learns before the student; by default the student's [environment steps]."""
    align_steps: int = 100_000
    """States on which an offline alignment is trained [environment steps]."""
    seeds: int = 3
    lr: float = 1e-4
    """Adam's learning rate for rewards, for distillation, and for an alignment that trains during the run."""
    align_lr: float = 1e-4
    """Adam's learning rate for an alignment that is trained before the run."""
    update_mode: Literal["sequential", "batched"] = "sequential"
    units: int = 256
    """Units of the LSTM [count]."""
    align_hidden: tuple[int, ...] = (512, 512, 512, 512)
    protocols: tuple[str, ...] = ("a3c", "kd-policy", "kd-distill", "offline", "online", "concurrent")
    out: Path = field(default=RESULTS)


@dataclass(frozen=True)
class Protocol:
    """A row of the paper's table: choices, times as fractions of the budget, the runs that it builds on, and
    the task ("source" or "target") that a teacher learns beside the student."""

    config: dict[str, object]
    built_on: tuple[str, ...] = ()
    beside: str = ""
    align_from: float = cdrl.NEVER
    distil_from: float = 0.0
    distil_until: float = cdrl.NEVER


PROTOCOLS = {
    "a3c": Protocol({"align": "none"}, distil_from=cdrl.NEVER),
    "kd-policy": Protocol({"align": "none", "distil_head": "policy", "pad_actions": True}, ("source",)),
    "kd-distill": Protocol({"align": "none", "pad_actions": True}, ("source",)),
    "kd-late": Protocol({"align": "none", "pad_actions": True}, ("source",), distil_from=0.3),
    "untrained": Protocol({"align": "none", "pad_actions": True}),
    "offline": Protocol({"align": "offline"}, ("source", "a3c", "align")),
    "online": Protocol({"align": "online"}, ("source",), align_from=0.2, distil_from=0.3),
    "online2": Protocol({"align": "online"}, ("source",), align_from=0.005, distil_from=0.05),
    "concurrent": Protocol(
        {"align": "online"}, beside="source", align_from=0.15, distil_from=0.2, distil_until=0.75
    ),
    "kd-only": Protocol({"align": "none", "distil_head": "policy", "student_gae": False}, beside="target"),
    "kd-gae": Protocol({"align": "none", "distil_head": "policy"}, ("a3c",), distil_until=0.05),
}


@dataclass(frozen=True)
class Ran:
    """Scores [S, points] of the student at ``env_steps`` [points], the State [S, ...], and seconds."""

    scores: np.ndarray
    env_steps: np.ndarray
    state: object
    seconds: float


def run(method: Method, hyper: object, seeds: int, env_steps: int, name: str) -> Ran:
    """Train all seeds of a method side by side for at least ``env_steps``, in ``POINTS`` equal parts; the
    seconds include compiling."""
    iterations = -(-env_steps // (method.steps_bound * POINTS))  # per part
    begun = time.perf_counter()

    def chunk(state: object) -> tuple[object, object]:
        def one(state: object, _: None) -> tuple[object, None]:
            return method.step(state), None

        state, _ = jax.lax.scan(one, state, length=iterations)
        return state, (state.metrics, state.env_steps)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    state = jax.jit(jax.vmap(lambda key: method.init(key, as_arrays(hyper))))(keys)
    step, rows = jax.jit(jax.vmap(chunk), donate_argnums=0), []
    for point in range(POINTS):
        state, row = step(state)
        metrics, counted = jax.tree.map(np.asarray, row)
        rows.append((metrics, counting.on_host(counted)[0]))
        if point % 10 == 9:
            print(f"{name}: {rows[-1][1]:,} steps, {_score(metrics).round(1)}", file=sys.stderr, flush=True)
    scores = np.stack([_score(metrics) for metrics, _ in rows], 1)
    return Ran(scores, np.array([steps for _, steps in rows]), state, time.perf_counter() - begun)


def _score(metrics: object) -> np.ndarray:
    """Return the student's scores [S], or for an alignment the expert's returns."""
    return getattr(metrics, "score", metrics.fitness)[:, 0]


def main(arguments: Arguments) -> None:
    check(arguments.protocols)
    source, target = tasks = [make(name) for name in PAIRS[arguments.pair]]
    base = cdrl.Config(
        network=recurrent.Config(units=arguments.units),
        update_mode=arguments.update_mode,
        align_hidden=arguments.align_hidden,
        pad_observations=True,
    )
    rates = dict.fromkeys(("lr", "distil_lr", "align_lr"), arguments.lr)
    hyper = replace(cdrl.Hyper(), budget=float(arguments.env_steps), **rates)
    plain = replace(base, align="none")

    def train(env, config, hyper, name, env_steps=arguments.env_steps, **teachers):
        return run(cdrl.build(env, config, **teachers), hyper, arguments.seeds, env_steps, name)

    ran = {}
    if any("source" in PROTOCOLS[name].built_on for name in arguments.protocols):
        budget = arguments.teacher_steps or arguments.env_steps
        ran["source"] = train(source, plain, hyper, "source", budget)
    for name in arguments.protocols:
        protocol = PROTOCOLS[name]
        times = {t: getattr(protocol, t) for t in ("align_from", "distil_from", "distil_until")}
        config, given = replace(base, **protocol.config), _teachers(name, arguments, tasks, plain, ran)
        ran[name] = train(target, config, replace(hyper, **times), name, **given)
        _write(arguments, _record(arguments, ran), ran)


def check(protocols: tuple[str, ...]) -> None:
    """Check that all protocols are known, and come after those that they build on."""
    record.check_known(protocols, PROTOCOLS)
    for i, name in enumerate(protocols):
        if "a3c" in PROTOCOLS[name].built_on and "a3c" not in protocols[:i]:
            raise SystemExit(f"error: {name} needs a3c before it in --protocols: that is the expert")


def _teachers(name: str, arguments: Arguments, tasks, plain: cdrl.Config, ran: dict[str, Ran]) -> dict:
    """Return the arguments of ``cdrl.build`` for a protocol, after training the alignment that comes
    before."""
    protocol, (source, target) = PROTOCOLS[name], tasks
    if protocol.beside:
        return {"teacher_envs": [source if protocol.beside == "source" else target]}
    if name == "untrained":
        return {"teachers": [untrained(source, plain)]}
    if "source" not in protocol.built_on:
        return {"teachers": [_finished(target, plain, ran["a3c"])] if protocol.built_on else []}
    teacher = _finished(source, plain, ran["source"])
    if name != "offline":
        return {"teachers": [teacher]}
    expert = _finished(target, plain, ran["a3c"])
    return {"teachers": [teacher], "alignments": [_align(arguments, target, teacher, expert, ran)]}


def untrained(env: Env, config: cdrl.Config) -> Teacher:
    """Return a policy at the beginning of its training."""
    method = cdrl.build(env, config)
    return _teacher(env, method, method.policy(method.init(jax.random.key(100), cdrl.Hyper())))


def _teacher(env: Env, method: Method, params: Params) -> Teacher:
    name = env.spec.name
    return Teacher(Pretrained(name, env.spec, method.act, params, method.memory, unroll=method.unroll))


def _finished(env: Env, config: cdrl.Config, ran: Ran) -> Teacher:
    """Return the policy of the seed with the highest final score."""
    best, method = int(np.argmax(ran.scores[:, -1])), cdrl.build(env, config)
    return _teacher(env, method, method.policy(jax.tree.map(lambda x: x[best], ran.state)))


def _align(
    arguments: Arguments, target: Env, teacher: Teacher, expert: Teacher, ran: dict[str, Ran]
) -> Teacher:
    """Return the aligned teacher, after training its alignment network on the expert's states."""
    config = align.Config(align_hidden=arguments.align_hidden, pad_observations=True)
    method = align.build(target, config, [teacher], [expert])
    ran["align"] = run(method, align.Hyper(align_lr=arguments.align_lr), 1, arguments.align_steps, "align")
    return _teacher(target, method, method.policy(jax.tree.map(lambda x: x[0], ran["align"].state)))


def _record(arguments: Arguments, ran: dict[str, Ran]) -> dict[str, object]:
    """Return the record to keep: where and how it ran, the final scores, and the curves."""
    source, target = PAIRS[arguments.pair]
    found = {}
    for name, each in ran.items():
        final = each.scores[:, -1]
        found[name] = {
            "final": final.round(2).tolist(),
            "mean": round(float(final.mean()), 2),
            "std": round(float(final.std(ddof=1)), 2) if len(final) > 1 else None,
            "mean_over_run": round(float(each.scores.mean()), 2),
            "seconds": round(each.seconds, 1),
            "costs_beyond": _costs_beyond(name, ran),
            "distillation": _distillation(each),
            "curve": np.column_stack([each.env_steps, each.scores.T.round(2)]).tolist(),
        }
    return {
        "source": source,
        "target": target,
        "measure": "mean return of the last 100 training episodes; align: return of the expert",
        "arguments": {name: str(value) for name, value in asdict(arguments).items() if name != "out"},
        "curve_columns": ["env_steps", "score of each seed"],
        "protocols": found,
    }


def _distillation(ran: Ran) -> dict[str, object] | None:
    """Return the metrics of distillation at the end, mean over seeds, and the probabilities of the student's
    actions; None without a teacher."""
    metrics = ran.state.metrics
    if not getattr(metrics, "distillations", ()):
        return None
    shown = {"student": metrics.actions} | vars(metrics.distillations[0])
    return {name: np.asarray(value, float).mean(0).round(4).tolist() for name, value in shown.items()}


def _costs_beyond(name: str, ran: dict[str, Ran]) -> dict[str, int]:
    """Return the environment steps, over all seeds, that a protocol takes beyond the student's: those of the
    runs before it, of which only the best seed is used, and those of a teacher alongside the student."""
    protocol = PROTOCOLS.get(name, Protocol({}))
    costs = {each: _steps(ran[each]) for each in protocol.built_on}
    return costs | ({"beside": _steps(ran[name])} if protocol.beside else {})


def _steps(ran: Ran) -> int:
    return int(ran.env_steps[-1]) * len(ran.scores)


def _write(arguments: Arguments, content: dict[str, object], ran: dict[str, Ran]) -> None:
    path = arguments.out / f"distillation-{arguments.pair}.json"
    record.write(path, **content)
    figure = Figure(figsize=(7, 4.3), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name in arguments.protocols:
        if name in ran:
            mean = ran[name].scores.mean(0)
            (line,) = axes.plot(ran[name].env_steps, mean, label=name)
            low, high = ran[name].scores.min(0), ran[name].scores.max(0)
            axes.fill_between(ran[name].env_steps, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="environment steps of the student", ylabel="return, last 100 training episodes")
    axes.set_title(f"{content['target']} with a teacher of {content['source']}, {arguments.seeds} seeds")
    axes.legend()
    figure.savefig(path.with_suffix(".png"))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
