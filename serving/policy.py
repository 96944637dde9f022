"""A served policy: one Ray Serve application whose only deployment is ingress, batcher and model at once."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from ray import serve

from clients.contract import PROTOCOL, Camera, PolicyContract, Vector
from clients.errors import RoboserveError
from clients.wire import WireLimits, decode, encode, with_entry
from models.policies.contract import ActionChunk, ActItem, Observation
from serving.auth import KeyRing, Principal
from serving.batcher import Batcher, BatchSettings, Served
from serving.config import PolicyArgs
from serving.dialects.native import NativeDialect
from serving.dialects.openpi import OpenpiDialect
from serving.ingress import MSGPACK, Dialect, HttpReply, HttpRequest, Ingress, Route, log_error
from serving.metrics import RayMetricsBridge, ServiceMetrics
from serving.requests import ActRequest, parse_act, request_id_of, short_text
from serving.sessions import ChunkMemory, SessionKey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.policies.contract import Policy, PolicySpec

logger = logging.getLogger("ray.serve")
_INLINE_DECODE_BYTES = 4096
_LIMIT_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class ActOutcome:
    """A chunk, the batch that it rode in, and times in ms."""

    chunk: ActionChunk
    batch_size: int
    timings: dict[str, float]


def make_policy(args: PolicyArgs) -> Policy:
    """Make the policy that a configuration names.

    Raises:
        ValueError: the class cannot be imported, or its configuration is wrong.
    """
    module_name, _, class_name = args.policy.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy.factory: {args.policy.factory!r} cannot be imported: {error}") from error
    try:
        config = TypeAdapter(factory.Config).validate_python(args.policy.config)
    except ValidationError as error:
        where = "; ".join(".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
        raise ValueError(f"policy.config of {args.policy.factory}: {where}") from error
    policy: Policy = factory(config)
    return policy


def contract_of(spec: PolicySpec, args: PolicyArgs) -> PolicyContract:
    """Return the contract that robots see: the model's spec and this server's limits."""
    supports = {
        "rtc": spec.supports_rtc,
        "seed": spec.supports_seed,
        "integration_steps": spec.integration_steps > 0,
        "reset": True,
    }
    return PolicyContract(
        model=args.name,
        revision=spec.revision,
        content_hash=spec.content_hash,
        cameras=tuple(Camera(**asdict(camera)) for camera in spec.cameras),
        state=Vector(**asdict(spec.state)),
        action=Vector(**asdict(spec.action)),
        control_hz=spec.control_hz,
        chunk_length=spec.chunk_length,
        execute=spec.execute,
        integration_steps=spec.integration_steps,
        supports=tuple(name for name, present in supports.items() if present),
        adapters=(),
        normalization=spec.normalization,
        limits={
            "message_bytes": args.limits.message_bytes,
            "image_pixels": args.limits.image_pixels,
            "instruction_chars": spec.instruction_chars,
            "in_flight": args.limits.in_flight,
        },
    )


def checked_forward(policy: Policy) -> Callable[[Sequence[ActItem]], list[ActionChunk | Exception]]:
    """Return the forward that the batcher runs: an unusable chunk becomes its item's error, never an answer."""
    low, high = np.array(policy.spec.action.low), np.array(policy.spec.action.high)
    slack = _LIMIT_TOLERANCE * (high - low)
    shape = (policy.spec.chunk_length, policy.spec.action.size)

    def check(chunk: ActionChunk) -> ActionChunk | Exception:
        if chunk.actions.shape != shape:
            return RoboserveError(
                "invalid_output", f"actions: the policy gave shape {chunk.actions.shape}, promised {shape}"
            )
        if not np.isfinite(chunk.actions).all():
            return RoboserveError("invalid_output", "actions: the policy gave values that are not finite")
        if ((chunk.actions < low - slack) | (chunk.actions > high + slack)).any():
            return RoboserveError("invalid_output", "actions: the policy went beyond its own limits")
        return chunk

    def forward(items: Sequence[ActItem]) -> list[ActionChunk | Exception]:
        return [check(chunk) for chunk in policy.act(items)]

    return forward


