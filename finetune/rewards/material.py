"""What an evaluation looks at: rollouts of known quality from LeRobot v3 datasets, task by task."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clients.errors import RoboserveError
from models.rewards.metrics import QUALITIES
from robot_client.dataset import DatasetReader
from robot_client.dataset_layout import INFO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from robot_client.dataset import Episode

BEST = QUALITIES[-1]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout.

    Attributes:
        task: name of its task; `instruction`: the words it followed.
        quality: "failure", "suboptimal" or "successful"; `kind`: how it came about, "" where the dataset does not say.
        success: whether its task was done.
        dataset: name of the dataset's folder.
    """

    task: str
    instruction: str
    quality: str
    kind: str
    success: bool
    dataset: str
    camera: str
    reader: DatasetReader
    episode: Episode

    @property
    def length(self) -> int:
        """Frames."""
        return self.episode.length

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Decode the frames, each RGB uint8 (h, w, 3); raises as `DatasetReader.images`."""
        return self.reader.images(self.episode, self.camera)


@dataclass(frozen=True, kw_only=True)
class Material:
    """All rollouts of an evaluation, in order of task.

    Attributes:
        instructions: task to the wording that stands for it where a video of another task is judged by it.
    """

    rollouts: tuple[Rollout, ...]
    instructions: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.instructions)

    def to_map(self) -> dict[str, Any]:
        """Return what pins the rollouts and the words they are judged by, as plain values."""
        rollouts = [
            [str(each.reader.root.resolve()), each.episode.index, each.length, each.camera, each.instruction]
            for each in self.rollouts
        ]
        return {"rollouts": rollouts, "instructions": dict(self.instructions)}

    def of(self, task: str, *, quality: str | None = None) -> list[int]:
        """Return the indices of a task's rollouts."""
        return [
            index
            for index, rollout in enumerate(self.rollouts)
            if rollout.task == task and quality in (None, rollout.quality)
        ]


def load_material(
    paths: Sequence[Path], *, split: str = "validation", limit: int | None = None, camera: str | None = None
) -> Material:
    """List the rollouts of datasets.

    Args:
        paths: LeRobot v3 datasets, or folders of these; in a dataset of one task the folder's name is the task's.
        split: keep the episodes whose extra column `split` says so; a dataset without that column is taken whole.
        limit: most rollouts of each task, taken from the qualities in turn.
        camera: which to look through; may be left out where there is one.

    Raises:
        RoboserveError: `invalid_request` naming the folder and what is missing.
    """
    rollouts = [rollout for folder in _folders(paths) for rollout in _rollouts(folder, split, camera)]
    tasks = dict.fromkeys(rollout.task for rollout in rollouts)
    chosen: list[Rollout] = []
    instructions: dict[str, str] = {}
    for task in tasks:
        own = [rollout for rollout in rollouts if rollout.task == task]
        instructions[task] = Counter(rollout.instruction for rollout in own).most_common(1)[0][0]
        chosen += own if limit is None else _in_turns(own, limit)
    return Material(rollouts=tuple(chosen), instructions=instructions)


def _folders(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inner = [path] if (path / INFO).is_file() else sorted(folder.parent.parent for folder in path.glob(f"*/{INFO}"))
        if not inner:
            raise RoboserveError("invalid_request", f"data: {path} is no LeRobot v3 dataset and holds none")
        found += inner
    if not found:
        raise RoboserveError("invalid_request", "data: none given")
    twice = [name for name, count in Counter(path.resolve() for path in found).items() if count > 1]
    if twice:
        raise RoboserveError("invalid_request", f"data: {twice[0]} comes twice")
    return found


def _rollouts(folder: Path, split: str, camera: str | None) -> list[Rollout]:
    reader = DatasetReader(folder)
    cameras = tuple(reader.info.cameras)
    if (camera is None and len(cameras) != 1) or (camera is not None and camera not in cameras):
        text = f"camera: {camera or 'none chosen'}; the dataset {folder.name} has {', '.join(cameras) or 'none'}"
        raise RoboserveError("invalid_request", text)
    splits = {str(episode.extra["split"]) for episode in reader.episodes if episode.extra.get("split") is not None}
    if splits and split not in splits:
        text = f"split: {split!r:.40} is not in the dataset {folder.name}; it has {', '.join(sorted(splits))}"
        raise RoboserveError("invalid_request", text)
    episodes = [episode for episode in reader.episodes if not splits or episode.extra.get("split") == split]
    keys = {_key(episode) for episode in episodes}
    return [
        Rollout(
            task=folder.name if len(keys) == 1 else _key(episode),
            instruction=episode.tasks[0],
            quality=_quality(folder, episode),
            kind=str(episode.extra.get("kind") or ""),
            success=_success(folder, episode),
            dataset=folder.name,
            camera=camera or cameras[0],
            reader=reader,
            episode=episode,
        )
        for episode in episodes
    ]


def _key(episode: Episode) -> str:
    return str(episode.extra.get("environment") or episode.tasks[0])


def _quality(folder: Path, episode: Episode) -> str:
    given = episode.extra.get("quality")
    if given is None:
        return BEST if _success(folder, episode) else QUALITIES[0]
    if given not in QUALITIES:
        text = f"quality: {given!r:.40} of episode {episode.index} of {folder.name}; known are {', '.join(QUALITIES)}"
        raise RoboserveError("invalid_request", text)
    return str(given)


def _success(folder: Path, episode: Episode) -> bool:
    success, quality = episode.extra.get("success"), episode.extra.get("quality")
    if success is None and quality is None:
        raise RoboserveError(
            "invalid_request",
            f"data: episode {episode.index} of {folder.name} has neither success nor quality, so its worth is unknown",
        )
    return bool(success) if success is not None else quality == BEST


def _in_turns(rollouts: Sequence[Rollout], limit: int) -> list[Rollout]:
    piles = [[rollout for rollout in rollouts if rollout.quality == quality] for quality in reversed(QUALITIES)]
    order = [pile[at] for at in range(max(map(len, piles))) for pile in piles if at < len(pile)][:limit]
    return [rollout for rollout in rollouts if any(rollout is kept for kept in order)]
