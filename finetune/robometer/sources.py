"""What finetuning learns from: LeRobot v3 datasets, decoded once to the frames that the model is shown.

As in the reference, an episode keeps at most 64 frames, spread over its whole length, and one of fewer than five is
left out; each camera makes an episode of its own. A cutoff is asked for each dataset, since a wrong one teaches wrong
progress for all of its episodes: recordings that run on after success would teach that nothing is done until the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from clients.errors import RoboserveError
from finetune.relabel.sources import generic_text, open_source
from finetune.rewards.data import episode_info
from models.folders import files_hash
from models.robometer.images import fitted
from robot_client.dataset import DatasetReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from models.rewards.episodes import EpisodeInfo
    from models.robometer.sampling import ClipPlan

KEPT_FRAMES, SHORTEST = 64, 5


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One dataset.

    Attributes:
        name: what it is called in the run; the sampler takes episodes of one name for alike.
        folder: a LeRobot v3 dataset.
        cutoff: share of an episode after which its task is done, over 0 and at most 1; 1 where episodes end with it.
        cameras: by which it is shown; may be left empty where there is one.
        preference_only: its progress is not trusted, only which of two episodes is better.

    Raises:
        RoboserveError: `invalid_request` for a cutoff out of range.
    """

    name: str
    folder: Path
    cutoff: float
    cameras: tuple[str, ...] = ()
    preference_only: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.cutoff <= 1.0:
            raise _invalid(f"cutoff: {self.cutoff:g} of dataset {self.name!r}, must be over 0 and at most 1")


def data_sources(
    folders: Mapping[str, Path],
    cutoffs: Mapping[str, float],
    *,
    cameras: Mapping[str, Sequence[str]] | None = None,
    preference_only: Collection[str] = (),
) -> tuple[DataSource, ...]:
    """Return the sources of some datasets by name.

    Raises:
        RoboserveError: `invalid_request` naming the datasets without a cutoff, or a setting of a dataset that is not
            there.
    """
    missing = sorted(set(folders) - set(cutoffs))
    if missing:
        raise _invalid(
            f"cutoff: dataset {', '.join(missing)} has none; say after which share of an episode its task is done "
            "(1 where episodes end with it)"
        )
    cameras = cameras or {}
    for setting, names in (("cutoff", cutoffs), ("camera", cameras), ("preference_only", preference_only)):
        unknown = sorted(set(names) - set(folders))
        if unknown:
            raise _invalid(f"{setting}: {', '.join(unknown)} names no dataset; they are {', '.join(folders) or 'none'}")
    return tuple(
        DataSource(
            name=name,
            folder=folder,
            cutoff=cutoffs[name],
            cameras=tuple(cameras.get(name, ())),
            preference_only=name in preference_only,
        )
        for name, folder in folders.items()
    )


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What a run took from a dataset.

    Attributes:
        digest: SHA-256 of the dataset's tables and its videos' sizes, hex.
        qualities: quality to episodes, each camera's counted; `skipped`: episodes that were too short.
        generic: the one instruction of all episodes, where it says nothing of what is to be done.
    """

    source: DataSource
    digest: str
    cameras: tuple[str, ...]
    qualities: Mapping[str, int]
    frames: int
    skipped: int
    generic: str | None


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Episodes and their frames.

    Attributes:
        episodes: what the sampler knows of each, its length in kept frames.
        starts: first frame of each in its array; `arrays`: uint8 (n, h, w, 3), memory-mapped, one for each episode.
    """

    episodes: tuple[EpisodeInfo, ...]
    starts: tuple[int, ...]
    arrays: tuple[NDArray[np.uint8], ...]
    summaries: tuple[SourceSummary, ...]

    def frames(self, clip: ClipPlan) -> list[NDArray[np.uint8]]:
        """Return the frames that a plan shows, each uint8 (h, w, 3)."""
        start, array = self.starts[clip.episode], self.arrays[clip.episode]
        return [np.asarray(array[start + index]) for index in clip.frames]


