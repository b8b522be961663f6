"""Comparing with other trainers: what one cannot do is recorded, and the run goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile_peers, peers, processes, record, to_score, trainers
from benchmarks.trainers import MADE_UP, Cannot, Work

TINY = Work(iterations=2, hidden=(8,), batch=4, capacity=64)


def test_a_trainer_that_is_not_installed_is_recorded_as_that():
    row = peers.compare("absent", TINY, peers.Arguments())
    assert row["cannot"] == "not installed: No module named 'benchmarks.trainers.absent'"
    assert "ratio" not in row


def test_a_trainer_that_does_not_answer_is_recorded_as_that():
    told = peers.compare("ours", TINY, peers.Arguments(limit=0.01))["cannot"]
    assert told == "popjax: no answer in 0.01 s"  # which is no fault of another trainer


def started(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every worker run ``code`` instead."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda command, **kwargs: popen([sys.executable, "-c", code], **kwargs)
    )


def test_a_trainer_that_ends_between_two_chunks_is_recorded_as_that(monkeypatch: pytest.MonkeyPatch):
    """As when memory runs out while the other one trains."""
    started(monkeypatch, "print('{}', flush=True); raise SystemExit(3)")
    trainer = processes.Others().start("", "rejax")
    assert trainer.answer() == {}
    trainer.process.wait()
    with pytest.raises(Cannot, match=r"^ended with exit status 3$"):
        trainer.chunk()


def test_a_worker_has_a_time_limit(monkeypatch: pytest.MonkeyPatch):
    started(monkeypatch, "import time; time.sleep(60)")
    assert processes.Others(limit=0.1).ask("", "rejax") == {"cannot": "no answer in 0.1 s"}


def test_only_answers_go_to_standard_output_and_errors_are_answers():
    code = """
from benchmarks import trainers
with trainers.answering() as answer:
    print("noise")
    answer(x=1)
    raise ValueError("first line\\nsecond")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=processes.ROOT, capture_output=True, text=True)
    assert list(map(json.loads, run.stdout.splitlines())) == [{"x": 1}, {"cannot": "ValueError: first line"}]
    assert run.stderr == "noise\n"


def test_an_error_in_brax_is_raised_where_one_waits_for_it(monkeypatch: pytest.MonkeyPatch):
    from brax.training.agents.sac import train as sac

    from benchmarks.trainers import brax

    def train(*, progress_fn, **_):
        progress_fn(0, {})
        raise MemoryError("of the device")

    monkeypatch.setattr(sac, "train", train)
    training = brax.build(Work())
    with pytest.raises(MemoryError, match="of the device"):
        training.chunk()


def test_one_agent_a_process_is_what_some_trainers_are():
    row = peers.compare("sbx", Work(population=2), peers.Arguments())
    assert row["cannot"] == "trains one agent a process"  # whether it is installed or not


def test_an_algorithm_that_a_trainer_lacks_is_recorded_as_that():
    with pytest.raises(Cannot, match="has no TD3"):
        trainers.build("brax", Work("td3"))
    with pytest.raises(Cannot, match="in pairs"):
        trainers.build("ours", Work("es", population=3))


def test_a_task_that_is_not_of_brax_is_refused():
    from benchmarks.trainers import on_brax

    assert on_brax.task("Pendulum-v1")[1] == 200
    with pytest.raises(Cannot, match="not those of gymnax"):
        on_brax.task("CartPole-v1")


def test_purejaxrl_has_continuous_actions_and_two_layers_of_one_width():
    for work in (
        Work("ppo", "CartPole-v1", hidden=(64, 64)),
        Work("ppo", "Breakout-MinAtar", hidden=(64, 64)),
    ):
        with pytest.raises(Cannot, match="continuous actions"):
            trainers.build("purejaxrl", work)
    with pytest.raises(Cannot, match="of one width"):
        trainers.build("purejaxrl", Work("ppo", hidden=(64, 32)))


def test_a_checkout_is_on_the_path_of_its_trainer_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, env, **_: env["PYTHONPATH"])
    others = processes.Others(evorl=Path("/evorl"), purejaxrl=Path("/other"))
    paths = {name: others.start("", name).process for name in ("evorl", "purejaxrl", "rejax")}
    found = {name: path.split(os.pathsep) for name, path in paths.items()}
    root = str(processes.ROOT)
    assert found == {"evorl": [root, "/evorl"], "purejaxrl": [root, "/other/purejaxrl"], "rejax": [root]}


