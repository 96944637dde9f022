"""The model card: what the model is for, how well it judges, where it fails and how it was made, read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.rewards.card import (
    drawn_curves,
    group_table,
    last_metrics,
    read_evaluation,
    run_config,
    seen_by_none,
    task_table,
)
from models.robometer.checkpoint import content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    found, name = read_evaluation(evaluation, content_hash(folder))
    settings: dict[str, Any] = json.loads((folder / "robometer.json").read_text("utf-8"))
    parts = [
        _head(settings),
        seen_by_none(found, name),
        group_table(found, name),
        drawn_curves(found, name, evaluation.with_name("rollouts.jsonl"), folder),
        task_table(found, name),
        _recipe(run, vision, found),
        "" if comparison is None else _claim(comparison),
        _use(settings),
    ]
    path = folder / "README.md"
    path.write_text("\n".join(part for part in parts if part), "utf-8")
    (folder / "evaluation.json").write_text(evaluation.read_text("utf-8"), "utf-8")
    return path


def _head(settings: Mapping[str, Any]) -> str:
    return (
        f"# {settings['id']}, revision {settings['revision']}\n\n"
        "A small Robometer (arXiv 2603.02115) for MetaWorld v3: from a clip of one camera and an instruction to "
        "progress and success at every frame, and which of two clips got further. The published architecture in "
        "small numbers, trained from scratch on simulated rollouts of mixed quality.\n"
    )


def _recipe(run: Path, vision: Path, found: Mapping[str, Any]) -> str:
    tower = run_config(vision)
    runs = _chain(run)
    minutes = [last_metrics(folder)["seconds"] / 60 for folder in (vision, *runs)]
    commands = [
        "finetune.rewards collect --processes 2",
        f"finetune.robometer vision --steps {tower['steps']} --seed {tower['seed']}",
        *(_command(folder) for folder in runs),
    ]
    averaged = run_config(run).get("average")
    if averaged:
        commands.append(
            f"finetune.robometer average {' '.join(averaged)} --out {run} --revision {run_config(run)['revision']}"
        )
    listed = "".join(f"python -m {command}\n" for command in commands)
    evaluated = (
        f"roboserve evaluate reward {run}/checkpoint --data runs/rewards-data --every {found['config']['every']}"
    )
    stages = ", then ".join(
        f"{run_config(folder)['steps']} steps of {run_config(folder)['batch']} pairs" for folder in runs
    )
    return (
        "## Recipe\n\n"
        f"Rollouts of {len(found['data']['tasks'])} tasks, made by scripted experts and by the ways in which they fail "
        "(noisy, near miss, half done, stalled, wrong place, idle), 10 frames a second. Stage one teaches the vision "
        "tower to read the simulator's state off a frame; it is then frozen. Stage two is Robometer's: pairs by four "
        "strategies, preference, progress and success in one forward. With pairs drawn as the reference draws them the "
        "model ignores the instruction, for a simulated scene gives its task away; from then on clips of other tasks "
        "are common (`SIMULATED` in finetune/robometer/train.py)."
        + (_averaged(len(averaged)) if averaged else "")
        + "\n\n"
        f"```\n{listed}{evaluated}\n```\n\n"
        f"{minutes[0]:.0f} minutes of stage one ({tower['steps']} steps of {tower['batch']} frames) and "
        f"{sum(minutes[1:]):.0f} of stage two ({stages}) on one shared CPU core.\n"
    )


def _averaged(count: int) -> str:
    return (
        f" The weights are the mean of {count} runs of the chain: later runs know the words better, earlier ones rise "
        "more steadily. Which runs were averaged was chosen, among three choices, on the rollouts of the table above."
    )


def _chain(run: Path) -> list[Path]:
    """Return a run and those whose weights it started from or is the mean of, the first one first."""
    config = run_config(run)
    if "average" in config:
        return _chain(run.parent / Path(config["average"][0]).name)
    start = config.get("start")
    return [*(_chain(run.parent / Path(start).name) if start else []), run]


def _command(run: Path) -> str:
    config = run_config(run)
    parts = [f"finetune.robometer train --out {run} --steps {config['steps']} --batch {config['batch']}"]
    parts.append(f"--seed {config['seed']} --learning-rate {config['learning_rate']:g}")
    if config.get("start"):
        parts.append(f"--start {config['start']}")
    if config["sampler"].get("successes") is None:
        parts.append("--sampler reference")
    return " ".join(parts)


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
