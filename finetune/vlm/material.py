"""Frames of all tasks, read from what `collect` wrote, and what may be asked about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from models.hamster.path import Path as GripperPath
from models.hamster.simplify import simplified

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TIE = 0.05
"""Two states whose progress differs by less than this are not to be told apart."""
_INSIDE = 0.99
"""Largest coordinate that is taught: two decimals of it are one token."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameInfo:
    """What is known of a frame.

    Attributes:
        task, kind, looks: see `collect`; `scene`, `group`: frames that share both show one scene in one look.
        progress: see `episodes.Frame`.
        way: the whole rest of the expert's way; None after success.
        path: the same, simplified, as it is taught.
    """

    task: str
    kind: str
    looks: str
    scene: int
    group: int
    progress: float
    way: GripperPath | None
    path: GripperPath | None


class Frames:
    """Frames and what is known of them.

    Args:
        images: one uint8 (n, s, s, 3) for each task, maybe memory-mapped; `infos`: of the frames kept, in order.
        rows: (index into `images`, row in it) of each.
    """

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        infos: Sequence[FrameInfo],
        rows: Sequence[tuple[int, int]],
    ) -> None:
        self._images, self.infos, self._rows = images, tuple(infos), tuple(rows)

    def __len__(self) -> int:
        return len(self.infos)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return a frame, uint8 (s, s, 3)."""
        part, row = self._rows[index]
        return np.asarray(self._images[part][row])

    def kept(self, wanted: Callable[[FrameInfo], bool]) -> Frames:
        """Return the frames that are wanted."""
        chosen = [index for index, info in enumerate(self.infos) if wanted(info)]
        return Frames(self._images, [self.infos[index] for index in chosen], [self._rows[index] for index in chosen])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(dict.fromkeys(info.task for info in self.infos))


def load_frames(folder: Path, tasks: Sequence[str], split: str) -> Frames:
    """Read frames of some tasks.

    Raises:
        FileNotFoundError: a task was not collected, or not to its end.
    """
    images: list[NDArray[np.uint8]] = []
    infos: list[FrameInfo] = []
    rows: list[tuple[int, int]] = []
    for number, task in enumerate(tasks):
        if not (folder / task / "whole.json").is_file():
            raise FileNotFoundError(
                f"frames: {task} is not collected, or not to its end; `python -m finetune.vlm collect`"
            )
        images.append(np.load(folder / task / "images.npy", mmap_mode="r", allow_pickle=False))
        points = np.load(folder / task / "points.npy", allow_pickle=False)
        opens = np.load(folder / task / "opens.npy", allow_pickle=False)
        at = 0
        for row, line in enumerate((folder / task / "frames.jsonl").read_text("utf-8").splitlines()):
            found = json.loads(line)
            end = at + found["points"]
            if found["split"] == split:
                infos.append(_info(task, found, points[at:end], opens[at:end]))
                rows.append((number, row))
            at = end
    return Frames(images, infos, rows)


def _info(task: str, found: dict[str, Any], points: NDArray[np.float32], opens: NDArray[np.bool_]) -> FrameInfo:
    way = path = None
    if len(points):
        way = GripperPath(points=np.minimum(points.astype(np.float64), _INSIDE), gripper_open=opens)
        path = simplified(way)
    return FrameInfo(
        task=task,
        kind=found["kind"],
        looks=found["looks"],
        scene=found["scene"],
        group=found["group"],
        progress=found["progress"],
        way=way,
        path=path,
    )


def moved(path: GripperPath, matrix: NDArray[np.float64]) -> GripperPath | None:
    """Return a path under an affine map of normalised coordinates, float64 (2, 3); None if it leaves the image."""
    points = path.points @ matrix[:, :2].T + matrix[:, 2]
    if points.min() < 0.0 or points.max() > _INSIDE:
        return None
    return replace(path, points=points)


NOWHERE = GripperPath(points=np.array([[0.5, 0.5]]), gripper_open=np.array([False]))
"""Stands where there is no way, and is told apart by whoever asks."""
