"""What the cards of reward models have in common: an evaluation's figures as Markdown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune.rewards.evaluate import CLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FIGURES = {
    "voc_pearson": "VOC, Pearson",
    "voc_spearman": "VOC, Spearman",
    "kendall": "Kendall tau-a, success / suboptimal / failure",
    "pairs": "pairs of different quality ranked rightly",
    "gap_failure": "success less failure",
    "gap_suboptimal": "success less suboptimal",
    "confusion": "own instruction less others'",
    "success_auprc": "success AUPRC",
}
_WEAK = 0.4


def read_evaluation(path: Path, content_hash: str) -> tuple[dict[str, Any], str]:
    """Return an `evaluation.json` and the name that its model goes by in it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is of other weights.
    """
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    name, judge = next((name, judge) for name, judge in found["judges"].items() if name != CLOCK)
    if judge["model"]["content_hash"] != content_hash:
        raise ValueError(f"evaluation: {path} is of other weights than the checkpoint's")
    return found, name


def seen_by_none(found: Mapping[str, Any], name: str) -> str:
    """Return a sentence that says what was evaluated."""
    groups = {row["name"]: row for row in found["judges"][name]["groups"] if row["name"] != "all"}
    named = ", ".join(f"{len(row['tasks'])} {group.replace('_', ' ')}" for group, row in groups.items())
    return (
        f"Evaluated on {found['data']['rollouts']} rollouts of scenes that it never saw ({named} tasks; held-out ones "
        "were left out whole, their scenes and words included).\n"
    )


def group_table(found: Mapping[str, Any], name: str) -> str:
    """Return the figures of every group of tasks, the clock's beside them."""
    rows = {row["name"]: row for row in found["judges"][name]["groups"] if row["name"] != "all"}
    clock = {row["name"]: row for row in found["judges"][CLOCK]["groups"]}
    columns = [f"{group.replace('_', ' ')} | clock" for group in rows]
    lines = ["## How well it judges\n", "| figure | " + " | ".join(columns) + " |"]
    lines.append("|---|" + "---|---|" * len(rows))
    for figure, title in _FIGURES.items():
        cells = [
            f"{_cell(row['figures'], figure)} | {_plain(clock[group]['figures'], figure)}"
            for group, row in rows.items()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for sort in sorted({sort for row in rows.values() for sort in row["preference"]} - {"all"}):
        cells = [f"{_accuracy(row['preference'], sort)} | 0.50" for row in rows.values()]
        lines.append(f"| preferred to {sort.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines.append(
        "\nMeans over tasks with 95 % intervals over tasks. The clock counts frames and looks at nothing: VOC alone "
        "says little.\n"
    )
    return "\n".join(lines)


def task_table(found: Mapping[str, Any], name: str) -> str:
    """Return the figures task by task, and where the model fails."""
    judge = found["judges"][name]
    lines = ["## Task by task\n", "| task | VOC | Kendall | own less others' words |", "|---|---|---|---|"]
    weak = []
    for row in judge["tasks"]:
        figures = row["figures"]
        cells = [_plain(figures, name) for name in ("voc_pearson", "kendall", "confusion")]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        if figures.get("kendall", {"value": 1.0})["value"] < _WEAK:
            weak.append(row["name"])
    lines += ["", "## Known failures\n"]
    if weak:
        lines.append(
            f"- Rollouts of different quality are ranked poorly (Kendall under {_WEAK}) in: {', '.join(weak)}."
        )
    lines.append("- Simulator only: other cameras, robots, colours and real images were never seen.")
    lines.append("- Words are those of the training tasks; a new task's words mean little to it (held-out column).\n")
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    found = figures[name]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _plain(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]['value']:.2f}" if name in figures else "-"


def _accuracy(preference: Mapping[str, Any], sort: str) -> str:
    return _cell({sort: preference[sort]["accuracy"]}, sort) if sort in preference else "-"


def run_config(run: Path) -> dict[str, Any]:
    """Return the settings of a run folder."""
    found: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    return found


def last_metrics(run: Path) -> dict[str, Any]:
    """Return the newest row of a run's metrics."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found
