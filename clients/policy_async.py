"""The same client of a served policy for asyncio: one reader task, any number of calls under way."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Mapping, Optional

from clients import wire
from clients.channel_async import AsyncChannel, open_connection
from clients.connection import parse_address
from clients.contract import PolicyContract
from clients.errors import RoboserveError
from clients.policy_messages import ActOptions, ActReply, act_message, read_contract, read_reply

if TYPE_CHECKING:
    import ssl as ssl_module

    from clients.images import Array, WireImage


class AsyncPolicyClient(AsyncChannel[PolicyContract]):
    """One websocket to one served policy, for one event loop; open it with `await AsyncPolicyClient.open(...)`.

    Its methods and errors are those of `clients.policy.PolicyClient`.
    """

    @classmethod
    async def open(
        cls,
        server: str,
        *,
        policy: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 10.0,
        limits: wire.WireLimits = wire.DEFAULT_LIMITS,
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> AsyncPolicyClient:
        """Connect and read the server's contract.

        Raises:
            RoboserveError: as `clients.policy.PolicyClient`.
        """
        address = parse_address(server, policy)
        connection, contract = await open_connection(
            address,
            read_contract,
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            limits=limits,
            ssl=ssl,
        )
        return cls(connection, contract, uri=address.uri, timeout_s=timeout_s, limits=limits)

    async def act(
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
        """Ask for a chunk of actions; see `clients.policy.PolicyClient.act`.

        Raises:
            RoboserveError: as there.
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
        reply = await self.exchange(message, timeout_s)
        round_trip_ms = (time.monotonic() - start) * 1e3
        try:
            return read_reply(reply, self._contract, round_trip_ms=round_trip_ms)
        except RoboserveError as error:
            raise error.with_request_id(request_id) from error

    async def reset(self, session: str, *, timeout_s: Optional[float] = None) -> None:
        """Tell the server that a new episode of this session starts.

        Raises:
            RoboserveError: as `act`.
        """
        await self.exchange({"type": "reset", "request_id": uuid.uuid4().hex, "session": session}, timeout_s)
