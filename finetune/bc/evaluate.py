"""Evaluate a checkpoint: fresh scenes of every task, success with Wilson intervals, known and held-out wordings."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clients.images import resize_with_pad
from finetune.bc.paths import drawn_on
from finetune.common.intervals import wilson
from models.policies.contract import ActItem, ActOptions, Observation
from models.policies.flow_vla import FlowVLAPolicy
from robot_client.robots.metaworld import MetaWorldRobot
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.hamster.path import Path as GripperPath
    from models.policies.contract import Policy, PolicySpec
    from robot_client.robot import RobotObservation

FIRST_SEED = 50_000
"""Seeds of evaluations start here; those of demonstrations start at 100,000 (see collect.py): the two never meet."""
Wording = Literal["canonical", "held_out"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        checkpoint: folder, or "zoo:NAME".
        episodes: scenes of each task.
        wording: "canonical", or "held_out": one that no demonstration carries.
        integration_steps: Euler steps; None takes the checkpoint's.
        level: context level of every act, for a policy with a smoothed context; None asks for none.
        processes: workers, each with a simulator and a policy of its own.
    """

    checkpoint: str
    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 50
    first_seed: int = FIRST_SEED
    wording: Wording = "canonical"
    integration_steps: int | None = None
    level: float | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if min(self.episodes, self.processes) < 1:
            raise ValueError(f"episodes {self.episodes} and processes {self.processes} must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task: which seeds succeeded, and the mean number of steps of those that did."""

    task: str
    instruction: str
    episodes: int
    successes: int
    failed_seeds: tuple[int, ...]
    mean_steps: float | None

    @property
    def rate(self) -> float:
        """Success rate, 0 to 1."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the rate."""
        return wilson(self.successes, self.episodes)


def evaluate(config: EvaluateConfig, *, report: Callable[[TaskResult], None] | None = None) -> list[TaskResult]:
    """Evaluate every task; `report` is told each result as it comes."""
    found: dict[str, TaskResult] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.processes, mp_context=context) as pool:
        for future in as_completed([pool.submit(evaluate_task, config, name) for name in config.tasks]):
            result = future.result()
            found[result.task] = result
            if report is not None:
                report(result)
    return [found[name] for name in config.tasks]


def evaluate_task(config: EvaluateConfig, name: str) -> TaskResult:
    """Evaluate one task in this process."""
    policy = FlowVLAPolicy(
        FlowVLAPolicy.Config(
            checkpoint=config.checkpoint, device="cpu", integration_steps=config.integration_steps, threads=1
        )
    )
    task = find_task(name)
    instruction = task.instruction if config.wording == "canonical" else task.held_out
    robot = MetaWorldRobot(name)
    steps: dict[int, int] = {}
    try:
        seeds = range(config.first_seed, config.first_seed + config.episodes)
        for seed in seeds:
            taken = run_scene(policy, robot, instruction, seed, level=config.level)
            if taken is not None:
                steps[seed] = taken
    finally:
        robot.close()
    return TaskResult(
        task=name,
        instruction=instruction,
        episodes=config.episodes,
        successes=len(steps),
        failed_seeds=tuple(seed for seed in seeds if seed not in steps),
        mean_steps=float(np.mean(list(steps.values()))) if steps else None,
    )


def run_scene(
    policy: Policy, robot: MetaWorldRobot, instruction: str, seed: int, *, level: float | None = None
) -> int | None:
    """Play one scene from its start; see `play`."""
    robot.reset(seed)
    return play(policy, robot, instruction, seed, level=level)


def play(
    policy: Policy,
    robot: MetaWorldRobot,
    instruction: str,
    seed: int,
    *,
    path: GripperPath | None = None,
    level: float | None = None,
) -> int | None:
    """Play on from where the robot is, chunk by chunk, the policy's `execute` rows of each.

    Args:
        seed: of the policy's noise.
        path: drawn on the first camera's image at every act; None draws nothing.
        level: see `EvaluateConfig`.

    Returns:
        the steps to success, or None.
    """
    steps = 0
    while robot.finished() is None:
        observation = _observation(robot.observe(), policy.spec, instruction, path)
        options = ActOptions(seed=seed * 1000 + steps, context_level=level)
        (chunk,) = policy.act([ActItem(observation=observation, options=options)])
        for row in chunk.actions[: policy.spec.execute]:
            robot.act(row)
            steps += 1
            if robot.finished() is not None:
                break
    return steps if robot.finished() else None


def _observation(
    seen: RobotObservation, spec: PolicySpec, instruction: str, path: GripperPath | None = None
) -> Observation:
    images = {
        camera.name: resize_with_pad(seen.images[camera.name], camera.height, camera.width) for camera in spec.cameras
    }
    if path is not None:
        first = spec.cameras[0].name
        images[first] = drawn_on(images[first], path)
    return Observation(images=images, state=seen.state, instruction=instruction)


def save_results(path: Path, config: EvaluateConfig, results: list[TaskResult], minutes: float) -> None:
    """Write results with what they were taken with, as JSON."""
    rows = [{**asdict(result), "rate": result.rate, "interval": result.interval} for result in results]
    body: dict[str, Any] = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": round(minutes, 1),
        "mean_rate": float(np.mean([result.rate for result in results])),
        "tasks": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=2) + "\n", "utf-8")
