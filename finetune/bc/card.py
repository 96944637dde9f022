"""The model card: recipe, data, seeds, minutes, success by task, known failures, read from the run's files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from finetune.bc.collect import FIRST_SEED
from robot_client.dataset import DatasetReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_WEAK = 0.8


def write_card(run: Path, *, canonical: Path, held_out: Path | None = None, levels: Sequence[Path] = ()) -> Path:
    """Write `checkpoint/README.md` of a training run from its evaluations.

    Args:
        levels: evaluations at context levels, of a policy with a smoothed context.

    Raises:
        FileNotFoundError: the run or an evaluation is not there.
        RoboserveError: a dataset of the run is not where it was.
    """
    config: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    checkpoint: dict[str, Any] = json.loads((run / "checkpoint" / "config.json").read_text("utf-8"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    known: dict[str, Any] = json.loads(canonical.read_text("utf-8"))
    unseen: dict[str, Any] | None = None if held_out is None else json.loads(held_out.read_text("utf-8"))
    at = sorted((json.loads(path.read_text("utf-8")) for path in levels), key=lambda one: one["config"]["level"])
    parts = [
        _head(checkpoint, config, known),
        _table(known, unseen),
        *([_levels(checkpoint, at)] if at else []),
        _failures(known, unseen),
        _recipe(config, metrics[-1], known, unseen, at, smooth=bool(checkpoint["network"].get("context"))),
        use(checkpoint),
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
        f"**Mean success: {_percent(known)}** over {tasks} tasks, {episodes} fresh scenes each "
        f"(seeds from {known['config']['first_seed']}; demonstrations used seeds from {FIRST_SEED}).\n"
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
        lines += ["", f"Held-out wordings ({episodes} scenes each): mean success {_percent(unseen)}."]
    return "\n".join(lines) + "\n"


def _levels(checkpoint: dict[str, Any], at: Sequence[dict[str, Any]]) -> str:
    kind = checkpoint["network"]["context"]["kind"]
    said = (
        f"Context noise (arXiv 2605.12236; {kind} schedule) was on what it sees and reads, not on the robot's state. "
        "The option `context_level` asks for as much: 0, the default, trusts both, 1 drowns them.\n"
    )
    lines = [said, "| context level | mean success | scenes a task |", "|---|---|---|"]
    lines += [f"| {one['config']['level']:g} | {_percent(one)} | {one['config']['episodes']} |" for one in at]
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


def _recipe(
    config: dict[str, Any],
    last: dict[str, Any],
    known: dict[str, Any],
    unseen: dict[str, Any] | None,
    at: Sequence[dict[str, Any]],
    *,
    smooth: bool,
) -> str:
    readers = [DatasetReader(folder) for folder in config["data"]]
    counts = sorted({len(reader.episodes) for reader in readers})
    size = f"--steps {config['steps']} --batch {config['batch']} --seed {config['seed']}{' --smooth' * smooth}"
    commands = [
        f"collect --out runs/demos --episodes {counts[-1]}",
        f"train --data runs/demos --out runs/flow {size}",
        f"evaluate --checkpoint runs/flow/checkpoint --episodes {known['config']['episodes']}",
    ]
    if unseen is not None:
        episodes = unseen["config"]["episodes"]
        commands.append(f"evaluate --checkpoint runs/flow/checkpoint --wording held_out --episodes {episodes}")
    commands += [
        f"evaluate --checkpoint runs/flow/checkpoint --level {one['config']['level']:g} "
        f"--episodes {one['config']['episodes']}"
        for one in at
    ]
    commands.append("card --run runs/flow")
    return (
        "## Recipe\n\n"
        "Demonstrations: MetaWorld's scripted experts with correlated noise on the played action and clean labels, "
        f"{' to '.join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))} a task, "
        f"{sum(len(reader.episodes) for reader in readers)} in all ({sum(reader.frames for reader in readers)} frames "
        f"at {readers[0].info.fps:g} Hz), rendered without shadows, in LeRobot v3 layout.\n\n"
        "```\n" + "".join(f"python -m finetune.bc {command}\n" for command in commands) + "```\n\n"
        f"{config['steps']} steps of {config['batch']} observations with {config['flow_samples']} noise samples each; "
        f"{last['seconds'] / 60:.1f} minutes on CPU; final loss {last['loss']:.3f}. "
        f"Evaluated on {known['date']} chunk by chunk, {known['minutes']:.1f} minutes.\n"
    )


def _percent(results: dict[str, Any]) -> str:
    """Return the share of scenes solved, cut and not rounded, with its counts."""
    solved, scenes = (sum(row[name] for row in results["tasks"]) for name in ("successes", "episodes"))
    return f"{math.floor(1000 * solved / scenes) / 10}% ({solved} of {scenes})"


def use(checkpoint: dict[str, Any]) -> str:
    """Return the card's section on how the policy is asked, from its `config.json`."""
    inference = checkpoint["inference"]
    side = checkpoint["network"]["image_size"]
    return (
        "## Asking it rightly\n\n"
        f"Image: {side} x {side}, {checkpoint['frame_policy']} (bilinear). Normalisation: mean and standard "
        f"deviation, in config.json. {inference['integration_steps']} Euler steps; play {inference['execute']} rows of "
        "each chunk. Real-time chunking is supported. Licence: Apache-2.0.\n"
    )
