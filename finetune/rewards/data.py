"""Frames and episodes for training: decoded once from LeRobot v3 datasets, with what is known of each episode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finetune.bc.frames import Frames, load_frames
from models.rewards.episodes import EpisodeInfo
from robot_client.dataset import DatasetReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from robot_client.dataset import Episode


@dataclass(frozen=True, kw_only=True)
class RewardFrames:
    """All frames of some datasets and the table of their episodes.

    Attributes:
        frames: pixels and state; `starts`: int64 (episodes,), first frame of each.
        episodes: what the sampler knows of each; `kinds`: how each was made, "" where the dataset does not say.
    """

    frames: Frames
    starts: NDArray[np.int64]
    episodes: tuple[EpisodeInfo, ...]
    kinds: tuple[str, ...]

    def rows(self, episode: int, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return where frames of an episode lie in `frames`."""
        return np.asarray(self.starts[episode] + np.asarray(indices, dtype=np.int64))


def load_reward_frames(
    folders: Mapping[str, Path],
    image_size: int,
    cache: Path,
    *,
    cutoffs: Mapping[str, float],
    split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RewardFrames:
    """Read datasets.

    Args:
        folders: data source to its LeRobot v3 dataset; one dataset holds one task's episodes, or its episodes' texts
            tell tasks apart.
        cutoffs: share of an episode after which its task is done, for each source.
        split: keep only the episodes whose extra column `split` says so.
        progress: told (episodes decoded, episodes in all).

    Raises:
        ValueError: a source has no cutoff, or a quality label is unknown.
        RoboserveError: a dataset is damaged.
    """
    missing = sorted(set(folders) - set(cutoffs))
    if missing:
        raise ValueError(
            f"cutoffs: {', '.join(missing)} have none; say after which share of an episode its task is done (1.0 "
            "when it ends with the task)"
        )
    frames = load_frames(list(folders.values()), image_size, cache, progress=progress)
    starts: list[int] = []
    infos: list[EpisodeInfo] = []
    kinds: list[str] = []
    at = 0
    for source, folder in folders.items():
        for episode in DatasetReader(folder).episodes:
            extra = episode.extra
            if split is None or extra.get("split") == split:
                starts.append(at)
                kinds.append(str(extra.get("kind", "")))
                infos.append(episode_info(episode, source=source, cutoff=cutoffs[source]))
            at += episode.length
    return RewardFrames(
        frames=frames, starts=np.asarray(starts, dtype=np.int64), episodes=tuple(infos), kinds=tuple(kinds)
    )


def episode_info(episode: Episode, *, source: str, cutoff: float, frames: int | None = None) -> EpisodeInfo:
    """Return what the sampler must know of an episode, read off the extra columns of the episodes table.

    They are `quality` ("successful", "suboptimal" or "failure"), or else `success` (true or false), or else the episode
    is a success, as demonstrations are; `partial_success` (0 to 1) where it was judged; `environment`, the task's key
    where the text is not.

    Args:
        frames: of the episode as it is shown; None for all of its own.

    Raises:
        ValueError: the quality is unknown, or the episode has no text.
    """
    extra = episode.extra
    if not episode.tasks:
        raise ValueError(f"{source}: episode {episode.index}: it has no task text")
    default = "successful" if extra.get("success", True) else "failure"
    quality = str(extra.get("quality", default))
    if quality not in ("successful", "suboptimal", "failure"):
        raise ValueError(f"{source}: episode {episode.index}: quality {quality!r} is unknown")
    partial = extra.get("partial_success")
    return EpisodeInfo(
        task=str(extra.get("environment", episode.tasks[0])),
        instruction=episode.tasks[0],
        quality=quality,  # type: ignore[arg-type]
        length=episode.length if frames is None else frames,
        source=source,
        cutoff=cutoff,
        partial_success=None if partial is None or math.isnan(partial) else float(partial),
    )
