"""Servers to compare with, each in a process of its own: `python -m benchmarks.support.baselines STYLE ...`.

- openpi: a bare `websockets` server as openpi's is built: metadata first, then ping-pong, the policy in the event loop.
- asgi: a bare uvicorn application that answers POST with the same codec.
- app: our own application under plain uvicorn, without Ray and HAProxy: what remains of the difference is theirs.

The first two trust what they are sent, as their models do. They serve benchmarks on loopback and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import uvicorn
from pydantic import TypeAdapter
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from clients.images import decode_image
from clients.wire import encode
from models.policies.contract import ActItem, ActOptions, Observation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from websockets.asyncio.server import ServerConnection

    from models.policies.contract import Policy

READY = "listening on port "


def main() -> None:
    """Serve until terminated; prints the port once it listens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("style", choices=("openpi", "asgi", "app"))
    parser.add_argument("--factory", required=True, help="module:Class of the policy")
    parser.add_argument("--config", default="{}", help="its configuration, JSON")
    options = parser.parse_args()
    config = json.loads(options.config)
    if options.style == "app":
        application = _our_application(options.factory, config)
        run_uvicorn(application)
        return
    policy = _make(options.factory, config)
    if options.style == "openpi":
        asyncio.run(_serve_openpi(policy))
    else:
        run_uvicorn(_asgi(policy))


def _make(path: str, config: dict[str, Any]) -> Policy:
    module_name, _, class_name = path.partition(":")
    factory = getattr(importlib.import_module(module_name), class_name)
    policy: Policy = factory(TypeAdapter(factory.Config).validate_python(config))
    return policy


def _our_application(path: str, config: dict[str, Any]) -> Callable[..., Awaitable[None]]:
    from serving.config import PolicyArgs
    from serving.policy_server import PolicyServer

    return PolicyServer(PolicyArgs.model_validate({"name": "app", "policy": {"factory": path, "config": config}})).app


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, object_hook=_array)


def _array(node: dict[Any, Any]) -> Any:
    if b"__ndarray__" in node:
        return np.ndarray(buffer=node[b"data"], dtype=np.dtype(node[b"dtype"]), shape=node[b"shape"])
    return node


def _infer(policy: Policy, message: dict[str, Any]) -> dict[str, Any]:
    """Answer one flat openpi observation; compressed images are decoded on the spot, since nothing else would do it."""
    started = time.perf_counter()
    images = {}
    for key, value in message.items():
        if isinstance(value, bytes):
            images[key] = decode_image(value, field=key)
        elif isinstance(value, np.ndarray) and value.ndim == 3:
            images[key] = value
    observation = Observation(images=images, state=message["observation/state"], instruction=message["prompt"])
    item = ActItem(observation=observation, options=ActOptions(seed=message.get("seed")))
    (chunk,) = policy.act([item])
    return {"actions": chunk.actions, "policy_timing": {"infer_ms": (time.perf_counter() - started) * 1e3}}


async def _serve_openpi(policy: Policy) -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send(encode({}))
        previous: float | None = None
        try:
            while True:
                message = _unpack(await connection.recv(decode=False))
                received = time.perf_counter()
                reply = _infer(policy, message)
                reply["server_timing"] = {"infer_ms": (time.perf_counter() - received) * 1e3}
                if previous is not None:
                    reply["server_timing"]["prev_total_ms"] = previous
                await connection.send(encode(reply))
                previous = (time.perf_counter() - received) * 1e3
        except ConnectionClosed:
            return

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None, ping_interval=None) as server:
        _report(next(iter(server.sockets)))
        await server.serve_forever()


def _asgi(policy: Policy) -> Callable[..., Awaitable[None]]:
    async def application(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return
        parts = []
        more = True
        while more:
            event = await receive()
            parts.append(event.get("body", b""))
            more = event.get("more_body", False)
        body = encode(_infer(policy, _unpack(b"".join(parts))))
        headers = [(b"content-type", b"application/msgpack"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return application


def run_uvicorn(application: Callable[..., Any]) -> None:
    """Serve an ASGI application on a free loopback port until terminated; prints the port once it listens."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = uvicorn.Config(application, lifespan="off", access_log=False, log_level="warning")
    _report(listener)
    uvicorn.Server(config).run(sockets=[listener])


def _report(listener: socket.socket) -> None:
    print(f"{READY}{listener.getsockname()[1]}", flush=True)


if __name__ == "__main__":
    main()
