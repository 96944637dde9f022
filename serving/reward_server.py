"""A reward model with its batcher, sessions and transports: everything of the deployment that needs no Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clients.contract import PROTOCOL
from clients.errors import RoboserveError
from clients.reward_contract import RewardContract
from clients.wire import WireLimits
from models.rewards.frames import MODES
from serving.auth import KeyRing
from serving.batcher import Batcher, BatchSettings
from serving.dialects.native import NativeDialect
from serving.dialects.reward_messages import RewardMessages
from serving.dialects.robometer_eval import RobometerEval
from serving.factory import make_model
from serving.feature_cache import Frame
from serving.ingress import Ingress
from serving.metrics import RewardMetrics
from serving.native_http import NativeRoute, read_map, standard_routes
from serving.reward_answers import RewardAnswers
from serving.reward_engine import RewardEngine, ScoreWork
from serving.reward_requests import ONLY_CAMERA, RewardParser, session_of
from serving.reward_sessions import StreamKey, Streams
from serving.service import Dialect, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.rewards.contract import FrameValues, RewardModel
    from serving.auth import Principal
    from serving.config import RewardArgs
    from serving.reward_engine import Work
    from serving.reward_errands import Tally
    from serving.reward_requests import AppendRequest, Header
    from serving.reward_sessions import Stream

logger = logging.getLogger("ray.serve")
_MAX_OBJECTS = 20_000
_DECODERS = 2
Result = TypeVar("Result")


class RewardServer:
    """A reward model with its batcher, sessions and transports.

    Args:
        args: the application's arguments.
        replica: id of this replica, for metrics.
        replicas: how many replicas answer under this name; over HTTP a session is only found again where there is one.
    """

    family = "reward"

    def __init__(self, args: RewardArgs, *, replica: str = "local", replicas: int = 1) -> None:
        self.name = args.name
        self.limits = args.limits
        self.settings = args.rewards
        self.replicas = replicas
        self.model: RewardModel = make_model(args.reward, "reward")
        self.spec = self.model.spec
        self.contract = _contract(self.model, args)
        self.metrics = RewardMetrics(model=args.name, replica=replica)
        self.parser = RewardParser(self.spec, self.settings)
        self.streams = Streams(self.settings, now=time.monotonic, on_count=self.metrics.streams.set)
        self._wire = WireLimits(message_bytes=args.limits.message_bytes, objects=_MAX_OBJECTS)
        self._decoders = ThreadPoolExecutor(max_workers=_DECODERS, thread_name_prefix="decode")
        engine = RewardEngine(
            self.model,
            cache_bytes=self.settings.cache_bytes,
            encode_frames=self.settings.encode_frames,
            metrics=self.metrics,
        )
        self._batcher: Batcher[Work, FrameValues | float] = Batcher(
            engine.forward, _batch_settings(args), observer=self.metrics
        )
        self.answers = RewardAnswers(
            self.model,
            self.settings,
            self._batcher,
            cost=engine.cost,
            decoders=self._decoders,
            decoding=_DECODERS,
            pixels=args.limits.image_pixels,
        )
        self._messages = RewardMessages(self)
        self.dialects: dict[str | None, Dialect] = {PROTOCOL: NativeDialect(self, self.contract.to_map, self._messages)}
        self.dialects[None] = self.dialects[PROTOCOL]
        self.routes = {
            **standard_routes(self, self.contract.to_map),
            **RobometerEval(self, upload_bytes=self.settings.upload_bytes).routes,
        }
        for kind in ("score", "compare", "open", "append", "close"):
            same = replicas if kind == "open" else 1
            route = NativeRoute(self._messages, kind, self._wire, replicas=same)
            self.routes["POST", f"/{kind}"] = Route(handler=route)
        keys = KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)
        self.app = Ingress(self, limits=args.limits, keys=keys, metrics=self.metrics)
        started = time.perf_counter()
        _warm_up(self.model, engine)
        warm_up_ms = round((time.perf_counter() - started) * 1e3, 1)
        logger.info("reward model ready", extra={"model": self.name, "warm_up_ms": warm_up_ms})

    def check_health(self) -> None:
        """Raise when this replica can serve no more: the batcher ended, or a forward hangs."""
        if self._batcher.closed:
            raise RuntimeError("the batcher stopped") from self._batcher.fault
        running = self._batcher.forward_running_s
        if running > self.limits.forward_timeout_s:
            raise RuntimeError(f"a forward has run for {running:.0f} s, limit {self.limits.forward_timeout_s:g} s")

    @property
    def busy(self) -> bool:
        """Whether a forward is running."""
        return self._batcher.forward_running_s > 0

    async def off_loop(self, work: Callable[[], Result]) -> Result:
        """Run work that would keep the event loop from others on the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def close(self) -> None:
        """Fail what waits, let the running forward end, free threads."""
        await self._batcher.close()
        self._decoders.shutdown(wait=False)

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map.

        Raises:
            RoboserveError: `malformed` or `too_large`.
        """
        return read_map(data, self._wire)

    def deadline(self, header: Header, received: float) -> float | None:
        """Return a request's deadline on the batcher's clock; `received`: `time.perf_counter` at receipt."""
        if header.deadline_ms is None:
            return None
        return time.monotonic() + header.deadline_ms / 1e3 - (time.perf_counter() - received)

    async def append(
        self, request: AppendRequest, principal: Principal, deadline: float | None, tally: Tally
    ) -> tuple[Stream, dict[str, Any]]:
        """Append frames to a session and return its value now; what fails leaves the session as it was."""
        stream = self.streams.find(principal, request.session)
        given = request.cameras
        if given is None:
            if len(stream.cameras) != 1:
                known = ", ".join(stream.cameras)
                raise RoboserveError("invalid_request", f"frames: must be a map of the cameras {known}")
            given = {next(iter(stream.cameras)): request.frames}
        async with stream.lock:
            clips = await self.answers.frames({f"frames.{name}": value for name, value in given.items()})
            frames = dict(zip(given, clips, strict=True))
            with self.streams.extended(stream, frames):
                window = stream.policy.indices(stream.length)
                read = {
                    name: await self.answers.values(stream.instruction, clip, [window], "final", deadline, tally)
                    for name, clip in stream.cameras.items()
                }
                frame = stream.length - 1
        values: dict[str, Any] = {"frame": frame, "shown": np.asarray(window)}
        progress = {name: float(part.progress[-1]) for name, part in read.items()}
        success = {name: float(part.success[-1]) for name, part in read.items() if part.success is not None}
        values["progress"] = float(np.mean(list(progress.values())))
        values["success"] = float(np.mean(list(success.values()))) if success else None
        values["progress_min"], values["progress_max"] = min(progress.values()), max(progress.values())
        values["cameras"] = {
            name: {"progress": value, "success": success.get(name)} for name, value in progress.items()
        }
        return stream, values

    async def end_session(self, session: str, principal: Principal) -> None:
        """Forget what a connection that ended had open under its own id."""
        self.streams.close(StreamKey(principal.id, session))

    def close_stream(self, message: dict[str, Any], principal: Principal) -> None:
        """Forget a streaming session; one that is gone already is no error."""
        self.streams.close(StreamKey(principal.id, session_of(message)))


def _contract(model: RewardModel, args: RewardArgs) -> RewardContract:
    spec, settings = model.spec, args.rewards
    supports = {"success": spec.supports_success, "compare": spec.supports_compare, "sessions": True}
    return RewardContract(
        model=args.name,
        revision=spec.revision,
        content_hash=spec.content_hash,
        architecture=spec.architecture,
        dtype=spec.dtype,
        prompt_version=spec.prompt_version,
        image_size=spec.image_size,
        max_frames=spec.max_frames,
        frame_policy=spec.frame_policy,
        modes=MODES,
        supports=tuple(name for name, present in supports.items() if present),
        limits={
            "message_bytes": args.limits.message_bytes,
            "image_pixels": args.limits.image_pixels,
            "clip_frames": settings.clip_frames,
            "clips": settings.clips,
            "cameras": settings.cameras,
            "instruction_chars": spec.instruction_chars,
            "in_flight": args.limits.in_flight,
            "session_frames": settings.session_frames,
            "sessions": settings.sessions,
            "session_idle_s": settings.session_idle_s,
        },
    )


def _batch_settings(args: RewardArgs) -> BatchSettings:
    batching = args.batching
    # Requests are limited where they come in, and each puts a bounded number of queries here.
    requests = args.limits.http_requests + args.limits.sessions * args.limits.in_flight
    return BatchSettings(
        max_cost=float(args.rewards.forward_tokens),
        max_queue=requests * args.rewards.request_queries,
        max_wait_s=None if batching.max_wait_ms is None else batching.max_wait_ms / 1e3,
        default_deadline_s=batching.default_deadline_ms / 1e3,
    )


def _warm_up(model: RewardModel, engine: RewardEngine) -> None:
    """Run one checked query, so that the first caller neither pays for lazy initialisation nor finds a fault.

    Raises:
        RoboserveError: `invalid_output`.
    """
    height, width = model.spec.image_size or (64, 64)
    frame = Frame.of(model.prepare(np.zeros((height, width, 3), np.uint8)))
    [outcome] = engine.forward([ScoreWork(instruction=ONLY_CAMERA, frames=(frame,))])
    if isinstance(outcome, Exception):
        raise outcome
