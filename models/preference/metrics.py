"""How good preference labels are, against the true progress of both observations; pure numpy.

RL-VLM-F (arXiv 2402.03681) finds that labels are right the more often the further two pictures are apart; so accuracy
is told by the gap in true progress, in thirds of equal size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.preference.contract import FIRST, SECOND, TIE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

THIRDS = ("smallest", "middle", "largest")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One labelled pair whose truth is known.

    Attributes:
        first_value, second_value: true progress of both, in any unit.
        label: 0, 1 or -1.
        chances: P(first), P(second), P(tie).
        towards_first_shown: see `Judgement`; None unless both orders were asked.
        order_gap: see `Judgement`.
    """

    first_value: float
    second_value: float
    label: int
    chances: tuple[float, float, float]
    towards_first_shown: float | None = None
    order_gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class GapBin:
    """One third of the pairs by true gap.

    Attributes:
        low, high: least and greatest gap in it.
        accuracy: share of its decided pairs that are right; NaN where none is decided.
        forced: share of all its pairs that are right when P(first) against P(second) decides, equality counting half.
        tie_rate: share of its pairs labelled -1.
    """

    low: float
    high: float
    pairs: int
    accuracy: float
    forced: float
    tie_rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What `calibration` finds; shares are 0 to 1, and NaN where nothing could be counted.

    Attributes:
        pairs: whose true values differ; `equal`: pairs whose true values do not, which only `equal_tie_rate` looks at.
        accuracy, forced, tie_rate: as in `GapBin`, over all.
        order_bias: mean advantage of whichever is shown first, -1 to 1.
        order_gap: mean total variation between both orders.
        ece: expected calibration error of P(first) / (P(first) + P(second)), see `expected_calibration_error`.
        thirds: by gap, smallest first.
        reliability: (mean confidence, share right, pairs) of each bin of the calibration error that is not empty.
    """

    pairs: int
    equal: int
    accuracy: float
    forced: float
    tie_rate: float
    equal_tie_rate: float
    order_bias: float
    order_gap: float
    ece: float
    thirds: tuple[GapBin, ...]
    reliability: tuple[tuple[float, float, int], ...]


def calibration(found: Sequence[Labelled], *, bins: int = 10) -> Calibration:
    """Judge labels.

    Raises:
        ValueError: there are fewer than three pairs whose true values differ.
    """
    known = [item for item in found if item.first_value != item.second_value]
    equal = [item for item in found if item.first_value == item.second_value]
    if len(known) < 3:
        raise ValueError(f"pairs: {len(known)} whose true values differ, needs at least 3")
    known.sort(key=_gap)
    cuts = np.array_split(np.arange(len(known)), len(THIRDS))
    whole = _bin(known)
    biases = [item.towards_first_shown for item in found if item.towards_first_shown is not None]
    gaps = [item.order_gap for item in found if item.order_gap is not None]
    confidence, right = _confidence(known)
    ece, reliability = expected_calibration_error(confidence, right, bins=bins)
    return Calibration(
        pairs=len(known),
        equal=len(equal),
        accuracy=whole.accuracy,
        forced=whole.forced,
        tie_rate=whole.tie_rate,
        equal_tie_rate=_mean([item.label == TIE for item in equal]),
        order_bias=_mean(biases),
        order_gap=_mean(gaps),
        ece=ece,
        thirds=tuple(_bin([known[index] for index in cut]) for cut in cuts),
        reliability=reliability,
    )


def expected_calibration_error(
    confidence: NDArray[np.floating], right: NDArray[np.floating], *, bins: int = 10
) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """Return the mean, over answers, of |confidence - share right| in bins of equal width (Guo et al. 2017, ECE).

    Args:
        confidence: (n,), 0 to 1; `right`: (n,), 1 where the answer was right, 0 where not.

    Returns:
        The error, NaN without answers, and (mean confidence, share right, answers) of each bin that is not empty.
    """
    if not len(confidence):
        return float("nan"), ()
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for place in np.unique(places):
        chosen = places == place
        found.append((float(confidence[chosen].mean()), float(right[chosen].mean()), int(chosen.sum())))
    error = sum(abs(mean - share) * count for mean, share, count in found) / len(confidence)
    return float(error), tuple(found)


def _gap(item: Labelled) -> float:
    return abs(item.first_value - item.second_value)


def _truth(item: Labelled) -> int:
    return FIRST if item.first_value > item.second_value else SECOND


def _bin(items: Sequence[Labelled]) -> GapBin:
    decided = [item.label == _truth(item) for item in items if item.label != TIE]
    forced = [0.5 * (1.0 + np.sign(item.chances[_truth(item)] - item.chances[1 - _truth(item)])) for item in items]
    return GapBin(
        low=_gap(items[0]),
        high=_gap(items[-1]),
        pairs=len(items),
        accuracy=_mean(decided),
        forced=_mean(forced),
        tie_rate=_mean([item.label == TIE for item in items]),
    )


def _confidence(items: Sequence[Labelled]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how sure each answer is of the side it favours, and whether that side is the right one."""
    sure, right = [], []
    for item in items:
        first, second, _ = item.chances
        if first + second <= 0.0:
            continue
        share = first / (first + second)
        sure.append(max(share, 1.0 - share))
        right.append(0.5 if share == 0.5 else float((share > 0.5) == (_truth(item) == FIRST)))
    return np.asarray(sure), np.asarray(right)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
