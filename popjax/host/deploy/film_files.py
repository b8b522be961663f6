"""Files of films: MP4, which ffmpeg encodes, and GIF."""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from popjax.core import PyTree
from popjax.host.errors import Refused

Write: TypeAlias = Callable[[Path, PyTree, float], None]
"""``(path, poses [T, ...], seconds between them) -> None``; draws the poses and writes the file."""
Draw: TypeAlias = Callable[[np.ndarray], Iterator[np.ndarray]]
"""``poses [T, nq or more] -> frames uint8 [H, W, 3]``"""

_CODEC = "libx264"
_PATIENCE = 60  # seconds that ffmpeg may take to encode a frame


def writer(draw: Draw, path: Path) -> Write:
    """Return the writer of the frames of ``draw`` as MP4 or GIF.

    Raises:
        Refused: ``path`` needs a package that is missing, or an encoder that ffmpeg lacks.
    """
    if path.suffix == ".gif":
        return lambda path, poses, seconds: _write_gif(path, draw(poses), seconds)
    imageio = _imageio()
    return lambda path, poses, seconds: _write_mp4(imageio, path, draw(poses), seconds)


def _write_gif(path: Path, frames: Iterator[np.ndarray], seconds: float) -> None:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    ends = np.round(100 * seconds * np.arange(len(rest) + 2)).astype(int)  # hundredths of a second
    times = (10 * np.diff(ends)).tolist()
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)


def _write_mp4(imageio: Any, path: Path, frames: Iterator[np.ndarray], seconds: float) -> None:
    options = {"codec": _CODEC, "quality": 7, "macro_block_size": 2}
    with warnings.catch_warnings():
        # JAX warns of forks; this one is harmless, since it executes ffmpeg at once.
        warnings.filterwarnings("ignore", "os.fork")
        try:
            with imageio.get_writer(path, fps=1 / seconds, **options) as film:
                for frame in frames:
                    film.append_data(frame)
        except OSError as failure:  # its message has several lines
            raise OSError(f"ffmpeg failed to write {path}: {str(failure).splitlines()[0]}") from failure


def _imageio() -> Any:
    """Return imageio, whose ffmpeg can encode."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg
    except ImportError as absent:
        raise Refused(
            f"--video needs {absent.name} for .mp4: pip install 'popjax[video]', or write a .gif"
        ) from absent
    try:
        reason = _refusal(imageio_ffmpeg.get_ffmpeg_exe())
    except (OSError, RuntimeError, subprocess.SubprocessError) as failure:  # it is missing or does not answer
        reason = str(failure)
    if reason:
        raise Refused(
            f"--video found no ffmpeg that writes H.264 ({' '.join(reason.split())}): pip install"
            " --force-reinstall --no-deps imageio-ffmpeg, which brings one, with IMAGEIO_FFMPEG_EXE unset, or"
            " write a .gif"
        )
    return imageio


def _refusal(ffmpeg: str) -> str:
    """Return why ``ffmpeg`` cannot encode a black frame, its last line; empty if it can."""
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-i", "-"]
    wanted = ["-pix_fmt", "yuv420p", "-vcodec", _CODEC, "-f", "null", "-"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "os.fork")
        done = subprocess.run(
            [ffmpeg, "-v", "error", *given, *wanted],
            input=bytes(64 * 64 * 3),
            capture_output=True,
            timeout=_PATIENCE,
        )
    said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{ffmpeg}: {said[-1]}" if done.returncode else ""
