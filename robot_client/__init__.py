"""The robot's runtime: a control loop that never waits on the network and never moves on stale or bad data."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "ActionQueue": "action_queue",
    "Episode": "loop",
    "EpisodeConfig": "loop",
    "EpisodeReport": "records",
    "LinkConfig": "link_config",
    "PlannerConfig": "planner",
    "PolicyLink": "link",
    "QueueConfig": "action_queue",
    "Robot": "robot",
    "RobotObservation": "robot",
    "SafetyConfig": "safety",
    "Subscriber": "subscribers",
    "TickRecord": "records",
    "run_episode": "loop",
}
__all__ = tuple(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