class PolicyServer:
    """A policy with its batcher, memory and transports; the part of the deployment that needs no Ray.

    Args:
        args: the application's arguments.
        replica: id of this replica, for metrics.
    """

    family = "policy"

    def __init__(self, args: PolicyArgs, *, replica: str = "local") -> None:
        self.name = args.name
        self.limits = args.limits
        self._policy = make_policy(args)
        self.spec = self._policy.spec
        self.contract = contract_of(self.spec, args)
        self.metrics = ServiceMetrics(family=self.family, model=args.name, replica=replica)
        self._memory = ChunkMemory(args.limits.remembered_sessions)
        self._wire_limits = WireLimits(message_bytes=args.limits.message_bytes)
        self._decoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
        self._batcher: Batcher[ActItem, ActionChunk] = Batcher(
            checked_forward(self._policy), _batch_settings(args), observer=self.metrics
        )
        self.dialects: dict[str | None, Dialect] = {
            PROTOCOL: NativeDialect(self),
            None: OpenpiDialect(self, args.openpi),
        }
        self.routes = {
            ("GET", "/healthz"): Route(handler=self._healthz, access="public"),
            ("GET", "/contract"): Route(handler=self._contract),
            ("GET", "/metrics"): Route(handler=self._metrics_text, access="operator"),
            ("POST", "/act"): Route(handler=self._act_http),
            ("POST", "/reset"): Route(handler=self._reset_http),
        }
        self.app = Ingress(self, limits=args.limits, keys=_keys(args), metrics=self.metrics)
        self._warm_up()

    def _warm_up(self) -> None:
        """Run one forward, so that the first robot does not pay for lazy initialisation."""
        blank = Observation(
            images={camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in self.spec.cameras},
            state=np.zeros(self.spec.state.size, np.float32),
            instruction="",
        )
        started = time.perf_counter()
        self._policy.act([ActItem(observation=blank)])
        logger.info(
            "policy ready", extra={"model": self.name, "warm_up_ms": round((time.perf_counter() - started) * 1e3, 1)}
        )

    def check_health(self) -> None:
        """Raise when this replica can serve no more: the batcher ended, or a forward hangs."""
        if self._batcher.closed:
            raise RuntimeError("the batcher stopped")
        running = self._batcher.forward_running_s
        if running > self.limits.forward_timeout_s:
            raise RuntimeError(f"a forward has run for {running:.0f} s, limit {self.limits.forward_timeout_s:g} s")

    async def close(self) -> None:
        """Fail what waits, let the running forward end, free threads."""
        await self._batcher.close()
        self._decoders.shutdown(wait=False)

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map.

        Raises:
            RoboserveError: `malformed` or `too_large`.
        """
        message = decode(data, self._wire_limits)
        if not isinstance(message, dict):
            raise RoboserveError("malformed", "message: must be a map")
        return message

    async def parse(self, message: dict[str, Any], *, session: str) -> ActRequest:
        """Check an act request; images of any size worth it are decoded off the event loop."""

        def parse() -> ActRequest:
            return parse_act(message, self.spec, session=session, max_pixels=self.limits.image_pixels)

        return await self.off_loop(parse) if _compressed_bytes(message) > _INLINE_DECODE_BYTES else parse()

    async def off_loop(self, work: Callable[[], ActRequest]) -> ActRequest:
        """Run decoding work in a decoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def act(self, request: ActRequest, principal: Principal, *, received: float, decode_s: float) -> ActOutcome:
        """Answer one request.

        Args:
            received: `time.perf_counter` at receipt.
            decode_s: seconds spent on decoding and checking.

        Raises:
            RoboserveError: see `Batcher.submit`; `not_found` for an adapter that is not served.
        """
        if request.adapter is not None and request.adapter not in self.contract.adapters:
            raise RoboserveError(
                "not_found", f"adapter: {request.adapter!r} is not served; known are {list(self.contract.adapters)}"
            )
        key = SessionKey(principal.id, request.session)
        options = request.options
        if request.executed is not None and options.leftover is None:
            options = replace(options, leftover=self._memory.leftover(key, request.executed))
        item = ActItem(
            observation=request.observation, session=request.session, adapter=request.adapter, options=options
        )
        deadline = None
        if request.deadline_ms is not None:
            deadline = time.monotonic() + request.deadline_ms / 1e3 - (time.perf_counter() - received)
        served = await self._batcher.submit(
            item,
            key=(request.adapter, options.integration_steps, options.leftover is not None),
            deadline=deadline,
            session=key,
        )
        if self.spec.supports_rtc:
            self._memory.remember(key, served.result.model_actions)
        return ActOutcome(chunk=served.result, batch_size=served.batch_size, timings=_timings(served, decode_s))

    async def reset(self, session: str, principal: Principal) -> None:
        """Forget a session's chunk and whatever the policy keeps of it."""
        self._memory.forget(SessionKey(principal.id, session))
        if self.spec.stateful:
            await self._batcher.call(lambda: self._policy.reset(session))

    def reply(self, request: ActRequest, outcome: ActOutcome, *, received: float) -> bytes:
        """Encode the reply to an act request."""
        started = time.perf_counter()
        reply: dict[str, Any] = {
            "type": "action",
            "request_id": request.request_id,
            "actions": outcome.chunk.actions,
            "model": {"id": self.name, "revision": self.spec.revision, "content_hash": self.spec.content_hash},
            "batch_size": outcome.batch_size,
        }
        if request.return_model_actions:
            reply["model_actions"] = outcome.chunk.model_actions
        packed = encode(reply)
        now = time.perf_counter()
        timings = {**outcome.timings, "encode": (now - started) * 1e3, "total": (now - received) * 1e3}
        return with_entry(packed, "timings", timings)

    async def answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> bytes:
        """Answer one decoded native message, errors included: what every native transport shares."""
        error: RoboserveError | None = None
        reply = b""
        try:
            reply = await self._answer(message, principal, session=session, received=received)
        except RoboserveError as raised:
            error = raised.with_request_id(request_id_of(message))
            error.__cause__ = raised.__cause__
        except Exception as raised:  # noqa: BLE001  a fault of ours: the peer gets a typed error, the log gets the cause
            error = RoboserveError("internal", "the server failed on this request", request_id=request_id_of(message))
            error.__cause__ = raised
        if message.get("type", "act") == "act":
            self.metrics.on_request("ok" if error is None else error.code, time.perf_counter() - received)
        if error is None:
            return reply
        log_error(error, service=self.name, transport="native")
        return encode(error.to_map())

    async def _answer(self, message: dict[str, Any], principal: Principal, *, session: str, received: float) -> bytes:
        kind = message.get("type", "act")
        wanted = short_text(message, "model")
        if wanted is not None and wanted != self.name:
            raise RoboserveError("not_found", f"model: {wanted!r} is not served here; this is {self.name!r}")
        if kind == "act":
            request = await self.parse(message, session=session)
            decode_s = time.perf_counter() - received
            outcome = await self.act(request, principal, received=received, decode_s=decode_s)
            return self.reply(request, outcome, received=received)
        if kind == "reset":
            await self.reset(short_text(message, "session") or session, principal)
            return encode({"type": "reset", "request_id": request_id_of(message)})
        if kind == "ping":
            return encode({"type": "pong", "request_id": request_id_of(message)})
        raise RoboserveError("invalid_request", f"type: {str(kind)[:40]!r}; known are act, reset, ping")

    async def _act_http(self, request: HttpRequest) -> HttpReply:
        return await self._native_http(request, "act")

    async def _reset_http(self, request: HttpRequest) -> HttpReply:
        return await self._native_http(request, "reset")

    async def _native_http(self, request: HttpRequest, kind: str) -> HttpReply:
        message = self.decode(request.body)
        if message.setdefault("type", kind) != kind:
            raise RoboserveError(
                "invalid_request", f"type: {str(message['type'])[:40]!r} does not belong to this route"
            )
        session = "http-" + secrets.token_hex(8)  # of its own: anonymous callers must not replace each other's requests
        body = await self.answer(message, request.principal, session=session, received=request.received)
        return HttpReply(body=body, status=_status_of(body))

    async def _healthz(self, _request: HttpRequest) -> HttpReply:
        try:
            self.check_health()
        except RuntimeError as error:
            raise RoboserveError("unavailable", str(error)) from error
        return HttpReply(body=b"OK\n", content_type="text/plain")

    async def _contract(self, request: HttpRequest) -> HttpReply:
        if MSGPACK.encode() in request.headers.get(b"accept", b""):
            return HttpReply(body=encode(self.contract.to_map()))
        return HttpReply(body=json.dumps(self.contract.to_map(), indent=2).encode(), content_type="application/json")

    async def _metrics_text(self, _request: HttpRequest) -> HttpReply:
        return HttpReply(body=self.metrics.text(), content_type="text/plain; version=0.0.4")


