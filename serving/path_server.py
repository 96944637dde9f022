"""A path predictor with its kept paths and transports: everything of the deployment that needs no Ray."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.contract import PROTOCOL
from clients.errors import RoboserveError
from clients.path_contract import PathContract
from clients.wire import WireLimits
from models.hamster.drawing import STYLES
from serving.auth import KeyRing
from serving.dialects.hamster import NAMES, HamsterChat
from serving.dialects.native import NativeDialect
from serving.dialects.path_messages import PathMessages
from serving.ingress import Ingress
from serving.native_http import NativeRoute, read_map, standard_routes
from serving.path_answers import PathAnswers
from serving.path_metrics import PathMetrics
from serving.path_planner import PathPlanner
from serving.path_requests import VIEWS, PathParser
from serving.path_sessions import PathSessions
from serving.service import Dialect, Route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from serving.auth import Principal
    from serving.path_config import PathArgs
    from serving.vlm.contract import VlmChunk, VlmRequest

logger = logging.getLogger("ray.serve")
_DECODERS = 2
_NATIVE = ("path", "open", "get", "requery", "close")


class PathServer:
    """A path predictor with its kept paths and transports; `start` makes one from its configuration.

    Args:
        planner: who is asked.
        args: the application's arguments.
        replica: id of this replica, for metrics.
        replicas: how many replicas answer under this name; over HTTP a kept path is only found again where there is
            one.
    """

    family = "path"

    def __init__(self, planner: PathPlanner, args: PathArgs, *, replica: str = "local", replicas: int = 1) -> None:
        self.name, self.limits, self.vlm_limits = args.name, args.limits, args.chat
        self.planner, self.engine = planner, planner.engine
        self.created = int(time.time())
        self.metrics = PathMetrics(model=args.name, replica=replica)
        self.parser = PathParser(planner.prompt, args)
        self.sessions = PathSessions(args.paths, now=time.monotonic, on_count=self.metrics.kept.set)
        self._adapter = args.adapter
        self._wire = WireLimits(message_bytes=args.limits.message_bytes)
        self._decoders = ThreadPoolExecutor(max_workers=_DECODERS, thread_name_prefix="decode")
        self.answers = PathAnswers(
            planner,
            args.paths,
            metrics=self.metrics,
            decoders=self._decoders,
            pixels=args.limits.image_pixels,
        )
        self._args = args
        messages = PathMessages(self)
        dialect = NativeDialect(self, self._described, messages)
        self.dialects: dict[str | None, Dialect] = {PROTOCOL: dialect, None: dialect}
        self.routes = {
            **standard_routes(self, self._described),
            **HamsterChat(self).routes,
        }
        for kind in _NATIVE:
            same = replicas if kind == "open" else 1
            self.routes["POST", f"/{kind}"] = Route(handler=NativeRoute(messages, kind, self._wire, replicas=same))
        keys = KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)
        self.app = Ingress(self, limits=args.limits, keys=keys, metrics=self.metrics)

    @classmethod
    async def start(cls, args: PathArgs, *, replica: str = "local", replicas: int = 1) -> PathServer:
        """Start the predictor that the configuration names, ask it once, and serve it.

        Raises:
            FileNotFoundError, ValueError, ImportError: see `PathPlanner.start`.
            RoboserveError: it cannot answer as it is configured.
        """
        planner = await PathPlanner.start(args)
        started = time.perf_counter()
        try:
            await _warm_up(planner, args)
        except RoboserveError as error:
            if not error.retryable:
                await planner.engine.close()
                raise
            logger.warning("the engine does not answer yet: %s", error, extra={"model": args.name})
        warm_up_ms = round((time.perf_counter() - started) * 1e3, 1)
        logger.info("path predictor ready", extra={"model": args.name, "warm_up_ms": warm_up_ms})
        return cls(planner, args, replica=replica, replicas=replicas)

    @property
    def contract(self) -> PathContract:
        """What the server says of itself now; the hash is another once an adapter took another's place."""
        return _contract(self.planner, self._args, self.parser)

    @property
    def names(self) -> tuple[str, ...]:
        """What clients of the chat dialects may call the model."""
        return (self.name, *NAMES)

    def adapter_of(self, model: str) -> str | None:
        """Return the adapter that answers, whichever of its names the model is called by.

        Raises:
            RoboserveError: `not_found`.
        """
        if model not in (*self.names, self.engine.spec.id):
            raise RoboserveError(
                "not_found", f"model: no {model[:64]!r} is served here; served are {', '.join(self.names)}"
            )
        return self._adapter

    async def answer(self, request: VlmRequest) -> AsyncGenerator[VlmChunk]:
        """Ask the engine, and count what it says."""
        stream = self.engine.stream(request)
        try:
            async for chunk in stream:
                if chunk.finish is not None:
                    self.metrics.on_said(prompt=chunk.prompt_tokens, answer=chunk.answer_tokens)
                yield chunk
        finally:
            await stream.aclose()

    def check_health(self) -> None:
        """Raise when this replica can answer no more."""
        self.engine.check_health()

    async def close(self) -> None:
        """Free the engine and threads."""
        await self.engine.close()
        self._decoders.shutdown(wait=False)

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map.

        Raises:
            RoboserveError: `malformed` or `too_large`.
        """
        return read_map(data, self._wire)

    def _described(self) -> dict[str, Any]:
        return self.contract.to_map()

    async def end_session(self, session: str, principal: Principal) -> None:
        """Do nothing: kept paths outlive the connection that they were asked on."""


def _contract(planner: PathPlanner, args: PathArgs, parser: PathParser) -> PathContract:
    described, settings = planner.described(), args.paths
    return PathContract(
        model=args.name,
        revision=described["revision"],
        content_hash=described["content_hash"],
        architecture=described["architecture"],
        dtype=described["dtype"],
        prompt_version=described["prompt_version"],
        adapter=described["adapter"],
        structured=args.structured,
        view=args.view,
        views=VIEWS,
        styles=tuple(STYLES),
        initial_open=planner.prompt.initial_open,
        limits={
            "message_bytes": args.limits.message_bytes,
            "image_pixels": args.limits.image_pixels,
            "in_flight": args.limits.in_flight,
            "images": settings.images,
            "points": parser.most_points,
            "instruction_chars": planner.prompt.quest_chars,
            "under_way": settings.under_way,
            "sessions": settings.sessions,
            "session_idle_s": settings.session_idle_s,
        },
    )


async def _warm_up(planner: PathPlanner, args: PathArgs) -> None:
    """Ask once, so that no caller pays for lazy initialisation or finds a wrong configuration.

    A remote engine that is down may come back; one that refuses will refuse everybody.
    """
    height, width = args.image_size or (64, 64)
    options = PathParser(planner.prompt, args).defaults
    await planner.ask(np.zeros((height, width, 3), np.uint8), "anything", options)
