"""The parquet file that a job makes: one row for every frame of the dataset.

| column | type | |
|---|---|---|
| index | int64 | frame in the whole dataset |
| episode_index, frame_index | int64 | what to join on |
| progress_sparse | float32 | progress without nulls, for LeRobot's RA-BC: linear between labelled frames |
| progress | float32 | null where the model was not asked |
| success | float32 | the same; all null where the model gives none |
| progress_min, progress_max, progress.CAMERA, success.CAMERA | float32 | only with several cameras |

With several cameras progress and success are their means. Before the first and after the last labelled frame
progress_sparse is constant: in mode `final` it is one number an episode, which tells RA-BC nothing.

The file's key-value metadata pins what the values came from; nothing in it depends on when or in how many goes the
job ran.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from finetune.relabel.config import Plan
    from finetune.relabel.labeller import Labels, ModelFacts
    from finetune.relabel.sources import EpisodeItem, Source

WRITING: Mapping[str, Any] = {"compression": "snappy", "version": "2.6", "data_page_version": "1.0"}
"""Fixed, so that the same rows give the same bytes."""


def schema(cameras: Sequence[str]) -> pa.Schema:
    """Return the columns."""
    names = ["progress", "success"]
    if len(cameras) > 1:
        names += ["progress_min", "progress_max"]
        names += [f"{kind}.{camera}" for camera in cameras for kind in ("progress", "success")]
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("episode_index", pa.int64(), nullable=False),
            pa.field("frame_index", pa.int64(), nullable=False),
            pa.field("progress_sparse", pa.float32(), nullable=False),
            *(pa.field(name, pa.float32()) for name in names),
        ]
    )


def episode_table(item: EpisodeItem, labels: Mapping[str, Labels]) -> pa.Table:
    """Return the rows of one episode.

    Args:
        labels: by camera, all of the same frames.

    Raises:
        RoboserveError: `invalid_output` where the cameras' labels are of different frames.
    """
    first, *others = labels.values()
    if any(not np.array_equal(first.frames, other.frames) for other in others):
        raise RoboserveError("invalid_output", "cameras: their labels are of different frames")
    progress = np.stack([found.progress for found in labels.values()])
    known = [found.success for found in labels.values() if found.success is not None]
    mean = progress.mean(axis=0, dtype=np.float64).astype(np.float32)
    at = np.arange(item.frames, dtype=np.int64)
    columns: dict[str, Any] = {
        "index": at + item.first_frame,
        "episode_index": np.full(item.frames, item.index, dtype=np.int64),
        "frame_index": at,
        "progress_sparse": np.interp(at, first.frames, mean).astype(np.float32),
    }
    values: dict[str, NDArray[np.float32] | None] = {
        "progress": mean,
        "success": np.stack(known).mean(axis=0, dtype=np.float64).astype(np.float32) if known else None,
    }
    if others:
        values |= {"progress_min": progress.min(axis=0), "progress_max": progress.max(axis=0)}
        for camera, found in labels.items():
            values |= {f"progress.{camera}": found.progress, f"success.{camera}": found.success}
    for name, column in values.items():
        columns[name] = _with_nulls(column, first.frames, item.frames)
    return pa.table(columns, schema=schema(tuple(labels)))


def _with_nulls(values: NDArray[np.float32] | None, frames: NDArray[np.int64], length: int) -> pa.Array:
    full, absent = np.zeros(length, dtype=np.float32), np.ones(length, dtype=bool)
    if values is not None:
        full[frames], absent[frames] = values, False
    return pa.array(full, type=pa.float32(), mask=absent)


def metadata(facts: ModelFacts, plan: Plan, source: Source, task: str | None) -> dict[str, str]:
    """Return the key-value metadata of the whole file; `reward_model_path` is LeRobot's key."""
    found = {
        "reward_model_path": facts.id,
        "model": facts.id,
        "revision": facts.revision,
        "content_hash": facts.content_hash,
        "architecture": facts.architecture,
        "dtype": facts.dtype,
        "prompt_version": facts.prompt_version,
        "pixels": facts.pixels,
        "mode": plan.mode,
        "frame_policy": plan.policy.name,
        "every": str(plan.every),
        "cameras": json.dumps(source.cameras),
        "instruction": "each episode's own" if task is None else f"for all episodes: {task}",
        "roboserve_version": importlib.metadata.version("roboserve"),
    }
    if source.files:
        found["episode_files"] = json.dumps(source.files)
    return found
