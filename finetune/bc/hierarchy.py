"""The hierarchy against the flat policy: the same scenes in the same looks, with and without a path to follow."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetune.bc.evaluate import FIRST_SEED, play
from finetune.bc.hierarchy_paths import PLANNER, Planned, Scene, ScenePaths, Stage
from finetune.vlm.collect import ALL, PLAIN
from models.policies.flow_vla import FlowVLAPolicy
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from models.policies.contract import Policy

LOOKS = (PLAIN, "colours", "textures", "camera", "distractors", ALL)
"""Those of `finetune.vlm.collect.dress`, from the held-out split; `all` changes the lights too."""
Condition = Literal["flat", "none", "predicted", "true"]
Key = tuple[str, int, str, Condition, str]
"""Task, seed, looks, condition and the content hash of the policy."""
CONDITIONS: tuple[Condition, ...] = ("flat", "predicted", "true", "none")
_SEEDS_A_SCENE = 10


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """What is compared.

    Attributes:
        out: folder of what was found so far; a run goes on where it was stopped.
        flat, following: checkpoints without and with a path, folders or "zoo:NAME"; `planner`: who draws the paths.
        scenes: of each look; they go round the tasks.
        conditions: `flat`; the other policy shown the planner's path (`predicted`), the expert's (`true`) or `none`.
    """

    out: Path
    flat: str
    following: str
    planner: str = PLANNER
    scenes: int = 50
    tasks: tuple[str, ...] = tuple(TASKS)
    looks: tuple[str, ...] = LOOKS
    conditions: tuple[Condition, ...] = CONDITIONS

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if self.scenes < 1 or not set(self.looks) <= set(LOOKS) or not set(self.conditions) <= set(CONDITIONS):
            raise ValueError(
                f"scenes {self.scenes} must be 1 or more, looks {', '.join(self.looks)} among {', '.join(LOOKS)}, "
                f"conditions {', '.join(self.conditions)} among {', '.join(CONDITIONS)}"
            )

    def of(self, task: str) -> list[Scene]:
        """Return a task's scenes, each in all looks; a scene is the first of its seeds that the expert solves."""
        rounds = [number // len(self.tasks) for number in range(self.scenes) if self._task(number) == task]
        return [
            Scene(task=task, seeds=range(first, first + _SEEDS_A_SCENE), looks=looks)
            for first in (FIRST_SEED + _SEEDS_A_SCENE * number for number in rounds)
            for looks in self.looks
        ]

    def _task(self, number: int) -> str:
        return self.tasks[number % len(self.tasks)]


@dataclass(frozen=True, kw_only=True)
class Play:
    """One scene played: `steps` to success, or None."""

    key: Key
    steps: int | None

    @property
    def scene(self) -> tuple[str, int, str]:
        """Task, seed and looks."""
        return self.key[:3]

    @property
    def condition(self) -> Condition:
        """Which policy played, and what it was shown."""
        return self.key[3]


class Plays:
    """Plays on disk, one JSON line each, written as they end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        self._steps: dict[Key, int | None] = {}
        for row in map(json.loads, lines):
            self._steps[tuple(row["key"])] = row["steps"]

    def add(self, key: Key, steps: int | None) -> None:
        """Keep a play."""
        with self._file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps({"key": key, "steps": steps}) + "\n")
        self._steps[key] = steps

    def rows(self) -> list[Play]:
        """Return all that are there."""
        return [Play(key=key, steps=steps) for key, steps in self._steps.items()]

    def __contains__(self, key: object) -> bool:
        return key in self._steps


def compare(config: HierarchyConfig, *, report: Callable[[], None] | None = None) -> list[Play]:
    """Play every scene under every condition; what was played before with these weights is kept.

    Args:
        report: told of every play that is there.

    Returns:
        the plays of these scenes and conditions.

    Raises:
        FileNotFoundError, ValueError: a checkpoint is absent or damaged; ValueError also where `following` follows no
            path.
    """
    policies = {condition: _policy(config, condition) for condition in config.conditions}
    paths, plays = ScenePaths(config.out / "paths.jsonl", config.planner), Plays(config.out / "plays.jsonl")
    wanted: set[Key] = set()
    for task in config.tasks:
        with Stage(task) as stage:
            for scene in paths.planned(stage, config.of(task)):
                for condition, policy in policies.items():
                    key = (task, scene.seed, scene.looks, condition, policy.spec.content_hash)
                    wanted.add(key)
                    if key not in plays:
                        plays.add(key, _played(stage, scene, condition, policy))
                    if report is not None:
                        report()
    return [row for row in plays.rows() if row.key in wanted]


def _played(stage: Stage, scene: Planned, condition: Condition, policy: Policy) -> int | None:
    paths = {"predicted": scene.predicted, "true": scene.true}
    if condition in paths and paths[condition] is None:
        return None  # as a robot with a planner: without a path no episode begins
    stage.show(scene.seed, scene.looks)
    return play(policy, stage.robot, stage.instruction, scene.seed, path=paths.get(condition))


def _policy(config: HierarchyConfig, condition: Condition) -> Policy:
    checkpoint = config.flat if condition == "flat" else config.following
    policy = FlowVLAPolicy(FlowVLAPolicy.Config(checkpoint=checkpoint, device="cpu", threads=1))
    if condition != "flat" and not policy.spec.follows_path:
        raise ValueError(f"following: {policy.spec.id!r} was not trained to follow a path")
    return policy