# The reasons of these values:
# - max_ongoing_requests: a websocket is one ongoing request for its life, so Serve's default of 5 would admit five
#   robots; the session limit is ours, with a typed refusal, and lies below.
# - max_queued_requests: nothing should wait in Serve's queue, where no deadline is known.
# - health checks: a robot holds while its replica is dead, so death is noticed in seconds, not in half a minute.
# - graceful shutdown: an act takes tens of milliseconds and sessions are told to reconnect: a long wait gains nothing.
@serve.deployment(
    name="PolicyService",
    max_ongoing_requests=1024,
    max_queued_requests=64,
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
)
@serve.ingress()
class PolicyService:
    """The deployment: a `PolicyServer` inside a Ray Serve replica."""

    def __init__(self, args: PolicyArgs) -> None:
        # The forward shares the interpreter with the event loop: a shorter switch keeps the other sessions answered.
        sys.setswitchinterval(0.0005)
        self._server = PolicyServer(args, replica=serve.get_replica_context().replica_id.unique_id)
        self._bridge = RayMetricsBridge(self._server.metrics.registry)
        self._bridge.start()

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._server.app

    def check_health(self) -> None:
        """Ray Serve's health check; a failing replica is replaced."""
        self._server.check_health()

    async def __del__(self) -> None:
        self._bridge.stop()
        await self._server.close()


