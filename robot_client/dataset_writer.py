"""Write a LeRobot v3.0 dataset, episode by episode; `robot_client.dataset` is what to import."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.dataset_episode import OpenEpisode
from robot_client.dataset_layout import (
    CHUNK_FILES,
    DATA,
    EPISODES,
    IMAGE_PREFIX,
    INFO,
    STATS,
    TASKS,
    VERSION,
    VIDEO,
    DatasetInfo,
    next_file,
    read_parquet,
    read_tasks,
    tasks_table,
    write_json,
    write_parquet,
)
from robot_client.dataset_reader import DatasetReader
from robot_client.dataset_stats import flatten, merge, unflatten
from robot_client.video import join

if TYPE_CHECKING:
    import os

Array = np.ndarray[Any, Any]


class DatasetWriter:
    """Write a dataset, episode by episode: `begin`, `add` for each frame, `end`; `close` at last.

    Use `create` for a new folder and `resume` for one that exists.

    Args:
        file_megabytes: size of a data or video file from which on the next episode begins a new one.
    """

    def __init__(self, root: Path, info: DatasetInfo, *, file_megabytes: float = 16.0) -> None:
        self.root = root
        self.info = info
        self._file_bytes = file_megabytes * 1e6
        self._tasks: List[str] = []
        self._rows: List[Dict[str, Any]] = []
        self._stats: Dict[str, Any] = {}
        self._data: Any = None
        self._file = 0
        self._file_frames = 0
        self.episodes = 0
        self.frames = 0
        self._open: Optional[OpenEpisode] = None
        self._torn = False

    @classmethod
    def create(
        cls,
        root: os.PathLike[str] | str,
        *,
        fps: float,
        cameras: Mapping[str, Tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        robot_type: str,
        extra_names: Sequence[str] = (),
        file_megabytes: float = 16.0,
    ) -> DatasetWriter:
        """Begin a dataset in a folder that holds none.

        Args:
            cameras: name to (height, width), even numbers.
            extra_names: further float32 columns, one number a frame.

        Raises:
            RoboserveError: `invalid_request` where the folder already holds a dataset.
        """
        if (Path(root) / INFO).exists():
            raise RoboserveError(
                "invalid_request", "dataset: the folder already holds one; resume it or choose another"
            )
        info = DatasetInfo(
            fps=fps,
            robot_type=robot_type,
            cameras=dict(cameras),
            state_names=tuple(state_names),
            action_names=tuple(action_names),
            extra_names=tuple(extra_names),
        )
        writer = cls(Path(root), info, file_megabytes=file_megabytes)
        writer._write_info()
        return writer

    @classmethod
    def resume(cls, root: os.PathLike[str] | str, *, file_megabytes: float = 16.0) -> DatasetWriter:
        """Go on with a dataset, after its last finished episode."""
        writer = cls(Path(root), DatasetReader(root).info, file_megabytes=file_megabytes)
        writer._recover()
        return writer

    def begin(self) -> None:
        """Begin an episode; one that is open is dropped."""
        self.discard()
        if self._torn:
            self._recover()
        folder = self.root / ".open"
        folder.mkdir(parents=True, exist_ok=True)
        self._open = OpenEpisode(folder, self.info)

    def add(
        self, images: Mapping[str, Array], state: Array, action: Array, extra: Optional[Mapping[str, float]] = None
    ) -> None:
        """Add one frame.

        Args:
            images: camera name to uint8 (height, width, 3), RGB; all cameras of the dataset.
            state: float32 (number of state names,); `action`: float32 (number of action names,).
            extra: one number for each of the extra names.

        Raises:
            RoboserveError: `invalid_request` for missing or surplus entries or other shapes.
        """
        self._require_open().add(images, state, action, extra or {})

    def end(self, *, task: str, extra: Optional[Mapping[str, Any]] = None) -> int:
        """Finish the open episode and put it on disk; an episode without frames is dropped.

        Args:
            task: the instruction it follows.
            extra: further columns of the episodes table, for example {"success": True}.

        Where a file cannot be written the error passes through; the episode is lost, those before it are not, and the
        next `begin` puts the dataset in order.

        Returns:
            the number of episodes on disk.
        """
        episode = self._require_open()
        if not episode.length:
            self.discard()
            return self.episodes
        self._torn = True
        try:
            videos = episode.finish()
            if self._file_is_full():
                self._file, self._file_frames, self._rows, self._data = self._file + 1, 0, [], None
            self._append(episode, videos, task, extra or {})
        finally:
            self.discard()
        self._torn = False
        return self.episodes

    def discard(self) -> None:
        """Drop the open episode, if there is one."""
        if self._open is not None:
            self._open.abort()
            self._open = None
        shutil.rmtree(self.root / ".open", ignore_errors=True)

    def close(self) -> None:
        """Drop the open episode; everything finished is on disk already."""
        self.discard()

    def _recover(self) -> None:
        """Take the dataset as the episodes table says it is, which commits an episode.

        What a killed writer left behind the table (rows, statistics, totals) is put right. Frames at the end of a video
        cannot be cut off cheaply, so files that exist are not added to.
        """
        reader = DatasetReader(self.root)
        self.episodes, self.frames = len(reader.episodes), reader.frames
        self._tasks = read_tasks(self.root) if (self.root / TASKS).exists() else []
        self._file, self._file_frames, self._rows, self._data = next_file(self.root), 0, [], None
        for path in self.root.rglob("*.partial"):
            path.unlink()
        _drop_rows(self.root, self.episodes)
        self._stats = {}
        for row in _statistics(self.root):
            self._stats = merge(self._stats, unflatten(row))
        write_json(self.root, STATS, self._stats)
        self._write_info()
        self._torn = False

    def _require_open(self) -> OpenEpisode:
        if self._open is None:
            raise RoboserveError("invalid_request", "dataset: no episode is open; call begin first")
        return self._open

    def _file_is_full(self) -> bool:
        place = self._place()
        paths = [
            DATA.format(**place),
            *(VIDEO.format(video_key=IMAGE_PREFIX + name, **place) for name in self.info.cameras),
        ]
        sizes = [(self.root / path).stat().st_size for path in paths if (self.root / path).exists()]
        return bool(sizes) and max(sizes) >= self._file_bytes

    def _place(self) -> Dict[str, int]:
        return {"chunk_index": self._file // CHUNK_FILES, "file_index": self._file % CHUNK_FILES}

    def _append(self, episode: OpenEpisode, videos: Mapping[str, Path], task: str, extra: Mapping[str, Any]) -> None:
        import pyarrow as pa

        place, fps = self._place(), self.info.fps
        if task not in self._tasks:
            self._tasks.append(task)
            write_parquet(self.root, TASKS, tasks_table(self._tasks))
        for camera, path in videos.items():
            target = self.root / VIDEO.format(video_key=IMAGE_PREFIX + camera, **place)
            join(target, path, first_frames=self._file_frames, fps=fps)
        rows, stats = episode.table(self.episodes, self.frames, self._tasks.index(task))
        self._data = rows if self._data is None else pa.concat_tables([self._data, rows])
        write_parquet(self.root, DATA.format(**place), self._data)
        self._stats = merge(self._stats, stats)
        write_json(self.root, STATS, self._stats)
        self._rows.append(
            {
                "episode_index": self.episodes,
                "tasks": [task],
                "length": episode.length,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + episode.length,
                "data/chunk_index": place["chunk_index"],
                "data/file_index": place["file_index"],
                **self._video_columns(episode.length),
                "meta/episodes/chunk_index": place["chunk_index"],
                "meta/episodes/file_index": place["file_index"],
                **flatten(stats),
                **extra,
            }
        )
        write_parquet(self.root, EPISODES.format(**place), pa.Table.from_pylist(self._rows))
        self.episodes, self.frames = self.episodes + 1, self.frames + episode.length
        self._file_frames += episode.length
        self._write_info()

    def _video_columns(self, length: int) -> Dict[str, Any]:
        columns: Dict[str, Any] = {}
        for camera in self.info.cameras:
            prefix = f"videos/{IMAGE_PREFIX}{camera}/"
            columns.update({prefix + key: value for key, value in self._place().items()})
            columns[prefix + "from_timestamp"] = self._file_frames / self.info.fps
            columns[prefix + "to_timestamp"] = (self._file_frames + length) / self.info.fps
        return columns

    def _write_info(self) -> None:
        info = self.info
        write_json(
            self.root,
            INFO,
            {
                "codebase_version": VERSION,
                "robot_type": info.robot_type,
                "total_episodes": self.episodes,
                "total_frames": self.frames,
                "total_tasks": len(self._tasks),
                "chunks_size": CHUNK_FILES,
                "data_files_size_in_mb": int(self._file_bytes / 1e6) or 1,
                "video_files_size_in_mb": int(self._file_bytes / 1e6) or 1,
                "fps": int(info.fps) if float(info.fps).is_integer() else info.fps,
                "splits": {"train": f"0:{self.episodes}"},
                "data_path": DATA,
                "video_path": VIDEO if info.cameras else None,
                "features": info.features(),
            },
        )


def _drop_rows(root: Path, episodes: int) -> None:
    """Remove the rows of episodes that the table does not have; they can only be in the newest data file."""
    import pyarrow as pa

    paths = sorted((root / "data").glob("chunk-*/file-*.parquet"))
    if not paths:
        return
    name = str(paths[-1].relative_to(root))
    table = read_parquet(root, name)
    kept = table.filter(pa.array(table.column("episode_index").to_numpy() < episodes))
    if not kept.num_rows:
        paths[-1].unlink()
    elif kept.num_rows < table.num_rows:
        write_parquet(root, name, kept)


def _statistics(root: Path) -> Iterator[Dict[str, Any]]:
    for path in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        table = read_parquet(root, str(path.relative_to(root)))
        yield from table.select([name for name in table.column_names if name.startswith("stats/")]).to_pylist()
