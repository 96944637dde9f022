"""The embedded model's card: what it is for, how good it is, where it fails and how it was made, read from files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from finetune.rewards.card import last_metrics, run_config
from finetune.vlm.collect import ALL, PLAIN
from models.vlm.checkpoint import VlmFolder
from robot_client.robots.metaworld_scenes import CELLS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EVALUATION, EXAMPLES = "evaluation.json", "examples.png"
_WEAK = 0.05


def write_card(work: Path, evaluation: Path, *, memory: str | None = None) -> Path:
    """Write `README.md` into the checkpoint of a recipe's work folder, with the evaluation's figures beside it.

    Args:
        memory: a sentence on start-up time and memory, where they were measured.

    Raises:
        FileNotFoundError: a file of the recipe is not there.
        ValueError: the evaluation is of other weights.
    """
    folder = work / "checkpoint"
    found = json.loads(evaluation.read_text("utf-8"))
    facts = VlmFolder.read(folder)
    if found["content_hash"] != facts.content_hash:
        raise ValueError(f"evaluation: {evaluation} is of other weights than the checkpoint's")
    parts = [
        _head(facts, folder),
        _path_table(found["paths"]),
        _task_table(found["tasks"]),
        _preference_table(found["preferences"]),
        _failures(found),
        _recipe(work),
        _use(memory),
    ]
    (folder / EVALUATION).write_text(evaluation.read_text("utf-8"), "utf-8")
    path = folder / "README.md"
    path.write_text("\n".join(part for part in parts if part), "utf-8")
    return path


def _head(facts: VlmFolder, folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return (
        f"# {facts.id}, revision {facts.revision}\n\n"
        "A small vision-language model for MetaWorld v3 (Qwen3-VL's architecture, 3.6 M parameters, our own weights "
        f"and tokenizer; {size:.1f} MB): it draws the way of the gripper through an image as HAMSTER does (arXiv "
        "2502.05485; adapter `path`), and tells which of two images is nearer to a goal as RL-VLM-F asks (arXiv "
        "2402.03681; adapter `preference`). The base was taught both. It knows the 25 trained tasks, and no more "
        "English than their words.\n\n"
        f"![answers drawn]({EXAMPLES})\n\n"
        "One scene of each trained task that it never saw, half of them in looks it never saw: its answer in colours "
        "from blue to red, rings where the gripper opens (red) or closes (blue); the expert's way in white.\n"
    )


def _path_table(paths: Mapping[str, Any]) -> str:
    own, base, others, blind = (
        paths[name] for name in ("trained/path", "trained/base", "held_out/path", "trained/blind")
    )
    names = [PLAIN, *CELLS, "one cell", ALL, f"{PLAIN}, new words", f"{ALL}, new words"]
    titles = {PLAIN: "new scenes, plain looks", ALL: "all cells held out", "one cell": "one cell, mean"}
    lines = [
        "## Paths\n",
        (
            "Point error: mean distance, in shares of the image's width, of 50 points at equal shares of the lengths "
            "of the answer and of the expert's whole way (not the simplified one). Blind: each task's mean way, drawn "
            "without looking. In brackets: 95 % interval over tasks.\n"
        ),
        (
            "| looks | answers | parsed, free / in form | point error | from a scene's start | Frechet | gripper F1 | "
            "base alone | blind |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        row, alone = own[name], base.get(name)
        low, high = row["interval"]
        lines.append(
            f"| {titles.get(name, name)} | {row['questions']} | {_share(row['parsed_free'])} / "
            f"{_share(row['parsed_formed'])} | {row['point_error']:.4f} [{low:.4f}, {high:.4f}] | "
            f"{_figure(row['from_start'])} | {row['frechet']:.4f} | {row['change_f1']:.3f} | "
            f"{_figure(None if alone is None else alone['point_error'])} | {_figure(blind.get(name))} |"
        )
    plain = others[PLAIN]
    lines.append(
        f"\nTasks that it was not taught (6): point error {plain['point_error']:.4f} in plain looks, "
        f"{others[ALL]['point_error']:.4f} in held-out ones; gripper F1 {plain['change_f1']:.3f}. It has no words for "
        "them. A tag follows every first point, so what a reader assumes of the gripper does not matter.\n"
    )
    return "\n".join(lines)


def _task_table(tasks: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["### Task by task\n", "| task | plain looks | all cells held out |", "|---|---|---|"]
    lines += [f"| {task} | {row[PLAIN]:.3f} | {row[ALL]:.3f} |" for task, row in sorted(tasks.items())]
    return "\n".join(lines) + "\n"


def _preference_table(preferences: Mapping[str, Any]) -> str:
    lines = [
        "## Preferences\n",
        (
            "Progress of a state: 1 - steps that the expert needs from it / steps it needs from the scene's start. "
            "Pairs that differ by 0.05 or more, in thirds by that gap; a pair counts as right when the likelier "
            "side is the nearer one (P(first) against P(second)); in brackets: its own label, where -1 is wrong. "
            "Ties said: share of them labelled -1, and of pairs nearer than 0.05. Order bias: mean advantage of the "
            "one shown first, -1 to 1.\n"
        ),
        (
            "| pairs | number | smallest third | middle | largest | all | ties said, apart / alike | order bias | "
            "order gap | ECE |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group, rows in preferences.items():
        for name, row in rows.items():
            small, middle, large = (_figure(third["forced"], 3) for third in row["thirds"])
            lines.append(
                f"| {group.replace('_', ' ')}: {name} | {row['pairs']} | {small} | {middle} | {large} | "
                f"{row['forced']:.3f} [{row['strict']:.3f}] | {row['tie_rate']:.2f} / "
                f"{_figure(row['alike_tie_rate'], 2)} | "
                f"{row['order_bias']:+.3f} | {row['order_gap']:.3f} | {row['ece']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def _failures(found: Mapping[str, Any]) -> str:
    weak = sorted(task for task, row in found["tasks"].items() if row[PLAIN] >= _WEAK and not _untaught(task))
    varied = found["paths"]["trained/path"][ALL]["point_error"]
    named = f"- Point error of {_WEAK} or more in plain looks: {', '.join(weak)}.\n" if weak else ""
    return (
        "## Known failures\n\n"
        f"{named}"
        f"{_varied(varied)}"
        f"{_starts(found['paths'])}"
        "- Tasks, words and robots that it was not taught: it draws the way of some task that it knows.\n"
        "- One camera and shifts of it by up to 8 degrees and 3 cm; no real image was ever seen.\n"
        "- Where an object is hidden by the arm its place is guessed.\n"
    )


def _varied(error: float) -> str:
    if error < _WEAK:
        return ""
    return (
        f"- Looks in which everything is new at once (colours, textures, lights, camera, things): {error:.3f}. "
        "`collect` draws looks from a scene's number: all tasks share the same ones, some 125, which is few.\n"
    )


def _starts(paths: Mapping[str, Any]) -> str:
    """Tell what whoever looks at nothing gets from scenes' starts: scenes of a task begin much alike."""
    own, blind = paths["trained/path"], paths["trained/blind"]
    figures = " and ".join(
        f"{_figure(own[looks]['from_start'])} against {_figure(blind[f'{looks}, from start'])} in {words}"
        for looks, words in ((PLAIN, "plain looks"), (ALL, "wholly new ones"))
    )
    return (
        "- Scenes of a task begin much alike. From their starts, the answer against each task's mean way, drawn blind: "
        f"{figures}.\n"
    )


