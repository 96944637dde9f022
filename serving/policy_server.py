"""A policy with its batcher, memory and transports: everything of the deployment that needs no Ray."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clients.contract import PROTOCOL
from clients.errors import RoboserveError
from clients.wire import WireLimits
from models.policies.contract import ActionChunk, ActItem
from serving.auth import KeyRing
from serving.batcher import Batcher, BatchSettings, Served
from serving.dialects.messages import NativeMessages
from serving.dialects.native import NativeDialect
from serving.dialects.openpi import OpenpiDialect
from serving.ingress import Ingress
from serving.metrics import PolicyMetrics
from serving.native_http import NativeRoute, read_map, standard_routes
from serving.requests import ActRequest, parse_act, require_supported
from serving.revisions import Revisions
from serving.service import Dialect, HttpReply, HttpRequest, Route
from serving.sessions import ChunkMemory, SessionKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from clients.contract import PolicyContract
    from serving.auth import Principal
    from serving.config import PolicyArgs
    from serving.revision_load import LoadedRevision

logger = logging.getLogger("ray.serve")
_INLINE_DECODE_BYTES = 4096
# An observation has a few dozen values; walking many more would keep the event loop from everybody else.
_MAX_OBJECTS = 1024


class _Work(NamedTuple):
    """An item, and the revision that is to answer it."""

    revision: LoadedRevision
    item: ActItem


@dataclass(frozen=True, kw_only=True)
class ActOutcome:
    """A chunk, who answered, the batch that it rode in, and times in ms."""

    chunk: ActionChunk
    model: dict[str, str]
    batch_size: int
    timings: dict[str, float]


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
        self.metrics = PolicyMetrics(model=args.name, replica=replica)
        started = time.perf_counter()
        self.revisions = Revisions(args, self.metrics)
        warm_ms = round((time.perf_counter() - started) * 1e3, 1)
        self.spec = self.revisions.spec
        self._memory = ChunkMemory(args.limits.remembered_sessions)
        self._remembers = self.spec.supports_rtc or self.spec.stateful
        self._wire_limits = WireLimits(
            message_bytes=args.limits.message_bytes, objects=_MAX_OBJECTS, list_items=_MAX_OBJECTS
        )
        self._decoders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode")
        self._batcher: Batcher[_Work, ActionChunk] = Batcher(
            _forward, _batch_settings(args, inline=self.spec.light), observer=self.metrics
        )
        self._native = NativeMessages(self)
        self.dialects: dict[str | None, Dialect] = {
            PROTOCOL: NativeDialect(self, self._described, self._native),
            None: OpenpiDialect(self, args.openpi),
        }
        self.routes = {
            **standard_routes(self, self._described),
            **{("POST", f"/{kind}"): Route(handler=self._route(kind)) for kind in ("act", "reset")},
            ("GET", "/revisions"): Route(handler=self._list_revisions, access="operator"),
        }
        self.app = Ingress(self, limits=args.limits, keys=_keys(args), metrics=self.metrics)
        self.revisions.watch()
        logger.info("policy ready", extra={"model": self.name, "load_ms": warm_ms})

    @property
    def contract(self) -> PolicyContract:
        """What a robot that connects now is told."""
        return self.revisions.contract

    def check_health(self) -> None:
        """Raise when this replica can serve no more: the batcher ended, or a forward hangs."""
        if self._batcher.closed:
            raise RuntimeError("the batcher stopped") from self._batcher.fault
        running = self._batcher.forward_running_s
        if running > self.limits.forward_timeout_s:
            raise RuntimeError(f"a forward has run for {running:.0f} s, limit {self.limits.forward_timeout_s:g} s")

    async def close(self) -> None:
        """Fail what waits, let the running forward end, free threads."""
        self.revisions.stop()
        await self._batcher.close()
        self._decoders.shutdown(wait=False)

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map.

        Raises:
            RoboserveError: `malformed` or `too_large`.
        """
        return read_map(data, self._wire_limits)

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
            RoboserveError: see `Batcher.submit`; `not_found` for an adapter that is not served; `invalid_request` for a
                request without a session where the policy or the request needs one.
        """
        if not request.session and (self.spec.stateful or request.executed is not None):
            raise RoboserveError("invalid_request", "session: is missing, and this request needs what it remembers")
        key = SessionKey(principal.id, request.session)
        options = request.options
        revision = self.revisions.of(key if request.session else None)
        if request.adapter is not None:
            revision.require_adapter(request.adapter)
        require_supported(options, revision.spec)
        if request.executed is not None and options.leftover is None:
            options = replace(options, leftover=self._memory.leftover(key, request.executed))
        item = ActItem(observation=request.observation, session=str(key), adapter=request.adapter, options=options)
        deadline = None
        if request.deadline_ms is not None:
            deadline = time.monotonic() + request.deadline_ms / 1e3 - (time.perf_counter() - received)
        served = await self._batcher.submit(
            _Work(revision, item),
            key=(revision.id, _apart(revision, request), options.integration_steps, options.leftover is not None),
            deadline=deadline,
            session=key if request.session else None,
        )
        if request.session and self._remembers:
            await self._forget(self._memory.remember(key, served.result.model_actions))
        return ActOutcome(
            chunk=served.result,
            model=revision.answered_by(request.adapter, served.result.adapter_hash),
            batch_size=served.batch_size,
            timings=_timings(served, decode_s),
        )

    async def reset(self, session: str, principal: Principal) -> None:
        """Forget a session's chunk and whatever the policy keeps of it; its next act gets the revision of that time.

        Raises:
            RoboserveError: `invalid_request` without a session, `unavailable` when closing.
        """
        if not session:
            raise RoboserveError("invalid_request", "session: is missing, so there is nothing to reset")
        key = SessionKey(principal.id, session)
        self._memory.forget(key)
        await self._forget([key])

    async def end_session(self, session: str, principal: Principal) -> None:
        """Forget a session whose connection ended."""
        if not self._batcher.closed:
            await self.reset(session, principal)

    async def _forget(self, keys: Sequence[SessionKey]) -> None:
        for key in keys:
            self.revisions.release(key)

        def reset() -> None:
            for policy, key in itertools.product(self.revisions.policies, keys):
                policy.reset(str(key))

        if keys and self.spec.stateful:
            await self._batcher.call(reset)

    @contextmanager
    def counted(self, received: float) -> Iterator[None]:
        """Count the act request that the block answers, by its outcome."""
        with self.metrics.counted(received):
            yield

    def _described(self) -> dict[str, Any]:
        return self.contract.to_map()

    async def _list_revisions(self, _request: HttpRequest) -> HttpReply:
        return HttpReply(body=json.dumps(self.revisions.describe()).encode(), content_type="application/json")

    def _route(self, kind: str) -> NativeRoute:
        # an observation is decoded in less time than a thread takes it
        return NativeRoute(self._native, kind, self._wire_limits, inline_bytes=self.limits.message_bytes)


def _forward(works: Sequence[_Work]) -> list[ActionChunk | Exception]:
    """Run items of one revision, as the batcher's key sees to it."""
    return works[0].revision.forward([work.item for work in works])


def _apart(revision: LoadedRevision, request: ActRequest) -> str | None:
    """Return the adapter, where requests for different ones may not share a forward."""
    return None if revision.spec.adapters == "mixed" else request.adapter


def _keys(args: PolicyArgs) -> KeyRing:
    return KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)


def _batch_settings(args: PolicyArgs, *, inline: bool) -> BatchSettings:
    batching = args.batching
    return BatchSettings(
        max_cost=float(batching.max_batch),
        max_queue=batching.max_queue,
        max_wait_s=None if batching.max_wait_ms is None else batching.max_wait_ms / 1e3,
        default_deadline_s=batching.default_deadline_ms / 1e3,
        inline=inline,
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
