"""A video with a reward model's values drawn beside its frames, growing as it plays."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from finetune.rewards.plots import INK, PROGRESS, SUCCESS, clip_axes
from robot_client.video import VideoEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_HEIGHT, _PANEL_WIDTH, _DPI = 480, 640, 100
_TITLE_CHARS, _TITLE_LINES = 52, 2


class CurvePanel:
    """The plot beside the frames.

    Args:
        title: what the clip is judged by.
        seconds: (n,) time of each value; `progress`, `success`: (n,), 0 to 1.
    """

    def __init__(
        self,
        title: str,
        seconds: NDArray[np.float64],
        progress: NDArray[np.float32],
        success: NDArray[np.float32] | None,
    ) -> None:
        self._seconds = seconds
        figure = Figure(figsize=(_PANEL_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.13, 0.86, 0.58))
        clip_axes(axes, seconds, "")
        axes.tick_params(labelsize=11)
        axes.set_xlabel("seconds", fontsize=12, color=INK)
        axes.set_ylabel("")
        figure.text(0.04, 0.96, short_title(title), fontsize=13, color=INK, va="top", weight="bold")
        self._lines: list[tuple[str, NDArray[np.float32], Any, Any]] = []
        given = [("progress", progress, PROGRESS), *([("success", success, SUCCESS)] if success is not None else [])]
        for place, (name, values, colour) in enumerate(given):
            axes.plot(seconds, values, color=colour, linewidth=1.2, alpha=0.18)
            (line,) = axes.plot([], [], color=colour, linewidth=2.6, marker="o", markevery=[-1], markersize=8)
            text = figure.text(0.1 + 0.45 * place, 0.75, "", fontsize=19, color=colour, weight="bold")
            self._lines.append((name, values, line, text))

    def draw(self, second: float) -> NDArray[np.uint8]:
        """Return the panel as it stands at a time, uint8 (height, width, 3); before the first value it is empty."""
        count = int(np.searchsorted(self._seconds, second + 1e-6, side="right"))
        for name, values, line, text in self._lines:
            line.set_data(self._seconds[:count], values[:count])
            line.set_marker("o" if count else "")
            text.set_text(f"{name} {values[count - 1]:.2f}" if count else name)
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()


def write_film(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    panel: CurvePanel,
    *,
    fps: float,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Write an mp4: each frame, brought to one height, and the panel at its time.

    Args:
        frames: RGB uint8 (h, w, 3), at even steps of time.
        report: told how many frames are written.
    """
    encoder: VideoEncoder | None = None
    for index, frame in enumerate(frames):
        picture = np.concatenate([at_height(frame, _HEIGHT), panel.draw(index / fps)], axis=1)
        if encoder is None:
            encoder = VideoEncoder(path, fps=fps, size=(picture.shape[0], picture.shape[1]))
        encoder.add(picture)
        report(index + 1)
    if encoder is not None:
        encoder.close()


def at_height(frame: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Resize a frame to a height, its width to the even number that keeps its shape best."""
    width = max(2, 2 * round(frame.shape[1] * height / frame.shape[0] / 2))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def short_title(text: str) -> str:
    """Return a text in two lines at most, cut with an ellipsis where it is longer."""
    return "\n".join(textwrap.wrap(text, _TITLE_CHARS, max_lines=_TITLE_LINES, placeholder=" ..."))
