"""Robots by name: `metaworld`, `pointmass`, or a user's own as `module:Class`."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from robot_client.robot import Robot

KNOWN = {
    "metaworld": "robot_client.robots.metaworld:MetaWorldRobot",
    "pointmass": "robot_client.robots.pointmass:PointMass",
}
_METHODS = ("reset", "observe", "act", "finished", "interface")


def make_robot(name: str, task: Optional[str] = None) -> Robot:
    """Make a robot; one whose constructor takes a `task` is given it.

    A user's own class is looked for in the working directory too.

    Raises:
        RoboserveError: `not_found` where there is no such class, `invalid_request` where the task is missing or not
            wanted, or the class lacks a method of `robot_client.robot.Robot`.
    """
    factory = _find(name)
    takes_task = "task" in inspect.signature(factory).parameters
    if takes_task and task is None:
        raise RoboserveError("invalid_request", f"robot {name!r}: needs a task")
    if task is not None and not takes_task:
        raise RoboserveError("invalid_request", f"robot {name!r}: takes no task, {task!r} was given")
    robot = factory(task=task) if takes_task else factory()
    missing = [method for method in _METHODS if not hasattr(robot, method)]
    if missing:
        raise RoboserveError("invalid_request", f"robot {name!r}: lacks {', '.join(missing)}")
    made: Robot = robot
    return made


def _find(name: str) -> Any:
    module_name, colon, class_name = KNOWN.get(name, name).partition(":")
    if not colon:
        known = ", ".join(KNOWN)
        raise RoboserveError("not_found", f"robot: {name!r}; known are {known}, or give your own as module:Class")
    here = str(Path.cwd())
    if name not in KNOWN and here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RoboserveError("not_found", f"robot: {name!r}: no module {error.name!r}") from error
    if not hasattr(module, class_name):
        raise RoboserveError("not_found", f"robot: {name!r}: module {module_name!r} has no {class_name!r}")
    return getattr(module, class_name)
