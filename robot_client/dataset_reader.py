"""Read a LeRobot v3.0 dataset; `robot_client.dataset` is what to import."""

from __future__ import annotations

from pathlib import Path
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
        self._paths = {key: str(raw.get(key, default)) for key, default in (("data_path", DATA), ("video_path", VIDEO))}
        self.episodes: Tuple[Episode, ...] = tuple(read_episodes(self.root, self.info))
        self.stats: Mapping[str, Any] = read_json(self.root, STATS) if self.episodes else {}

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(episode.length for episode in self.episodes)

    def columns(self, episode: Episode) -> Dict[str, Array]:
        """Return the rows of an episode: column name to array, (length,) or (length, size); `task` is not a column."""
        path = self._paths["data_path"].format(chunk_index=episode.data[0], file_index=episode.data[1])
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
        if camera not in episode.videos:
            raise RoboserveError(
                "invalid_request",
                f"camera: {camera!r} is not in the dataset; it has {', '.join(episode.videos) or 'none'}",
            )
        chunk, file, start = episode.videos[camera]
        path = self._paths["video_path"].format(video_key=IMAGE_PREFIX + camera, chunk_index=chunk, file_index=file)
        if not (self.root / path).is_file():
            raise RoboserveError("invalid_request", f"dataset: {path} is missing")
        return read_frames(self.root / path, start=start, count=episode.length, fps=self.info.fps)
