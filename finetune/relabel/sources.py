"""Where episodes come from: a LeRobot v3 dataset, or a folder of mp4 files."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from robot_client.dataset import DatasetReader
from robot_client.dataset_layout import IMAGE_PREFIX, INFO
from robot_client.video import read_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from robot_client.dataset import Episode

FOLDER_CAMERA = "video"
"""Name of the one camera of a folder of mp4 files."""
_GENERIC = frozenset(
    (
        *("task", "the task", "a task", "my task", "no task", "single task", "default task", "default", "instruction"),
        *("do the task", "perform the task", "complete the task", "do something", "robot task", "todo", "tbd"),
        *("episode", "robot episode", "recording", "demo", "demonstration", "teleop", "teleoperation", "test"),
        *("unknown", "untitled", "none", "null", "nan", "n/a", "na"),
    )
)


@dataclass(frozen=True, kw_only=True)
class View:
    """Where one camera's frames of an episode lie.

    Attributes:
        start_s: time in the file at which the episode begins; None where it is the whole file.
    """

    camera: str
    path: str
    start_s: float | None
    fps: float

    def digest(self, frames: int) -> str:
        """Return the SHA-256 of what the frames are decoded from, hex.

        Of a shared file it covers the episode's own packets, so that an episode appended to the file changes nothing
        for those before it.

        Raises:
            RoboserveError: `invalid_request` where the file is missing or damaged.
        """
        if not Path(self.path).is_file():
            raise RoboserveError("invalid_request", f"dataset: the video {Path(self.path).name} is missing")
        if self.start_s is None:
            with Path(self.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return _span_digest(self, self.start_s, frames)

    def read(self, frames: int) -> Iterator[NDArray[np.uint8]]:
        """Decode `frames` frames, each uint8 (h, w, 3), RGB.

        Raises:
            RoboserveError: `invalid_request` where the file is damaged or ends too early.
        """
        return read_frames(Path(self.path), start=self.start_s or 0.0, count=frames, fps=self.fps)


@dataclass(frozen=True, kw_only=True)
class EpisodeItem:
    """One episode, as the job's rows carry it.

    Attributes:
        first_frame: index of its first frame in the whole dataset.
        fault: why it cannot be labelled, known before any work; "" for nothing.
    """

    index: int
    first_frame: int
    frames: int
    instruction: str
    views: tuple[View, ...]
    fault: str = ""

    def to_json(self) -> str:
        """Return the row."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EpisodeItem:
        """Read the row."""
        raw = json.loads(text)
        return cls(**{**raw, "views": tuple(View(**view) for view in raw["views"])})


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset's episodes, as far as a job needs them.

    Attributes:
        files: of a folder, the file of each episode by its index; empty for a LeRobot dataset.
    """

    items: tuple[EpisodeItem, ...]
    cameras: tuple[str, ...]
    files: tuple[str, ...] = ()


def open_source(root: Path, *, cameras: Sequence[str] = (), task: str | None = None) -> Source:
    """List the episodes of a dataset.

    Args:
        cameras: names or full keys (`observation.images.NAME`); may be left out where there is one.
        task: instruction for all episodes in place of their own.

    Raises:
        RoboserveError: `invalid_request` naming the file, the camera, or that there is nothing to label.
    """
    if (root / INFO).is_file():
        return _lerobot(root, cameras, task)
    paths = sorted(path for path in root.rglob("*.mp4") if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise RoboserveError("invalid_request", f"dataset: {root.name} has neither {INFO} nor mp4 files")
    if any(name != FOLDER_CAMERA for name in cameras):
        raise RoboserveError("invalid_request", f"camera: a folder of mp4 files has one, {FOLDER_CAMERA!r}")
    return _folder(root, paths, task)


def generic_text(items: Sequence[EpisodeItem]) -> str | None:
    """Return the instruction that all episodes share where it says nothing of what is to be done, else None."""
    texts = {item.instruction.strip() for item in items}
    if len(items) < 2 or len(texts) != 1:
        return None
    text = texts.pop()
    plain = text.lower().rstrip(".!")
    return text if plain in _GENERIC or len(plain.split()) < 2 or len(plain) < 6 else None


def _lerobot(root: Path, wanted: Sequence[str], task: str | None) -> Source:
    reader = DatasetReader(root)
    cameras = _chosen(tuple(reader.info.cameras), [name.removeprefix(IMAGE_PREFIX) for name in wanted])

    def view(episode: Episode, camera: str) -> View:
        path, start = reader.video(episode, camera)
        return View(camera=camera, path=str((root / path).resolve()), start_s=start, fps=reader.info.fps)

    items = tuple(
        EpisodeItem(
            index=episode.index,
            first_frame=episode.start,
            frames=episode.length,
            instruction=task or "; ".join(episode.tasks),
            views=tuple(view(episode, camera) for camera in cameras),
        )
        for episode in reader.episodes
    )
    if not items:
        raise RoboserveError("invalid_request", "dataset: it has no episodes")
    return Source(items=items, cameras=cameras)


def _chosen(known: tuple[str, ...], wanted: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        text = f"camera: {', '.join(unknown)} not in the dataset; it has {', '.join(known) or 'none'}"
        raise RoboserveError("invalid_request", text)
    if not wanted and len(known) != 1:
        text = f"camera: name one or more; the dataset has {', '.join(known) or 'none'}"
        raise RoboserveError("invalid_request", text)
    return tuple(wanted) or known


def _folder(root: Path, paths: Sequence[Path], task: str | None) -> Source:
    items: list[EpisodeItem] = []
    first = 0
    for index, path in enumerate(paths):
        frames, fps, fault = _probe(path)
        words = path.with_suffix(".txt")
        instruction = task or (words.read_text("utf-8").strip() if words.is_file() else "")
        view = View(camera=FOLDER_CAMERA, path=str(path.resolve()), start_s=None, fps=fps)
        items.append(
            EpisodeItem(
                index=index, first_frame=first, frames=frames, instruction=instruction, views=(view,), fault=fault
            )
        )
        first += frames
    files = tuple(path.relative_to(root).as_posix() for path in paths)
    return Source(items=tuple(items), cameras=(FOLDER_CAMERA,), files=files)


def _probe(path: Path) -> tuple[int, float, str]:
    """Return the frames of a video, its rate, and what is wrong with it."""
    av = _import_av()
    try:
        with av.open(str(path), format="mp4") as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            fps = float(stream.average_rate or stream.guessed_rate or 0)
    except (av.FFmpegError, IndexError, OSError):
        return 0, 0.0, f"the video {path.name} cannot be read"
    if not frames or not fps:
        return 0, 0.0, f"the video {path.name} has no frames"
    return int(frames), fps, ""


def _span_digest(view: View, start_s: float, frames: int) -> str:
    av = _import_av()
    found = hashlib.sha256()
    try:
        with av.open(view.path, format="mp4") as container:
            stream = container.streams.video[0]
            context, first = stream.codec_context, int(start_s / stream.time_base)
            found.update(repr((context.name, context.width, context.height, context.pix_fmt, frames)).encode())
            found.update(context.extradata or b"")
            container.seek(max(0, first), stream=stream, backward=True)
            end_s = start_s + (frames - 0.5) / view.fps
            for packet in container.demux(stream):
                if packet.dts is None or packet.pts is None:
                    continue
                if packet.dts * packet.time_base >= end_s:
                    break
                found.update(struct.pack("<qQ", packet.pts - first, packet.size))
                found.update(bytes(packet))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise RoboserveError("invalid_request", f"dataset: the video {Path(view.path).name} cannot be read") from error
    return found.hexdigest()


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise RoboserveError("unavailable", "dataset: PyAV is not installed; install the extra `record`") from error
    return av
