"""A preference labeller with its memory, budget and transports: everything of the deployment that needs no Ray."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.contract import PROTOCOL
from clients.errors import RoboserveError
from clients.preference_contract import PreferenceContract
from clients.wire import WireLimits
from models.preference.contract import LabelOptions, Pair
from serving.auth import KeyRing
from serving.dialects.preference_messages import PreferenceDialect, PreferenceMessages
from serving.factory import load_factory
from serving.ingress import Ingress
from serving.native_http import NativeRoute, read_map, standard_routes
from serving.preference_answers import PreferenceAnswers
from serving.preference_budget import Budget
from serving.preference_metrics import PreferenceMetrics
from serving.preference_requests import LabelParser
from serving.service import Dialect, Route

if TYPE_CHECKING:
    from models.preference.contract import Labeller
    from serving.auth import Principal
    from serving.preference_config import PreferenceArgs

logger = logging.getLogger("ray.serve")
_MAX_OBJECTS = 40_000
_DECODERS = 2


class PreferenceServer:
    """A labeller with its memory, budget and transports; `start` makes one from its configuration.

    Args:
        labeller: who is asked.
        args: the application's arguments.
        replica: id of this replica, for metrics.
    """

    family = "preference"

    def __init__(self, labeller: Labeller, args: PreferenceArgs, *, replica: str = "local") -> None:
        self.name = args.name
        self.labeller = labeller
        self.metrics = PreferenceMetrics(model=args.name, replica=replica)
        self.parser = LabelParser(labeller.spec, args.preferences)
        self.budget = Budget(args.preferences.budget, now=time.monotonic)
        self._wire = WireLimits(message_bytes=args.limits.message_bytes, objects=_MAX_OBJECTS)
        self._decoders = ThreadPoolExecutor(max_workers=_DECODERS, thread_name_prefix="decode")
        self.answers = PreferenceAnswers(
            labeller,
            args.preferences,
            budget=self.budget,
            metrics=self.metrics,
            decoders=self._decoders,
            pixels=args.limits.image_pixels,
        )
        self._args = args
        self._messages = PreferenceMessages(self)
        dialect = PreferenceDialect(self, self._messages)
        self.dialects: dict[str | None, Dialect] = {PROTOCOL: dialect, None: dialect}
        self.routes = {
            **standard_routes(self, self._promised),
            ("POST", "/label"): Route(handler=NativeRoute(self._messages, "label", self._wire)),
        }
        keys = KeyRing.load(Path(args.auth.keys_file) if args.auth.keys_file else None)
        self.app = Ingress(self, limits=args.limits, keys=keys, metrics=self.metrics)

    @classmethod
    async def start(cls, args: PreferenceArgs, *, replica: str = "local") -> PreferenceServer:
        """Make the labeller that the configuration names, ask it once, and serve it.

        Raises:
            ValueError: see `load_factory`.
            RoboserveError: it cannot answer as it is configured.
        """
        factory, config = load_factory(args.labeller, "labeller")
        labeller = await factory.start(config) if hasattr(factory, "start") else factory(config)
        started = time.perf_counter()
        try:
            await _warm_up(labeller)
        except RoboserveError as error:
            if not error.retryable:
                await labeller.close()
                raise
            logger.warning("the labeller does not answer yet: %s", error, extra={"model": args.name})
        warm_up_ms = round((time.perf_counter() - started) * 1e3, 1)
        logger.info("labeller ready", extra={"model": args.name, "warm_up_ms": warm_up_ms})
        return cls(labeller, args, replica=replica)

    @property
    def contract(self) -> PreferenceContract:
        """What the server says of itself now; the model's hash is another once an adapter took another's place."""
        return _contract(self.labeller, self._args, max_frames=self.answers.max_frames)

    def _promised(self) -> dict[str, Any]:
        return self.contract.to_map()

    def check_health(self) -> None:
        """Raise when this replica can label no more."""
        self.labeller.check_health()

    async def close(self) -> None:
        """Free the labeller and threads."""
        await self.labeller.close()
        self._decoders.shutdown(wait=False)

    def described(self) -> dict[str, Any]:
        """Return what every answer says of the model behind it."""
        spec = self.labeller.spec
        return {
            "id": self.name,
            "revision": spec.revision,
            "content_hash": spec.content_hash,
            "architecture": spec.architecture,
            "dtype": spec.dtype,
            "prompt_version": spec.prompt_id,
        }

    def decode(self, data: bytes) -> dict[str, Any]:
        """Decode a native message to a map.

        Raises:
            RoboserveError: `malformed` or `too_large`.
        """
        return read_map(data, self._wire)

    async def end_session(self, session: str, principal: Principal) -> None:
        """Do nothing: a connection leaves nothing behind."""


def _contract(labeller: Labeller, args: PreferenceArgs, *, max_frames: int) -> PreferenceContract:
    spec, settings = labeller.spec, args.preferences
    supports = {"clips": max_frames > 1, "values": spec.wants_values, "equal_frames": spec.equal_frames}
    return PreferenceContract(
        model=args.name,
        revision=spec.revision,
        content_hash=spec.content_hash,
        architecture=spec.architecture,
        dtype=spec.dtype,
        prompt_version=spec.prompt_id,
        image_size=spec.image_size,
        protocols=spec.protocols,
        supports=tuple(name for name, present in supports.items() if present),
        limits={
            "message_bytes": args.limits.message_bytes,
            "image_pixels": args.limits.image_pixels,
            "in_flight": args.limits.in_flight,
            "pairs": settings.pairs,
            "clip_frames": max_frames,
            "votes": settings.votes,
            "goal_chars": spec.goal_chars,
            "under_way": settings.under_way,
        },
    )


async def _warm_up(labeller: Labeller) -> None:
    """Ask once by the first protocol, so that no caller pays for lazy initialisation or finds a wrong configuration.

    A remote engine that is down may come back; one that refuses will refuse everybody.
    """
    spec = labeller.spec
    height, width = spec.image_size or (64, 64)
    dark, light = (np.full((height, width, 3), level, np.uint8) for level in (0, 255))
    pair = Pair(goal="anything", first=(dark,), second=(light,), values=(0.0, 1.0) if spec.wants_values else None)
    await labeller.label([pair], LabelOptions(protocol=spec.protocols[0]))
