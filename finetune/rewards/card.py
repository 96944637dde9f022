"""What the cards of reward models have in common: an evaluation's figures as Markdown."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from finetune.rewards.evaluate import CLOCK
from finetune.rewards.plots import Curve, curves_by_kind

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
CURVES = "curves.png"
_DRAWN = ("successful", "near_miss", "failure")
_COLOURS = 64


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


def drawn_curves(found: Mapping[str, Any], name: str, rollouts: Path, folder: Path) -> str:
    """Draw progress over three tasks' rollouts into a card's folder; return the Markdown that shows it.

    The tasks are those of the first group whose Kendall is highest, in the middle and lowest, so that the picture
    flatters nobody.

    Args:
        rollouts: `rollouts.jsonl` of the evaluation.
    """
    tasks = _ranked(found, name)
    chosen = [tasks[0], tasks[len(tasks) // 2], tasks[-1]]
    panels: dict[str, dict[str, list[Curve]]] = {task: defaultdict(list) for task in chosen}
    for line in rollouts.read_text("utf-8").splitlines():
        rollout = json.loads(line)
        kind = rollout["kind"] if rollout["kind"] in _DRAWN else rollout["quality"]
        if rollout["task"] in panels and kind in _DRAWN:
            values = rollout[name]
            shares = np.asarray(values["frames"]) / max(1, rollout["frames"] - 1)
            panels[rollout["task"]][kind].append((shares, np.asarray(values["progress"], np.float32)))
    ordered = {task: {kind: panel[kind] for kind in _DRAWN if panel[kind]} for task, panel in panels.items()}
    path = folder / CURVES
    curves_by_kind(ordered).savefig(path, dpi=90, facecolor="white")
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(_COLOURS)
    small.save(path, optimize=True)
    return (
        f"![Progress over successes, near misses and failures of {', '.join(chosen)}]({CURVES})\n\n"
        f"The trained tasks whose rollouts it ranks best, middling and worst: {', '.join(chosen)}. Mean progress over "
        "the rollouts of each kind, their number in brackets.\n"
    )


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


def _ranked(found: Mapping[str, Any], name: str) -> list[str]:
    """Return the tasks of the first group, the best ranked first."""
    judge = found["judges"][name]
    group = set(judge["groups"][0]["tasks"])
    rows = [row for row in judge["tasks"] if row["name"] in group and "kendall" in row["figures"]]
    return [row["name"] for row in sorted(rows, key=lambda row: -row["figures"]["kendall"]["value"])]


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
