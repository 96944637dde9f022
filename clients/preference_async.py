"""The same client of a served preference labeller for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

from typing import AsyncIterator, Optional, Sequence, Tuple

from clients.patient import most_bytes, ready
from clients.patient_async import AsyncPatientClient
from clients.preference import is_last, read_part
from clients.preference_contract import PreferenceContract
from clients.preference_messages import LabelAsk, LabelPair, PreferenceLabel, PreferenceLabels, read_labels


class AsyncPreferenceClient(AsyncPatientClient[PreferenceContract]):
    """A served labeller for one event loop; open it with `await AsyncPreferenceClient.open(...)`.

    Its methods, arguments and errors are those of `clients.preference.PreferenceClient`. Calls beyond the server's
    limit of requests under way wait here for their turn.
    """

    CONTRACT = PreferenceContract
    PATIENCE_S = 300.0

    async def label(
        self,
        pairs: Sequence[LabelPair],
        *,
        protocol: Optional[str] = None,
        order_swap: bool = False,
        votes: int = 1,
        tie_threshold: float = 0.0,
        audit: bool = False,
        job: Optional[str] = None,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PreferenceLabels:
        """Ask which of two is nearer to its goal; see `clients.preference.PreferenceClient.label`."""
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, deadline_ms)
        return await self._patiently(
            lambda contract: ask.message(contract, self._codec),
            lambda reply: read_labels(reply, pairs=len(pairs)),
            timeout_s,
        )

    async def stream(
        self,
        pairs: Sequence[LabelPair],
        *,
        protocol: Optional[str] = None,
        order_swap: bool = False,
        votes: int = 1,
        tie_threshold: float = 0.0,
        audit: bool = False,
        job: Optional[str] = None,
        timeout_s: Optional[float] = None,
    ) -> AsyncIterator[Tuple[int, PreferenceLabel]]:
        """Give labels as they come; see `clients.preference.PreferenceClient.stream`."""
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, None, stream=True)
        channel = await self._live()
        most = most_bytes(channel.contract)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        message = ready(ask.message(channel.contract, self._codec))
        async with self._room:
            async for reply in channel.replies(message, limit_s, max_bytes=most, last=is_last):
                if not is_last(reply):
                    yield read_part(reply, pairs=len(pairs))
