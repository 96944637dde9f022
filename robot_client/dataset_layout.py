"""The names, tables and files of the LeRobot dataset v3.0 layout; `robot_client.dataset` is what to import."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from clients.errors import RoboserveError
from robot_client.video import codec_info

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, Any]

VERSION = "v3.0"
STATE, ACTION = "observation.state", "action"
IMAGE_PREFIX = "observation.images."
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
CHUNK_FILES = 1000
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


def parse_info(raw: Mapping[str, Any]) -> DatasetInfo:
    """Return what `meta/info.json` says.

    Raises:
        RoboserveError: `invalid_request` for another version or an entry that is missing or wrong.
    """
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
        raise RoboserveError("invalid_request", f"dataset: {INFO} lacks or misstates {error}") from error


def _flat_names(feature: Mapping[str, Any]) -> Sequence[str]:
    names = feature.get("names")
    if isinstance(names, Mapping):  # older recorders group the names, as in {"motors": [...]}
        names = [name for group in names.values() for name in group]
    return names if names is not None else [str(at) for at in range(int(feature["shape"][0]))]


def episode_tables(root: Path) -> List[Path]:
    """Return the files of the episodes table, in order."""
    return sorted((root / "meta/episodes").glob("chunk-*/file-*.parquet"))


def read_episodes(root: Path, info: DatasetInfo) -> Iterator[Episode]:
    """Give the episodes of all episodes tables, in order.

    Raises:
        RoboserveError: `invalid_request` naming the column that is missing or wrong.
    """
    for path in episode_tables(root):
        table = read_parquet(root, str(path.relative_to(root)))
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


def read_tasks(root: Path) -> List[str]:
    """Return the instructions, in the order of their task index."""
    table = read_parquet(root, TASKS)
    name = next(name for name in table.column_names if name != "task_index")
    order = np.argsort(table.column("task_index").to_numpy())
    texts = table.column(name).to_pylist()
    return [str(texts[at]) for at in order]


def tasks_table(tasks: Sequence[str]) -> Any:
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


def next_file(root: Path) -> int:
    """Return the number after that of every file there is, counted over chunks."""
    patterns = ("data/chunk-*/file-*.parquet", "videos/*/chunk-*/file-*.mp4", "meta/episodes/chunk-*/file-*.parquet")
    used = [
        int(path.parent.name[len("chunk-") :]) * CHUNK_FILES + int(path.stem[len("file-") :])
        for pattern in patterns
        for path in root.glob(pattern)
    ]
    return max(used, default=-1) + 1


def to_array(column: Any) -> Array:
    """Return a table's column as an array, (rows,) or (rows, size)."""
    import pyarrow as pa

    values = column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        return np.stack([np.asarray(row) for row in values.to_numpy(zero_copy_only=False)])
    return np.asarray(values.to_numpy(zero_copy_only=False))


def read_parquet(root: Path, name: str) -> Any:
    """Return the arrow table in a file of the dataset.

    Raises:
        RoboserveError: `invalid_request` where it is missing or damaged, `unavailable` without pyarrow.
    """
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


def write_parquet(root: Path, name: str, table: Any) -> None:
    """Write an arrow table to a file of the dataset, in one step: a kill leaves the old file or the new one."""
    from pyarrow import parquet

    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    parquet.write_table(table, partial, compression="snappy")
    partial.replace(path)


def read_json(root: Path, name: str) -> Dict[str, Any]:
    """Return the map in a JSON file of the dataset.

    Raises:
        RoboserveError: `invalid_request` where it is missing or damaged.
    """
    try:
        value = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is missing") from error
    except (OSError, ValueError) as error:
        raise RoboserveError("invalid_request", f"dataset: {name} is damaged") from error
    if not isinstance(value, dict):
        raise RoboserveError("invalid_request", f"dataset: {name} is damaged")
    return value


def write_json(root: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write a map to a JSON file of the dataset, in one step."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
    partial.replace(path)
