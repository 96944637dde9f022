"""The episode that a dataset's writer has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.dataset_layout import ACTION, IMAGE_PREFIX, STATE, DatasetInfo
from robot_client.dataset_stats import EpisodeStats
from robot_client.video import VideoEncoder

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]


class OpenEpisode:
    """Frames of the episode being written: videos go to files at once, the rest stays in memory."""

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self._info = info
        self._paths = {name: folder / f"{name}.mp4" for name in info.cameras}
        self._encoders = {
            name: VideoEncoder(self._paths[name], fps=info.fps, size=size) for name, size in info.cameras.items()
        }
        self._states: List[Array] = []
        self._actions: List[Array] = []
        self._extras: List[List[float]] = []
        self._stats = EpisodeStats()

    @property
    def length(self) -> int:
        """Frames added."""
        return len(self._states)

    def add(self, images: Mapping[str, Array], state: Array, action: Array, extra: Mapping[str, float]) -> None:
        """Add one frame; one that does not fit leaves no trace in any camera."""
        info = self._info
        for noun, given, wanted in (("cameras", images, info.cameras), ("extra", extra, info.extra_names)):
            if set(given) != set(wanted):
                raise RoboserveError(
                    "invalid_request", f"{noun}: the dataset has {sorted(wanted)}, the frame {sorted(given)}"
                )
        vectors = []
        for noun, vector, names in (("state", state, info.state_names), ("action", action, info.action_names)):
            vectors.append(np.array(vector, dtype=np.float32))
            if vectors[-1].shape != (len(names),):
                raise RoboserveError("invalid_request", f"{noun}: shape {vectors[-1].shape}, needs ({len(names)},)")
        for name, image in images.items():
            self._encoders[name].check(image)
        for name, image in images.items():
            self._encoders[name].add(image)
            self._stats.add_image(IMAGE_PREFIX + name, image, self.length)
        self._states.append(vectors[0])
        self._actions.append(vectors[1])
        self._extras.append([float(extra[name]) for name in info.extra_names])

    def finish(self) -> Dict[str, Path]:
        """Finish the videos and return their files, by camera."""
        self.abort()
        return self._paths

    def abort(self) -> None:
        """Close the videos."""
        while self._encoders:
            self._encoders.popitem()[1].close()

    def table(self, episode: int, first_index: int, task_index: int) -> Tuple[Any, Mapping[str, Any]]:
        """Return the rows as an arrow table and the episode's statistics."""
        import pyarrow as pa

        count = self.length
        columns: Dict[str, Array] = {STATE: np.stack(self._states), ACTION: np.stack(self._actions)}
        for at, name in enumerate(self._info.extra_names):
            columns[name] = np.asarray([row[at] for row in self._extras], dtype=np.float32)
        columns["timestamp"] = (np.arange(count) / self._info.fps).astype(np.float32)
        columns["frame_index"] = np.arange(count, dtype=np.int64)
        columns["episode_index"] = np.full(count, episode, dtype=np.int64)
        columns["index"] = np.arange(first_index, first_index + count, dtype=np.int64)
        columns["task_index"] = np.full(count, task_index, dtype=np.int64)
        for name, column in columns.items():
            self._stats.add_column(name, column)
        arrays = {
            name: pa.array(column)
            if column.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
            for name, column in columns.items()
        }
        return pa.table(arrays), self._stats.result()
