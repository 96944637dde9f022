"""Environments by name: "NAME" or "NAME:key=value,key=value", as `eight-goals:named=0,shift=4`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium

    Env = gymnasium.Env[Any, Any]

NAMES = ("eight-goals", "eight-objects", "slot", "metaworld", "metaworld-goals", "ogbench-cube", "robot")


def make_env(task: str) -> Env:
    """Return a fresh environment.

    Raises:
        ValueError: no such environment, no such option, or a value that it does not take.
    """
    name, _, text = task.partition(":")
    makers: dict[str, Callable[..., Env]] = dict(
        zip(
            NAMES,
            (_eight_goals, _eight_objects, _slot, _metaworld, _metaworld_goals, _ogbench_cube, _robot),
            strict=True,
        )
    )
    if name not in makers:
        raise ValueError(f"task: {name!r}, must be one of {', '.join(NAMES)}")
    options = dict(_option(task, part) for part in text.split(",") if part)
    try:
        return makers[name](**options)
    except TypeError as error:
        raise ValueError(f"task: {task!r}: {error}") from error


def _option(task: str, part: str) -> tuple[str, int | float | str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"task: {task!r}: {part!r} is not key=value")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def _eight_goals(**options: Any) -> Env:
    from finetune.common.environments.eight_goals import EightGoalsEnv

    return EightGoalsEnv(**options)


def _eight_objects(**options: Any) -> Env:
    from finetune.common.environments.eight_objects import EightObjectsEnv

    return EightObjectsEnv(**options)


def _slot(**options: Any) -> Env:
    from finetune.common.environments.slot import SlotEnv

    return SlotEnv(**options)


def _metaworld(**options: Any) -> Env:
    from finetune.sac.environment import MetaWorldEnv

    return MetaWorldEnv(**options)


def _metaworld_goals(**options: Any) -> Env:
    from finetune.common.environments.metaworld_goals import MetaWorldGoalsEnv

    return MetaWorldGoalsEnv(**options)


def _ogbench_cube(**options: Any) -> Env:
    from finetune.common.environments.ogbench_cube import OgbenchCubeEnv

    return OgbenchCubeEnv(**options)


def _robot(**options: Any) -> Env:
    from finetune.common.environments.robot import RobotEnv

    return RobotEnv(options.pop("name"), **options)
