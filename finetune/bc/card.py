"""The model card: recipe, data, seeds, minutes, success by task, known failures, read from the run's files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_WEAK = 0.8


def write_card(run: Path, *, canonical: Path, held_out: Path | None = None) -> Path:
    """Write `checkpoint/README.md` of a training run from its evaluations.

    Raises:
        FileNotFoundError: the run or an evaluation is not there.
    """
    config: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    checkpoint: dict[str, Any] = json.loads((run / "checkpoint" / "config.json").read_text("utf-8"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    known: dict[str, Any] = json.loads(canonical.read_text("utf-8"))
    unseen: dict[str, Any] | None = None if held_out is None else json.loads(held_out.read_text("utf-8"))
    parts = [
        _head(checkpoint, config, known),
        _table(known, unseen),
        _failures(known, unseen),
        _recipe(config, metrics[-1], known),
        _use(checkpoint),
    ]
    path = run / "checkpoint" / "README.md"
    path.write_text("\n".join(parts), "utf-8")
    return path


def _head(checkpoint: dict[str, Any], config: dict[str, Any], known: dict[str, Any]) -> str:
    tasks, episodes = len(known["tasks"]), known["config"]["episodes"]
    return (
        f"# {checkpoint['id']}, revision {checkpoint['revision']}\n\n"
        "A small vision-language-action policy for MetaWorld v3: one camera image, proprioception and an instruction "
        f"in words to a chunk of {config['chunk_length']} actions, by flow matching. One model for {tasks} tasks.\n\n"
        f"**Mean success: {known['mean_rate']:.1%}** over {tasks} tasks, {episodes} fresh scenes each "
        f"(seeds from {known['config']['first_seed']}; demonstrations used seeds from 100000).\n"
    )


def _table(known: dict[str, Any], unseen: dict[str, Any] | None) -> str:
    others = {} if unseen is None else {row["task"]: row for row in unseen["tasks"]}
    lines = [
        "| task | instruction | success | 95 % interval | mean steps | held-out wording |",
        "|---|---|---|---|---|---|",
    ]
    for row in known["tasks"]:
        low, high = row["interval"]
        steps = "-" if row["mean_steps"] is None else f"{row['mean_steps']:.0f}"
        other = others.get(row["task"])
        wording = "-" if other is None else f"{other['successes']}/{other['episodes']} ({other['instruction']})"
        cells = [row["task"], row["instruction"], f"{row['successes']}/{row['episodes']}", f"{low:.2f} to {high:.2f}"]
        lines.append("| " + " | ".join([*cells, steps, wording]) + " |")
    if unseen is not None:
        episodes = unseen["config"]["episodes"]
        lines += ["", f"Held-out wordings ({episodes} scenes each): mean success {unseen['mean_rate']:.1%}."]
    return "\n".join(lines) + "\n"


def _failures(known: dict[str, Any], unseen: dict[str, Any] | None) -> str:
    lines = ["## Known failures\n"]
    lines += [f"- {row['task']}: seeds {row['failed_seeds']}" for row in known["tasks"] if row["failed_seeds"]]
    weak = [] if unseen is None else [row for row in unseen["tasks"] if row["rate"] < _WEAK]
    lines += [f"- {row['task']}: the wording {row['instruction']!r} is understood poorly" for row in weak]
    lines.append(
        "- Scenes, cameras, colours and tasks beyond those above were never seen and are not expected to work."
    )
    lines.append(
        "- Simulator only: the camera, the units of the actions and the rate are those of the simulated robot."
    )
    return "\n".join(lines) + "\n"


def _recipe(config: dict[str, Any], last: dict[str, Any], known: dict[str, Any]) -> str:
    return (
        "## Recipe\n\n"
        "Demonstrations: MetaWorld's scripted experts with correlated noise on the played action and clean labels, 40 "
        "a task, at 20 Hz, rendered without shadows, in LeRobot v3 layout.\n\n"
        "```\n"
        "python -m finetune.bc collect --out runs/demos --episodes 40 --processes 2\n"
        f"python -m finetune.bc train --data runs/demos --out runs/flow --steps {config['steps']} "
        f"--seed {config['seed']}\n"
        f"python -m finetune.bc evaluate --checkpoint runs/flow/checkpoint --episodes {known['config']['episodes']}\n"
        "python -m finetune.bc card --run runs/flow\n"
        "```\n\n"
        f"{config['steps']} steps of {config['batch']} observations with {config['flow_samples']} noise samples each; "
        f"{last['seconds'] / 60:.0f} minutes on two shared CPU cores; final loss {last['loss']:.3f}. "
        f"Evaluated on {known['date']} chunk by chunk, {known['minutes']:.0f} minutes.\n"
    )


def _use(checkpoint: dict[str, Any]) -> str:
    inference = checkpoint["inference"]
    side = checkpoint["network"]["image_size"]
    return (
        "## Asking it rightly\n\n"
        f"Image: {side} x {side}, {checkpoint['frame_policy']} (bilinear). Normalisation: mean and standard "
        f"deviation, in config.json. {inference['integration_steps']} Euler steps; play {inference['execute']} rows of "
        "each chunk. Real-time chunking is supported. Licence: Apache-2.0.\n"
    )
