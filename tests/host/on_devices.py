"""Run by ``test_shard`` in a process that has four devices; prints what it finds as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from popjax import cli, importing, remember, rollout, tree
from popjax.agents import a2c
from popjax.cli import building
from popjax.core import Method
from popjax.envs import make
from popjax.host.checkpoints import state_arrays
from popjax.host.runs.options import Options
from popjax.host.scaling import memory, shard, sweep
from popjax.host.training import compiled_programs, program_store, train
from popjax.host.training.compiled_programs import chunk_function, compile_programs
from popjax.host.training.stopped_members import StoppedMembers
from popjax.methods import onpolicy
from tests.host import crowd, tiny
from tests.host.test_train import OPTIONS

ENV = make("probe/context")
COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)")


def collectives(method: Any, seeds: int, devices: int) -> int:
    """Return the number of collective operations in the compiled chunk."""
    members = sweep.grid(0, seeds, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    shapes = jax.eval_shape(sweep.lift(method.init, seeds), *start)
    placement = shard.place(shapes, devices)
    start = jax.device_put(start, placement.members())
    programs = compile_programs(method, ENV, start, shapes, Options(100), placement, fresh=False)
    return len(COLLECTIVE.findall(programs.chunk.as_text()))


def playing() -> Method:
    """``tiny`` that also plays an episode, the loop of which ends when it has ended for all members."""
    env = make("probe/corridor")
    walk = tiny.build(env)

    def step(s: tiny.State) -> tiny.State:
        def act(memory, obs, key):
            return walk.act(s.weight, memory, obs, key, 0.0)[:2]

        played = rollout.episode(env, act, walk.memory, s.key, record=lambda *_: ())
        return walk.step(s.replace(weight=s.weight + 0.001 * played.total))

    return walk._replace(step=step)


def standing_still() -> dict[str, Any]:
    """Eight members on four devices, two of which stand still: what is compiled for it, and what moves."""
    method, members = tiny.build(ENV), sweep.grid(0, 8, {})
    start = sweep.keys(members), sweep.hypers(method.hyper, members)
    init = sweep.lift(method.init, 8)
    shapes = jax.eval_shape(init, *start)
    by_state = shard.place(shapes, 4).state(shapes)
    first, other = (jax.device_put(init(keys, start[1]), by_state) for keys in (start[0], start[0][::-1]))
    programs, stopped = [], StoppedMembers(shapes, None)

    def seen(program: Any) -> Any:
        def call(*arguments: Any) -> Any:
            programs.append(program.lower(*arguments).compile())
            return program(*arguments)

        return call

    stopped._take, stopped._put = seen(stopped._take), seen(stopped._put)
    stopped.keep(first, (2, 7))
    expected = [state_arrays.digest(tree.take(first if i in (2, 7) else other, i)) for i in range(8)]
    buffers = [part.data.unsafe_buffer_pointer() for part in other.replay.addressable_shards]
    back = stopped.put_back(other)
    return {
        "programs": len(programs),
        "collectives": sum(len(COLLECTIVE.findall(program.as_text())) for program in programs),
        "temporaries": max(program.memory_analysis().temp_size_in_bytes for program in programs),
        "lane": memory.tree_bytes(shapes) // 8,
        "right": [state_arrays.digest(tree.take(back, i)) for i in range(8)] == expected,
        "lies": jax.tree.map(lambda x: x.sharding, back) == by_state,
        "in_place": buffers == [part.data.unsafe_buffer_pointer() for part in back.replay.addressable_shards],
    }


def collectives_without_a_mesh_of_its_own() -> int:
    """As ``collectives``, had the compiler been left to spread a program of all members."""
    method, members = playing(), sweep.grid(0, 8, {})
    shapes = jax.eval_shape(
        sweep.lift(method.init, 8), sweep.keys(members), sweep.hypers(method.hyper, members)
    )
    by_state = shard.place(shapes, 4).state(shapes)
    chunk = sweep.lift(chunk_function(method, 3), 8)
    compiled = jax.jit(chunk, in_shardings=(by_state,)).lower(shapes).compile()
    return len(COLLECTIVE.findall(compiled.as_text()))


def members(directory: Path) -> dict[str, Any]:
    """Eight members, four of which fail, on 1, 2 and 4 devices, and across two numbers of devices."""
    method = tiny.build(ENV, tiny.Config(uneven=True))
    swept = {"hyper.poison_at": [-1.0, 25.0], "hyper.rate": [0.1, 0.2]}
    options: Any = OPTIONS | {"seeds": 2, "swept": swept}
    found = {
        str(n): train(method, ENV, env_steps=600, devices=n, run_dir=directory / str(n), **options).summary
        for n in (1, 2, 4)
    }
    train(method, ENV, env_steps=300, devices=4, run_dir=directory / "moved", **options)
    moved = train(method, ENV, env_steps=600, devices=2, run_dir=directory / "moved", resume=True, **options)
    return found | {"moved": moved.summary}


def population(directory: Path) -> dict[str, Any]:
    """Eight individuals on 1, 2 and 4 devices."""
    method, found = crowd.build(8), {}
    for n in (1, 2, 4):
        state = train(method, ENV, env_steps=200, devices=n, run_dir=directory / f"p{n}", **OPTIONS).state
        on = (
            len(state.weights.sharding.device_set),
            len({str(shard.index) for shard in state.weights.addressable_shards}),
        )
        found[str(n)] = {"weights": np.asarray(state.weights).tolist(), "devices": on}
    resumed = train(method, ENV, env_steps=400, devices=4, run_dir=directory / "p2", resume=True, **OPTIONS)
    straight = train(method, ENV, env_steps=400, devices=1, **OPTIONS)
    found["resumed"] = np.asarray(resumed.state.weights).tolist()
    found["straight"] = np.asarray(straight.state.weights).tolist()
    return found


def refusals() -> list[str]:
    """Return the refusals of numbers that do not divide, or are too many."""
    said = []
    for method, seeds, devices in (
        (tiny.build(ENV), 6, 4),
        (crowd.build(6), 1, 4),
        (tiny.build(ENV), 1, 2),
        (tiny.build(ENV), 8, 8),
    ):
        try:
            train(method, ENV, env_steps=200, seeds=seeds, devices=devices, **OPTIONS)
        except ValueError as refusal:
            said.append(str(refusal))
    return said


def in_slices(directory: Path) -> dict[str, Any]:
    """A sweep that does not fit into memory as a whole, on two devices; and slices that do not divide."""
    cli.METHODS["tiny"] = "tests.host.tiny"
    memory.available_bytes = lambda device: 9_400_000
    argv = ["tiny", "--env=probe/context", "--env-steps=240", "--seeds=8", "--config.capacity=100000"]
    codes, found = [], {}
    for name, more in (
        ("fits", ["--devices=2"]),
        ("many", ["--devices=8"]),
        ("three", ["--devices=2", "--slice=3"]),
        ("nine", ["--devices=2", "--slice=2", "--seeds=9"]),
    ):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            codes.append(cli.run([*argv, *more, f"--run-dir={directory / name}"]))
        found[name] = {"said": said.getvalue(), "made": (directory / name).exists()}
    runs = json.loads((directory / "fits" / "index.json").read_text())["runs"]
    again = io.StringIO()
    with contextlib.redirect_stderr(again):
        resume = [*argv, "--devices=3", f"--run-dir={directory / 'fits'}", "--resume"]
        codes.append(cli.run(resume))
    return {
        "codes": codes,
        "runs": [run["directory"] for run in runs],
        "found": found,
        "again": again.getvalue(),
    }


def on_the_default_device(directory: Path) -> dict[str, Any]:
    """A run on the first device and, with the same store of programs, on the third, which is the default."""
    third, asked = jax.devices()[2], set()
    real = memory.available_bytes, memory.peak_bytes
    config = onpolicy.Config(agent=a2c.Config(hidden=(8,)), lanes=2, steps=5)
    options: Any = {"env_steps": 40, "eval_every": 40, "eval_episodes": 1, "quiet": True}

    def run(**more: Any) -> Any:
        remember.forget()
        return train(onpolicy.build(ENV, config), ENV, **options | more)

    def places(state: Any) -> list[int]:
        return sorted({device.id for leaf in jax.tree.leaves(state) for device in leaf.devices()})

    def seen(which: int) -> Any:
        return lambda device: (asked.add(device.id), real[which](device))[1]

    jax.config.update("jax_compilation_cache_dir", str(directory / "cache"))
    compilation_cache.reset_cache()
    program_store._traces_alone, program_store._begun = True, lambda: 2**63
    importing._foreign = set()
    first = run()
    memory.available_bytes, memory.peak_bytes = seen(0), seen(1)
    with jax.default_device(third):
        fresh = run(run_dir=directory / "third")
        with mock.patch.object(compiled_programs, "_compiled", side_effect=AssertionError("not stored")):
            stored = run()
        resumed = run(run_dir=directory / "third", env_steps=80, resume=True)
        loaded = building.load(directory / "third").state
        several = [device.id for device in shard.chosen(2)]
    memory.available_bytes, memory.peak_bytes = real
    states = {"first": first.state, "fresh": fresh.state, "stored": stored.state, "resumed": resumed.state}
    return {
        "places": {name: places(state) for name, state in states.items()} | {"loaded": places(loaded)},
        "several": several,
        "digests": [result.summary["state_sha256"] for result in (first, fresh, stored)],
        "asked": sorted(asked),
    }


if __name__ == "__main__":
    directory = Path(tempfile.mkdtemp(dir=sys.argv[1]))
    answer = {
        "devices": len(jax.devices()),
        "members": members(directory),
        "population": population(directory),
        "refusals": refusals(),
        "slices": in_slices(directory),
        "stopped": standing_still(),
        "default": on_the_default_device(directory),
        "sweep_collectives": collectives(playing(), 8, 4),
        "naive_collectives": collectives_without_a_mesh_of_its_own(),
        "population_collectives": collectives(crowd.build(8), 1, 4),
    }
    print(json.dumps(answer))
