"""From a judge's answers to figures with their intervals: by task, by group of tasks, and over all."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from finetune.rewards.material import BEST
from models.rewards.metrics import QUALITIES, average_precision, bootstrap, pearson, ranking, spearman

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from finetune.rewards.examine import Answers, PairAnswer
    from finetune.rewards.material import Material

FIGURES = (
    "voc_pearson",
    "voc_spearman",
    "kendall",
    "pairs",
    "gap_failure",
    "gap_suboptimal",
    "confusion",
    "success_auprc",
)
"""See `models.rewards.metrics` for each; `pairs` is the share of rollouts of different quality in the right order."""
DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95 % bootstrap interval; `count`: rollouts, pairs or tasks that were resampled."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class PreferenceFigures:
    """How a judge decides pairs of one sort.

    Attributes:
        accuracy: share of the questions, each pair asked in both orders, whose better clip got the larger chance; a tie
            counts half.
        order_bias: mean chance of the clip shown first, less one half.
        disagreement: share of the pairs whose two orders are decided differently.
    """

    accuracy: Estimate
    order_bias: float
    disagreement: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Figures of some tasks; a figure that their rollouts do not give is absent.

    Attributes:
        preference: by what the success is set against, by kind of the worse rollout, and "all".
    """

    name: str
    tasks: tuple[str, ...]
    rollouts: int
    figures: Mapping[str, Estimate]
    preference: Mapping[str, PreferenceFigures]


def make_row(name: str, tasks: Sequence[str], material: Material, answers: Answers, *, seed: int) -> Row:
    """Return the figures of some tasks.

    Every figure is the mean over tasks of each task's own, but for success AUPRC and preferences, which pool rollouts
    and pairs. The interval of several tasks is over tasks drawn anew, that of one over its rollouts; that of
    preferences over pairs.
    """
    table = _Table(material, answers, seed)
    units = [table.task(task, tasks) for task in tasks]
    figures: dict[str, Estimate] = {}
    for figure in FIGURES:
        found = [unit[figure] for unit in units if figure in unit]
        if found:
            figures[figure] = found[0] if len(tasks) == 1 else _mean([each.value for each in found], seed)
    if len(tasks) > 1:
        figures.pop("success_auprc", None)
        figures |= table.auprc([table.successes(task) for task in tasks])
    preference = {}
    if answers.pairs is not None:
        own = [answer for answer in answers.pairs if answer.pair.task in set(tasks)]
        for sort, chosen in _sorts(own).items():
            preference[sort] = _preference(chosen, seed)
    rollouts = sum(len(material.of(task)) for task in tasks)
    return Row(name=name, tasks=tuple(tasks), rollouts=rollouts, figures=figures, preference=preference)


def confusion_matrix(tasks: Sequence[str], material: Material, answers: Answers) -> NDArray[np.float64] | None:
    """Return mean final progress by (instruction of task i, successes of task j); None where a task has none."""
    videos = [material.of(task, quality=BEST) for task in tasks]
    if len(tasks) < 2 or not all(videos):
        return None
    return np.array(
        [[np.mean([answers.crossed[video, task] for video in of_task]) for of_task in videos] for task in tasks]
    )


class _Table:
    """Figures of single tasks."""

    def __init__(self, material: Material, answers: Answers, seed: int) -> None:
        self._material, self._answers, self._seed = material, answers, seed

    def task(self, task: str, among: Sequence[str]) -> dict[str, Estimate]:
        """Return one task's figures; `among`: the tasks whose instructions its videos are judged by."""
        material, curves, seed = self._material, self._answers.curves, self._seed
        found: dict[str, Estimate] = {}
        best = [index for index in material.of(task, quality=BEST) if len(curves[index].frames) > 1]
        if best:
            for name, measure in (("voc_pearson", pearson), ("voc_spearman", spearman)):
                found[name] = _mean([_with_time(measure, curves[i].progress, curves[i].frames) for i in best], seed)
        finals = {
            quality: [float(curves[index].progress[-1]) for index in material.of(task, quality=quality)]
            for quality in QUALITIES
        }
        found |= ranking_estimates(finals, seed=seed)
        others = [other for other in (among if len(among) > 1 else material.tasks) if other != task]
        crossed = self._answers.crossed
        if others and best:
            apart = [crossed[i, task] - float(np.mean([crossed[i, other] for other in others])) for i in best]
            found["confusion"] = _mean(apart, seed)
        return found | self.auprc([[each] for each in self.successes(task)])

    def successes(self, task: str) -> list[tuple[float, bool]]:
        """Return (success at the last frame, whether the task was done) of each rollout of a task."""
        given = [(self._answers.curves[i].success, self._material.rollouts[i].success) for i in self._material.of(task)]
        return [(float(values[-1]), done) for values, done in given if values is not None]

    def auprc(self, units: Sequence[Sequence[tuple[float, bool]]]) -> dict[str, Estimate]:
        """Return average precision over all, with an interval over units drawn anew; nothing without both outcomes."""
        value = _auprc(units)
        if value is None:
            return {}
        random = np.random.default_rng(self._seed)
        drawn = [_auprc([units[i] for i in random.integers(0, len(units), len(units))]) for _ in range(DRAWS)]
        known = [each for each in drawn if each is not None]
        return {"success_auprc": _estimate(value, np.array(known), len(units))}


