"""A path server without Ray, an engine that says what it is told, and what a caller says to them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.wire import decode, encode
from models.hamster.prompt import Decoding, PathPrompt, Writing
from models.vlm.messages import images_of
from serving.path_config import PathArgs
from serving.path_planner import PathPlanner
from serving.path_server import PathServer
from serving.vlm.contract import VlmChunk, VlmSpec
from tests.serving.asgi import http

if TYPE_CHECKING:
    from pathlib import Path

MSGPACK = [("Content-Type", "application/msgpack"), ("Accept", "application/msgpack")]
ANSWER = "<ans>[(0.25, 0.50), <action>Close Gripper</action>, (0.75, 0.20), <action>Open Gripper</action>]</ans>"
PROMPT = PathPrompt(
    template="draw <quest>{quest}</quest>",
    version="test-1",
    decoding=Decoding(max_tokens=200),
    answer=Writing(max_points=8),
)


class SayingEngine:
    """Keeps the engine contract: says `says` in turn, then `ANSWER`."""

    def __init__(self, *says: str, delay_s: float = 0.0, images: int = 4) -> None:
        self.spec = VlmSpec(
            id="saying", revision="1", content_hash="a" * 64, engine="test", dtype="none", context=4096, images=images
        )
        self.adapters: dict[str, str] = {"paths": "1"}
        self.says = list(says)
        self.delay_s = delay_s
        self.failing: Exception | None = None
        self.asked: list[Any] = []
        self.ended = self.closed = False
        self.finish: Any = "stop"

    @property
    def images(self) -> list[np.ndarray]:
        """The image of each question."""
        return [images_of(request.messages)[0] for request in self.asked]

    async def stream(self, request: Any) -> Any:
        self.asked.append(request)
        await asyncio.sleep(self.delay_s)
        if self.failing is not None:
            raise self.failing
        text = self.says.pop(0) if self.says else ANSWER
        yield VlmChunk(text=text[:7])
        yield VlmChunk(text=text[7:], finish=self.finish, prompt_tokens=50, answer_tokens=30)

    async def labels(self, messages: Any, labels: Any, *, adapter: str | None = None) -> Any:
        raise NotImplementedError

    async def load_adapter(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder.name

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def check_health(self) -> None:
        if self.ended:
            raise RuntimeError("the engine stopped")

    async def close(self) -> None:
        self.closed = True


def path_arguments(**changes: Any) -> PathArgs:
    engine = {"kind": "transformers", "checkpoint": "unused"}
    return PathArgs.model_validate({"name": "mine", "engine": engine, **changes})


def path_server(
    engine: SayingEngine | None = None, *, prompt: PathPrompt = PROMPT, replicas: int = 1, **changes: Any
) -> PathServer:
    args = path_arguments(**changes)
    return PathServer(PathPlanner(engine or SayingEngine(), prompt, args), args, replicas=replicas)


def picture(height: int = 40, width: int = 60, level: int = 90) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def query(image: Any = None, instruction: str = "put the mug on the shelf", **more: Any) -> dict[str, Any]:
    return {"image": picture() if image is None else image, "instruction": instruction, **more}


def ask(*queries: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"queries": list(queries or [query()]), "options": options}


async def post(server: PathServer, message: Any, *, kind: str = "path", **where: Any) -> dict[str, Any]:
    body = message if isinstance(message, bytes) else encode(message)
    _, _, data = await http(server.app, "POST", f"/{kind}", body, **{"headers": MSGPACK, **where})
    try:
        return decode(data)
    except RoboserveError:  # an error before the message was read is JSON where the headers ask for it
        return json.loads(data)


async def one(server: PathServer, message: dict[str, Any]) -> dict[str, Any]:
    reply = await post(server, message)
    assert reply["type"] == "paths", reply
    [path] = reply["paths"]
    return path