def test_a_trainer_that_cannot_start_is_recorded_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compile_peers, "versions", lambda python: {})
    out = tmp_path / "starts.json"
    compile_peers.main(compile_peers.Arguments(trainers=("evosax",), algorithms=("ppo",), out=out))
    (row,) = json.loads(out.read_text())["rows"]
    assert row["cannot"] == "has no PPO"
    assert "cold" not in row


def test_steps_of_two_iterations_do_at_least_what_was_asked():
    work = Work("td3", iterations=3, population=5)
    training = trainers.scanned(lambda key: jnp.int32(0), lambda s: s + 1, work, lambda s, obs: s, each=2)
    assert (training.chunk(), training.act(None)) == (4 * 5, 2)


def test_an_error_is_recorded_as_that():
    row = peers.compare("ours", Work("sac", task="Tennis-v1"), peers.Arguments())
    assert row["cannot"] == "popjax: KeyError: 'Tennis-v1'"


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def compare(peer, amount, arguments):
        measured.append((amount.population, peer))
        return {"algorithm": amount.algorithm, "population": amount.population, "peer": peer, "cannot": "-"}

    def sized(algorithm, population, arguments):
        if population == 4:
            raise Cannot("popjax: no memory")
        return Work(algorithm, population=population)

    for name, stub in {"compare": compare, "sized": sized, "versions": lambda python: {}}.items():
        monkeypatch.setattr(peers, name, stub)
    monkeypatch.setattr(peers, "limit", lambda: None)
    monkeypatch.setattr(peers, "PEERS", ("a", "b"))
    out = tmp_path / "peers.json"

    def run(*populations):
        peers.main(peers.Arguments(peers=("a", "b"), algorithms=("sac",), populations=populations, out=out))
        return json.loads(out.read_text())["rows"]

    (first, _) = run(1)
    rows = run(1, 2, 4)
    assert measured == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [row["population"] for row in rows] == [1, 1, 2, 2, 4, 4]
    assert rows[0] == first | {name: rows[0][name] for name in ("git_commit", "command")}
    assert [row["cannot"] for row in rows[4:]] == ["popjax: no memory"] * 2


def test_rows_of_two_devices_do_not_share_a_file(tmp_path: Path):
    out = tmp_path / "rows.json"
    out.write_text(json.dumps(record.about() | {"device": "TPU v9", "rows": []}))
    with pytest.raises(SystemExit, match=r"^error: .*rows.json holds rows of TPU v9; name another file"):
        record.kept(out)


def test_rows_keep_the_commit_and_the_command_that_measured_them(tmp_path: Path):
    out = tmp_path / "rows.json"
    about = record.about() | {"git_commit": "b", "command": "second"}
    own = {"git_commit": "a", "command": "first"}
    out.write_text(json.dumps(about | {"rows": [own | {"x": 1}, {"x": 2}]}))
    rows, _ = record.kept(out)
    assert rows == [own | {"x": 1}, {"git_commit": "b", "command": "second", "x": 2}]
    assert record.kept(tmp_path / "none.json") == ([], {})


def test_an_interrupted_write_leaves_the_rows_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "rows.json"
    record.write(out, rows=[1])
    write_text = Path.write_text

    def interrupted(self: Path, text: str, encoding: str) -> None:
        write_text(self, text[:10], encoding)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.write(out, rows=[1, 2])
    assert json.loads(out.read_text())["rows"] == [1]


def test_commands_are_recorded_without_places_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    told = ["/a/b/benchmarks/peers.py", "--python", "/a/bin/python", "--evorl=/b/evorl", "--peers", "rejax"]
    monkeypatch.setattr(sys, "argv", [*told, "--out", "/c.json"])
    command = "python benchmarks/peers.py --python python --evorl=evorl --peers rejax"
    assert record.about()["command"] == command
    monkeypatch.setattr(sys, "argv", [*told, "--out=/c.json"])
    assert record.about()["command"] == command


