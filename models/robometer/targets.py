"""What Robometer is trained towards: progress relative to the first frame shown, success, and two-hot bins.

Formulas as in the reference (github.com/robometer/robometer, data/datasets/helpers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

IGNORED_BELOW = 0.5
"""Success of frames whose progress lies from here to the cutoff is neither taught nor untaught: they may look done."""


def progress_targets(indices: Sequence[int], length: int, *, cutoff: float = 1.0) -> NDArray[np.float32]:
    """Return progress of the shown frames, float32 (len(indices),), 0 to 1.

    With s the earliest shown index and c = floor(cutoff x length): min(1, (i - s) / max(1, c - s - 1)). So the earliest
    shown frame is 0 wherever it lies in its episode, and frames from the cutoff on are 1.

    Args:
        indices: shown frames; a reversed or rewound clip has them out of order.
        length: frames of the whole episode.
        cutoff: share of the episode after which its task is done; recordings often run on after that.

    Raises:
        ValueError: an index outside the episode, or a cutoff outside (0, 1].
    """
    shown = np.asarray(indices, dtype=np.int64)
    if not 0.0 < cutoff <= 1.0:
        raise ValueError(f"cutoff {cutoff:g}: must be over 0 and at most 1")
    if shown.size == 0 or shown.min() < 0 or shown.max() >= length:
        raise ValueError(f"indices: must lie from 0 to {length - 1} and be at least one")
    start = int(shown.min())
    done = int(np.floor(cutoff * length))
    return np.minimum(1.0, (shown - start) / max(1, done - start - 1)).astype(np.float32)


def success_targets(progress: NDArray[np.float32], *, cutoff: float = 1.0, successful: bool) -> NDArray[np.float32]:
    """Return 1 for frames whose progress has reached the cutoff, float32 (T,); all 0 for a clip without success."""
    if not successful:
        return np.zeros_like(progress)
    return (progress >= cutoff).astype(np.float32)


def success_mask(
    progress: NDArray[np.float32], success: NDArray[np.float32], *, successful: bool
) -> NDArray[np.float32]:
    """Return which frames teach success, float32 (T,): early ones, done ones, and every frame of a failed clip."""
    taught = (progress < IGNORED_BELOW) | (success > 0.0) | (not successful)
    return taught.astype(np.float32)


def two_hot(values: NDArray[np.float32], bins: int) -> NDArray[np.float32]:
    """Return the two-bin distributions, float32 (..., bins), whose expectation over k / (bins - 1) is each value.

    Args:
        values: 0 to 1, any shape.
    """
    place = np.clip(values, 0.0, 1.0).astype(np.float64) * (bins - 1)
    low = np.minimum(np.floor(place).astype(np.int64), bins - 2)
    share = place - low
    spread = np.zeros((*values.shape, bins), dtype=np.float32)
    np.put_along_axis(spread, low[..., None], (1.0 - share)[..., None].astype(np.float32), axis=-1)
    np.put_along_axis(spread, (low + 1)[..., None], share[..., None].astype(np.float32), axis=-1)
    return spread
