"""A typed client of a served preference labeller, for threads. See `clients.preference_async` for asyncio.

with PreferenceClient("ws://127.0.0.1:8000/preference/vlm") as client:
answer = client.label([LabelPair("the drawer is open", before, after)])      # uint8 (h, w, 3) each
print(answer.pairs[0].label)                                                 # 1: the second is nearer
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Optional, Sequence, Tuple

from clients.errors import RoboserveError
from clients.patient import PatientClient, most_bytes, ready
from clients.preference_contract import PreferenceContract
from clients.preference_messages import LabelAsk, LabelPair, PreferenceLabel, PreferenceLabels, read_label, read_labels

__all__ = ["LabelPair", "PreferenceClient", "PreferenceLabel", "PreferenceLabels"]


class PreferenceClient(PatientClient[PreferenceContract]):
    """A served labeller; any number of threads may call it at once, their requests share one websocket.

    What may pass (a full queue, a restart, a lost connection) is tried again within a call's time; labels that the
    server has given already come from its memory then.

    Arguments and errors of the constructor: see `PatientClient`.
    """

    CONTRACT = PreferenceContract
    PATIENCE_S = 300.0

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
        return self._patiently(
            lambda contract: ask.message(contract, self._codec),
            lambda reply: read_labels(reply, pairs=len(pairs)),
            timeout_s,
        )

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
            ready(ask.message(channel.contract, self._codec)),
            self._timeout_s if timeout_s is None else timeout_s,
            max_bytes=most_bytes(channel.contract),
            last=is_last,
        )
        for reply in replies:
            if not is_last(reply):
                yield read_part(reply, pairs=len(pairs))


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
