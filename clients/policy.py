"""A typed client of a served policy, for threads. See `clients.policy_async` for asyncio.

Every wait has a limit: connecting, sending to a stalled peer, and each answer.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Mapping, Optional

from clients import wire
from clients.channel import Channel
from clients.connection import parse_address
from clients.contract import PolicyContract
from clients.errors import RoboserveError
from clients.policy_messages import ActOptions, ActReply, ModelId, act_message, fit_images, read_contract, read_reply

if TYPE_CHECKING:
    import ssl as ssl_module

    from clients.images import Array, WireImage
    from clients.policy_async import AsyncPolicyClient

__all__ = ["ActOptions", "ActReply", "AsyncPolicyClient", "ModelId", "PolicyClient", "fit_images"]


def __getattr__(name: str) -> Any:
    # A robot has no event loop: importing asyncio for it would cost more than everything else here together.
    if name == "AsyncPolicyClient":
        from clients.policy_async import AsyncPolicyClient

        return AsyncPolicyClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class PolicyClient(Channel[PolicyContract]):
    """One websocket to one served policy; any number of threads may call it at once, their requests share the wire.

    Args:
        server: "host:port" or a ws:// or wss:// address.
        policy: name of the policy; None for the default one, or where the address has the route already.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on connecting, handshake and contract together.
        timeout_s: how long an answer is waited for where a call does not say.
        limits: caps on what the server may send.
        ssl: context for wss; None verifies against the system's certificates.

    Raises:
        RoboserveError: `unavailable`, `unauthenticated`, `forbidden`, `not_found` or `contract_mismatch`.
    """

    def __init__(
        self,
        server: str,
        *,
        policy: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 10.0,
        limits: wire.WireLimits = wire.DEFAULT_LIMITS,
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        super().__init__(
            parse_address(server, policy),
            read_contract,
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            limits=limits,
            ssl=ssl,
        )

    def act(
        self,
        *,
        images: Mapping[str, WireImage],
        state: Array,
        instruction: str,
        session: str = "",
        deadline_ms: Optional[float] = None,
        adapter: Optional[str] = None,
        options: Optional[ActOptions] = None,
        timeout_s: Optional[float] = None,
    ) -> ActReply:
        """Ask for a chunk of actions.

        Args:
            images: camera name to JPEG or PNG bytes or uint8 (height, width, 3), sized by `fit_images`.
            state: float32 (state size,), physical units.
            session: key of what the server remembers between requests; "" for none.
            deadline_ms: budget from the server's receipt; work that is later than this is not run.
            adapter: one of the contract's adapters.
            timeout_s: how long to wait for the answer here.

        Raises:
            RoboserveError: the server's refusal, `deadline_exceeded` when no answer came in time, `unavailable` when
                the connection is gone, `invalid_output` for an answer that no robot may play.
        """
        request_id = uuid.uuid4().hex
        message = act_message(
            request_id,
            images=images,
            state=state,
            instruction=instruction,
            session=session,
            deadline_ms=deadline_ms,
            adapter=adapter,
            options=options,
        )
        start = time.monotonic()
        reply = self.exchange(message, timeout_s)
        round_trip_ms = (time.monotonic() - start) * 1e3
        try:
            return read_reply(reply, self._contract, round_trip_ms=round_trip_ms)
        except RoboserveError as error:
            raise error.with_request_id(request_id) from error

    def reset(self, session: str, *, timeout_s: Optional[float] = None) -> None:
        """Tell the server that a new episode of this session starts.

        Raises:
            RoboserveError: as `act`.
        """
        self.exchange({"type": "reset", "request_id": uuid.uuid4().hex, "session": session}, timeout_s)
