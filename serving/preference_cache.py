"""Labels that were given, by all that decides them; and questions under way, so that the same is asked once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from models.preference.contract import Judgement

Source = Literal["asked", "cached", "joined"]
_ENTRY_BYTES = 1024
"""About what a judgement takes without its raw answers."""


@dataclass(kw_only=True)
class _Question:
    task: asyncio.Task[Judgement]
    waiting: int = 0


class LabelCache:
    """Keeps judgements up to a number of bytes, the least lately used go first; for one event loop.

    Args:
        limit: bytes, 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[bytes, Judgement] = OrderedDict()
        self._asking: dict[bytes, _Question] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: bytes, ask: Callable[[], Awaitable[Judgement]]) -> tuple[Judgement, Source]:
        """Return what is known under a key, or else ask, unless somebody is asking already; raises what `ask` does.

        A question goes on while anyone waits for it, and is withdrawn when all have left.
        """
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept, "cached"
        question, source = self._asking.get(key), "joined"
        if question is None:
            source = "asked"
            question = self._asking[key] = _Question(task=asyncio.ensure_future(self._ask(key, ask)))
        question.waiting += 1
        try:
            judgement = await asyncio.shield(question.task)
        finally:
            question.waiting -= 1
            if not question.waiting and not question.task.done():
                question.task.cancel()
                self._forget(key, question)
        return judgement, "asked" if source == "asked" else "joined"

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[Judgement]]) -> Judgement:
        mine = self._asking[key]
        try:
            judgement = await ask()
        finally:
            self._forget(key, mine)
        self._put(key, judgement)
        return judgement

    def _forget(self, key: bytes, question: _Question) -> None:
        if self._asking.get(key) is question:  # another may have been asked since this one was withdrawn
            del self._asking[key]

    def _put(self, key: bytes, judgement: Judgement) -> None:
        size = _size(judgement)
        if size > self._limit or key in self._kept:
            return
        self._kept[key] = judgement
        self.bytes += size
        while self.bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= _size(dropped)


def _size(judgement: Judgement) -> int:
    return _ENTRY_BYTES + sum(4 * len(reply.text) + 256 for reply in judgement.replies)