def test_a_number_below_one_is_refused(tmp_path: Path):
    for wrong in ({"populations": (1, 0)}, {"repeats": 0}):
        with pytest.raises(SystemExit, match=rf"^error: --{next(iter(wrong))} must be at least 1$"):
            peers.main(peers.Arguments(**wrong))
    with pytest.raises(SystemExit, match=r"^error: --seeds must be at least 1$"):
        to_score.main(to_score.Arguments(seeds=0))


@pytest.mark.parametrize("python", ["/absent/python", "/bin/false"])
def test_what_is_no_interpreter_is_refused(python):
    with pytest.raises(SystemExit, match=rf"^error: --python {python} is no interpreter of Python: "):
        processes.versions(python)


def test_a_name_that_does_not_exist_is_refused_with_what_does():
    with pytest.raises(SystemExit, match=r"error: there is no 'rejay'; use one of .*rejax"):
        peers.main(peers.Arguments(peers=("rejay",)))
    with pytest.raises(SystemExit, match=r"error: there is no 'rejay'; use one of .*rejax"):
        to_score.main(to_score.Arguments(trainers=("rejay",)))


def test_a_protocol_refuses_an_algorithm_that_it_has_not():
    with pytest.raises(SystemExit, match=r"^error: protocol fastpbrl has no ppo; use one of sac, td3$"):
        peers.main(peers.Arguments(protocol="fastpbrl", algorithms=("sac", "ppo")))
    with pytest.raises(SystemExit, match=r"^error: protocol rejax has no td3; use one of sac, ppo$"):
        peers.main(peers.Arguments(protocol="rejax", algorithms=("td3",)))


def test_rows_of_two_protocols_do_not_share_a_file(tmp_path: Path):
    out = tmp_path / "peers.json"
    out.write_text(json.dumps(record.about() | {"rows": []}))
    with pytest.raises(
        SystemExit, match=r"^error: .*peers.json holds rows of protocol default; name another"
    ):
        peers.main(peers.Arguments(protocol="rejax", out=out))


def test_the_work_of_protocols_is_that_of_their_publications():
    """fastpbrl: ``timing_scripts/td3_sac_common.py``; rejax: ``benchmark/hopper_1m.yaml``."""
    fastpbrl, rejax = (peers.PROTOCOLS[name] for name in ("fastpbrl", "rejax"))
    for algorithm in ("sac", "td3"):
        work = fastpbrl.work[algorithm]
        assert (work.algorithm, work.task) == (algorithm, MADE_UP)
        assert (work.hidden, work.batch, work.iterations) == ((256, 256), 256, 50)
        assert work.done == fastpbrl.amount == 50
    assert (fastpbrl.populations[0], fastpbrl.populations[-1]) == (1, 40)
    sac, ppo = rejax.work["sac"], rejax.work["ppo"]
    assert (sac.task, sac.lanes, sac.batch, sac.capacity) == ("brax/hopper", 128, 128, 1_000_000)
    assert (ppo.task, ppo.lanes, ppo.steps, ppo.epochs, ppo.minibatches) == ("brax/hopper", 32, 32, 9, 2)
    assert (replace(sac, iterations=3).done, replace(ppo, iterations=3).done) == (3 * 128, 3 * 32 * 32)
    assert rejax.amount == 1_000_000


def test_every_agent_has_made_up_batches_of_its_own_and_every_step_has():
    drawn = trainers.made_up(Work(task=MADE_UP, iterations=6, population=2, batch=3), each=2)
    assert {name: x.shape for name, x in drawn.items()} == {
        "obs": (3, 2, 2, 3, 17),
        "next_obs": (3, 2, 2, 3, 17),
        "action": (3, 2, 2, 3, 6),
        "reward": (3, 2, 2, 3),
        "done": (3, 2, 2, 3),
    }
    assert len(np.unique(drawn["reward"])) == 3 * 2 * 2 * 3
    assert not drawn["done"].any()


def test_a_step_is_given_its_own_batch():
    work = Work(task=MADE_UP, iterations=4, population=2)
    batches = (jnp.arange(8).reshape(4, 2),)

    def step(state, batch):
        return 10 * state + batch

    training = trainers.every(lambda key: jnp.int32(0), step, work, lambda s, obs: s, batches=batches)
    assert (training.chunk(), training.act(jnp.zeros(2)).tolist()) == (8, [246, 1357])


