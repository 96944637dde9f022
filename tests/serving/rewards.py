"""A reward server without Ray, and what a caller says to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from clients.wire import decode, encode
from serving.config import RewardArgs
from serving.reward_server import RewardServer
from tests.serving.asgi import http

MSGPACK = [("Content-Type", "application/msgpack"), ("Accept", "application/msgpack")]


def reward_arguments(config: Any = None, **changes: Any) -> RewardArgs:
    settings = {"factory": "models.rewards.scripted:BrightnessReward", "config": config or {}}
    return RewardArgs.model_validate({"name": "mine", "reward": settings, **changes})


def reward_server(config: Any = None, *, replicas: int = 1, **changes: Any) -> RewardServer:
    return RewardServer(reward_arguments(config, **changes), replicas=replicas)


def grey(*levels: int, size: int = 32) -> np.ndarray:
    """A clip whose frames have these levels, so that `BrightnessReward` gives level / 255."""
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def bright(*levels: int) -> np.ndarray:
    return np.array(levels, np.float32) / 255


async def post(server: RewardServer, route: str, message: dict[str, Any], **where: Any) -> dict[str, Any]:
    _, _, body = await http(server.app, "POST", f"/{route}", encode(message), **{"headers": MSGPACK, **where})
    try:
        return decode(body)
    except Exception:  # noqa: BLE001  an error before the message was read is JSON where the headers ask for it
        return json.loads(body)


def clip(frames: Any, instruction: str = "lift it") -> dict[str, Any]:
    return {"instruction": instruction, "frames": frames}
