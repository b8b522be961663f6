"""Pictures of gymnax tasks, drawn by its visualizer, which uses Gymnasium for classic control."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from popjax.core import PyTree
from popjax.host.errors import Refused


def drawer(task: str, options: Mapping[str, Any]) -> Callable[[PyTree], Iterator[np.ndarray]]:
    """Return ``states [T, ...] -> frames uint8 [H, W, 3]`` of a gymnax task made with ``options``.

    Raises:
        Refused: gymnax cannot draw the task, or a package for drawing is missing.
    """
    from popjax.envs import gymnax

    original, params = gymnax.load(task, **options)

    def draw(states: PyTree) -> Iterator[np.ndarray]:
        states = jax.device_get(states)
        times = range(len(jax.tree.leaves(states)[0]))
        yield from _frames(original, params, [jax.tree.map(lambda x, t=t: x[t], states) for t in times])

    first = jax.tree.map(lambda x: np.asarray(x)[None], original.reset_env(jax.random.key(0), params)[1])
    next(draw(first))  # refuse now if it cannot be drawn
    return draw


def _frames(original: Any, params: Any, states: list[Any]) -> Iterator[np.ndarray]:
    # pygame prints a greeting on standard output, and needs a sound card and a screen.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    from gymnasium.error import DependencyNotInstalled
    from gymnax.visualize import Visualizer
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = Visualizer(original, params, states)
    try:
        canvas = FigureCanvasAgg(picture.fig)
        picture.init()
        if not hasattr(picture, "im"):
            raise Refused(f"gymnax cannot draw {original.name}: leave out --video")
        for t in range(len(states)):
            picture.update(t)
            picture.ax.set_title("")  # a frame count, wrong in a film that skips frames
            canvas.draw()
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
    except DependencyNotInstalled as absent:
        raise Refused("--video of classic control needs pygame: pip install 'popjax[video]'") from absent
    finally:
        pyplot.close(picture.fig)
