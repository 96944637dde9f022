"""Robot demonstrations on disk in the LeRobot dataset v3.0 layout: the one place that knows it.

```
meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
data/chunk-000/file-000.parquet  videos/observation.images.CAMERA/chunk-000/file-000.mp4
```
Layout as documented with huggingface/lerobot (LeRobotDataset v3.0): several episodes share a file; the episodes table
says where each begins and ends. Needs pyarrow and av (extra `record`), not lerobot.

Every finished episode is on disk in full before the next begins: a killed writer loses the open episode and no other.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.dataset_stats import EpisodeStats, flatten, merge
from robot_client.video import VideoEncoder, codec_info, join, read_frames

if TYPE_CHECKING:
    import os

Array = np.ndarray[Any, Any]

VERSION = "v3.0"
STATE, ACTION = "observation.state", "action"
IMAGE_PREFIX = "observation.images."
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_INFO, _STATS, _TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
_CHUNK_FILES = 1000
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Episode:
    """One row of the episodes table.

    Attributes:
        index: its number; `length`: its frames; `tasks`: the instructions it follows.
        start: index of its first frame in the whole dataset.
        data: (chunk, file) of its rows; `videos`: camera to (chunk, file, seconds at which it begins).
        extra: columns of the table that the layout does not know (for example "success").
    """

    index: int
    length: int
    tasks: Tuple[str, ...]
    start: int
    data: Tuple[int, int]
    videos: Mapping[str, Tuple[int, int, float]]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetInfo:
    """What `meta/info.json` says, as far as it is used here."""

    fps: float
    robot_type: str
    cameras: Mapping[str, Tuple[int, int]]
    state_names: Tuple[str, ...]
    action_names: Tuple[str, ...]
    extra_names: Tuple[str, ...] = ()

    def features(self) -> Dict[str, Dict[str, Any]]:
        """Return the features in the layout's form."""
        found: Dict[str, Dict[str, Any]] = {}
        for name, size in self.cameras.items():
            found[IMAGE_PREFIX + name] = {
                "dtype": "video",
                "shape": [*size, 3],
                "names": ["height", "width", "channels"],
                "info": dict(codec_info(size, self.fps)),
            }
        for key, names in ((STATE, self.state_names), (ACTION, self.action_names)):
            found[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for name in self.extra_names:
            found[name] = {"dtype": "float32", "shape": [1], "names": None}
        for name in _COUNTERS:
            found[name] = {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
        return found


class DatasetReader:
    """Read a dataset.

    Raises:
        RoboserveError: `invalid_request` naming the file of the dataset that is missing or damaged.
    """

    def __init__(self, root: os.PathLike[str] | str) -> None:
        self.root = Path(root)
        raw = _read_json(self.root, _INFO)
        self.info = _parse_info(raw)
        self._paths = {
            key: str(raw.get(key, default)) for key, default in (("data_path", _DATA), ("video_path", _VIDEO))
        }
        self.episodes: Tuple[Episode, ...] = tuple(_read_episodes(self.root, self.info))
        self.stats: Mapping[str, Any] = _read_json(self.root, _STATS) if self.episodes else {}

    @property
    def frames(self) -> int:
        """Frames of all episodes."""
        return sum(episode.length for episode in self.episodes)

    def columns(self, episode: Episode) -> Dict[str, Array]:
        """Return the rows of an episode: column name to array, (length,) or (length, size); `task` is not a column."""
        path = self._paths["data_path"].format(chunk_index=episode.data[0], file_index=episode.data[1])
        table = _read_parquet(self.root, path)
        rows = table.column("episode_index").to_numpy() == episode.index
        if int(rows.sum()) != episode.length:
            raise RoboserveError(
                "invalid_request",
                f"dataset: {path} has {int(rows.sum())} rows of episode {episode.index}, "
                f"the episodes table says {episode.length}",
            )
        return {name: _to_array(table.column(name))[rows] for name in table.column_names}

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
        self._open: Optional[_OpenEpisode] = None

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
        if (Path(root) / _INFO).exists():
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
        reader = DatasetReader(root)
        writer = cls(reader.root, reader.info, file_megabytes=file_megabytes)
        writer.episodes, writer.frames = len(reader.episodes), reader.frames
        if reader.episodes:
            writer._tasks = _read_tasks(reader.root)
            writer._stats = dict(reader.stats)
            # a killed writer may have left frames or rows behind the last episode, so its files are not added to
            writer._file = _next_file(reader.root)
        return writer

    def begin(self) -> None:
        """Begin an episode; one that is open is dropped."""
        self.discard()
        folder = self.root / ".open"
        folder.mkdir(parents=True, exist_ok=True)
        self._open = _OpenEpisode(folder, self.info)

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

        Returns:
            the number of episodes on disk.
        """
        episode = self._require_open()
        if not episode.length:
            self.discard()
            return self.episodes
        videos = episode.finish()
        if self._file_is_full():
            self._file, self._file_frames, self._rows, self._data = self._file + 1, 0, [], None
        self._append(episode, videos, task, extra or {})
        self.discard()
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

    def _require_open(self) -> _OpenEpisode:
        if self._open is None:
            raise RoboserveError("invalid_request", "dataset: no episode is open; call begin first")
        return self._open

    def _file_is_full(self) -> bool:
        place = self._place()
        paths = [
            _DATA.format(**place),
            *(_VIDEO.format(video_key=IMAGE_PREFIX + name, **place) for name in self.info.cameras),
        ]
        sizes = [(self.root / path).stat().st_size for path in paths if (self.root / path).exists()]
        return bool(sizes) and max(sizes) >= self._file_bytes

    def _place(self) -> Dict[str, int]:
        return {"chunk_index": self._file // _CHUNK_FILES, "file_index": self._file % _CHUNK_FILES}

    def _append(self, episode: _OpenEpisode, videos: Mapping[str, Path], task: str, extra: Mapping[str, Any]) -> None:
        import pyarrow as pa

        place, fps = self._place(), self.info.fps
        if task not in self._tasks:
            self._tasks.append(task)
            _write_parquet(self.root, _TASKS, _tasks_table(self._tasks))
        for camera, path in videos.items():
            target = self.root / _VIDEO.format(video_key=IMAGE_PREFIX + camera, **place)
            join(target, path, first_frames=self._file_frames, fps=fps)
        rows, stats = episode.table(self.episodes, self.frames, self._tasks.index(task))
        self._data = rows if self._data is None else pa.concat_tables([self._data, rows])
        _write_parquet(self.root, _DATA.format(**place), self._data)
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
        _write_parquet(self.root, _EPISODES.format(**place), pa.Table.from_pylist(self._rows))
        self._stats = merge(self._stats, stats)
        self.episodes, self.frames = self.episodes + 1, self.frames + episode.length
        self._file_frames += episode.length
        _write_json(self.root, _STATS, self._stats)
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
        _write_json(
            self.root,
            _INFO,
            {
                "codebase_version": VERSION,
                "robot_type": info.robot_type,
                "total_episodes": self.episodes,
                "total_frames": self.frames,
                "total_tasks": len(self._tasks),
                "chunks_size": _CHUNK_FILES,
                "data_files_size_in_mb": int(self._file_bytes / 1e6) or 1,
                "video_files_size_in_mb": int(self._file_bytes / 1e6) or 1,
                "fps": int(info.fps) if float(info.fps).is_integer() else info.fps,
                "splits": {"train": f"0:{self.episodes}"},
                "data_path": _DATA,
                "video_path": _VIDEO if info.cameras else None,
                "features": info.features(),
            },
        )


class _OpenEpisode:
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
        return len(self._states)

    def add(self, images: Mapping[str, Array], state: Array, action: Array, extra: Mapping[str, float]) -> None:
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
            self._encoders[name].add(image)
            self._stats.add_image(IMAGE_PREFIX + name, image, self.length)
        self._states.append(vectors[0])
        self._actions.append(vectors[1])
        self._extras.append([float(extra[name]) for name in info.extra_names])

    def finish(self) -> Dict[str, Path]:
        for encoder in self._encoders.values():
            encoder.close()
        self._encoders = {}
        return self._paths

    def abort(self) -> None:
        for encoder in self._encoders.values():
            encoder.close()

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


def _parse_info(raw: Mapping[str, Any]) -> DatasetInfo:
    if raw.get("codebase_version") != VERSION:
        raise RoboserveError(
            "invalid_request", f"dataset: version {raw.get('codebase_version')!r}, this reader knows {VERSION}"
        )
    try:
        features = raw["features"]
        cameras = {
            key[len(IMAGE_PREFIX) :]: (int(item["shape"][0]), int(item["shape"][1]))
            for key, item in features.items()
            if key.startswith(IMAGE_PREFIX) and item["dtype"] == "video"
        }
        names = {key: tuple(_flat_names(features[key])) for key in (STATE, ACTION)}
        known = {STATE, ACTION, *_COUNTERS, *(IMAGE_PREFIX + name for name in cameras)}
        extra = tuple(key for key, item in features.items() if key not in known and item["dtype"] == "float32")
        return DatasetInfo(
            fps=float(raw["fps"]),
            robot_type=str(raw.get("robot_type")),
            cameras=cameras,
            state_names=names[STATE],
            action_names=names[ACTION],
            extra_names=extra,
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise RoboserveError("invalid_request", f"dataset: {_INFO} lacks or misstates {error}") from error


def _flat_names(feature: Mapping[str, Any]) -> Sequence[str]:
    names = feature.get("names")
    if isinstance(names, Mapping):  # older recorders group the names, as in {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return names if names is not None else [str(at) for at in range(int(feature["shape"][0]))]


def _read_episodes(root: Path, info: DatasetInfo) -> Iterator[Episode]:
    for path in sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet")):
        table = _read_parquet(root, str(path.relative_to(root)))
        for row in table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist():
            yield _checked_episode(row, info)


def _checked_episode(row: Dict[str, Any], info: DatasetInfo) -> Episode:
    try:
        return _parse_episode(row, info)
    except (KeyError, TypeError, ValueError) as error:
        raise RoboserveError("invalid_request", f"dataset: the episodes table lacks or misstates {error}") from error


def _parse_episode(row: Dict[str, Any], info: DatasetInfo) -> Episode:
    videos = {}
    for camera in info.cameras:
        prefix = f"videos/{IMAGE_PREFIX}{camera}/"
        chunk, file = int(row.pop(prefix + "chunk_index")), int(row.pop(prefix + "file_index"))
        videos[camera] = (chunk, file, float(row.pop(prefix + "from_timestamp")))
        row.pop(prefix + "to_timestamp")
    index, length, start = (int(row.pop(name)) for name in ("episode_index", "length", "dataset_from_index"))
    data = (int(row.pop("data/chunk_index")), int(row.pop("data/file_index")))
    tasks = tuple(row.pop("tasks"))
    extra = {key: value for key, value in row.items() if "/" not in key and key != "dataset_to_index"}
    return Episode(index=index, length=length, tasks=tasks, start=start, data=data, videos=videos, extra=extra)


def _read_tasks(root: Path) -> List[str]:
    table = _read_parquet(root, _TASKS)
    name = next(name for name in table.column_names if name != "task_index")
    order = np.argsort(table.column("task_index").to_numpy())
    texts = table.column(name).to_pylist()
    return [str(texts[at]) for at in order]


def _tasks_table(tasks: Sequence[str]) -> Any:
    """The tasks table: the text is the index of a pandas frame, which the layout's own readers expect."""
    import pyarrow as pa

    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "pandas_version": "2.0.0",
        "columns": [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, kind, numpy in columns
        ],
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _next_file(root: Path) -> int:
    patterns = ("data/chunk-*/file-*.parquet", "videos/*/chunk-*/file-*.mp4", "meta/episodes/chunk-*/file-*.parquet")
    used = [
        int(path.parent.name[len("chunk-") :]) * _CHUNK_FILES + int(path.stem[len("file-") :])
        for pattern in patterns
        for path in root.glob(pattern)
    ]
    return max(used, default=-1) + 1


def _to_array(column: Any) -> Array:
    import pyarrow as pa

    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        return np.stack([np.asarray(row) for row in values.to_numpy(zero_copy_only=False)])
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _read_parquet(root: Path, name: str) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise RoboserveError("unavailable", "dataset: pyarrow is not installed; install the extra `record`") from error
    try:
        return parquet.read_table(root / name)
    except FileNotFoundError as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is missing") from error
    except (pa.ArrowException, OSError) as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is damaged") from error


def _write_parquet(root: Path, name: str, table: Any) -> None:
    from pyarrow import parquet

    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    parquet.write_table(table, partial, compression="snappy")
    partial.replace(path)


def _read_json(root: Path, name: str) -> Dict[str, Any]:
    try:
        value = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is missing") from error
    except (OSError, ValueError) as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is damaged") from error
    if not isinstance(value, dict):
        raise RoboserveError("invalid_request", f"dataset: {name} is damaged")
    return value


def _write_json(root: Path, name: str, value: Mapping[str, Any]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
    partial.replace(path)
