"""The model card: what the model is for, how well it judges, where it fails and how it was made, read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.rewards.evaluate import CLOCK
from models.robometer.checkpoint import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def write_card(run: Path, vision: Path, evaluation: Path, comparison: Path | None = None) -> Path:
    """Write `checkpoint/README.md` of a run, and keep the evaluation's figures beside it.

    Args:
        vision: run folder of stage one; `evaluation`: `evaluation.json` of the checkpoint; `comparison`: the table of
            `compare`, Markdown.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: the evaluation is of other weights.
    """
    folder = run / "checkpoint"
    found: dict[str, Any] = json.loads(evaluation.read_text("utf-8"))
    settings: dict[str, Any] = json.loads((folder / "robometer.json").read_text("utf-8"))
    name, judge = next((name, judge) for name, judge in found["judges"].items() if name != CLOCK)
    if judge["model"]["content_hash"] != content_hash(folder):
        raise ValueError(f"evaluation: {evaluation.name} is of other weights than those of {folder}")
    parts = [
        _head(settings, found, judge),
        _groups(found, name),
        _tasks(judge),
        _recipe(run, vision, found),
        "" if comparison is None else _claim(comparison),
        _use(settings),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(part for part in parts if part), "utf-8")
    (folder / "evaluation.json").write_text(evaluation.read_text("utf-8"), "utf-8")
    return path


def _head(settings: Mapping[str, Any], found: Mapping[str, Any], judge: Mapping[str, Any]) -> str:
    groups = {row["name"]: row for row in judge["groups"]}
    named = ", ".join(f"{len(row['tasks'])} {name.replace('_', ' ')}" for name, row in groups.items() if name != "all")
    return (
        f"# {settings['id']}, revision {settings['revision']}\n\n"
        "A small Robometer (arXiv 2603.02115) for MetaWorld v3: from a clip of one camera and an instruction to "
        "progress and success at every frame, and which of two clips got further. The published architecture in "
        "small numbers, trained from scratch on simulated rollouts of mixed quality.\n\n"
        f"Evaluated on {found['data']['rollouts']} rollouts of scenes that it never saw ({named} tasks; held-out ones "
        "were left out whole, their scenes and words included).\n"
    )


def _groups(found: Mapping[str, Any], name: str) -> str:
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


def _tasks(judge: Mapping[str, Any]) -> str:
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


def _recipe(run: Path, vision: Path, found: Mapping[str, Any]) -> str:
    tower = _config(vision)
    runs = _chain(run)
    minutes = [_last(folder)["seconds"] / 60 for folder in (vision, *runs)]
    commands = [
        "finetune.rewards collect --processes 2",
        f"finetune.robometer vision --steps {tower['steps']} --seed {tower['seed']}",
        *(_command(folder) for folder in runs),
    ]
    listed = "".join(f"python -m {command}\n" for command in commands)
    evaluated = (
        f"roboserve evaluate reward {run}/checkpoint --data runs/rewards-data --every {found['config']['every']}"
    )
    stages = ", then ".join(f"{_config(folder)['steps']} steps of {_config(folder)['batch']} pairs" for folder in runs)
    return (
        "## Recipe\n\n"
        f"Rollouts of {len(found['data']['tasks'])} tasks, made by scripted experts and by the ways in which they fail "
        "(noisy, near miss, half done, stalled, wrong place, idle), 10 frames a second. Stage one teaches the vision "
        "tower to read the simulator's state off a frame; it is then frozen. Stage two is Robometer's: pairs by four "
        "strategies, preference, progress and success in one forward. With pairs drawn as the reference draws them the "
        "model ignores the instruction, for a simulated scene gives its task away; from then on clips of other tasks "
        "are common (`SIMULATED` in finetune/robometer/train.py).\n\n"
        f"```\n{listed}{evaluated}\n```\n\n"
        f"{minutes[0]:.0f} minutes of stage one ({tower['steps']} steps of {tower['batch']} frames) and "
        f"{sum(minutes[1:]):.0f} of stage two ({stages}) on one shared CPU core.\n"
    )


def _chain(run: Path) -> list[Path]:
    """Return a run and those whose weights it started from, the first one first."""
    start = _config(run).get("start")
    return [*(_chain(run.parent / Path(start).name) if start else []), run]


def _command(run: Path) -> str:
    config = _config(run)
    parts = [f"finetune.robometer train --out {run} --steps {config['steps']} --batch {config['batch']}"]
    parts.append(f"--seed {config['seed']} --learning-rate {config['learning_rate']:g}")
    if config.get("start"):
        parts.append(f"--start {config['start']}")
    if config["sampler"].get("successes") is None:
        parts.append("--sampler reference")
    return " ".join(parts)


def _config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    return found


def _claim(comparison: Path) -> str:
    return (
        "## What preference adds\n\n"
        "Shorter runs on the same pairs in the same order, with and without the preference term (mean of the seeds, "
        "each in brackets; `python -m finetune.robometer compare`):\n\n" + comparison.read_text("utf-8")
    )


def _use(settings: Mapping[str, Any]) -> str:
    height, width = settings["image_size"]
    return (
        "## Asking it rightly\n\n"
        f"Frames: {width} x {height}, without distortion, 10 a second. Policy: {settings['frame_policy']}; at most "
        f"{settings['max_frames']} frames in a query. The prompt is in `robometer.json`. Licence: Apache-2.0.\n"
    )


def _last(run: Path) -> dict[str, Any]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _cell(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return "-"
    found = figures[name]
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _plain(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]['value']:.2f}" if name in figures else "-"


def _accuracy(preference: Mapping[str, Any], sort: str) -> str:
    return _cell({sort: preference[sort]["accuracy"]}, sort) if sort in preference else "-"