@pytest.mark.parametrize("algorithm", ["sac", "td3"])
def test_popjax_takes_gradient_steps_on_made_up_batches(algorithm):
    """A call takes all of them: the actor of a TD3 learner moves in every other, its critics in all."""
    from benchmarks.trainers import ours

    work = Work(algorithm, MADE_UP, population=2, iterations=4, hidden=(8,), batch=4, learning_rate=1e-2)
    training = ours.build(work)
    obs = jnp.ones((2, 1, 17))
    before = training.act(obs)
    assert training.chunk() == 8
    after = training.act(obs)
    assert after.shape == (2, 1, 6)
    assert (after != before).all()
    assert (after[0] != after[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["Pendulum-v1", MADE_UP])
@pytest.mark.parametrize("algorithm", ["sac", "td3"])
@pytest.mark.parametrize("name", ["ours", "rejax"])
def test_gradient_steps_are_as_many_as_are_told(name, algorithm, task, monkeypatch: pytest.MonkeyPatch):
    """Of each agent's critics; TD3's actor takes every other."""
    if name == "rejax":
        pytest.importorskip("rejax", reason="of the extra peers")
    from benchmarks.trainers import ours

    original = trainers.scanned

    def shown(init, step, work, act, each=1, batches=()):
        return original(init, step, work, lambda state, obs: state, each, batches)

    for module in (trainers, ours):
        monkeypatch.setattr(module, "scanned", shown)
    lanes = 1 if task == MADE_UP else 4
    small = {"hidden": (8,), "batch": 8, "capacity": 512}
    training = trainers.build(name, Work(algorithm, task, population=2, iterations=6, lanes=lanes, **small))

    def taken() -> dict[str, jax.Array]:
        leaves = jax.tree_util.tree_leaves_with_path(training.act(None))
        found = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return {
            who: next(found[path] for path in found if f"{who}_" in path and path.endswith(".count"))
            for who in ("actor", "critic")
        }

    training.chunk()  # which fills the replay
    before = taken()
    told = training.chunk()
    after = taken()
    assert told == 2 * 6 * lanes
    assert (after["critic"] - before["critic"]).tolist() == [6 * lanes] * 2
    delay = 2 if algorithm == "td3" else 1
    assert (after["actor"] - before["actor"]).tolist() == [6 * lanes // delay] * 2


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["fastpbrl", "rejax"])
def test_popjax_does_the_work_of_a_protocol(protocol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Against itself. Rows tell the seconds of a call, or those of a run."""
    asked = peers.PROTOCOLS[protocol]
    small = {"hidden": (8,), "batch": 4, "capacity": 1_000}
    works = {name: replace(work, **small) for name, work in asked.work.items()}
    monkeypatch.setitem(peers.PROTOCOLS, protocol, replace(asked, work=works))
    monkeypatch.setattr(peers, "PEERS", ("ours",))
    monkeypatch.setattr(peers, "versions", lambda python: {})
    out = tmp_path / "found.json"
    chosen = {"algorithms": ("sac",), "populations": (2,), "peers": ("ours",)}
    peers.main(peers.Arguments(protocol=protocol, **chosen, repeats=1, seconds=0.1, limit=900, out=out))
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ours_seconds"] == pytest.approx(asked.amount * 2 / row["ours_per_second"])
    assert (row["calls"] > 1) == (protocol == "fastpbrl")
    assert out.with_suffix(".png").stat().st_size > 5_000


@pytest.mark.slow
def test_chunks_are_as_long_as_asked(monkeypatch: pytest.MonkeyPatch):
    default = peers.PROTOCOLS["default"]
    small = replace(default, work={"sac": Work("sac", hidden=(8,))})
    monkeypatch.setitem(peers.PROTOCOLS, "default", small)
    work = peers.sized("sac", 2, peers.Arguments(seconds=0.0))
    assert work == Work("sac", "Pendulum-v1", population=2, iterations=2, hidden=(8,))


@pytest.mark.slow
def test_popjax_beside_itself():
    row = peers.compare("ours", TINY, peers.Arguments(repeats=2))
    assert len(row["ratios"]) == 2
    assert row["ratio"] > 0
