"""What a replica remembers of a session: its last chunk in model space, so that real-time chunking needs no upload."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from clients.errors import RoboserveError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SessionKey(NamedTuple):
    """A session belongs to the principal that opened it: two keys never share one, whatever they call it."""

    principal: str
    session: str

    def __str__(self) -> str:
        return f"{self.principal}/{self.session}"  # ids of principals have no slash


class ChunkMemory:
    """The last chunk of each session, least recently used out first.

    Args:
        capacity: sessions remembered.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._chunks: OrderedDict[SessionKey, NDArray[np.float32]] = OrderedDict()

    def remember(self, key: SessionKey, model_actions: NDArray[np.float32]) -> list[SessionKey]:
        """Keep a session's newest chunk, float32 (H, model action size), and return the sessions that made way."""
        self._chunks[key] = model_actions.copy()  # a row of a batch would keep the whole batch in memory
        self._chunks.move_to_end(key)
        gone = []
        while len(self._chunks) > self._capacity:
            gone.append(self._chunks.popitem(last=False)[0])
        return gone

    def leftover(self, key: SessionKey, executed: int) -> NDArray[np.float32] | None:
        """Return the rows of the last chunk that were not played; None when all were.

        Raises:
            RoboserveError: `invalid_request` when this replica knows no chunk of the session.
        """
        chunk = self._chunks.get(key)
        if chunk is None:
            raise RoboserveError("invalid_request", "options.executed: no earlier chunk of this session is known here")
        rest = chunk[executed:]
        return rest if len(rest) else None

    def forget(self, key: SessionKey) -> None:
        """Drop a session's chunk: a new episode starts, or the session ended."""
        self._chunks.pop(key, None)
