"""A typed client of a served preference labeller, for threads. See `clients.preference_async` for asyncio.

with PreferenceClient("ws://127.0.0.1:8000/preference/vlm") as client:
answer = client.label([LabelPair("the drawer is open", before, after)])      # uint8 (h, w, 3) each
print(answer.pairs[0].label)                                                 # 1: the second is nearer
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Type

from clients import wire
from clients.channel import Channel
from clients.connection import parse_address
from clients.errors import RoboserveError
from clients.preference_contract import read_preference_contract
from clients.preference_messages import LabelAsk, LabelPair, PreferenceLabel, PreferenceLabels, read_label, read_labels
from clients.reward import FIRST_PAUSE_S, LONGEST_PAUSE_S, ready

if TYPE_CHECKING:
    import ssl as ssl_module
    from types import TracebackType

    from typing_extensions import Self

    from clients.preference_contract import PreferenceContract

__all__ = ["LabelPair", "PreferenceClient", "PreferenceLabel", "PreferenceLabels"]


class PreferenceClient:
    """A served labeller; any number of threads may call it at once, their requests share one websocket.

    What may pass (a full queue, a restart, a lost connection) is tried again within a call's time; labels that the
    server has given already come from its memory then.

    Args:
        server: "host:port", or a ws:// or wss:// address.
        model: name of the labeller; None where the address has its route already.
        api_key: sent as `Authorization: Bearer`.
        connect_timeout_s: limit on one attempt to connect.
        timeout_s: how long an answer is waited for, attempts included, where a call does not say.
        codec: how frames given as arrays travel: "png" (exact), "jpeg" (smallest) or "raw" (exact, no work).
        ssl: context for wss; None verifies against the system's certificates.

    Raises:
        RoboserveError: `unavailable`, `unauthenticated`, `forbidden`, `not_found` or `contract_mismatch`.
    """

    def __init__(
        self,
        server: str,
        *,
        model: Optional[str] = None,
        api_key: Optional[str] = None,
        connect_timeout_s: float = 10.0,
        timeout_s: float = 300.0,
        codec: str = "png",
        ssl: Optional[ssl_module.SSLContext] = None,
    ) -> None:
        self._address = parse_address(server, model, family="preference")
        self._api_key, self._ssl = api_key, ssl
        self._connect_timeout_s, self._timeout_s = connect_timeout_s, timeout_s
        self._codec = codec
        self._closed = False
        self._channel: Channel[PreferenceContract] = self._connect()

    @property
    def contract(self) -> PreferenceContract:
        """What the server said of itself on the latest connect."""
        return self._channel.contract

    @property
    def uri(self) -> str:
        """The address in use."""
        return self._address.uri

    def label(
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
        """Ask which of two is nearer to its goal, pair by pair.

        Args:
            protocol: one of the contract's; None for its first.
            order_swap: ask in the other order too, and take the mean.
            votes: times that each is asked; over 1 with "two_stage" only, whose answers are then drawn.
            tie_threshold: least |P(first) - P(second)| of a label other than -1.
            audit: return the model's raw answers too.
            job: whose budget pairs count in, beside the application's; up to 128 characters.
            deadline_ms: budget of time from the server's receipt.

        Raises:
            RoboserveError: the server's refusal, `budget_exhausted` among them; what may pass, once `timeout_s` is
                over; `too_large` where a message would exceed the server's limits.
        """
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, deadline_ms)
        give_up = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                channel = self._live()
                message = self._message(ask, channel.contract)
                left = max(0.001, give_up - time.monotonic())
                reply = channel.exchange(message, left, max_bytes=_most_bytes(channel.contract))
                return read_labels(reply, pairs=len(pairs))
            except RoboserveError as error:
                if self._closed or not error.retryable or time.monotonic() + pause_s > give_up:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def stream(
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
    ) -> Iterator[Tuple[int, PreferenceLabel]]:
        """Give labels as they come, each with the number of its pair; arguments and errors as for `label`.

        Nothing is tried again: what has come stays with the caller, who may ask for the rest.
        """
        ask = LabelAsk(pairs, protocol, order_swap, votes, tie_threshold, audit, job, None, stream=True)
        channel = self._live()
        replies = channel.replies(
            self._message(ask, channel.contract),
            self._timeout_s if timeout_s is None else timeout_s,
            max_bytes=_most_bytes(channel.contract),
            last=is_last,
        )
        for reply in replies:
            if not is_last(reply):
                yield read_part(reply, pairs=len(pairs))

    def close(self) -> None:
        """Close the connection; calls that wait end with `unavailable`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _message(self, ask: LabelAsk, contract: PreferenceContract) -> Dict[str, Any]:
        return ready(ask.message(contract, self._codec))

    def _connect(self) -> Channel[PreferenceContract]:
        return Channel(
            self._address,
            read_preference_contract,
            api_key=self._api_key,
            connect_timeout_s=self._connect_timeout_s,
            timeout_s=self._timeout_s,
            limits=wire.DEFAULT_LIMITS,
            ssl=self._ssl,
        )

    def _live(self) -> Channel[PreferenceContract]:
        """Return a channel that works, connecting anew where the last one ended."""
        if self._closed:
            raise RoboserveError("unavailable", f"server {self._address.uri}: this client was closed")
        if self._channel.failed:
            self._channel = self._connect()
        return self._channel


def is_last(reply: Mapping[str, Any]) -> bool:
    """Whether no other reply to a streamed request follows."""
    return reply.get("type") != "label"


def read_part(reply: Mapping[str, Any], *, pairs: int) -> Tuple[int, PreferenceLabel]:
    """Read one label of a streamed answer, and the number of its pair.

    Raises:
        RoboserveError: `invalid_output`.
    """
    index = reply.get("index")
    if type(index) is not int or not 0 <= index < pairs:
        raise RoboserveError("invalid_output", f"index: {index!r:.40}, must be from 0 to {pairs - 1}")
    return index, read_label(reply.get("pair"), f"pairs[{index}]")


def _most_bytes(contract: PreferenceContract) -> int:
    return int(contract.limits["message_bytes"])
