"""Statistics of a dataset's features, per episode and merged over episodes (LeRobot v3: min, max, mean, std, count).

Variances merge by the parallel formula of Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import numpy as np

Array = np.ndarray[Any, Any]
Stats = Dict[str, Dict[str, Any]]

_EVERY, _STRIDE = 8, 4


class EpisodeStats:
    """Statistics of one episode; images are sampled (each eighth frame, each fourth pixel) and scaled to 0..1."""

    def __init__(self) -> None:
        self._pixels: Dict[str, List[Array]] = {}
        self._found: Stats = {}

    def add_image(self, key: str, image: Array, frame: int) -> None:
        """Count a frame's image in, uint8 (height, width, 3)."""
        if frame % _EVERY == 0:
            self._pixels.setdefault(key, []).append(image[::_STRIDE, ::_STRIDE].reshape(-1, 3).copy())

    def add_column(self, key: str, column: Array) -> None:
        """Count in a numeric column, (frames,) or (frames, size)."""
        self._found[key] = _describe(column.reshape(len(column), -1).astype(np.float64), len(column))

    def result(self) -> Stats:
        """Return feature to statistic to nested lists; image statistics have shape (3, 1, 1)."""
        for key, frames in self._pixels.items():
            found = _describe(np.concatenate(frames).astype(np.float64) / 255.0, len(frames))
            self._found[key] = {
                name: value if name == "count" else [[[entry]] for entry in value] for name, value in found.items()
            }
        return self._found


def flatten(stats: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """Return the columns `stats/FEATURE/STATISTIC` of the episodes table."""
    return {f"stats/{key}/{name}": value for key, found in stats.items() for name, value in found.items()}


def unflatten(columns: Mapping[str, Any]) -> Stats:
    """Return the statistics that `flatten` made columns of."""
    found: Stats = {}
    for column, value in columns.items():
        key, _, name = column[len("stats/") :].rpartition("/")
        found.setdefault(key, {})[name] = value
    return found


def merge(first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]) -> Stats:
    """Return the statistics of both sets of frames together; either may be empty."""
    merged: Stats = {key: dict(value) for key, value in first.items()}
    for key, other in second.items():
        merged[key] = _merge_one(merged[key], other) if key in merged else dict(other)
    return merged


def _describe(rows: Array, count: int) -> Dict[str, Any]:
    return {
        "min": rows.min(axis=0).tolist(),
        "max": rows.max(axis=0).tolist(),
        "mean": rows.mean(axis=0).tolist(),
        "std": rows.std(axis=0).tolist(),
        "count": [count],
    }


def _merge_one(a: Mapping[str, Any], b: Mapping[str, Any]) -> Dict[str, Any]:
    count_a, count_b = float(a["count"][0]), float(b["count"][0])
    total = count_a + count_b
    mean_a, mean_b = np.asarray(a["mean"]), np.asarray(b["mean"])
    shift = mean_b - mean_a
    mean = mean_a + shift * (count_b / total)
    spread = np.asarray(a["std"]) ** 2 * count_a + np.asarray(b["std"]) ** 2 * count_b
    variance = (spread + shift**2 * (count_a * count_b / total)) / total
    return {
        "min": np.minimum(a["min"], b["min"]).tolist(),
        "max": np.maximum(a["max"], b["max"]).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "count": [int(total)],
    }
