"""How good a reward model's values are; pure numpy.

Order of trust: agreement with time on successes (VOC) is easily reached by a model that only counts frames, so it is
read beside the ranking of rollouts of different quality (Kendall), the gap between success and failure, and the
confusion of instructions (reward-model fact: github.com/robometer/robometer, issue 12).
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

QUALITIES = ("failure", "suboptimal", "successful")
"""From worst to best."""


def pearson(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """Return Pearson's correlation, -1 to 1; 0 where either is constant, for then nothing goes together.

    Raises:
        ValueError: other than two vectors of equal length, at least 1.
    """
    _same(left, right)
    a, b = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 1e-12 else 0.0


def ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1-based ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[inverse], dtype=np.float64)


def spearman(left: NDArray[np.floating], right: NDArray[np.floating]) -> float:
    """Return Spearman's rank correlation, -1 to 1; 0 where either is constant; raises as `pearson`."""
    _same(left, right)
    return pearson(ranks(left), ranks(right))


def kendall(values: Sequence[float], order: Sequence[float]) -> float:
    """Return Kendall's tau-a of values against a true order: (concordant - discordant) / pairs; a tie counts 0.

    Pairs that are equal in the true order are left out.

    Raises:
        ValueError: no pair differs in the true order.
    """
    signs = [
        np.sign(values[i] - values[j]) * np.sign(order[i] - order[j])
        for i, j in combinations(range(len(values)), 2)
        if order[i] != order[j]
    ]
    if not signs:
        raise ValueError("order: no two differ")
    return float(np.mean(signs))


def value_order_correlation(
    progress: Iterable[NDArray[np.floating]], measure: Callable[[NDArray[np.floating], NDArray[np.floating]], float]
) -> float:
    """Return VOC: the correlation of progress with time, of each successful trajectory, averaged.

    Args:
        progress: predictions (T,) of successful trajectories, T over 1.
        measure: `pearson` (Robometer's reward alignment) or `spearman` (GVL's).

    Raises:
        ValueError: there is no trajectory.
    """
    found = [measure(values, np.linspace(0.0, 1.0, len(values))) for values in progress]
    if not found:
        raise ValueError("progress: no trajectory")
    return float(np.mean(found))


def ranking(by_quality: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    """Return how one task's rollouts are ranked by their last reward; None with fewer than two qualities.

    Every tuple with one rollout of each quality is ranked (Robometer, evals/compile_results.py). The mean over all
    tuples is the mean sign over the rollouts of two qualities, averaged over these, so that no tuple is formed.

    Returns:
        `kendall`: tau-a averaged over tuples; `pairs`: share of pairs of different quality in the right order, ties
        counting half; `gap_failure`, `gap_suboptimal`: mean reward of successes less that of the others, where there
        are both.
    """
    present = [quality for quality in QUALITIES if by_quality.get(quality)]
    if len(present) < 2:
        return None
    values = [np.asarray(by_quality[quality], dtype=np.float64) for quality in present]
    signs = [float(np.sign(high[:, None] - low[None, :]).mean()) for low, high in combinations(values, 2)]
    tau = float(np.mean(signs))
    found = {"kendall": tau, "pairs": 0.5 * (1.0 + tau)}
    means = {quality: float(array.mean()) for quality, array in zip(present, values, strict=True)}
    for name in ("failure", "suboptimal"):
        if "successful" in means and name in means:
            found[f"gap_{name}"] = means["successful"] - means[name]
    return found


def mean_ranking(tasks: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return `ranking` averaged over the tasks that have the figure.

    Raises:
        ValueError: no task has rollouts of two qualities.
    """
    found = [result for result in map(ranking, tasks) if result is not None]
    if not found:
        raise ValueError("tasks: none has rollouts of two qualities")
    names = {name for result in found for name in result}
    return {name: float(np.mean([result[name] for result in found if name in result])) for name in sorted(names)}


def confusion(matrix: NDArray[np.floating]) -> float:
    """Return mean diagonal less mean off-diagonal of (instruction i, video of task j) mean final rewards.

    Args:
        matrix: (n, n), n over 1.

    Raises:
        ValueError: another shape.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"matrix: shape {matrix.shape}, needs n x n with n over 1")
    own = np.eye(len(matrix), dtype=bool)
    return float(matrix[own].mean() - matrix[~own].mean())


def average_precision(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Return the area under precision over recall: sum over thresholds of (R_n - R_(n-1)) P_n, ties taken together.

    Raises:
        ValueError: no label is true, or the lengths differ.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if values.shape != truth.shape or not truth.any():
        raise ValueError("labels: must be as many as scores, and one of them true")
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, [True]))
    hits = np.cumsum(truth[order])[ends]
    precision, recall = hits / (ends + 1), hits / truth.sum()
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def bootstrap(values: Sequence[float], *, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval of the mean by resampling; the same seed gives the same interval."""
    array = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = array[random.integers(0, len(array), (draws, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _same(left: NDArray[np.floating], right: NDArray[np.floating]) -> None:
    if left.ndim != 1 or left.shape != right.shape or not len(left):
        raise ValueError(f"values: shapes {left.shape} and {right.shape}, must be equal vectors of at least 1")
