"""Scenes in changed looks, the expert's path through each, and the one that the vision-language model draws."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from finetune.bc.paths import camera_now
from finetune.vlm.answering import Answering
from finetune.vlm.collect import dress
from finetune.vlm.episodes import follow
from models.folders import checkpoint_folder
from models.hamster.answer import AnswerError, parse_answer
from models.hamster.path import Path as GripperPath
from models.hamster.project import project_path
from models.hamster.simplify import simplified
from robot_client.robots.metaworld import CAMERA, MetaWorldRobot
from robot_client.robots.metaworld_scenes import SceneLooks
from robot_client.robots.metaworld_tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.vlm.episodes import Way

PLANNER = "zoo:metaworld-vlm"
_ADAPTER = "path"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene to be: the first of `seeds` that the expert solves, in some looks (see `finetune.vlm.collect.dress`)."""

    task: str
    seeds: range
    looks: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """A scene with paths through its first frame, as a path service gives them: simplified, 0 to 1 of the image.

    Attributes:
        true: the expert's way, seen by the scene's camera.
        predicted: the model's; None where its answer holds no path.
    """

    seed: int
    looks: str
    true: GripperPath
    predicted: GripperPath | None


class Stage:
    """One task's simulator, with scenes in any looks."""

    def __init__(self, task: str) -> None:
        self.robot = MetaWorldRobot(task)
        self._looks = SceneLooks(self.robot)
        self._number = list(TASKS).index(task)  # tasks share seeds, and shall not share looks

    @property
    def instruction(self) -> str:
        """The canonical wording."""
        return self.robot.instruction

    def show(self, seed: int, looks: str) -> None:
        """Set a scene; the same arguments give the same pixels."""
        self.robot.reset(seed)
        dress(self._looks, looks, np.random.default_rng([seed, self._number, 14]))

    def solved(self, seeds: range) -> tuple[int, Way]:
        """Return the first seed whose scene the expert solves, and its way.

        Raises:
            RuntimeError: it solves none.
        """
        for seed in seeds:
            self.robot.reset(seed)
            way = follow(self.robot)
            if way is not None:
                return seed, way
        raise RuntimeError(f"task {self.robot.task.name}: the expert solves no scene of seeds {seeds[0]} and on")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.robot.close()


class ScenePaths:
    """Paths on disk, one JSON line a scene; those that are there already are not asked for again.

    Args:
        planner: folder of a vision-language model with the adapter `path`, or "zoo:NAME".
    """

    def __init__(self, file: Path, planner: str) -> None:
        self._file = file
        self._asked = Answering(checkpoint_folder(planner))
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        self._known = {_key(row): row for row in map(json.loads, lines)}

    def planned(self, stage: Stage, scenes: Sequence[Scene]) -> list[Planned]:
        """Return the scenes of one task with their paths."""
        missing = [scene for scene in scenes if self._key(scene) not in self._known]
        ways: dict[int, tuple[int, Way]] = {}
        rows, images = [], []
        for scene in missing:
            first = scene.seeds[0]
            if first not in ways:
                ways[first] = stage.solved(scene.seeds)
            seed, way = ways[first]
            row, image = self._first_frame(stage, scene, seed, way)
            rows.append(row)
            images.append(image)
        answers = self._asked.paths(images, [stage.instruction] * len(images), adapter=_ADAPTER, constrain=True)
        with self._file.open("a", encoding="utf-8") as sink:
            for row, answer in zip(rows, answers, strict=True):
                row["answer"] = answer
                sink.write(json.dumps(row) + "\n")
                self._known[_key(row)] = row
        return [_planned(self._known[self._key(scene)]) for scene in scenes]

    def _first_frame(self, stage: Stage, scene: Scene, seed: int, way: Way) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        stage.show(seed, scene.looks)
        true = simplified(project_path(way.tips, way.opens, camera_now(stage.robot)).path)
        row = {
            "task": scene.task,
            "first_seed": scene.seeds[0],
            "looks": scene.looks,
            "planner": self._asked.content_hash,
            "seed": seed,
            "true": _written(true),
        }
        return row, stage.robot.observe().images[CAMERA]

    def _key(self, scene: Scene) -> tuple[Any, ...]:
        return (scene.task, scene.seeds[0], scene.looks, self._asked.content_hash)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["task"], row["first_seed"], row["looks"], row["planner"])


def _written(path: GripperPath) -> dict[str, Any]:
    return {"points": path.points.round(5).tolist(), "gripper_open": path.gripper_open.tolist()}


def _planned(row: dict[str, Any]) -> Planned:
    try:
        predicted = simplified(parse_answer(row["answer"]).path)
    except AnswerError:
        predicted = None
    return Planned(seed=row["seed"], looks=row["looks"], true=GripperPath(**row["true"]), predicted=predicted)


def read_planned(file: Path) -> dict[tuple[str, int, str], Planned]:
    """Return the scenes of a file of `ScenePaths`, by task, seed and looks."""
    rows = map(json.loads, file.read_text("utf-8").splitlines())
    return {(row["task"], row["seed"], row["looks"]): _planned(row) for row in rows}
