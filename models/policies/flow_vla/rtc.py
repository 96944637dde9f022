"""Real-time chunking: guide a new chunk to agree with the part of the old one that is still being played.

Black, Galliker and Levine 2025 (arXiv 2506.07339), in the noise-time convention of this package: t runs from 1 (noise)
to 0 (action), and tau = 1 - t is the paper's flow time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Schedule = Literal["zeros", "ones", "linear", "exp"]


def prefix_weights(*, delay: int, horizon: int, length: int, schedule: Schedule = "linear") -> NDArray[np.float32]:
    """Return how strongly each row of the new chunk is held to the old one, float32 (length,), in [0, 1].

    Rows before `delay` will have been played before the answer arrives: weight 1. From `horizon` on the new chunk is
    free: weight 0. Between them the weight falls: "zeros" at once, "ones" not at all, "linear" evenly (neither end
    included), "exp" as w * (e^w - 1) / (e - 1) of the linear w (equation 5 of the paper).

    Args:
        delay: d, cut to `horizon`; `horizon`: cut to `length`; both 0 or more.
        length: rows of the chunk.

    Raises:
        ValueError: for a negative number or an unknown schedule.
    """
    if min(delay, horizon, length) < 0:
        raise ValueError(f"rtc: delay {delay}, horizon {horizon} and length {length} must be 0 or more")
    horizon = min(horizon, length)
    delay = min(delay, horizon)
    weights = np.zeros(length, dtype=np.float32)
    weights[:delay] = 1.0
    weights[delay:horizon] = _fall(horizon - delay, schedule)
    return weights


def _fall(rows: int, schedule: Schedule) -> NDArray[np.float64]:
    if schedule == "zeros":
        return np.zeros(rows)
    if schedule == "ones":
        return np.ones(rows)
    linear = np.linspace(1.0, 0.0, rows + 2)[1:-1]
    if schedule == "linear":
        return linear
    if schedule == "exp":
        return np.asarray(linear * np.expm1(linear) / (math.e - 1.0))
    raise ValueError(f"rtc schedule: {schedule!r}; allowed are zeros, ones, linear, exp")


def guidance_weight(time: float, maximum: float) -> float:
    """Return the strength of the correction at noise time `time` (1 to 0): equations 2 and 4 of the paper.

    min(maximum, (1 - tau) / (tau * r^2)) with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2).
    """
    tau = 1.0 - time
    if tau <= 0.0 or time <= 0.0:
        return maximum
    spread = (tau**2 + time**2) / time**2
    return min(maximum, time / tau * spread)
