"""From single answers to a label: orders mapped back, votes averaged, ties told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.preference.contract import FIRST, SECOND, TIE, Judgement, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.preference.contract import Chances, LabellerSpec, LabelOptions, Pair, Reading

_EVEN = 1e-9


def label_of(chances: Chances, tie_threshold: float) -> int:
    """Return 0, 1 or -1; -1 where a tie is likeliest, or |P(first) - P(second)| is zero or under the threshold."""
    first, second, tie = chances
    margin = abs(first - second)
    if margin < max(_EVEN, tie_threshold) or tie >= max(first, second):
        return TIE
    return FIRST if first > second else SECOND


def mapped_back(chances: Chances) -> Chances:
    """Return the chances of a pair in the order that it was not shown in."""
    return chances[1], chances[0], chances[2]


def one_hot(label: int) -> Chances:
    """Return the chances that a plain label stands for."""
    return float(label == FIRST), float(label == SECOND), float(label == TIE)


def combined(given: Sequence[Reading], swapped: Sequence[Reading], options: LabelOptions) -> Judgement:
    """Put the answers about one pair together.

    Each order counts as much as the other, however many of its answers abstained; an order without an answer is left
    out.

    Args:
        given: answers to the pair as asked; `swapped`: to the other order, as shown there.
    """
    orders = (_mean([reading.chances for reading in given]), _mean([reading.chances for reading in swapped]))
    back = None if orders[1] is None else mapped_back(orders[1])
    readings = (*given, *swapped)
    masses = [reading.mass for reading in readings if reading.mass is not None]
    chances = _mean((orders[0], back))
    judgement = Judgement(
        chances=chances or (1 / 3, 1 / 3, 1 / 3),
        label=TIE,
        abstained=chances is None,
        given=orders[0],
        swapped=back,
        unparsed=sum(reading.unparsed for reading in readings),
        mass=min(masses, default=None),
        usage=sum((reading.usage for reading in readings), Usage()),
        replies=tuple(reply for reading in readings for reply in reading.replies),
    )
    return with_threshold(judgement, options.tie_threshold)


def with_threshold(judgement: Judgement, tie_threshold: float) -> Judgement:
    """Return a judgement whose label is decided by another threshold."""
    if judgement.abstained:
        return judgement
    return replace(judgement, label=label_of(judgement.chances, tie_threshold))


def require_sane(pairs: Sequence[Pair], options: LabelOptions, spec: LabellerSpec) -> None:
    """Refuse what a labeller cannot be asked.

    Raises:
        ValueError: naming the field, the value and the limit.
    """
    if options.protocol not in spec.protocols:
        raise ValueError(f"protocol: {options.protocol!r}; {spec.id!r} knows {', '.join(spec.protocols)}")
    if options.votes < 1 or (options.votes > 1 and options.protocol != "two_stage"):
        raise ValueError(f"votes: {options.votes}, must be 1 with {options.protocol!r}, which draws nothing")
    if not 0.0 <= options.tie_threshold <= 1.0:
        raise ValueError(f"tie_threshold: {options.tie_threshold:g}, must be from 0 to 1")
    for pair in pairs:
        lengths = (len(pair.first), len(pair.second))
        if not all(1 <= length <= spec.max_frames for length in lengths):
            raise ValueError(f"frames: {lengths[0]} and {lengths[1]}, from 1 to {spec.max_frames} on either side")
        if spec.equal_frames and lengths[0] != lengths[1]:
            raise ValueError(f"frames: {lengths[0]} and {lengths[1]}, must be equally many")
        if spec.wants_values and pair.values is None:
            raise ValueError(f"values: are missing, and {spec.id!r} tells by nothing else")


def _mean(found: Sequence[Chances | None]) -> Chances | None:
    told = [chances for chances in found if chances is not None]
    if not told:
        return None
    first, second, tie = (sum(column) / len(told) for column in zip(*told, strict=True))
    return first, second, tie