def build(args: PolicyArgs) -> serve.Application:
    """Build the application: the `import_path` of a configuration file.

    Ray Serve hands over a plain map, for it reads annotations that are evaluated and ours are not.
    """
    deployment = cast("serve.Deployment", PolicyService)  # what the decorators make of the class
    return deployment.bind(PolicyArgs.model_validate(args))


def _keys(args: PolicyArgs) -> KeyRing:
    return KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)


def _batch_settings(args: PolicyArgs) -> BatchSettings:
    batching = args.batching
    return BatchSettings(
        max_cost=float(batching.max_batch),
        max_queue=batching.max_queue,
        max_wait_s=None if batching.max_wait_ms is None else batching.max_wait_ms / 1e3,
        default_deadline_s=batching.default_deadline_ms / 1e3,
    )


def _timings(served: Served[ActionChunk], decode_s: float) -> dict[str, float]:
    return {
        "decode": decode_s * 1e3,
        "queue": served.queue_s * 1e3,
        "batch_wait": served.batch_wait_s * 1e3,
        "forward": served.forward_s * 1e3,
    }


def _compressed_bytes(message: dict[str, Any]) -> int:
    observation = message.get("observation")
    images = observation.get("images") if isinstance(observation, dict) else None
    if not isinstance(images, dict):
        return 0
    return sum(len(image) for image in images.values() if isinstance(image, bytes))


def _status_of(body: bytes) -> int:
    """HTTP status of an encoded native reply."""
    message = decode(body)
    return RoboserveError.from_map(message).kind.http if message["type"] == "error" else 200
