"""Checkpoints come back bitwise or are known to be damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from popjax.envs import make
from popjax.host import provenance
from popjax.host.checkpoints import checkpoint, state_arrays
from popjax.host.errors import NotRead, Refused
from popjax.host.training import train
from tests.host import tiny
from tests.host.test_train import OPTIONS

ENV = make("probe/context")


def example() -> dict:
    return {
        "key": jax.random.split(jax.random.key(3), 2),
        "nested": {"float": jnp.array([0.1, jnp.nan, -0.0]), "half": jnp.ones((2, 3), jnp.bfloat16) / 3},
        "scalar": jnp.int32(7),
        "flag": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 4)),
        "absent": None,
    }


def shapes_of(state: object) -> object:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def test_every_leaf_comes_back_bitwise(tmp_path: Path) -> None:
    state = example()
    checkpoint.save(tmp_path, 4, state, {"note": [1, 2]})
    restored, extra = checkpoint.restore(tmp_path / "4", shapes_of(state))
    assert state_arrays.digest(restored) == state_arrays.digest(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert extra == {"note": [1, 2]}
    jax.random.normal(restored["key"][0])  # a key again, not its data


def test_a_digest_sees_path_dtype_shape_and_bytes() -> None:
    states = [
        {"a": jnp.zeros(4)},
        {"b": jnp.zeros(4)},
        {"a": jnp.zeros((2, 2))},
        {"a": jnp.zeros(4, jnp.int32)},
        {"a": -jnp.zeros(4)},
    ]
    assert len({state_arrays.digest(state) for state in states}) == len(states)


def test_only_the_newest_are_kept_and_partial_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "partial-2").mkdir()
    for generation in (1, 2, 10):
        checkpoint.save(tmp_path, generation, {"a": jnp.arange(3)}, {})
    assert checkpoint.generations(tmp_path) == [10, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"10", "2"}


def test_another_structure_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    checkpoint.save(directory, 1, {"a": jnp.zeros(3)}, {})
    with pytest.raises(Refused, match=r"a is float32\[3\] in it and float32\[4\] in the State$"):
        checkpoint.restore(directory / "1", {"a": jnp.zeros(4)})


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ('{"git_commit": "c0ffee"}', "; its run was made with commit c0ffee: use this to continue"),
        (
            '{"git_commit": "c0ffee", "device": "TPU v5 lite"}',
            "; its run was made with commit c0ffee and device TPU v5 lite: use these to continue",
        ),
        (
            '{"git_commit": "here", "device": "cpu (x86_64, 9 threads)", "versions": {"ale-py": "0.11.2",'
            ' "jax": "1.2"}}',
            "; its run was made with ale-py 0.11.2 instead of 0.12.1: use this to continue",
        ),
        ('{"git_commit": "here"}', ""),
        (
            '{"git_commit": null, "versions": {"ale-py": "0.11.2", "jax": "1.1"}}',
            "; its run was made with ale-py 0.11.2 instead of 0.12.1 and jax 1.1 instead of 1.2: use these to"
            " continue",
        ),
        ('{"git_commit": null}', ""),
        ("[]", ""),
        ("{", ""),
    ],
)
def test_another_structure_names_what_can_use_it(
    config: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: {"ale-py": "0.12.1", "jax": "1.2"})
    monkeypatch.setattr(provenance, "git_commit", lambda: "here")
    monkeypatch.setattr(provenance, "device_name", lambda: "cpu (x86_64, 1 thread)")
    checkpoint.save(tmp_path / "checkpoints", 1, {"a": jnp.zeros(3)}, {})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(Refused) as refusal:
        checkpoint.restore(tmp_path / "checkpoints/1", {"a": jnp.zeros(4)})
    assert str(refusal.value).endswith("in the State" + advice)


def largest_file(path: Path) -> Path:
    return max(
        (file for file in (path / "arrays").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size
    )


def truncate(path: Path) -> None:
    file = largest_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(path: Path) -> None:
    file = largest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete_data(path: Path) -> None:
    for file in (path / "arrays").rglob("d/*"):
        file.unlink()


def lie_in_manifest(path: Path) -> None:
    manifest = path / "manifest.json"
    envelope = json.loads(manifest.read_text())
    envelope["content"] = envelope["content"].replace('"generation": ', '"generation": 1')
    manifest.write_text(json.dumps(envelope))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_bit,
        delete_data,
        lie_in_manifest,
        lambda path: (path / "manifest.json").write_text("{"),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: shutil.rmtree(path / "arrays"),
    ],
    ids=["truncated", "bit", "deleted", "manifest lies", "half manifest", "no manifest", "no arrays"],
)
def test_damage_is_noticed_and_the_one_before_used(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    def state(seed: int) -> dict:
        return {"a": jax.random.normal(jax.random.key(seed), (2_000,)), "b": jnp.arange(3)}

    checkpoint.save(tmp_path, 1, state(1), {})
    checkpoint.save(tmp_path, 2, state(2), {})
    damage(tmp_path / "2")
    said: list[str] = []
    found = checkpoint.restore_newest(tmp_path, shapes_of(state(0)), said.append)
    assert found is not None
    assert found[0] == 1
    assert state_arrays.digest(found[1]) == state_arrays.digest(state(1))
    assert len(said) == 1
    assert "damaged" in said[0]
    assert "generation 1" in said[0]
    assert "\n" not in said[0]


def save_two_more(directory: Path, state: Any) -> None:
    newest = checkpoint.generations(directory)[0]
    for generation in (newest + 1, newest + 2):
        checkpoint.save(directory, generation, state, {})


@pytest.mark.parametrize("moment", ["_read_manifest", "_read_arrays", "_require_checksums"])
@pytest.mark.parametrize("read", ["whole", "member", "slice"])
def test_a_reader_beside_a_writer_takes_the_newest_instead(
    moment: str, read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that it reads is removed before any of the three steps: nothing is damaged."""
    state = {"a": jax.random.normal(jax.random.key(0), (3, 50))}
    checkpoint.save(tmp_path, 1, state, {})
    step, times = getattr(checkpoint, moment), iter(range(10))

    def slow(*arguments: Any) -> Any:
        if next(times) < 2:
            save_two_more(tmp_path, state)
            assert not (tmp_path / "1").exists()
        return step(*arguments)

    monkeypatch.setattr(checkpoint, moment, slow)
    if read == "whole":
        found = checkpoint.restore_newest(tmp_path, shapes_of(state), pytest.fail)
    elif read == "member":
        found = checkpoint.member_of_newest(tmp_path, shapes_of(state), pytest.fail, 1)
    else:
        found = checkpoint.slice_of_newest(tmp_path, [2], pytest.fail)
    assert found is not None
    if read == "whole" and moment != "_require_checksums":  # by then all is read
        assert found[0] == 5


