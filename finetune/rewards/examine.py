"""Put a judge through an evaluation: values of every rollout, of successes under other tasks' words, and of pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune.relabel.config import Plan
from finetune.rewards.judges import Ask, PairAsk
from finetune.rewards.material import BEST
from models.rewards.frames import FramePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from finetune.relabel.labeller import Labels, ModelFacts
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
    *,
    frame_policy: str | None = None,
    every: int = 1,
    report: Report,
) -> Answers:
    """Ask everything.

    Args:
        frame_policy: which frames are shown; None for the judge's own.
        every: a value for every n-th frame only, and the last.
        report: told (stage, done, total).

    Raises:
        RoboserveError: a video is damaged, or the judge gives no values.
    """
    plan = Plan(mode="prefix", frame_policy=frame_policy or judge.facts.frame_policy, every=every)
    rows: list[range] = []
    curves: list[Labels] = []
    for rollout in material.rollouts:
        rows.append(judge.keep(rollout.frames(), rollout.length))
        curves.append(judge.curve(rollout.instruction, rows[-1], plan))
        report("rollouts", len(curves), len(material.rollouts))
    return Answers(
        facts=judge.facts,
        plan=plan,
        curves=tuple(curves),
        crossed=_cross(judge, material, rows, plan.policy, report),
        pairs=_compare(judge, pairs, rows, plan.policy, report) if judge.compares else None,
    )


def _cross(
    judge: Judge, material: Material, rows: Sequence[range], policy: FramePolicy, report: Report
) -> dict[tuple[int, str], float]:
    """Judge every success by every task's instruction; one video at a time, so that its frames are seen once."""
    found: dict[tuple[int, str], float] = {}
    successes = [index for index, rollout in enumerate(material.rollouts) if rollout.quality == BEST]
    for done, index in enumerate(successes if len(material.tasks) > 1 else ()):
        shown = tuple(rows[index][frame] for frame in policy.indices(len(rows[index])))
        asks = [Ask(instruction=words, rows=shown) for words in material.instructions.values()]
        for task, final in zip(material.tasks, judge.finals(asks), strict=True):
            found[index, task] = final.progress
        report("other instructions", done + 1, len(successes))
    return found


def _compare(
    judge: Judge, pairs: Sequence[KnownPair], rows: Sequence[range], policy: FramePolicy, report: Report
) -> tuple[PairAnswer, ...]:
    found: list[PairAnswer] = []
    for start in range(0, len(pairs), _AT_ONCE):
        group = pairs[start : start + _AT_ONCE]
        asks = [pair_ask(pair, rows, policy) for pair in group]
        swapped = [replace(ask, first=ask.second, second=ask.first) for ask in asks]
        chances = judge.prefer([*asks, *swapped])
        for at, pair in enumerate(group):
            found.append(PairAnswer(pair=pair, better_first=chances[at], better_second=1.0 - chances[len(group) + at]))
        report("pairs", len(found), len(pairs))
    return tuple(found)


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
