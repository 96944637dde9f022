"""How chunks that overlap in time become one command a tick: pure functions over arrays."""

from __future__ import annotations

from typing import Any, Sequence, Tuple

import numpy as np

Array = np.ndarray[Any, Any]


def temporal_ensemble(rows: Array, *, decay: float) -> Array:
    """Average the predictions that several chunks make for the same tick.

    Weights are exp(-decay * i), normalised, i = 0 for the oldest chunk (ACT, Zhao et al. 2023, section IV-B).

    Args:
        rows: (chunks, action size), oldest first.

    Returns:
        float32 (action size,).
    """
    weights = np.exp(-decay * np.arange(len(rows)))
    mean: Array = (weights / weights.sum()) @ rows.astype(np.float64)
    return mean.astype(np.float32)


def weighted_overlap(old: Tuple[int, Array], new: Tuple[int, Array], *, old_weight: float) -> Array:
    """Blend a new chunk with the plan in force where their ticks overlap; other ticks are the new chunk's alone.

    Args:
        old: tick of row 0, and the rows (n, action size).
        new: the same of the new chunk.
        old_weight: weight of the plan in force, 0 to 1; the new chunk has the rest.

    Returns:
        float32 of the new chunk's shape, for the new chunk's ticks.
    """
    (old_start, old_rows), (new_start, new_rows) = old, new
    blended: Array = new_rows.astype(np.float32, copy=True)
    first = max(old_start, new_start)
    last = min(old_start + len(old_rows), new_start + len(new_rows))
    if first < last:
        before = old_rows[first - old_start : last - old_start]
        after = new_rows[first - new_start : last - new_start]
        blended[first - new_start : last - new_start] = old_weight * before + (1.0 - old_weight) * after
    return blended


def delay_ticks(latencies_s: Sequence[float], rate_hz: float) -> int:
    """Return the ticks that pass while a chunk is made: ceil of the longest recent latency times the rate.

    The longest of a short memory, as in real-time chunking (Black et al. 2025, algorithm 1), for a chunk that comes
    later than promised would be joined at a row that it was not guided to keep.
    """
    # A latency of exactly one period must not become two ticks through rounding of the product.
    return int(np.ceil(max(latencies_s, default=0.0) * rate_hz - 1e-9))