def test_what_is_gone_and_what_is_damaged_are_told_apart(tmp_path: Path) -> None:
    state = {"a": jnp.arange(3)}
    for generation in (1, 2):
        checkpoint.save(tmp_path, generation, state, {})
    (tmp_path / "2/manifest.json").unlink()
    shutil.rmtree(tmp_path / "1")
    said: list[str] = []
    assert checkpoint.restore_newest(tmp_path, shapes_of(state), said.append) is None
    assert len(said) == 1
    assert "2 is damaged" in said[0]
    assert "there is no earlier one" in said[0]


@pytest.mark.parametrize("call", ["rename", "rmtree"])
def test_a_checkpoint_that_cannot_be_removed_stops_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told, left, and removed later; a State can replace the checkpoint of its generation."""
    remove, rename, held = shutil.rmtree, Path.rename, True

    def busy(path: Path) -> None:
        if held and path.name in ("1", "partial-1-old"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, *a, **k: (busy(Path(path)), remove(path, *a, **k)))
        if call == "rename":
            patch.setattr(Path, "rename", lambda path, to: (busy(path), rename(path, to))[1])
        for generation in (1, 2, 3, 4):
            checkpoint.save(tmp_path, generation, {"a": jnp.full(3, generation)}, {})
    assert "could not be removed (Device or resource busy)" in capsys.readouterr().err
    assert {2} & set(checkpoint.generations(tmp_path)) == set()
    held = False
    checkpoint.save(tmp_path, 5, {"a": jnp.full(3, 5)}, {})
    checkpoint.save(tmp_path, 5, {"a": jnp.full(3, 6)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]
    assert checkpoint.restore(tmp_path / "5", {"a": jnp.full(3, 0)})[0]["a"].tolist() == [6, 6, 6]


def fail(error: BaseException) -> Callable[..., Any]:
    def read(*_: Any, **__: Any) -> Any:
        raise error

    return read


DENIED = ValueError("PERMISSION_DENIED: Error opening [source locations='x'] [os_error_code='13']")


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("_read_arrays", MemoryError(), "not enough memory"),
        ("_read_arrays", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "not enough memory"),
        ("_read_arrays", DENIED, "Permission denied"),
        ("_read_arrays", OSError(5, "Input/output error"), "Input/output error"),
        ("read_text", PermissionError(13, "Permission denied"), "Permission denied"),
        ("read_text", OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_checkpoint_that_the_machine_cannot_read_is_not_damaged(
    function: str, error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and the run is as it was: with more memory, or permission, it goes on from there."""
    for generation in (1, 2):
        checkpoint.save(tmp_path, generation, {"a": jnp.arange(3)}, {})
    with monkeypatch.context() as broken:
        broken.setattr(Path if function == "read_text" else checkpoint, function, fail(error))
        with pytest.raises(NotRead) as refusal:
            checkpoint.restore_newest(tmp_path, {"a": jnp.arange(3)}, pytest.fail)
    assert said in str(refusal.value)
    assert str(tmp_path / "2") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    found = checkpoint.restore_newest(tmp_path, {"a": jnp.arange(3)}, pytest.fail)
    assert found is not None
    assert found[0] == 2


