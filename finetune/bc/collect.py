"""Collect demonstrations: one LeRobot v3 dataset a task, resumable, in as many processes as asked for."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.bc.expert import ExpertConfig, demonstrate
from robot_client.dataset import DatasetReader, DatasetWriter
from robot_client.robots.metaworld import CAMERA, CONTROL_HZ, INTERFACE, MetaWorldRobot
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FIRST_SEED = 100_000
"""Seeds of demonstrations start here; those of evaluations lie below (see evaluate.py), so that the two never meet."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What to collect.

    Attributes:
        out: folder that gets one dataset a task.
        tasks: names of MetaWorld tasks.
        episodes: successful demonstrations a task; failed ones are not kept.
        image_size: side of the square camera image, pixels, even.
        processes: workers, each with a simulator of its own.
        expert: noise of the demonstrations.
    """

    out: Path
    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 50
    image_size: int = 224
    processes: int = 1
    expert: ExpertConfig = field(default_factory=ExpertConfig)

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if min(self.episodes, self.processes) < 1:
            raise ValueError(f"episodes {self.episodes} and processes {self.processes} must be 1 or more")


def collect(config: CollectConfig) -> dict[str, int]:
    """Collect until every task has its demonstrations; what is there already is kept.

    Returns:
        task to the number of episodes on disk.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    counts: dict[str, int] = {}
    with Progress(*columns) as progress, context.Manager() as manager:
        queue = manager.Queue()
        bar = progress.add_task("demonstrations", total=config.episodes * len(config.tasks))
        with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
            pending = {pool.submit(collect_task, config, name, queue.put) for name in config.tasks}
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    name, count = future.result()
                    counts[name] = count
                _drain(queue, progress, bar)
    return {name: counts[name] for name in config.tasks}


def collect_task(config: CollectConfig, name: str, report: Any = None) -> tuple[str, int]:
    """Collect one task in this process; `report` gets the number of episodes added, one call each."""
    writer = _open_writer(config, name)
    robot = MetaWorldRobot(name, image_size=(config.image_size, config.image_size))
    wordings = robot.task.training_instructions
    try:
        if report is not None:
            report(writer.episodes)
        seed = _next_seed(config.out / name)
        while writer.episodes < config.episodes:
            writer.begin()
            for step in demonstrate(robot, seed, config.expert):
                writer.add(step.observation.images, step.observation.state, step.action)
            if robot.finished():
                wording = wordings[int(np.random.default_rng([seed, 2]).integers(len(wordings)))]
                writer.end(task=wording, extra={"success": True, "seed": seed, "environment": robot.task.environment})
                if report is not None:
                    report(1)
            seed += 1
        return name, writer.episodes
    finally:
        writer.close()
        robot.close()


def dataset_folders(out: Path, tasks: Sequence[str]) -> list[Path]:
    """Return the folder of each task's dataset."""
    return [out / name for name in tasks]


def _open_writer(config: CollectConfig, name: str) -> DatasetWriter:
    folder = config.out / name
    if (folder / "meta" / "info.json").exists():
        return DatasetWriter.resume(folder)
    return DatasetWriter.create(
        folder,
        fps=CONTROL_HZ,
        cameras={CAMERA: (config.image_size, config.image_size)},
        state_names=INTERFACE.state.names,
        action_names=INTERFACE.action.names,
        robot_type="metaworld-sawyer",
    )


def _next_seed(folder: Path) -> int:
    used = [int(episode.extra["seed"]) for episode in DatasetReader(folder).episodes]
    return max(used, default=FIRST_SEED - 1) + 1


def _drain(queue: Any, progress: Any, bar: Any) -> None:
    while not queue.empty():
        progress.advance(bar, queue.get())
