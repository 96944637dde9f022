"""How far the values of one reward model lie from those of another, as of a model and its quantised self."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.rewards.contract import Query

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from models.rewards.contract import FrameValues, RewardModel


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far one kind of value moved, over all frames of all clips.

    Attributes:
        mean, largest: of the absolute differences.
        correlation: Pearson's; NaN where either side never varies.
    """

    mean: float
    largest: float
    correlation: float


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far values moved; `success` is None where a model gives none. `frames`: how many were compared."""

    progress: Moved
    success: Moved | None
    frames: int


def measure_drift(
    first: RewardModel, second: RewardModel, clips: Iterable[tuple[str, Sequence[NDArray[np.uint8]]]]
) -> Drift:
    """Ask both models about the same clips, one at a time.

    Args:
        clips: instruction and frames, RGB uint8 (h, w, 3) each, no more than either model shows at once.

    Raises:
        ValueError: there are no clips.
    """
    pairs = [(_values(first, *clip), _values(second, *clip)) for clip in clips]
    if not pairs:
        raise ValueError("clips: there are none, so nothing can be compared")
    progress = _moved([(one.progress, other.progress) for one, other in pairs])
    successes = [
        (one.success, other.success) for one, other in pairs if one.success is not None and other.success is not None
    ]
    return Drift(
        progress=progress,
        success=_moved(successes) if successes else None,
        frames=sum(len(one.progress) for one, _ in pairs),
    )


def _values(model: RewardModel, instruction: str, frames: Sequence[NDArray[np.uint8]]) -> FrameValues:
    seen = model.encode([model.prepare(frame) for frame in frames])
    return model.score([Query(instruction=instruction, frames=tuple(seen))])[0]


def _moved(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Moved:
    one, other = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    apart = np.abs(one - other)
    varies = one.std() > 0 and other.std() > 0
    correlation = float(np.corrcoef(one, other)[0, 1]) if varies else float("nan")
    return Moved(mean=float(apart.mean()), largest=float(apart.max()), correlation=correlation)
