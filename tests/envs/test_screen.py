"""The playing field of an Atari screen."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from popjax.envs.atari.screen import playing_field


def test_only_the_playing_field_counts():
    """A screen that is white there is all ones, whatever surrounds it."""
    white = np.zeros((210, 160, 3), np.uint8)
    white[34:194] = 255
    assert playing_field(jnp.asarray(white)).shape == (42, 42, 1)
    np.testing.assert_array_equal(playing_field(jnp.asarray(white)), 1)
    noise = np.random.default_rng(0).integers(0, 256, white.shape, np.uint8)
    other = noise.copy()
    other[:34], other[194:] = 0, 99
    np.testing.assert_array_equal(*(playing_field(jnp.asarray(x)) for x in (noise, other)))
    for row in (34, 193):
        inside = noise.copy()
        inside[row] ^= 128
        assert (playing_field(jnp.asarray(noise)) != playing_field(jnp.asarray(inside))).any()


def bilinear(image, size):
    """Pixel by pixel: the four around each centre, rounded."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * height / size - 0.5, (j + 0.5) * width / size - 0.5
            top, left = int(y), int(x)
            dy, dx = y - top, x - left
            around = image[top : top + 2, left : left + 2]
            out[i, j] = np.array([1 - dy, dy]) @ around @ np.array([1 - dx, dx])
    return np.floor(out + 0.5)


def test_frames_are_reduced_twice_by_bilinear_interpolation():
    screen = np.random.default_rng(1).integers(0, 256, (210, 160, 3), np.uint8)
    colours = [bilinear(bilinear(screen[34:194, :, c].astype(float), 80), 42) for c in range(3)]
    expected = np.mean(colours, 0) / 255
    found = np.asarray(playing_field(jnp.asarray(screen)))[..., 0]
    # A sum that lies halfway between two numbers may be rounded to either.
    assert np.abs(found - expected).max() <= 1.01 / 255
    assert (np.abs(found - expected) < 1e-5).mean() > 0.99
