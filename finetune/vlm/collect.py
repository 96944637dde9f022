"""Collect frames of all tasks in varied looks: one folder a task, resumable task by task."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from finetune.rewards.collect import HELD_OUT_TASKS, TRAINING_TASKS
from finetune.vlm.episodes import drawn, failing, follow, needed, start
from robot_client.robots.metaworld import MetaWorldRobot
from robot_client.robots.metaworld_scenes import CELLS, SceneLooks
from robot_client.robots.metaworld_tasks import find_task

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.rewards.rollouts import Kind
    from finetune.vlm.episodes import Frame

Split = Literal["train", "validation"]
FAILING: tuple[Kind, ...] = ("near_miss", "half_done", "stalled", "wrong_object", "idle")
PLAIN, ALL = "plain", "all"
VARIATIONS = (PLAIN, *CELLS, ALL)
"""Looks that validation tells apart: the scene's own, one cell at a time, and all cells at once."""

_FIRST_SEED: dict[Split, int] = {"train": 500_000, "validation": 700_000}
_SEEDS_A_SLOT = 40
_RENDERED = 224
"""Side of what the camera gives, pixels, as the robot's own images; frames are reduced from it as the model's image
processor reduces them."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect.

    Attributes:
        out: folder that gets one folder a task.
        tasks: names of MetaWorld tasks; held-out ones get validation frames alone.
        scale: factor on the number of episodes; one of each kind is kept at least.
        image_size: side of the square frames, pixels.
        processes: workers, each with a simulator of its own.
    """

    out: Path
    tasks: tuple[str, ...] = (*TRAINING_TASKS, *HELD_OUT_TASKS)
    scale: float = 1.0
    image_size: int = 128
    processes: int = 1

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if self.processes < 1 or not self.scale > 0 or self.image_size < 32:
            raise ValueError(
                f"processes {self.processes} must be 1 or more, scale {self.scale:g} over 0, image_size "
                f"{self.image_size} 32 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An episode to be made: `kind` as in `finetune.rewards.rollouts`, `looks` one of VARIATIONS or "mixed"."""

    split: Split
    kind: Kind
    looks: str
    seed: int


def slots(config: CollectConfig, task: str) -> list[Slot]:
    """Return the episodes of a task, in the order in which they are made."""
    counts: list[tuple[Split, Kind, str, int]] = []
    if task not in HELD_OUT_TASKS:
        counts += [("train", "expert", "mixed", 55), *(("train", kind, "mixed", 3) for kind in FAILING)]
    for looks, expert, failed in ((PLAIN, 5, 1), *((cell, 2, 0) for cell in CELLS), (ALL, 5, 1)):
        counts.append(("validation", "expert", looks, expert))
        counts += [("validation", kind, looks, failed) for kind in FAILING if failed]
    found: list[Slot] = []
    for split, kind, looks, count in counts:
        for _ in range(max(1, round(config.scale * count))):
            seed = _FIRST_SEED[split] + _SEEDS_A_SLOT * len(found)
            found.append(Slot(split=split, kind=kind, looks=looks, seed=seed))
    return found


def collect(config: CollectConfig) -> dict[str, int]:
    """Collect until every task has its frames; tasks that are whole already are kept.

    Returns:
        task to the number of frames on disk.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    counts: dict[str, int] = {}
    with Progress(*columns) as progress, context.Manager() as manager:
        queue = manager.Queue()
        bar = progress.add_task("episodes", total=sum(len(slots(config, name)) for name in config.tasks))
        with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
            pending = {pool.submit(collect_task, config, name, queue.put) for name in config.tasks}
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                counts.update(future.result() for future in done)
                while not queue.empty():
                    progress.advance(bar, queue.get())
    return {name: counts[name] for name in config.tasks}


def collect_task(config: CollectConfig, name: str, report: Any = None) -> tuple[str, int]:
    """Collect one task in this process; `report` gets the number of episodes made, one call each.

    Raises:
        ValueError: the folder holds frames that were collected with other settings.
        RuntimeError: the expert fails in every scene of a slot.
    """
    folder = config.out / name
    asked = slots(config, name)
    identity = {"scale": config.scale, "image_size": config.image_size, "slots": len(asked)}
    if (folder / "whole.json").is_file():
        if json.loads((folder / "whole.json").read_text("utf-8")) != identity:
            raise ValueError(f"out: {name} holds frames that were collected with other settings")
        if report is not None:
            report(len(asked))
        return name, len((folder / "frames.jsonl").read_text("utf-8").splitlines())
    made = _Made()
    robot = MetaWorldRobot(name, image_size=(_RENDERED, _RENDERED))
    try:
        looks = SceneLooks(robot)
        for number, slot in enumerate(asked):
            _episode(robot, looks, slot, number, made, config.image_size)
            if report is not None:
                report(1)
    finally:
        robot.close()
    made.write(folder)
    (folder / "whole.json").write_text(json.dumps(identity), "utf-8")
    return name, len(made.rows)


class _Made:
    """The frames of a task until they are written."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._images: list[NDArray[np.uint8]] = []
        self._points: list[NDArray[np.float32]] = []
        self._opens: list[NDArray[np.bool_]] = []

    def add(self, frame: Frame, side: int, row: dict[str, Any]) -> None:
        image = Image.fromarray(frame.image).resize((side, side), Image.Resampling.BICUBIC)
        self._images.append(np.asarray(image))
        self._points.append(frame.points)
        self._opens.append(frame.opens)
        self.rows.append({**row, "progress": round(frame.progress, 4), "points": len(frame.points)})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", np.stack(self._images))
        np.save(folder / "points.npy", np.concatenate(self._points))
        np.save(folder / "opens.npy", np.concatenate(self._opens))
        (folder / "frames.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows), "utf-8")


def _episode(robot: MetaWorldRobot, looks: SceneLooks, slot: Slot, number: int, made: _Made, side: int) -> None:
    for seed in range(slot.seed, slot.seed + _SEEDS_A_SLOT):
        full = needed(robot, seed)
        if full is None:
            continue
        found = (_expert if slot.kind == "expert" else _failing)(robot, looks, slot, seed, full)
        if not found:
            continue
        for group, frame in found:
            row = {"split": slot.split, "kind": slot.kind, "looks": slot.looks, "seed": seed}
            made.add(frame, side, {**row, "scene": number, "group": group})
        return
    raise RuntimeError(f"task {robot.task.name}: no scene of seeds {slot.seed} and on gives a {slot.kind} episode")


def _expert(robot: MetaWorldRobot, looks: SceneLooks, slot: Slot, seed: int, full: int) -> list[tuple[int, Frame]]:
    """Return (number of the looks, frame) of an episode that succeeds, drawn in two looks where they are mixed."""
    random = np.random.default_rng([seed, 12])
    start(robot, seed, wander=random.random() < 0.5)
    way = follow(robot)
    if way is None:
        return []
    frames = []
    for group in range(2 if slot.looks == "mixed" else 1):
        robot.reset(seed)
        dress(looks, slot.looks, np.random.default_rng([seed, 13, group]))
        between = random.integers(1, way.success + 1, 3).tolist() if way.success else []
        moments = [0, *between, *([] if group else [way.success + AFTER])]
        frames += [(group, frame) for frame in drawn(robot, way, moments, full)]
    return frames


def _failing(robot: MetaWorldRobot, looks: SceneLooks, slot: Slot, seed: int, full: int) -> list[tuple[int, Frame]]:
    robot.reset(seed)
    dress(looks, slot.looks, np.random.default_rng([seed, 13, 0]))
    shares = [*np.random.default_rng([seed, 12]).uniform(0.1, 0.9, 2).tolist(), 1.0]
    return [(0, frame) for frame in failing(robot, slot.kind, seed, full, shares)]


def dress(looks: SceneLooks, name: str, random: np.random.Generator) -> None:
    """Give a scene its looks.

    Args:
        name: one of VARIATIONS, drawn from the held-out split; or "mixed", for training: plain, or any cells at any
            strength.
    """
    if name == "mixed":
        cells = [cell for cell in CELLS if random.random() < _SHARES[cell]]
        looks.randomise(random, cells=cells, strength=float(random.uniform(0.4, 1.0)))
    elif name == PLAIN:
        looks.restore()
    else:
        looks.randomise(random, cells=CELLS if name == ALL else (name,), split="held_out")


AFTER = 3
_SHARES = {"colours": 0.7, "textures": 0.5, "lights": 0.6, "camera": 0.7, "distractors": 0.6}
