"""Put a judge through an evaluation: values of every rollout, of successes under other tasks' words, and of pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from finetune.relabel.labeller import Labels
from finetune.rewards.judges import Ask, PairAsk
from finetune.rewards.material import BEST
from models.rewards.frames import FramePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from finetune.relabel.config import Plan
    from finetune.relabel.labeller import ModelFacts
    from finetune.rewards.journal import Journal
    from finetune.rewards.judges import Judge
    from finetune.rewards.material import Material
    from finetune.rewards.pairs import KnownPair, Played

    Report: TypeAlias = Callable[[str, int, int], None]

_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PairAnswer:
    """A judge's answer to a pair, asked in both orders: the chance that it gave the better clip in each.

    Attributes:
        better_first: with the better clip shown first; `better_second`: with it shown second.
    """

    pair: KnownPair
    better_first: float
    better_second: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All that a judge said.

    Attributes:
        curves: values of every rollout under its own instruction, in the material's order.
        crossed: (rollout, task) to the final progress of a success under that task's instruction.
        pairs: None where it does not compare.
    """

    facts: ModelFacts
    plan: Plan
    curves: tuple[Labels, ...]
    crossed: dict[tuple[int, str], float]
    pairs: tuple[PairAnswer, ...] | None


def examine(
    judge: Judge,
    material: Material,
    pairs: Sequence[KnownPair],
    plan: Plan,
    *,
    journal: Journal,
    report: Report,
) -> Answers:
    """Ask everything that the journal does not know.

    Args:
        plan: which frames get a value, in mode "prefix", and which are shown for it.
        report: told (stage, done, total).

    Raises:
        RoboserveError: a video is damaged, or the judge gives no values.
    """
    exam = _Exam(judge, material, plan.policy, journal, report)
    return Answers(
        facts=judge.facts,
        plan=plan,
        curves=tuple(exam.curves(plan)),
        crossed=exam.crossed(),
        pairs=tuple(exam.pairs(pairs)) if judge.compares else None,
    )


class _Exam:
    def __init__(self, judge: Judge, material: Material, policy: FramePolicy, journal: Journal, report: Report) -> None:
        self._judge, self._material, self._policy = judge, material, policy
        self._journal, self._report = journal, report
        self._rows: list[range] = []

    def curves(self, plan: Plan) -> Iterator[Labels]:
        """Keep every rollout's frames and judge it by its own instruction."""
        for number, rollout in enumerate(self._material.rollouts):
            self._rows.append(self._judge.keep(rollout.frames(), rollout.length))
            known = self._journal.get("curve", number)
            if known is None:
                labels = self._judge.curve(rollout.instruction, self._rows[-1], plan)
                self._journal.put("curve", number, _listed(labels))
            else:
                labels = _labels(known)
            yield labels
            self._report("rollouts", number + 1, len(self._material.rollouts))

    def crossed(self) -> dict[tuple[int, str], float]:
        """Judge every success by every task's instruction; one video at a time, so that its frames are seen once."""
        material = self._material
        found: dict[tuple[int, str], float] = {}
        successes = [index for index, rollout in enumerate(material.rollouts) if rollout.quality == BEST]
        for done, index in enumerate(successes if len(material.tasks) > 1 else ()):
            finals = self._journal.get("crossed", index)
            if finals is None:
                rows = self._rows[index]
                shown = tuple(rows[frame] for frame in self._policy.indices(len(rows)))
                asks = [Ask(instruction=words, rows=shown) for words in material.instructions.values()]
                finals = [final.progress for final in self._judge.finals(asks)]
                self._journal.put("crossed", index, finals)
            found |= {(index, task): float(final) for task, final in zip(material.tasks, finals, strict=True)}
            self._report("other instructions", done + 1, len(successes))
        return found

    def pairs(self, pairs: Sequence[KnownPair]) -> Iterator[PairAnswer]:
        """Ask for every pair in both orders."""
        for start in range(0, len(pairs), _AT_ONCE):
            group = pairs[start : start + _AT_ONCE]
            chances = self._journal.get("pairs", start)
            if chances is None:
                asks = [pair_ask(pair, self._rows, self._policy) for pair in group]
                swapped = [replace(ask, first=ask.second, second=ask.first) for ask in asks]
                chances = self._judge.prefer([*asks, *swapped])
                self._journal.put("pairs", start, chances)
            for at, pair in enumerate(group):
                yield PairAnswer(pair=pair, better_first=chances[at], better_second=1.0 - chances[len(group) + at])
            self._report("pairs", start + len(group), len(pairs))


def pair_ask(pair: KnownPair, rows: Sequence[range], policy: FramePolicy) -> PairAsk:
    """Return the question for a pair, the better clip first.

    Both clips must show equally many frames; where a policy shows more of the longer one, that one is thinned evenly.
    """
    sides = [_shown(played, rows, policy) for played in (pair.better, pair.worse)]
    count = min(map(len, sides))
    even = FramePolicy(kind="linspace", count=count)
    first, second = (tuple(side[index] for index in even.indices(len(side))) for side in sides)
    return PairAsk(instruction=pair.instruction, first=first, second=second)


def _shown(played: Played, rows: Sequence[range], policy: FramePolicy) -> tuple[int, ...]:
    path = [rows[played.rollout][frame] for frame in played.frames]
    return tuple(path[index] for index in policy.indices(len(path)))


def _listed(labels: Labels) -> list[list[float] | None]:
    success = None if labels.success is None else labels.success.tolist()
    return [labels.frames.tolist(), labels.progress.tolist(), success]


def _labels(listed: list[list[float] | None]) -> Labels:
    frames, progress, success = listed
    return Labels(
        frames=np.asarray(frames, np.int64),
        progress=np.asarray(progress, np.float32),
        success=None if success is None else np.asarray(success, np.float32),
    )
