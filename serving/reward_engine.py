"""The forward of a reward service: distinct frames are encoded once, then all queries of a batch are read.

It runs on the batcher's thread. A query is one window of frames under one instruction; a caller's request is many of
them, and those of several callers ride together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clients.errors import RoboserveError
from models.rewards.contract import FrameValues, Pair, Query
from serving.feature_cache import FeatureCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.rewards.contract import FrameFeatures, RewardModel
    from serving.feature_cache import Frame
    from serving.metrics import RewardMetrics

_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class ScoreWork:
    """Read progress and success of a window of frames."""

    instruction: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class CompareWork:
    """Read which of two windows is better."""

    instruction: str
    first: tuple[Frame, ...]
    second: tuple[Frame, ...]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """All frames, the first clip's first."""
        return self.first + self.second


Work = ScoreWork | CompareWork


class RewardEngine:
    """Runs batches on a model, with a cache of frames' features.

    Args:
        cache_bytes: size of the cache; `encode_frames`: frames that are encoded at once.
        metrics: where frames and cache hits are counted.
    """

    def __init__(
        self, model: RewardModel, *, cache_bytes: int, encode_frames: int, metrics: RewardMetrics | None = None
    ) -> None:
        self._model = model
        self._cache = FeatureCache(cache_bytes)
        self._at_once = encode_frames
        self._metrics = metrics

    def cost(self, work: Work) -> float:
        """Return the image tokens of a query."""
        return float(sum(self._model.cost(frame.pixels) for frame in work.frames))

    def forward(self, batch: Sequence[Work]) -> list[FrameValues | float | Exception]:
        """Answer a batch, in order: values for a `ScoreWork`, P(first is better) for a `CompareWork`."""
        try:
            return self._answer(batch)
        except Exception as error:
            if len(batch) == 1 and _is_out_of_memory(error):
                text = (
                    f"query: {len(batch[0].frames)} frames, more than the model's memory holds; show fewer or smaller"
                )
                raise RoboserveError("too_large", text) from error
            raise

    def _answer(self, batch: Sequence[Work]) -> list[FrameValues | float | Exception]:
        seen = self._features([frame for work in batch for frame in work.frames])
        scores = [index for index, work in enumerate(batch) if isinstance(work, ScoreWork)]
        pairs = [index for index, work in enumerate(batch) if isinstance(work, CompareWork)]
        answers: dict[int, FrameValues | float | Exception] = {}
        if scores:
            queries = [_query(batch[index], seen) for index in scores]
            values = self._model.score(queries)
            for index, query, value in zip(scores, queries, values, strict=True):
                answers[index] = _checked(value, len(query.frames))
        if pairs:
            asked = [_pair(batch[index], seen) for index in pairs]
            for index, chance in zip(pairs, self._model.compare(asked), strict=True):
                answers[index] = _chance(chance)
        return [answers[index] for index in range(len(batch))]

    def _features(self, frames: Sequence[Frame]) -> dict[bytes, FrameFeatures]:
        """Return the features of all frames by key, from the cache where it has them."""
        wanted = {frame.key: frame for frame in frames}
        seen: dict[bytes, FrameFeatures] = {}
        missing: list[Frame] = []
        for key, frame in wanted.items():
            kept = self._cache.get(key)
            if kept is None:
                missing.append(frame)
            else:
                seen[key] = kept
        by_size = sorted(missing, key=lambda frame: frame.pixels.shape)
        for start in range(0, len(by_size), self._at_once):
            part = by_size[start : start + self._at_once]
            encoded = self._model.encode([frame.pixels for frame in part])
            for frame, features in zip(part, encoded, strict=True):
                seen[frame.key] = features
                self._cache.put(frame.key, features)
        if self._metrics is not None:
            self._metrics.on_frames(encoded=len(missing), reused=len(frames) - len(missing), kept=self._cache.bytes)
        return seen


def _query(work: Work, seen: dict[bytes, FrameFeatures]) -> Query:
    return Query(instruction=work.instruction, frames=tuple(seen[frame.key] for frame in work.frames))


def _pair(work: Work, seen: dict[bytes, FrameFeatures]) -> Pair:
    assert isinstance(work, CompareWork)  # noqa: S101  the caller picked these
    return Pair(
        instruction=work.instruction,
        first=tuple(seen[frame.key] for frame in work.first),
        second=tuple(seen[frame.key] for frame in work.second),
    )


def _checked(values: FrameValues, count: int) -> FrameValues | Exception:
    """Return usable values, cut to [0, 1], or the error of their query."""
    given = (
        {"progress": values.progress}
        if values.success is None
        else {
            "progress": values.progress,
            "success": values.success,
        }
    )
    for name, array in given.items():
        if array.shape != (count,) or not np.isfinite(array).all():
            return RoboserveError(
                "invalid_output", f"{name}: the model gave {array.shape} or values that are not finite"
            )
        if array.min() < -_TOLERANCE or array.max() > 1.0 + _TOLERANCE:
            return RoboserveError("invalid_output", f"{name}: the model gave values beyond 0 to 1")
    success = None if values.success is None else np.clip(values.success, 0.0, 1.0).astype(np.float32)
    return FrameValues(progress=np.clip(values.progress, 0.0, 1.0).astype(np.float32), success=success)


def _chance(value: float) -> float | Exception:
    if not -_TOLERANCE <= value <= 1.0 + _TOLERANCE:  # false for NaN too
        return RoboserveError("invalid_output", f"p_first: the model gave {value!r}, must be 0 to 1")
    return float(min(1.0, max(0.0, value)))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
