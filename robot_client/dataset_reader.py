"""Read a LeRobot v3.0 dataset; `robot_client.dataset` is what to import."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.dataset_layout import (
    DATA,
    IMAGE_PREFIX,
    INFO,
    STATS,
    VIDEO,
    Episode,
    episode_tables,
    parse_info,
    read_episodes,
    read_json,
    read_parquet,
    to_array,
)
from robot_client.video import read_frames

if TYPE_CHECKING:
    import os

Array = np.ndarray[Any, Any]


class DatasetReader:
    """Read a dataset.

    Raises:
        RoboserveError: `invalid_request` naming the file of the dataset that is missing or damaged.
    """

    def __init__(self, root: os.PathLike[str] | str) -> None:
        self.root = Path(root)
        raw = read_json(self.root, INFO)
        self.info = parse_info(raw)
        self._paths = {
            key: str(raw.get(key) or default) for key, default in (("data_path", DATA), ("video_path", VIDEO))
        }
        self.episodes: Tuple[Episode, ...] = tuple(read_episodes(self.root, self.info))
        self.stats: Mapping[str, Any] = read_json(self.root, STATS) if self.episodes else {}

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(episode.length for episode in self.episodes)

    def files(self) -> Tuple[str, ...]:
        """Return the files that the episodes are read from, below the root, each once: tables, rows and videos."""
        found = [INFO, *(path.relative_to(self.root).as_posix() for path in episode_tables(self.root))]
        for episode in self.episodes:
            found.append(self._data(episode))
            found += [self.video(episode, camera)[0] for camera in episode.videos]
        return tuple(dict.fromkeys(found))

    def columns(self, episode: Episode) -> Dict[str, Array]:
        """Return the rows of an episode: column name to array, (length,) or (length, size); `task` is not a column."""
        path = self._data(episode)
        table = read_parquet(self.root, path)
        rows = table.column("episode_index").to_numpy() == episode.index
        if int(rows.sum()) != episode.length:
            raise RoboserveError(
                "invalid_request",
                f"dataset: {path} has {int(rows.sum())} rows of episode {episode.index}, "
                f"the episodes table says {episode.length}",
            )
        return {name: to_array(table.column(name))[rows] for name in table.column_names}

    def images(self, episode: Episode, camera: str) -> Iterator[Array]:
        """Decode the frames of an episode in order, each uint8 (height, width, 3), RGB."""
        path, start = self.video(episode, camera)
        if not (self.root / path).is_file():
            raise RoboserveError("invalid_request", f"dataset: {path} is missing")
        return read_frames(self.root / path, start=start, count=episode.length, fps=self.info.fps)

    def video(self, episode: Episode, camera: str) -> Tuple[str, float]:
        """Return the file of an episode's frames, below the root, and the seconds at which they begin in it.

        Raises:
            RoboserveError: `invalid_request` for a camera that the dataset does not have.
        """
        if camera not in episode.videos:
            raise RoboserveError(
                "invalid_request",
                f"camera: {camera!r} is not in the dataset; it has {', '.join(episode.videos) or 'none'}",
            )
        chunk, file, start = episode.videos[camera]
        return self._path("video_path", video_key=IMAGE_PREFIX + camera, chunk_index=chunk, file_index=file), start

    def _data(self, episode: Episode) -> str:
        chunk, file = episode.data
        return self._path("data_path", chunk_index=chunk, file_index=file)

    def _path(self, key: str, **place: Any) -> str:
        """Return a path that the dataset itself words; one that leads out of it is refused, for it may be a stranger's.

        Raises:
            RoboserveError: `invalid_request`.
        """
        try:
            path = self._paths[key].format(**place)
        except (LookupError, ValueError, AttributeError) as error:
            raise RoboserveError("invalid_request", f"dataset: {INFO} misstates {key}") from error
        if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise RoboserveError("invalid_request", f"dataset: {INFO} has a {key} that leads out of the dataset")
        return path
