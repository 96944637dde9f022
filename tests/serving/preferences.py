"""A preference server without Ray, an engine that looks at brightness, and what a caller says to them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.wire import decode, encode
from models.preference.prompt import GENERAL_PROMPT
from models.vlm.messages import images_of
from serving.preference_config import PreferenceArgs
from serving.preference_server import PreferenceServer
from serving.preference_vlm import VlmLabeller
from serving.vlm.contract import LabelReading, VlmChunk, VlmSpec
from serving.vlm.engines import TransformersSettings
from tests.serving.asgi import http

if TYPE_CHECKING:
    from pathlib import Path

MSGPACK = [("Content-Type", "application/msgpack"), ("Accept", "application/msgpack")]
GOAL = "the lamp is on"


class BrightEngine:
    """Keeps the engine contract. The brighter of two is nearer to any goal; the first shown gets `bias` on top."""

    def __init__(self, *, bias: float = 0.0, delay_s: float = 0.0, images: int = 8) -> None:
        self.spec = VlmSpec(
            id="bright", revision="1", content_hash="b" * 64, engine="test", dtype="none", context=4096, images=images
        )
        self.adapters: dict[str, str] = {}
        self.bias, self.delay_s = bias, delay_s
        self.hidden: set[int] = set()
        """Labels whose log-probability it does not tell."""
        self.says: list[str] = []
        """Answers to the second question of two, in turn; then what it means."""
        self.failing: Exception | None = None
        self.asked: list[Any] = []
        self.at_once = self.most_at_once = 0
        self.ended = False
        self.first = asyncio.Event()
        """Set once anything was asked."""

    async def labels(self, messages: Any, labels: Any, *, adapter: str | None = None) -> LabelReading:
        await self._begin(messages)
        shown = images_of(messages)
        left, right = (float(np.mean(side)) / 255 for side in (shown[: len(shown) // 2], shown[len(shown) // 2 :]))
        margin = 8.0 * (left - right) + self.bias
        logits = [margin, -margin, -2.0][: len(labels)]
        rest = math.log(sum(map(math.exp, logits)) + 0.1)
        told = [None if index in self.hidden else logit - rest for index, logit in enumerate(logits)]
        return LabelReading(logprobs=tuple(told), prompt_tokens=40)

    async def stream(self, request: Any) -> Any:
        await self._begin(request.messages)
        shown = images_of(request.messages)
        if shown:
            left, right = (np.mean(side) for side in (shown[: len(shown) // 2], shown[len(shown) // 2 :]))
            text = f"brightness {left:.0f} {right:.0f} seed {request.sampling.seed}"
        elif self.says:
            text = self.says.pop(0)
        else:
            found = re.search(r"brightness (\d+) (\d+)", request.messages[0].text)
            one, other = map(int, found.groups())
            text = "-1" if one == other else "0\nthe first" if one > other else "1\nthe second"
        yield VlmChunk(text=text[:3])
        yield VlmChunk(text=text[3:], finish="stop", prompt_tokens=60, answer_tokens=12)

    async def _begin(self, messages: Any) -> None:
        self.asked.append(messages)
        self.first.set()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
            if self.failing is not None:
                raise self.failing
        finally:
            self.at_once -= 1

    async def load_adapter(self, name: str, folder: Path) -> None:
        self.adapters[name] = folder.name

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def check_health(self) -> None:
        if self.ended:
            raise RuntimeError("the engine stopped")

    async def close(self) -> None:
        self.ended = True


def vlm_labeller(engine: BrightEngine, **config: Any) -> VlmLabeller:
    prompt = config.pop("wording", GENERAL_PROMPT)
    settings = {"engine": TransformersSettings(checkpoint="unused"), **config}
    return VlmLabeller(engine, VlmLabeller.Config(**settings), prompt)


def preference_arguments(**changes: Any) -> PreferenceArgs:
    oracle = {"factory": "models.preference.oracle:OracleLabeller", "config": {}}
    return PreferenceArgs.model_validate({"name": "mine", "labeller": oracle, **changes})


def preference_server(engine: BrightEngine | None = None, *, config: Any = None, **changes: Any) -> PreferenceServer:
    """A server whose labeller asks an engine that looks at brightness."""
    labeller = vlm_labeller(engine or BrightEngine(), **(config or {}))
    return PreferenceServer(labeller, preference_arguments(**changes))


def grey(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def pair(first: int, second: int, goal: str = GOAL, **more: Any) -> dict[str, Any]:
    return {"goal": goal, "first": [grey(first)], "second": [grey(second)], **more}


def ask(*pairs: dict[str, Any], **more: Any) -> dict[str, Any]:
    options = {name: more.pop(name) for name in list(more) if name in ("protocol", "order_swap", "votes", "audit")}
    if "tie_threshold" in more:
        options["tie_threshold"] = more.pop("tie_threshold")
    return {"pairs": list(pairs), "options": options, **more}


async def post(server: PreferenceServer, message: Any, **where: Any) -> dict[str, Any]:
    body = message if isinstance(message, bytes) else encode(message)
    _, _, data = await http(server.app, "POST", "/label", body, **{"headers": MSGPACK, **where})
    try:
        return decode(data)
    except RoboserveError:  # an error before the message was read is JSON where the headers ask for it
        return json.loads(data)


async def labels(server: PreferenceServer, *pairs: dict[str, Any], **more: Any) -> list[int]:
    reply = await post(server, ask(*pairs, **more))
    assert reply["type"] == "labels", reply
    return [found["label"] for found in reply["pairs"]]


def counter(server: PreferenceServer, line: str) -> float:
    """Return the sum of a metric's samples whose text contains `line`'s words."""
    words = line.split()
    found = [text for text in server.metrics.text().decode().splitlines() if all(word in text for word in words)]
    return sum(float(text.rpartition(" ")[2]) for text in found if not text.startswith("#") and "_created" not in text)