def ranking_estimates(by_quality: Mapping[str, Sequence[float]], *, seed: int) -> dict[str, Estimate]:
    """Return `models.rewards.metrics.ranking` of one task, with intervals over rollouts drawn anew in each quality.

    Kendall's tau-a over all tuples of one rollout a quality is the mean of the signs of all pairs, taken first over the
    pairs of two qualities and then over these: no tuple is formed.
    """
    found = ranking(by_quality)
    if found is None:
        return {}
    random = np.random.default_rng(seed)
    present = [quality for quality in QUALITIES if by_quality.get(quality)]
    drawn = {
        quality: np.asarray(by_quality[quality])[
            random.integers(0, len(by_quality[quality]), (DRAWS, len(by_quality[quality])))
        ]
        for quality in present
    }
    signs = [
        np.sign(drawn[high][:, :, None] - drawn[low][:, None, :]).mean(axis=(1, 2))
        for low, high in combinations(present, 2)
    ]
    tau = np.mean(signs, axis=0)
    draws = {"kendall": tau, "pairs": 0.5 * (1.0 + tau)}
    for name in ("failure", "suboptimal"):
        if f"gap_{name}" in found:
            draws[f"gap_{name}"] = drawn[BEST].mean(axis=1) - drawn[name].mean(axis=1)
    count = sum(len(by_quality[quality]) for quality in present)
    return {name: _estimate(value, draws[name], count) for name, value in found.items()}


def _with_time(
    measure: Callable[[NDArray[np.floating], NDArray[np.floating]], float],
    progress: NDArray[np.float32],
    frames: NDArray[np.int64],
) -> float:
    return measure(progress.astype(np.float64), frames.astype(np.float64))


def _auprc(units: Sequence[Sequence[tuple[float, bool]]]) -> float | None:
    pairs = [pair for unit in units for pair in unit]
    labels = [done for _, done in pairs]
    if not any(labels) or all(labels):
        return None
    return average_precision([value for value, _ in pairs], labels)


def _sorts(answers: Sequence[PairAnswer]) -> dict[str, list[PairAnswer]]:
    found: dict[str, list[PairAnswer]] = {}
    for answer in answers:
        for sort in dict.fromkeys((answer.pair.against, answer.pair.kind, "all")):
            found.setdefault(sort, []).append(answer)
    return found


def _preference(answers: Sequence[PairAnswer], seed: int) -> PreferenceFigures:
    chances = np.array([(answer.better_first, answer.better_second) for answer in answers])
    verdicts = np.sign(chances - 0.5)
    return PreferenceFigures(
        accuracy=_mean(list((0.5 * (1.0 + verdicts)).mean(axis=1)), seed),
        order_bias=float(0.5 * (chances[:, 0] - chances[:, 1]).mean()),
        disagreement=float((verdicts[:, 0] != verdicts[:, 1]).mean()),
    )


def _mean(values: Sequence[float], seed: int) -> Estimate:
    low, high = bootstrap(values, seed=seed, draws=DRAWS)
    return Estimate(value=float(np.mean(values)), low=low, high=high, count=len(values))


def _estimate(value: float, draws: NDArray[np.floating], count: int) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), count=count)