def load_clips(
    sources: Sequence[DataSource],
    cache: Path,
    *,
    size: tuple[int, int] | None,
    unit: int,
    progress: Callable[[int, int], None] | None = None,
) -> Clips:
    """Read datasets; their frames are decoded once into `cache`, which other runs and processes may share.

    Args:
        size: (height, width) that frames are brought to; None keeps their own, in multiples of `unit`.
        progress: told (episodes decoded, episodes in all) of one camera of a dataset.

    Raises:
        RoboserveError: a dataset is damaged, has no such camera, or no episode that is long enough.
        ValueError: see `episode_info`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    shape = _Shape(size=size, unit=unit)
    parts = [_source_clips(source, cache, shape, progress) for source in sources]
    return Clips(
        episodes=tuple(info for part in parts for info in part.episodes),
        starts=tuple(start for part in parts for start in part.starts),
        arrays=tuple(array for part in parts for array in part.arrays),
        summaries=tuple(summary for part in parts for summary in part.summaries),
    )


@dataclass(frozen=True, kw_only=True)
class _Shape:
    size: tuple[int, int] | None
    unit: int

    def fit(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return fitted(frame, self.size, self.unit)


def _source_clips(source: DataSource, cache: Path, shape: _Shape, progress: Callable[[int, int], None] | None) -> Clips:
    reader = DatasetReader(source.folder)
    opened = open_source(source.folder, cameras=source.cameras)
    infos: list[EpisodeInfo] = []
    starts: list[int] = []
    arrays: list[NDArray[np.uint8]] = []
    for camera in opened.cameras:
        path = cache / f"{_key(reader, camera, shape)}.npy"
        array, at = _decoded(reader, camera, path, shape, progress), 0
        for episode in reader.episodes:
            kept = len(kept_frames(episode.length))
            if kept >= SHORTEST:
                info = episode_info(episode, source=source.name, cutoff=source.cutoff, frames=kept)
                infos.append(replace(info, preference_only=source.preference_only))
                starts.append(at)
                arrays.append(array)
            at += kept
    if not infos:
        raise _invalid(f"dataset: {source.name!r} has no episode of {SHORTEST} frames or more")
    summary = SourceSummary(
        source=source,
        digest=_digest(reader),
        cameras=opened.cameras,
        qualities=dict(sorted(Counter(info.quality for info in infos).items())),
        frames=sum(info.length for info in infos),
        skipped=len(reader.episodes) * len(opened.cameras) - len(infos),
        generic=generic_text(opened.items),
    )
    return Clips(episodes=tuple(infos), starts=tuple(starts), arrays=tuple(arrays), summaries=(summary,))


def kept_frames(length: int) -> list[int]:
    """Return which frames of an episode are kept: all of them, or 64 from the first to the last."""
    if length <= KEPT_FRAMES:
        return list(range(length))
    return [int(place) for place in np.rint(np.linspace(0, length - 1, KEPT_FRAMES))]


def _digest(reader: DatasetReader) -> str:
    """Return the SHA-256 of a dataset's tables and its videos' sizes, hex: the same wherever it lies."""
    tables = files_hash(sorted(path for path in (reader.root / "meta").rglob("*") if path.is_file()))
    sizes = [[path.relative_to(reader.root).as_posix(), path.stat().st_size] for path in _videos(reader)]
    return hashlib.sha256(json.dumps([tables, sizes]).encode()).hexdigest()


def _key(reader: DatasetReader, camera: str, shape: _Shape) -> str:
    """Return what names a camera's decoded frames; a video that was written anew has another."""
    times = [path.stat().st_mtime_ns for path in _videos(reader)]
    parts = [_digest(reader), times, camera, shape.size, shape.unit, KEPT_FRAMES]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _videos(reader: DatasetReader) -> list[Path]:
    return sorted(path for path in (reader.root / "videos").rglob("*.mp4") if path.is_file())


def _decoded(
    reader: DatasetReader,
    camera: str,
    path: Path,
    shape: _Shape,
    progress: Callable[[int, int], None] | None,
) -> NDArray[np.uint8]:
    """Return the kept frames of all episodes in order, uint8 (n, h, w, 3), from `path` where they are there already."""
    if not path.is_file():
        height, width = reader.info.cameras[camera]
        fit = shape.fit(np.zeros((height, width, 3), np.uint8)).shape
        total = sum(len(kept_frames(episode.length)) for episode in reader.episodes)
        # A name of one's own, so that processes which decode at once do not write into one file.
        part = path.with_suffix(f".{os.getpid()}.new")
        images = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            part, mode="w+", dtype=np.uint8, shape=(total, *fit)
        )
        at = 0
        for number, episode in enumerate(reader.episodes):
            wanted = set(kept_frames(episode.length))
            for index, frame in enumerate(reader.images(episode, camera)):
                if index in wanted:
                    images[at] = shape.fit(frame)
                    at += 1
            if progress is not None:
                progress(number + 1, len(reader.episodes))
        images.flush()
        part.replace(path)
    loaded: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded


def _invalid(text: str) -> RoboserveError:
    return RoboserveError("invalid_request", text)
