"""Kept paths: a robot asks once, reads its path again as often as it likes, and asks anew only where it says so.

So HAMSTER's own robots do it: one query on the first frame, after which the path stays as it is.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.auth import Principal
    from serving.path_config import PathSettings
    from serving.path_planner import Plan
    from serving.path_requests import PathOptions


class PathKey(NamedTuple):
    """Whose session it is, and its id: nobody reaches another one's."""

    principal: str
    session: str


@dataclass(kw_only=True)
class KeptPath:
    """A session: what was asked and how, its path, and how often it was asked; `lock` keeps queries in order."""

    key: PathKey
    instruction: str
    options: PathOptions
    plan: Plan
    queries: int
    touched: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class PathSessions:
    """The kept paths of one replica; for the event loop's thread.

    Args:
        settings: caps.
        now: monotonic seconds.
        on_count: told the number of sessions.
    """

    def __init__(self, settings: PathSettings, *, now: Callable[[], float], on_count: Callable[[int], None]) -> None:
        self._settings, self._now, self._on_count = settings, now, on_count
        self._kept: dict[PathKey, KeptPath] = {}

    def key(self, principal: Principal, session: str | None) -> PathKey:
        """Return the key of a session to be kept, with a name of ours where it has none.

        Raises:
            RoboserveError: `overloaded` when all are taken.
        """
        key = PathKey(principal.id, session or secrets.token_hex(12))
        self._require_room(key)
        return key

    def keep(self, key: PathKey, instruction: str, options: PathOptions, plan: Plan) -> KeptPath:
        """Keep a path; one of the same name and owner is replaced, for a new episode begins.

        Raises:
            RoboserveError: `overloaded` when all have been taken meanwhile.
        """
        self._require_room(key)
        found = KeptPath(key=key, instruction=instruction, options=options, plan=plan, queries=1, touched=self._now())
        self._kept[key] = found
        self._on_count(len(self._kept))
        return found

    def find(self, principal: Principal, session: str) -> KeptPath:
        """Return a kept path of this caller.

        Raises:
            RoboserveError: `not_found`.
        """
        self._drop_idle()
        found = self._kept.get(PathKey(principal.id, session))
        if found is None:
            limit = self._settings.session_idle_s
            text = f"session: {session!r:.40} has no path here; one that nobody asks for {limit:g} s is dropped"
            raise RoboserveError("not_found", text)
        found.touched = self._now()
        return found

    def replace(self, kept: KeptPath, instruction: str, options: PathOptions, plan: Plan) -> None:
        """Put a new path in the place of the old, for whoever holds `kept.lock`.

        Raises:
            RoboserveError: `not_found` where the session was closed, or opened anew, meanwhile.
        """
        if self._kept.get(kept.key) is not kept:
            raise RoboserveError("not_found", f"session: {kept.key.session!r:.40} was closed meanwhile")
        kept.instruction, kept.options, kept.plan = instruction, options, plan
        kept.queries += 1
        kept.touched = self._now()

    def close(self, principal: Principal, session: str) -> None:
        """Forget a session; one that is gone already is no error."""
        self._kept.pop(PathKey(principal.id, session), None)
        self._on_count(len(self._kept))

    def _require_room(self, key: PathKey) -> None:
        self._drop_idle()
        if key not in self._kept and len(self._kept) >= self._settings.sessions:
            limit = self._settings.sessions
            raise RoboserveError("overloaded", f"sessions: {len(self._kept)} paths are kept, limit {limit}")

    def _drop_idle(self) -> None:
        oldest = self._now() - self._settings.session_idle_s
        for key in [key for key, kept in self._kept.items() if kept.touched < oldest]:
            del self._kept[key]
        self._on_count(len(self._kept))
