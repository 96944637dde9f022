"""The same client of a served path predictor for asyncio: any number of calls under way on one connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Sequence, Union

from clients.path import DEFAULTS, one_path
from clients.path_contract import PathContract
from clients.path_messages import (
    KeptReply,
    PathAsk,
    PathQuery,
    PathReplies,
    PathReply,
    read_kept,
    read_paths,
    wire_image,
)
from clients.patient_async import AsyncPatientClient

if TYPE_CHECKING:
    from clients.images import Array


class AsyncPathClient(AsyncPatientClient[PathContract]):
    """A served path predictor for one event loop; open it with `await AsyncPathClient.open(...)`.

    Its calls, arguments and errors are those of `clients.path.PathClient`, `session` for its `open`. Calls beyond the
    server's limit of requests under way wait here for their turn.
    """

    CONTRACT = PathContract
    PATIENCE_S = 120.0

    async def path(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReply:
        """Ask for the path through one image; see `clients.path.PathClient.path`."""
        query = PathQuery(image, instruction)
        return one_path(await self.paths([query], ask, deadline_ms=deadline_ms, timeout_s=timeout_s))

    async def paths(
        self,
        queries: Sequence[PathQuery],
        ask: PathAsk = DEFAULTS,
        *,
        deadline_ms: Optional[float] = None,
        timeout_s: Optional[float] = None,
    ) -> PathReplies:
        """Ask for the paths through several images; see `clients.path.PathClient.paths`."""
        return await self._patiently(
            lambda contract: {**ask.path(queries, contract, self._codec), "deadline_ms": deadline_ms},
            lambda reply: read_paths(reply, queries=len(queries)),
            timeout_s,
        )

    async def session(
        self,
        image: Union[bytes, Array],
        instruction: str,
        ask: PathAsk = DEFAULTS,
        *,
        session: Optional[str] = None,
        timeout_s: Optional[float] = None,
    ) -> KeptReply:
        """Ask once and have the server keep the path; see `clients.path.PathClient.open`."""
        wired = wire_image(image, self._codec, "image")
        message = {"type": "open", "image": wired, "instruction": instruction, "options": ask.options()}
        return await self._patiently(lambda _: {**message, "session": session}, read_kept, timeout_s)

    async def get(self, session: str) -> KeptReply:
        """Read a kept path again; see `clients.path.PathSession.get`."""
        return read_kept(await self._exchange(await self._live(), {"type": "get", "session": session}, self._timeout_s))

    async def requery(
        self,
        session: str,
        image: Union[bytes, Array],
        instruction: Optional[str] = None,
        ask: PathAsk = DEFAULTS,
        *,
        timeout_s: Optional[float] = None,
    ) -> KeptReply:
        """Ask the model anew for a kept path; see `clients.path.PathSession.requery`."""
        wired = wire_image(image, self._codec, "image")
        message = {"type": "requery", "session": session, "image": wired, "instruction": instruction}
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return read_kept(await self._exchange(await self._live(), {**message, "options": ask.options()}, limit_s))

    async def forget(self, session: str) -> None:
        """Tell the server to forget a kept path; one that is lost already is no error."""
        await self._exchange(await self._live(), {"type": "close", "session": session}, self._timeout_s)
