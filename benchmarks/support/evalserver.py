"""A reward server of the usual kind, to compare with: `python -m benchmarks.support.evalserver --config JSON`.

It is built as Robometer's evaluation server is, on our model: a request is one forward over all its samples, with frame
steps over all their prefixes, each of which encodes its own frames; nothing is kept between requests and requests are
never merged. It takes that server's form (`/evaluate_batch_npy`), and a frame policy in place of its fixed one.

It trusts what it is sent, and serves benchmarks on loopback and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.support.baselines import run_uvicorn
from models.rewards.contract import Query
from models.rewards.frames import FramePolicy, windows
from serving.config import FactorySettings
from serving.factory import make_model
from serving.multipart import read_form

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.rewards.contract import RewardModel

_MAX_PARTS = 1000


def main() -> None:
    """Serve until terminated; prints the port once it listens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factory", required=True, help="module:Class of the reward model")
    parser.add_argument("--config", default="{}", help="its configuration, JSON")
    options = parser.parse_args()
    settings = FactorySettings(factory=options.factory, config=json.loads(options.config))
    run_uvicorn(_asgi(make_model(settings, "reward")))


def _asgi(model: RewardModel) -> Callable[..., Awaitable[None]]:
    forward = ThreadPoolExecutor(max_workers=1)  # a request owns the model while it runs

    async def application(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return
        parts = []
        more = True
        while more:
            event = await receive()
            parts.append(event.get("body", b""))
            more = event.get("more_body", False)
        kind = dict(scope["headers"])[b"content-type"]
        answer = await asyncio.get_running_loop().run_in_executor(forward, _answer, model, b"".join(parts), kind)
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return application


def _answer(model: RewardModel, body: bytes, content_type: bytes) -> dict[str, Any]:
    form = read_form(body, content_type, max_parts=_MAX_PARTS)
    steps = form["use_frame_steps"].data == b"true"
    policy = FramePolicy.parse(form["policy"].data.decode())
    pixels: list[Any] = []
    shapes: list[tuple[str, int]] = []
    counts = []
    for index in range(len([name for name in form if name.startswith("sample_") and form[name].filename is None])):
        trajectory = json.loads(form[f"sample_{index}"].data)["trajectory"]
        frames = np.load(io.BytesIO(form[trajectory["frames"]["__numpy_file__"]].data))
        prepared = [model.prepare(frame) for frame in frames]
        wanted = windows(policy, "prefix" if steps else "single_pass", len(frames))
        pixels += [prepared[place] for window in wanted for place in window]
        shapes += [(trajectory["task"], len(window)) for window in wanted]
        counts.append(len(wanted))
    features = iter(model.encode(pixels))
    queries = [Query(instruction=task, frames=tuple(next(features) for _ in range(size))) for task, size in shapes]
    values = iter(model.score(queries))
    progress = []
    for count in counts:
        own = [next(values).progress for _ in range(count)]
        progress.append([float(one[-1]) for one in own] if steps else own[0].tolist())
    return {"outputs_progress": {"progress_pred": progress}}


if __name__ == "__main__":
    main()