def _untaught(task: str) -> bool:
    from finetune.rewards.collect import HELD_OUT_TASKS

    return task in HELD_OUT_TASKS


def _recipe(work: Path) -> str:
    base = run_config(work / "base")
    towers = _chain(work / base["tower"])
    adapters = [work / f"adapter-{name}" for name in ("path", "preference")]
    commands = ["collect", *(_vision_command(run) for run in towers)]
    commands.append(f"train --tower {base['tower']} {_numbers(base)}")
    commands += [f"adapt {run.name.removeprefix('adapter-')} {_numbers(run_config(run))}" for run in adapters]
    listed = "".join(f"python -m finetune.vlm {command}\n" for command in (*commands, "evaluate", "card"))
    runs = (*towers, work / "base", *adapters)
    minutes = {run.name: last_metrics(run)["seconds"] / 60 for run in runs}
    taken = ", ".join(f"{name} {value:.0f}" for name, value in minutes.items())
    return (
        "## Recipe\n\n"
        f"```\n{listed}```\n\n"
        "Frames of scripted experts, and of the ways in which they fail, of 25 tasks; from every one of them the "
        "expert goes on to success without being drawn, which gives the way ahead and the steps that are left. Looks "
        "of training and of evaluation share no hue, no texture and no shape of things that lie about (when it learns, "
        "though, the colours of some pictures are turned about grey). Stage one teaches the vision tower by "
        "regression; stage two the whole model, both lessons in every batch; stage three an adapter (LoRA of the "
        "language model) for each. A coordinate is one token of a hundred, and its neighbours are taught a little "
        "too.\n\n"
        f"Minutes on a CPU core that others used too: {taken}; {sum(minutes.values()):.0f} in all.\n"
    )


def _chain(run: Path) -> list[Path]:
    """Return a run of stage one and those whose towers it started from, the first one first."""
    start = run_config(run).get("start")
    return [*(_chain(run.parent / start.rsplit("/", 1)[-1]) if start else []), run]


def _vision_command(run: Path) -> str:
    config = run_config(run)
    start = config.get("start")
    options = f" --read {config['read']} --start {start}" if start else ""
    options += "" if config.get("jitter", {}).get("hues") else " --hues 0"
    return f"vision --name {run.name}{options} {_numbers(config)}"


def _numbers(config: Mapping[str, Any]) -> str:
    rank = f" --rank {config['lora']['rank']}" if "lora" in config else ""
    return f"--steps {config['steps']} --batch {config['batch']} --learning-rate {config['learning_rate']:g}{rank}"


def _use(memory: str | None) -> str:
    measured = f"{memory}\n\n" if memory else ""
    return (
        "## Asking it rightly\n\n"
        f"{measured}"
        "Images: the robot's camera, any square size; they are brought to 128 x 128. The wordings are in "
        "`path_prompt.json` and `preference_prompt.json`; it answers other wordings badly. Greedy decoding, at most "
        "128 tokens. Adapters are chosen by name. Licence: Apache-2.0.\n"
    )


def _figure(value: float | None, digits: int = 4) -> str:
    """Return a figure, or nothing where nothing was counted."""
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
