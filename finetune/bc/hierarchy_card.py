"""The model card of a policy that follows a path: what it was compared with, read from the run's files."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clients.images import resize_with_pad
from finetune.bc.card import use
from finetune.bc.collect import FIRST_SEED
from finetune.bc.evaluate import FIRST_SEED as EVALUATION_SEED
from finetune.bc.hierarchy_paths import Stage, read_planned
from finetune.bc.hierarchy_table import HEADS, table
from finetune.bc.paths import drawn_on
from robot_client.dataset import DatasetReader
from robot_client.robots.metaworld import CAMERA

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RESULTS, EXAMPLES = "hierarchy.json", "examples.png"
_SHOWN = ("button-press", "door-close", "drawer-open", "window-open")


def write_hierarchy_card(run: Path, results: Path) -> Path:
    """Write `checkpoint/README.md`, with the comparison's file and drawn examples beside it.

    Args:
        run: folder of `train`; `results`: folder of `hierarchy`.

    Raises:
        FileNotFoundError: the run or the comparison is not there.
        RoboserveError: a dataset of the run is not where it was.
    """
    folder = run / "checkpoint"
    checkpoint: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    found: dict[str, Any] = json.loads((results / RESULTS).read_text("utf-8"))
    shutil.copy(results / RESULTS, folder / RESULTS)
    Image.fromarray(_examples(results / "paths.jsonl", checkpoint["network"]["image_size"])).save(
        folder / EXAMPLES, optimize=True
    )
    parts = [_head(checkpoint), _comparison(found), _tasks(found), _recipe(run, found), use(checkpoint)]
    path = folder / "README.md"
    path.write_text("\n".join(parts), "utf-8")
    return path


def _head(checkpoint: dict[str, Any]) -> str:
    return (
        f"# {checkpoint['id']}, revision {checkpoint['revision']}\n\n"
        "The embedded policy of `metaworld-flow` (same network, same recipe), taught to follow a path of the gripper "
        "that is drawn on its image, as HAMSTER's policies are (arXiv 2502.05485). It has seen one look of each scene; "
        "the model that draws the paths, `metaworld-vlm`, has seen many.\n\n"
        f"![first frames with their paths]({EXAMPLES})\n\n"
        "First frames as the policy is shown them, four times as large: above with the predicted path, below with the "
        "expert's; from left to right plain, in changed textures, and changed in all ways, for each task.\n"
    )


def _comparison(found: dict[str, Any]) -> str:
    config, looks = found["config"], found["looks"]
    wins = ", ".join(
        f"{name} {row['against_flat']['predicted']['only_this']} to {row['against_flat']['predicted']['only_flat']}"
        for name, row in looks.items()
        if "predicted" in row["against_flat"]
    )
    unplanned = sum(row["no_path"] for row in looks.values())
    return (
        "## Against the flat policy\n\n"
        f"{config['scenes']} scenes in each look, the same ones in every column, round {len(config['tasks'])} tasks: "
        f"of seeds from {EVALUATION_SEED} on (demonstrations used those from {FIRST_SEED}) the ones that the scripted "
        "expert solves. Colours, patterns and shapes of things that lie about are of the held-out split, which neither "
        "model was trained with; `all` is those four and the lights. Successes, with 95 % Wilson intervals. Path "
        "error: mean distance of the predicted path from the expert's, in shares of the image's width.\n\n"
        + table(found)
        + f"\nThe flat policy is `{config['flat']}`. A predicted path is `{config['planner']}`'s, asked once, on the "
        "first frame, in this process; an expert's path is that of the scripted expert in the same scene, through the "
        f"same camera. Scenes that only the predicted path solves, to those that only the flat policy solves: {wins}. "
        f"Answers that held no path: {unplanned}.\n"
    )


def _tasks(found: dict[str, Any]) -> str:
    conditions = list(found["config"]["conditions"])
    lines = [
        "## Task by task, all looks\n",
        "| task | " + " | ".join(HEADS[name] for name in conditions) + " |",
        "|---|" + "---|" * len(conditions),
    ]
    for task, row in found["tasks"].items():
        cells = [f"{row[name]['successes']}/{row[name]['episodes']}" for name in conditions]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _recipe(run: Path, found: dict[str, Any]) -> str:
    config: dict[str, Any] = json.loads((run / "config.json").read_text("utf-8"))
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    readers = [DatasetReader(folder) for folder in config["data"]]
    counts = [len(reader.episodes) for reader in readers]
    noise = config["path"]
    size = f"--steps {config['steps']} --batch {config['batch']} --seed {config['seed']}"
    scenes = found["config"]["scenes"]
    commands = [
        f"collect --out runs/demos --episodes {max(counts)}",
        f"train --data runs/demos --out runs/flow-path --path {size}",
        f"hierarchy --out runs/hierarchy --following runs/flow-path/checkpoint --scenes {scenes}",
        "hierarchy-card --run runs/flow-path --results runs/hierarchy",
    ]
    return (
        "## Recipe\n\n"
        f"The demonstrations of `metaworld-flow` ({sum(counts)}, {sum(reader.frames for reader in readers)} frames, "
        "one look). On each image the demonstration's whole path, from its first frame on, in the style `policy`: "
        f"simplified with a tolerance drawn from {noise['tolerance'][0]:g} to {noise['tolerance'][1]:g}, each point "
        f"moved by N(0, {noise['point']:g}) and the whole path by N(0, {noise['shift']:g}) of the image's sides, and "
        f"left out in {noise['absent']:.0%} of the images. What is drawn is what `robot_client --planner` sends, to "
        "the pixel.\n\n"
        "```\n" + "".join(f"python -m finetune.bc {command}\n" for command in commands) + "```\n\n"
        f"{config['steps']} steps of {config['batch']} observations with {config['flow_samples']} noise samples each; "
        f"{last['seconds'] / 60:.1f} minutes on CPU; final loss {last['loss']:.3f}. Compared on {found['date']}.\n"
    )


def _examples(paths: Path, side: int) -> NDArray[np.uint8]:
    planned = read_planned(paths)
    rows = []
    for task in _SHOWN:
        seed = min(seed for name, seed, _ in planned if name == task)
        columns = []
        with Stage(task) as stage:
            for looks in ("plain", "textures", "all"):
                scene = planned[task, seed, looks]
                stage.show(seed, looks)
                image = resize_with_pad(stage.robot.observe().images[CAMERA], side, side)
                shown = [image if path is None else drawn_on(image, path) for path in (scene.predicted, scene.true)]
                columns.append(np.concatenate(shown))
        rows.append(np.concatenate(columns, axis=1))
    sheet = np.concatenate([np.concatenate(rows[:2], axis=1), np.concatenate(rows[2:], axis=1)])
    enlarged: NDArray[np.uint8] = sheet.repeat(4, axis=0).repeat(4, axis=1)
    return enlarged
