"""Rows in lines, as a TPU keeps them, hold and give the same as rows whose leaves stay apart."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from popjax import cli, tree
from popjax.cli import building
from popjax.host.checkpoints import checkpoint
from popjax.host.errors import Refused
from popjax.population import exchange
from popjax.replay import packed
from popjax.replay.prioritized import prioritized
from popjax.replay.ring import add, draw, latest, merge, newest, ring
from tests.support import equal


@pytest.fixture
def tpu(monkeypatch):
    """Return a function that lays out rows as on a TPU from its call on."""
    return lambda: monkeypatch.setattr(packed, "platform", lambda: "tpu")


def rows(count, width, seed=0):
    """Rows of five dtypes, of one of which there are no numbers."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(count, width)).astype(np.float32),
        "reward": rng.normal(size=count).astype(np.float32),
        "action": rng.integers(9, size=count, dtype=np.int32),
        "pixels": rng.integers(256, size=(count, 2, 3), dtype=np.uint8),
        "done": rng.random(count) < 0.5,
        "none": np.zeros((count, 0), np.float16),
    }


@pytest.mark.parametrize(
    ("width", "lines"),
    [(1, (128, 1)), (9, (128, 9)), (16, (8, 1)), (42, (64, 21)), (128, (1, 1)), (192, (2, 3))],
)
def test_a_block_is_the_fewest_rows_that_fill_lines(width, lines):
    assert packed.block(width) == lines


def test_lines_have_no_gaps():
    """200 rows of 3 + 1 numbers, each 0, 1, 2, ... in order of time, fill 6.25 lines, and the last is 7th."""
    store = packed.lines_of({"x": jnp.arange(800.0).reshape(200, 4)[:, :3], "y": jnp.arange(3.0, 800, 4)})
    assert store.lines["float32"].shape == (7, 128)
    np.testing.assert_array_equal(store.lines["float32"].ravel()[:800], np.arange(800))
    assert not store.lines["float32"].ravel()[800:].any()


def test_large_lines_fill_whole_tiles():
    """8 lines are laid out together, so that a population's are in one piece."""
    assert packed.lines_of(jnp.zeros((1_000_000, 9))).lines["float32"].shape[0] % 8 == 0
    assert packed.lines_of(jnp.zeros((10,))).lines["float32"].shape == (1, 128)


@pytest.mark.parametrize(("capacity", "width", "batch"), [(300, 8, 1), (300, 41, 130), (7, 299, 12)])
def test_lines_read_and_write_as_leaves_do(capacity, width, batch):
    """Batches with gaps, at the beginning, across the end and larger than the store."""
    rng = np.random.default_rng(1)
    valid = [rng.random(batch) < 0.7 for _ in range(3)]
    news = [rows(batch, width, seed) for seed in range(3)]
    held, slots = rows(capacity, width), rng.integers(0, capacity, (4, 5))

    def history(store):
        for position, new, kept in zip((0, 2, capacity - 1), news, valid, strict=True):
            store = packed.put(store, jnp.int32(position), new, jnp.asarray(kept))
        return packed.unpack(store), packed.take(store, slots)

    equal(jax.jit(lambda held: history(packed.lines_of(held)))(held), jax.jit(history)(held))


def test_the_stores_of_a_population_are_unpacked_as_each_of_them():
    """Three stores whose rows do not fill their lines; single rows are read and written under ``vmap``."""
    held = jax.tree.map(lambda *xs: np.stack(xs), *(rows(300, 5, seed) for seed in range(3)))
    stores = jax.vmap(packed.lines_of)(held)
    equal(packed.unpack(stores), held)
    equal(packed.unpack(stores), jax.vmap(packed.unpack)(stores))
    with pytest.raises(AssertionError):
        packed.take(stores, jnp.arange(2))
    with pytest.raises(AssertionError):
        packed.put(stores, jnp.int32(0), rows(2, 5), jnp.ones(2, bool))


