"""Collect rollouts of mixed quality: one LeRobot v3 dataset a task, resumable, in as many processes as asked for."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetune.rewards.rollouts import QUALITY, Kind, plan, replay
from robot_client.dataset import DatasetWriter
from robot_client.robots.metaworld import CAMERA, CONTROL_HZ, INTERFACE, MetaWorldRobot
from robot_client.robots.metaworld_more_tasks import HELD_OUT, TRAINED
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Split = Literal["train", "validation"]
FRAME_EVERY = 2
"""Control steps from one recorded frame to the next: 10 frames a second."""
TRAINING_TASKS = (*TASKS, *TRAINED)
HELD_OUT_TASKS = tuple(HELD_OUT)
STATE_NAMES = (
    *("hand_x", "hand_y", "hand_z", "gripper_opening"),
    *(f"object_{name}" for name in ("x", "y", "z", "qx", "qy", "qz", "qw")),
    *(f"second_{name}" for name in ("x", "y", "z", "qx", "qy", "qz", "qw")),
    *("goal_x", "goal_y", "goal_z"),
)
"""What the simulator knows; the vision tower is taught to see it, no reward model is ever given it."""

_KINDS: dict[Split, dict[Kind, int]] = {
    "train": {
        "expert": 10,
        "noisy": 6,
        "near_miss": 8,
        "half_done": 6,
        "stalled": 5,
        "wrong_object": 7,
        "idle": 3,
    },
    "validation": {"expert": 3, "noisy": 1, "near_miss": 3, "half_done": 1, "stalled": 1, "wrong_object": 2, "idle": 1},
}
_FIRST_SEED: dict[Split, int] = {"train": 300_000, "validation": 400_000}
_SEEDS_A_SLOT = 40


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect.

    Attributes:
        out: folder that gets one dataset a task.
        tasks: names of MetaWorld tasks.
        scale: factor on the number of episodes of every kind; at least one of each is kept.
        image_size: side of the square camera image, pixels, even.
        processes: workers, each with a simulator of its own.
    """

    out: Path
    tasks: tuple[str, ...] = (*TRAINING_TASKS, *HELD_OUT_TASKS)
    scale: float = 1.0
    image_size: int = 224
    processes: int = 1

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if self.processes < 1 or not self.scale > 0:
            raise ValueError(f"processes {self.processes} must be 1 or more, scale {self.scale:g} over 0")

    def slots(self) -> list[tuple[Split, Kind, int]]:
        """Return split, kind and first seed of every episode of a task, in the order in which they are recorded."""
        found: list[tuple[Split, Kind, int]] = []
        for split, kinds in _KINDS.items():
            for kind, count in kinds.items():
                for _ in range(max(1, round(self.scale * count))):
                    found.append((split, kind, _FIRST_SEED[split] + _SEEDS_A_SLOT * len(found)))
        return found


def collect(config: CollectConfig) -> dict[str, int]:
    """Collect until every task has its rollouts; what is there already is kept.

    Returns:
        task to the number of episodes on disk.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    counts: dict[str, int] = {}
    with Progress(*columns) as progress, context.Manager() as manager:
        queue = manager.Queue()
        bar = progress.add_task("rollouts", total=len(config.slots()) * len(config.tasks))
        with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
            pending = {pool.submit(collect_task, config, name, queue.put) for name in config.tasks}
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                counts.update(future.result() for future in done)
                while not queue.empty():
                    progress.advance(bar, queue.get())
    return {name: counts[name] for name in config.tasks}


def collect_task(config: CollectConfig, name: str, report: Any = None) -> tuple[str, int]:
    """Collect one task in this process; `report` gets the number of episodes added, one call each.

    Raises:
        RuntimeError: no scene of a slot allows its kind, so the task is not fit for this recipe.
    """
    writer = _open_writer(config, name)
    robot = MetaWorldRobot(name, image_size=(config.image_size, config.image_size))
    try:
        if report is not None:
            report(writer.episodes)
        for number, slot in enumerate(config.slots()):
            if number < writer.episodes:
                continue
            _record(writer, robot, *slot)
            if report is not None:
                report(1)
        return name, writer.episodes
    finally:
        writer.close()
        robot.close()


def _record(writer: DatasetWriter, robot: MetaWorldRobot, split: Split, kind: Kind, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + _SEEDS_A_SLOT):
        rollout = plan(robot, kind, seed)
        if rollout is not None:
            break
    else:
        raise RuntimeError(f"task {robot.task.name}: no scene of seeds {first_seed} and on gives a {kind} rollout")
    writer.begin()
    for action, kept in replay(robot, rollout, every=FRAME_EVERY):
        if kept:
            writer.add(robot.observe().images, _state(robot), action)
    wordings = robot.task.training_instructions
    writer.end(
        task=wordings[int(np.random.default_rng([rollout.seed, 2]).integers(len(wordings)))],
        extra={
            "success": rollout.success,
            "seed": rollout.seed,
            "kind": kind,
            "quality": QUALITY[kind],
            "split": split,
            "environment": robot.task.environment,
        },
    )


def _state(robot: MetaWorldRobot) -> NDArray[np.float32]:
    known = robot.privileged_observation
    return np.concatenate([known[:18], known[36:39]]).astype(np.float32)


def _open_writer(config: CollectConfig, name: str) -> DatasetWriter:
    folder = config.out / name
    if (folder / "meta" / "info.json").exists():
        return DatasetWriter.resume(folder)
    return DatasetWriter.create(
        folder,
        fps=CONTROL_HZ / FRAME_EVERY,
        cameras={CAMERA: (config.image_size, config.image_size)},
        state_names=STATE_NAMES,
        action_names=INTERFACE.action.names,
        robot_type="metaworld-sawyer",
    )