@pytest.mark.parametrize("step", ["_read_manifest", "_read_arrays", "_require_checksums"])
@pytest.mark.parametrize("mine", [None, MemoryError(), checkpoint.Damaged("cut")])
def test_a_process_that_cannot_read_tells_the_others(
    step: str, mine: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next step, for which they would wait; who can read gives up with those that cannot."""
    checkpoint.save(tmp_path, 1, {"a": jnp.arange(3)}, {})
    steps = ["_read_manifest", "_read_arrays", "_require_checksums"]
    told: list[int] = []

    def others(number: int) -> int:
        told.append(number)
        return max(number, 3 if len(told) == 1 + steps.index(step) else 0)

    monkeypatch.setattr(checkpoint, "largest", others)
    if mine is not None:
        monkeypatch.setattr(checkpoint, step, fail(mine))
    with pytest.raises(
        NotRead, match="not enough memory" if type(mine) is MemoryError else "another process"
    ):
        checkpoint.restore_newest(tmp_path, {"a": jnp.arange(3)}, pytest.fail)
    own = {type(None): 0, checkpoint.Damaged: 1, MemoryError: 3}[type(mine)]
    assert told == [0] * steps.index(step) + [own]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_checkpoint_without_permission_is_not_damaged(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"a": jnp.arange(3)}, {})
    data = largest_file(tmp_path / "1")
    data.chmod(0)
    with pytest.raises(NotRead, match="Permission denied"):
        checkpoint.restore_newest(tmp_path, {"a": jnp.arange(3)}, pytest.fail)


def test_a_run_continues_from_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = tiny.build(ENV)
    straight = train(method, ENV, env_steps=600, **OPTIONS)
    run = tmp_path / "run"
    train(method, ENV, env_steps=400, run_dir=run, **OPTIONS)
    newest = checkpoint.generations(run / "checkpoints")[0]
    truncate(run / "checkpoints" / str(newest))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"seed": 0, "gener')  # a half-written line
    resumed = train(method, ENV, env_steps=600, run_dir=run, resume=True, **OPTIONS)
    assert "is damaged" in capsys.readouterr().err
    assert resumed.summary["state_sha256"] == state_arrays.digest(straight.state)
    rows = [json.loads(line)["generation"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == straight.history.generation[0].tolist()


def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_records(tmp_path: Path) -> None:
    """It begins again only when it is told to, by removing them."""
    method = tiny.build(ENV)
    first = train(method, ENV, env_steps=120, run_dir=tmp_path, **OPTIONS)
    for generation in checkpoint.generations(tmp_path / "checkpoints"):
        (tmp_path / "checkpoints" / str(generation) / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        Refused, match=r"has no intact checkpoint .* remove that directory and rerun with --resume"
    ):
        train(method, ENV, env_steps=120, run_dir=tmp_path, resume=True, **OPTIONS)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "checkpoints")
    again = train(method, ENV, env_steps=120, run_dir=tmp_path, resume=True, **OPTIONS)
    assert again.summary["state_sha256"] == first.summary["state_sha256"]
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == len(first.evaluations)
