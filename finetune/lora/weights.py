"""How much each frame counts in weighted behaviour cloning: a column of the dataset, or of a file that labels it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pyarrow import ArrowException, parquet

from robot_client.dataset import DatasetReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.bc.frames import Frames

Rule = Literal["weight", "return", "progress"]


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """Where weights come from.

    Attributes:
        column: number of each frame.
        file: parquet file of labels, as `finetune.relabel` writes them, relative to each dataset's folder; None for the
            dataset's own rows.
        rule: "weight": the column as it is. "return": exp((R - mean) / (temperature x std)) of the return R from the
            frame on. "progress": the same of how far progress rises within a chunk that starts at the frame.
        temperature: of the exponential (advantage-weighted regression, arXiv 1910.00177). `most`: largest weight.
    """

    column: str
    file: str | None = None
    rule: Rule = "weight"
    temperature: float = 1.0
    most: float = 20.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.most <= 0:
            raise ValueError(f"weights: temperature {self.temperature} and most {self.most} must be above 0")


def frame_weights(
    settings: WeightSettings, folders: Sequence[Path], frames: Frames, *, chunk_length: int
) -> NDArray[np.float32]:
    """Return each frame's weight, float32 (n,), 0 or more, of mean 1.

    Args:
        folders: the datasets of `frames`, in their order.

    Raises:
        FileNotFoundError: the file of labels is not there.
        ValueError: the column is missing, has another number of rows than frames or a value that is not finite, or no
            weight is above 0.
        RoboserveError: a dataset is damaged.
    """
    values = np.concatenate([_column(settings, folder) for folder in folders]).astype(np.float64)
    if len(values) != len(frames.state):
        raise ValueError(f"weights: {settings.column} has {len(values)} rows for {len(frames.state)} frames")
    if not np.isfinite(values).all():
        raise ValueError(f"weights: {settings.column} has values that are not finite")
    if settings.rule == "weight":
        weights = np.minimum(values, settings.most)
    elif settings.rule == "return":
        weights = _exponential(settings, values)
    else:
        ahead = np.minimum(np.arange(len(values)) + chunk_length, frames.last)
        weights = _exponential(settings, values[ahead] - values)
    if (weights < 0).any() or not weights.any():
        raise ValueError(f"weights: those of {settings.column} must be 0 or more, and one of them more")
    shares: NDArray[np.float32] = (weights / weights.mean()).astype(np.float32)
    return shares


def _exponential(settings: WeightSettings, values: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = (values - values.mean()) / max(float(values.std()), 1e-6) / settings.temperature
    weights: NDArray[np.float64] = np.exp(np.minimum(scaled, np.log(settings.most)))
    return weights


def _column(settings: WeightSettings, folder: Path) -> NDArray[np.float64]:
    """Return a dataset's values in the order of its frames."""
    if settings.file is not None:
        return _labels(settings, folder / settings.file)
    reader = DatasetReader(folder)
    parts = []
    for episode in reader.episodes:
        columns = reader.columns(episode)
        if settings.column not in columns:
            raise ValueError(f"weights: no column {settings.column} in {folder.name}; it has {', '.join(columns)}")
        parts.append(columns[settings.column].reshape(episode.length, -1)[:, 0])
    return np.concatenate(parts)


def _labels(settings: WeightSettings, path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path.parent.name} has no {path.name}")
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(f"weights: {path.name} is damaged") from error
    missing = [name for name in ("index", settings.column) if name not in table.column_names]
    if missing:
        raise ValueError(f"weights: no column {missing[0]} in {path.name}; it has {', '.join(table.column_names)}")
    order = np.argsort(table.column("index").to_numpy())
    if not np.array_equal(table.column("index").to_numpy()[order], np.arange(len(order))):
        raise ValueError(f"weights: the column index of {path.name} must name every frame once")
    # a null is a frame that no model was asked about: not finite, which is refused by name
    values: NDArray[np.float64] = table.column(settings.column).cast("float64").to_numpy()[order]
    return values
