"""The requests of one episode: an observation goes out, a chunk goes into the queue, and a record says how it went."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import numpy as np

from clients.errors import RoboserveError
from clients.policy import ActOptions, ActReply, PolicyClient, fit_images
from robot_client.records import RequestRecord

if TYPE_CHECKING:
    from clients.contract import PolicyContract
    from clients.images import WireImage
    from robot_client.action_queue import ActionQueue, Continuation
    from robot_client.link_config import LinkConfig
    from robot_client.planner import PlannedPath
    from robot_client.robot import RobotObservation

GRACE_S = 0.25
"""The server's own refusal of a request that is too late may take this long to arrive."""


@dataclass(frozen=True)
class Offer:
    """An observation that may be sent.

    Attributes:
        anchor: tick that row 0 of its chunk is for.
        observed_at: when it was taken, `time.monotonic()`.
        epoch: of the queue at that time.
    """

    observation: RobotObservation
    anchor: int
    observed_at: float
    epoch: int


class Exchange:
    """Asks for chunks, one at a time, and puts them into the queue.

    Args:
        seed: request n carries seed + n where the policy takes seeds.
        path: drawn on every observation's image; None draws nothing.
    """

    def __init__(
        self,
        queue: ActionQueue,
        instruction: str,
        seed: Optional[int],
        config: LinkConfig,
        *,
        path: Optional[PlannedPath] = None,
    ) -> None:
        self.queue = queue
        self._path = path
        self._instruction = instruction
        self._seed = seed
        self._config = config
        self._sent = 0

    def follow(self, path: PlannedPath) -> None:
        """Draw another path from the next request on; safe from any thread."""
        self._path = path

    def ask(self, client: PolicyClient, session: str, offer: Offer) -> Tuple[RequestRecord, Optional[RoboserveError]]:
        """Send an observation and wait for its chunk.

        Returns:
            the record of the request, and what went wrong, if anything did.
        """
        record = RequestRecord(offer.anchor, "played", None, offer.observed_at, latency_ms=0.0, encode_ms=0.0)
        try:
            images, record = self._encode(client.contract, offer, record)
            continuation = self.queue.continuation(offer.anchor)
            if continuation is not None:
                record = replace(record, inference_delay=continuation.inference_delay)
            reply = self._act(client, session, offer, images, continuation)
        except RoboserveError as error:
            return replace(record, outcome=error.code, latency_ms=_since_ms(offer.observed_at)), error
        return self._store(offer, reply, record), None

    def _encode(
        self, contract: PolicyContract, offer: Offer, record: RequestRecord
    ) -> Tuple[Dict[str, WireImage], RequestRecord]:
        started = time.monotonic()
        state = offer.observation.state
        if state.shape != (contract.state.size,) or not np.isfinite(state).all():
            raise RoboserveError(
                "invalid_state", f"observation.state: {state.tolist()}, needs {contract.state.size} finite values"
            )
        path = self._path
        seen = offer.observation.images if path is None else path.drawn_on(offer.observation.images)
        images = fit_images(contract, seen, codec=self._config.codec, quality=self._config.quality)
        size = sum(len(image) if isinstance(image, bytes) else image.nbytes for image in images.values())
        return images, replace(record, encode_ms=_since_ms(started), request_bytes=size + state.nbytes)

    def _act(
        self,
        client: PolicyClient,
        session: str,
        offer: Offer,
        images: Dict[str, WireImage],
        continuation: Optional[Continuation],
    ) -> ActReply:
        left_s = self._config.deadline_s - (time.monotonic() - offer.observed_at)
        if left_s <= 0:
            raise RoboserveError("deadline_exceeded", "the observation was too old before it was sent")
        options = self._options(client.contract, continuation)
        self._sent += 1
        return client.act(
            images=images,
            state=offer.observation.state,
            instruction=self._instruction,
            session=session,
            deadline_ms=left_s * 1e3,
            adapter=self._config.adapter,
            options=options,
            timeout_s=left_s + GRACE_S,
        )

    def _options(self, contract: PolicyContract, continuation: Optional[Continuation]) -> ActOptions:
        config = self._config
        keeps_rest = "rtc" in contract.supports and config.leftover_from == "client"
        options = ActOptions(
            seed=self._seed + self._sent if self._seed is not None and "seed" in contract.supports else None,
            integration_steps=config.integration_steps,
            return_model_actions=True if keeps_rest else None,
        )
        if continuation is None:
            return options
        return replace(
            options,
            inference_delay=continuation.inference_delay,
            leftover=continuation.leftover if keeps_rest else None,
            executed=continuation.executed,
            execution_horizon=config.execution_horizon,
        )

    def _store(self, offer: Offer, reply: ActReply, record: RequestRecord) -> RequestRecord:
        now = time.monotonic()
        outcome, chunk_id = self.queue.put(
            reply.actions,
            epoch=offer.epoch,
            anchor=offer.anchor,
            observed_at=offer.observed_at,
            now=now,
            model_actions=reply.model_actions,
        )
        return replace(
            record,
            outcome=outcome,
            chunk_id=chunk_id,
            latency_ms=(now - offer.observed_at) * 1e3,
            round_trip_ms=reply.round_trip_ms,
            batch_size=reply.batch_size,
            timings=reply.timings,
            revision=reply.model.revision,
            actions=reply.actions,
        )


def _since_ms(start: float) -> float:
    return (time.monotonic() - start) * 1e3
