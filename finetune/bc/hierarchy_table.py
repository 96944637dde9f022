"""What came of the hierarchy and of the flat policy: rates with intervals, and who wins where only one of two does."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.bc.hierarchy_paths import read_planned
from finetune.common.intervals import wilson
from models.hamster.metrics import point_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune.bc.hierarchy import HierarchyConfig, Play

HEADS = {"flat": "flat policy", "predicted": "predicted path", "true": "expert's path", "none": "no path shown"}


def summary(config: HierarchyConfig, plays: Sequence[Play]) -> dict[str, Any]:
    """Return rates by looks and condition, and the errors of the predicted paths, ready for JSON."""
    solved = {(row.scene, row.condition): row.steps is not None for row in plays}
    paths = read_planned(config.out / "paths.jsonl")
    looks: dict[str, Any] = {}
    for name in config.looks:
        scenes = sorted({row.scene for row in plays if row.scene[2] == name})
        drawn = [(paths[scene].predicted, paths[scene].true) for scene in scenes]
        errors = [point_error(predicted, true) for predicted, true in drawn if predicted is not None]
        looks[name] = {
            "scenes": len(scenes),
            "conditions": {
                condition: _rate([solved[scene, condition] for scene in scenes]) for condition in config.conditions
            },
            "against_flat": {
                condition: _pairs([(solved[scene, condition], solved[scene, "flat"]) for scene in scenes])
                for condition in config.conditions
                if condition != "flat" and "flat" in config.conditions
            },
            "path_error": float(np.mean(errors)) if errors else None,
            "no_path": len(drawn) - len(errors),
        }
    tasks = {
        task: {
            condition: _rate([won for (scene, of), won in solved.items() if scene[0] == task and of == condition])
            for condition in config.conditions
        }
        for task in config.tasks
        if any(row.scene[0] == task for row in plays)
    }
    return {"looks": looks, "tasks": tasks}


def _rate(won: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(won), len(won))
    return {"successes": sum(won), "episodes": len(won), "rate": sum(won) / len(won), "interval": [low, high]}


def _pairs(pairs: Sequence[tuple[bool, bool]]) -> dict[str, int]:
    return {
        "only_this": sum(this and not flat for this, flat in pairs),
        "only_flat": sum(flat and not this for this, flat in pairs),
    }


def table(found: dict[str, Any]) -> str:
    """Return the rates as a Markdown table."""
    looks: dict[str, Any] = found["looks"]
    conditions = list(next(iter(looks.values()))["conditions"])
    lines = [
        "| looks | " + " | ".join(HEADS[name] for name in conditions) + " | path error |",
        "|---|" + "---|" * len(conditions) + "---|",
    ]
    for name, row in looks.items():
        cells = []
        for condition in conditions:
            rate = row["conditions"][condition]
            low, high = rate["interval"]
            cells.append(f"{rate['successes']}/{rate['episodes']} ({low:.2f} to {high:.2f})")
        error = "-" if row["path_error"] is None else f"{row['path_error']:.3f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {error} |")
    return "\n".join(lines) + "\n"


def save_table(config: HierarchyConfig, plays: Sequence[Play]) -> str:
    """Write `hierarchy.json` with what it was taken with, and return the table."""
    found = summary(config, plays)
    body = {
        "config": json.loads(json.dumps({**asdict(config), "out": config.out.name})),
        "policies": {row.condition: row.key[4] for row in plays},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **found,
    }
    (config.out / "hierarchy.json").write_text(json.dumps(body, indent=2) + "\n", "utf-8")
    return table(found)
