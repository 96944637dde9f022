"""Streaming sessions: an episode's prepared frames, so that each goes up the wire once and any may be shown again.

Sessions are dropped after a time without frames, and their frames together stay within a number of bytes.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from models.rewards.frames import FramePolicy
    from serving.auth import Principal
    from serving.config import RewardSettings
    from serving.feature_cache import Frame


class StreamKey(NamedTuple):
    """Whose session it is, and its id: nobody reaches another one's."""

    principal: str
    session: str


@dataclass(kw_only=True)
class Stream:
    """One episode so far; `lock` keeps its appends in order."""

    key: StreamKey
    instruction: str
    policy: FramePolicy
    cameras: dict[str, list[Frame]]
    touched: float
    bytes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def length(self) -> int:
        """Frames of each camera."""
        return len(next(iter(self.cameras.values())))


class Streams:
    """The open sessions of one replica; for the event loop's thread.

    Args:
        settings: caps.
        now: monotonic seconds.
        on_count: told the number of open sessions.
    """

    def __init__(
        self, settings: RewardSettings, *, now: Callable[[], float], on_count: Callable[[int], None] | None = None
    ) -> None:
        self._settings = settings
        self._now = now
        self._on_count = on_count
        self._open: dict[StreamKey, Stream] = {}
        self.bytes = 0

    def open(
        self, principal: Principal, session: str | None, instruction: str, cameras: Sequence[str], policy: FramePolicy
    ) -> Stream:
        """Open a session; one of the same name and owner is replaced, for a new episode begins.

        Raises:
            RoboserveError: `overloaded` when all are taken.
        """
        self._drop_idle()
        key = StreamKey(principal.id, session or secrets.token_hex(12))
        self.close(key)
        if len(self._open) >= self._settings.sessions:
            raise RoboserveError("overloaded", f"sessions: {len(self._open)} open, limit {self._settings.sessions}")
        stream = Stream(
            key=key,
            instruction=instruction,
            policy=policy,
            cameras={name: [] for name in cameras},
            touched=self._now(),
        )
        self._open[key] = stream
        self._count()
        return stream

    def find(self, principal: Principal, session: str) -> Stream:
        """Return an open session of this caller.

        Raises:
            RoboserveError: `not_found`.
        """
        self._drop_idle()
        stream = self._open.get(StreamKey(principal.id, session))
        if stream is None:
            limit = self._settings.session_idle_s
            raise RoboserveError(
                "not_found", f"session: {session!r:.40} is not open here; one without frames for {limit:g} s is dropped"
            )
        stream.touched = self._now()
        return stream

    @contextmanager
    def extended(self, stream: Stream, frames: Mapping[str, Sequence[Frame]]) -> Iterator[None]:
        """Append frames, equally many to every camera, and take them back if the block raises or is cancelled.

        For whoever holds `stream.lock`: another append in between would be taken back too.

        Raises:
            RoboserveError: `invalid_request` for other cameras or unequal counts, `too_large` beyond a session's
                frames, `overloaded` beyond all sessions' bytes, `not_found` where it was closed meanwhile.
        """
        size = self._room_for(stream, frames)
        before = stream.length
        for name, part in frames.items():
            stream.cameras[name].extend(part)
        self._resize(stream, size)
        try:
            yield
        except BaseException:  # a cancelled request is one that failed, too
            for clip in stream.cameras.values():
                del clip[before:]
            self._resize(stream, -size)
            raise

    def close(self, key: StreamKey) -> bool:
        """Forget a session; false where there is none."""
        stream = self._open.pop(key, None)
        if stream is None:
            return False
        self.bytes -= stream.bytes
        self._count()
        return True

    def _room_for(self, stream: Stream, frames: Mapping[str, Sequence[Frame]]) -> int:
        """Return the bytes of frames that may be appended; raises as `extended`."""
        if frames.keys() != stream.cameras.keys():
            known, given = ", ".join(stream.cameras), ", ".join(frames)[:200]
            raise RoboserveError("invalid_request", f"frames: of cameras {given}, the session has {known}")
        counts = {name: len(part) for name, part in frames.items()}
        if len(set(counts.values())) != 1:
            raise RoboserveError("invalid_request", f"frames: the cameras differ in their number of frames: {counts}")
        if self._open.get(stream.key) is not stream:
            raise RoboserveError("not_found", f"session: {stream.key.session!r:.40} was closed")
        length = stream.length + next(iter(counts.values()))
        if length > self._settings.session_frames:
            raise RoboserveError("too_large", f"session: {length} frames, limit {self._settings.session_frames}")
        size = sum(frame.pixels.nbytes for part in frames.values() for frame in part)
        if self.bytes + size > self._settings.session_bytes:
            limit = self._settings.session_bytes
            raise RoboserveError("overloaded", f"sessions: {self.bytes + size} bytes of frames, limit {limit} in all")
        return size

    def _resize(self, stream: Stream, by: int) -> None:
        stream.bytes += by
        if self._open.get(stream.key) is stream:  # one that was closed meanwhile is counted no more
            self.bytes += by

    def _drop_idle(self) -> None:
        oldest = self._now() - self._settings.session_idle_s
        for key in [key for key, stream in self._open.items() if stream.touched < oldest]:
            self.close(key)

    def _count(self) -> None:
        if self._on_count is not None:
            self._on_count(len(self._open))
