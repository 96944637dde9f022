"""The figures of an evaluation as lines of text, for the terminal and the page alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.rewards.evaluate import CLOCK
from finetune.rewards.pairs import AGAINST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from finetune.rewards.evaluate import JudgeResult
    from finetune.rewards.figures import Estimate, Row

_FIGURES = {
    "voc_pearson": ("VOC, Pearson", "VOC r"),
    "voc_spearman": ("VOC, Spearman", "rho"),
    "kendall": ("Kendall tau-a", "tau-a"),
    "pairs": ("pairs ranked rightly", "ranked"),
    "gap_failure": ("success - failure", "- fail"),
    "gap_suboptimal": ("success - suboptimal", "- sub"),
    "confusion": ("own words - others'", "words"),
    "success_auprc": ("success AUPRC", "AUPRC"),
}
"""What each figure is called, in order, and in short."""
_PREFERENCES = ("near_miss", *AGAINST, "all")


def group_name(row: Row) -> str:
    """Return what a group of tasks is called, with their number."""
    return f"{row.name.replace('_', ' ')} (tasks: {len(row.tasks)})"


def group_lines(rows: Mapping[str, Row]) -> Iterator[list[str]]:
    """Give a line for each figure of a group: its name and a cell for each judge, with its interval but for the clock.

    Args:
        rows: judge to its row of the group.
    """
    for figure, (title, _) in _FIGURES.items():
        if any(figure in row.figures for row in rows.values()):
            yield [title, *(_cell(row.figures.get(figure), judge) for judge, row in rows.items())]
    for sort in _PREFERENCES:
        if any(sort in row.preference for row in rows.values()):
            known = {judge: row.preference.get(sort) for judge, row in rows.items()}
            cells = [_cell(one.accuracy if one else None, judge) for judge, one in known.items()]
            yield [f"preferred to {sort.replace('_', ' ')}", *cells]
    all_pairs = [row.preference.get("all") for row in rows.values()]
    if any(all_pairs):
        yield ["order bias", *(f"{one.order_bias:+.3f}" if one else "-" for one in all_pairs)]
        yield ["orders differ", *(f"{one.disagreement:.0%}" if one else "-" for one in all_pairs)]


def task_lines(result: JudgeResult) -> tuple[list[str], list[list[str]]]:
    """Return the headings and a line for each task of one judge."""
    known = {figure for row in result.tasks for figure in row.figures}
    shown = [figure for figure in _FIGURES if figure in known and figure != "pairs"]  # one task's says what tau-a says
    lines = []
    for row in result.tasks:
        preference = row.preference.get("all")
        cells = [_plain(row.figures.get(figure)) for figure in shown]
        lines.append([row.name, *cells, _plain(preference.accuracy if preference else None)])
    return ["task", *(_FIGURES[figure][1] for figure in shown), "pref"], lines


def model_line(name: str, result: JudgeResult) -> str:
    """Return who was asked, in one line."""
    facts = result.answers.facts
    pinned = f"revision {facts.revision} ({facts.content_hash[:12]}), {facts.dtype}"
    return f"{name}: {pinned}, frames {result.answers.plan.frame_policy}"


def _cell(estimate: Estimate | None, judge: str) -> str:
    if estimate is None or judge == CLOCK:
        return _plain(estimate)
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _plain(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.2f}"
