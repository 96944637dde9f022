"""`roboserve score`: how far a clip gets at a task, by a reward model, as numbers, a plot and a film."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clients.errors import RoboserveError
from finetune.bars import progress_bars
from finetune.relabel.config import Plan
from finetune.rewards.judges import open_judge
from finetune.rewards.plots import clip_curve
from roboserve.credentials import api_key
from roboserve.film import CurvePanel, short_title, write_film
from roboserve.model_choice import REWARD, chosen_model
from serving.clips import ClipLimits, clip_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from finetune.relabel.labeller import Labels, ModelFacts

LIMITS = ClipLimits(frames=1024, pixels=4096 * 4096)
_MOST_BYTES = 2**29
_ROWS = 12
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class ScoreCommand:
    """One clip as the command line gives it."""

    video: Path
    task: str
    model: str | None
    server: str | None
    fps: float | None
    mode: str
    frame_policy: str | None
    out: Path | None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A clip's values; `seconds` is the time of each."""

    facts: ModelFacts
    plan: Plan
    labels: Labels
    seconds: NDArray[np.float64]
    frames: int
    fps: float


def run(command: ScoreCommand, key_file: Path | None) -> int:
    """Ask, print the values and write the files; return the exit code."""
    console = Console()
    try:
        if not command.task.strip():
            raise RoboserveError("invalid_request", "task: empty")
        clip = _Clip(command.video, command.fps)
        with console.status("asking the model"):
            scored = _score(command, clip, api_key(key_file))
        out = command.out or Path("runs") / time.strftime("score-%Y%m%d-%H%M%S")
        _write(out, command, clip, scored)
    except (RoboserveError, OSError, ValueError) as error:
        console.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        return 1
    _print(console, command, scored)
    console.print(f"{out}: values.json, curve.png, film.mp4", highlight=False, soft_wrap=True)
    return 0


class _Clip:
    """A video file, decoded as often as it is needed, frame by frame.

    Args:
        fps: frames a second that are taken; None, or more than it has, for all.

    Raises:
        RoboserveError: `invalid_image` for a file that is no mp4 video, `too_large`.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise RoboserveError("too_large", f"video: {path.name} has {size} bytes, limit {_MOST_BYTES}")
        rate = _rate(path)
        self._path, self._data = path, path.read_bytes()
        self._sampling = fps if fps is not None and fps < rate else None
        self.fps = self._sampling or rate

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Decode; raises as the class, for a video that has no frames or too many of them too."""
        try:
            yield from clip_frames({"video": self._data, "fps": self._sampling}, field=self._path.name, limits=LIMITS)
        except RoboserveError as error:
            if error.code != "too_large":
                raise
            raise RoboserveError("too_large", f"{error.message}; a lower --fps takes fewer of its frames") from error


def _rate(path: Path) -> float:
    """Return a video's frames a second."""
    import av

    try:
        with av.open(str(path), format="mp4") as container:
            stream = next(iter(container.streams.video), None)
            rate = float((stream and stream.average_rate) or 0.0)
    except (av.FFmpegError, ValueError) as error:
        raise RoboserveError("invalid_image", f"video: {path.name} is no mp4 video that can be decoded") from error
    if rate <= 0.0:
        raise RoboserveError("invalid_image", f"video: {path.name} has no frames in time")
    return rate


def _score(command: ScoreCommand, clip: _Clip, key: str | None) -> Scored:
    with closing(open_judge(chosen_model(command.model, command.server, REWARD), api_key=key)) as judge:
        policy = command.frame_policy or judge.facts.frame_policy
        plan = Plan(mode=command.mode, frame_policy=policy)
        rows = judge.keep(clip.frames())
        labels = judge.curve(command.task, rows, plan)
        return Scored(
            facts=judge.facts,
            plan=plan,
            labels=labels,
            seconds=labels.frames / clip.fps,
            frames=len(rows),
            fps=clip.fps,
        )


def _write(out: Path, command: ScoreCommand, clip: _Clip, scored: Scored) -> None:
    out.mkdir(parents=True, exist_ok=True)
    labels = scored.labels
    (out / "values.json").write_text(json.dumps(_map(command, scored), indent=2) + "\n", "utf-8")
    figure = clip_curve(scored.seconds, labels.progress, labels.success, short_title(command.task))
    figure.savefig(out / "curve.png", dpi=150, facecolor="white")
    panel = CurvePanel(command.task, scored.seconds, labels.progress, labels.success)
    with progress_bars() as bars:
        bar = bars.add_task("film", total=scored.frames, note="")
        write_film(
            out / "film.mp4",
            clip.frames(),
            panel,
            fps=scored.fps,
            report=lambda done: bars.update(bar, completed=done),
        )


def _map(command: ScoreCommand, scored: Scored) -> dict[str, Any]:
    labels = scored.labels
    success = [None] * len(labels.frames) if labels.success is None else [round(float(x), 5) for x in labels.success]
    return {
        "video": command.video.name,
        "task": command.task,
        "model": scored.facts.to_map(),
        "mode": scored.plan.mode,
        "frame_policy": scored.plan.frame_policy,
        "fps": scored.fps,
        "frames": scored.frames,
        "values": [
            {"frame": int(frame), "seconds": round(float(at), 3), "progress": round(float(value), 5), "success": done}
            for frame, at, value, done in zip(labels.frames, scored.seconds, labels.progress, success, strict=True)
        ],
    }


def _print(console: Console, command: ScoreCommand, scored: Scored) -> None:
    facts, labels = scored.facts, scored.labels
    console.print(f"{facts.id} revision {facts.revision} ({facts.content_hash[:12]}), {facts.dtype}", highlight=False)
    console.print(
        f"{command.video.name}: {scored.frames} frames at {scored.fps:g} a second, {scored.plan.mode}, "
        f"{scored.plan.frame_policy}",
        highlight=False,
    )
    table = Table("second", "frame", "progress", "success")
    count = len(labels.frames)
    for at in sorted({round(x) for x in np.linspace(0, count - 1, min(count, _ROWS))}):
        done = "-" if labels.success is None else f"{labels.success[at]:.3f}"
        table.add_row(f"{scored.seconds[at]:.1f}", str(labels.frames[at]), f"{labels.progress[at]:.3f}", done)
    console.print(table)
    console.print(f"progress {sparkline(labels.progress)} {labels.progress[-1]:.2f}", highlight=False)
    if labels.success is not None:
        console.print(f"success  {sparkline(labels.success)} {labels.success[-1]:.2f}", highlight=False)


def sparkline(values: NDArray[np.float32], width: int = 60) -> str:
    """Return values of 0 to 1 as a line of blocks, at most `width` of them, each the mean of its stretch."""
    parts = np.array_split(values, min(width, len(values)))
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(float(part.mean()) * len(_BLOCKS)))] for part in parts)