def test_a_ring_in_lines_is_the_same_ring(tpu, key):
    """Filled twice over in three replays side by side, read in every way, merged and copied."""
    fields = {name: rows(3 * 5 * 24, 8)[name] for name in ("x", "action")}
    batches = jax.tree.map(lambda x: x.reshape(5, 3, 24, *x.shape[1:]), fields)
    valid = jnp.asarray(np.random.default_rng(0).random((5, 3, 24)) < 0.8)
    kinds = []

    def history():
        store = ring(50)
        empty = store.init(jax.tree.map(lambda x: x[0, 0, 0], batches))
        kinds.append(type(empty.rows))
        filled, _ = jax.lax.scan(
            lambda one, new: (jax.vmap(add)(one, *new), None), tree.repeat(empty, 3), (batches, valid)
        )
        keys = jax.random.split(key, 3)
        merged = jax.vmap(merge)(filled, jax.tree.map(lambda x: x[::-1], filled), keys)
        copied = exchange.copy_replays(filled, jnp.array([2, 1, 1]), 1)

        def read(one, merged, copied, key):
            drawn = store.sample(one, key, 9), draw(one, key, 9), latest(one, 9)
            return drawn, [x.unpacked() for x in (newest(one, 20), merged, copied)], merged.size

        return jax.vmap(read)(filled, merged, copied, keys)

    before = jax.jit(lambda: history())()
    tpu()
    equal(jax.jit(lambda: history())(), before)
    assert kinds == [dict, packed.Lines]


def test_priorities_draw_from_lines(tpu, key):
    def drawn():
        store = prioritized(40)
        state = store.init(jnp.float32(0), 1.0)
        state = store.add(state, jnp.arange(60.0), jnp.ones(60, bool), jnp.arange(60.0))
        return store.sample(state, key, 16)

    before = jax.jit(lambda: drawn())()
    tpu()
    equal(jax.jit(lambda: drawn())(), before)


def test_a_replay_of_another_device_is_refused(tpu, tmp_path):
    row = {"x": jnp.zeros(3)}
    checkpoint.save(tmp_path, 1, ring(5).init(row), {})
    tpu()
    with pytest.raises(
        Refused, match=r"rows\.lines\.float32 is absent in it and float32\[3, 128\] in the State"
    ):
        checkpoint.restore(tmp_path / "1", jax.eval_shape(lambda: ring(5).init(row)))


def test_a_run_of_a_tpu_is_loaded_elsewhere(monkeypatch, tmp_path):
    """The rows of its checkpoint are in lines, which only what writes them must choose."""
    run = tmp_path / "run"
    words = "--env probe/corridor --env-steps 40 --config.agent.hidden 8 --config.capacity 16"
    more = f"--config.batch 4 --config.warmup 4 --run-dir {run}"
    with monkeypatch.context() as there:
        there.setattr(packed, "platform", lambda: "tpu")
        assert cli.run(["independent", *words.split(), *more.split()]) == 0
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"device": "TPU v5 lite"}))
    jax.clear_caches()
    loaded = building.load(run)
    assert isinstance(loaded.state.replay.rows, packed.Lines)
    assert packed.platform() == "cpu"
    (run / "config.json").write_text(json.dumps(config))
    jax.clear_caches()  # what has been traced keeps its layout
    with pytest.raises(Refused, match="rows"):
        building.load(run)


@pytest.mark.parametrize("width", [3, 127, 128])
def test_a_scan_of_bundles_gives_the_rows_of_all_turns(tpu, width):
    tpu()

    def play(bundle, unbundle):
        stack = jax.tree.map(lambda x: jnp.asarray(x).reshape(5, 2, 3, *x.shape[1:]), rows(30, width))
        return unbundle(jax.lax.scan(lambda _, row: (None, bundle(row, lead=(2, 3))), None, stack)[1])

    def apart(row, lead):
        return row

    equal(play(packed.bundle, packed.unbundle), play(apart, lambda rows: rows))
    bundled = packed.bundle(jax.tree.map(jnp.asarray, rows(30, width)), lead=(30,))
    assert bundled.narrow["float32"].shape == (30, width + 1 if width < 128 else 1)
    assert [x.shape for x in bundled.wide] == [(30, 0)] + [(30, 128)] * (width == 128)


def test_wide_rows_are_not_bundled(tpu):
    tpu()
    frames = {"obs": jnp.ones((4, 2, 84, 84), jnp.uint8)}
    equal(packed.unbundle(packed.bundle(frames, lead=(4, 2))), frames)
    assert packed.bundle(frames, lead=(4, 2)).narrow == {}


def test_what_is_not_a_row_of_plain_numbers_is_not_bundled(tpu, key):
    tpu()
    rows = {
        "reward": jnp.ones((2, 3)),
        "discount": jnp.ones(2),
        "weight": jnp.float32(3),
        "rate": 0.5,
        "keys": jax.random.split(key, (2, 3)),
    }
    bundled = packed.bundle(rows, lead=(2, 3))
    assert bundled.narrow["float32"].shape == (2, 3, 1)
    equal(packed.unbundle(bundled), rows)
