"""Which revision of a policy a session gets, and how a new one comes to be served without a pause.

A thread looks at the folder of revisions, loads what is new beside what is served, and only then lets sessions have it:
those that start or reset from then on. A session keeps its revision until it resets or ends.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.revisions import BASE, RevisionStore, Standing
from serving.revision_load import LoadedRevision, load_base, load_revision

if TYPE_CHECKING:
    from collections.abc import Callable

    from clients.contract import PolicyContract
    from models.policies.contract import Policy
    from serving.config import PolicyArgs
    from serving.metrics import PolicyMetrics
    from serving.sessions import SessionKey

logger = logging.getLogger("ray.serve")


def tries_the_newest(session: str, share: float) -> bool:
    """Whether a session is among the share that tries the newest revision; the same for the same name, everywhere."""
    digest = hashlib.sha256(session.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What sessions that start now get: a share of them the newest revision, the others the stable one."""

    stable: LoadedRevision
    newest: LoadedRevision
    share: float


@dataclass(kw_only=True)
class _Seat:
    revision: LoadedRevision
    seen: float


class Revisions:
    """The revisions of one served policy; without a folder of them, the configured checkpoint alone.

    All methods but `look` and `watch` are the event loop's and never wait for a load.

    Args:
        args: the application's arguments.
        metrics: counts sessions by revision, and what was refused.
        clock: seconds, monotonic.

    Raises:
        ValueError, RoboserveError: see `load_base`.
    """

    def __init__(
        self, args: PolicyArgs, metrics: PolicyMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._args, self._settings, self._metrics, self._clock = args, args.revisions, metrics, clock
        base = load_base(args)
        self.spec = base.spec
        self._loaded = OrderedDict({BASE: base})
        self._given = _Given(stable=base, newest=base, share=0.0)
        self._seats: OrderedDict[SessionKey, _Seat] = OrderedDict()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._refused: dict[str, str] = {}
        self._wanted: frozenset[str] = frozenset()
        self._standing = Standing()
        self._seen: object = None
        self._settled = False
        self._store = RevisionStore(Path(args.revisions.folder)) if args.revisions is not None else None
        self.look()

    @property
    def contract(self) -> PolicyContract:
        """What a robot that connects now is told."""
        return self._given.stable.contract

    def of(self, key: SessionKey | None) -> LoadedRevision:
        """Return a session's revision, and give it one where it has none; None for a request on its own."""
        if self._store is None or key is None:
            return self._given.stable
        with self._lock:
            seat = self._seats.get(key)
            if seat is None:
                given = self._given
                revision = given.newest if tries_the_newest(str(key), given.share) else given.stable
                seat = self._seats[key] = _Seat(revision=revision, seen=0.0)
                self._loaded.move_to_end(revision.id)
                if len(self._seats) > self._args.limits.remembered_sessions:
                    self._seats.popitem(last=False)
            seat.seen = self._clock()
            self._seats.move_to_end(key)
            return seat.revision

    def release(self, key: SessionKey) -> None:
        """Take its revision from a session that resets or ends."""
        with self._lock:
            self._seats.pop(key, None)

    @property
    def policies(self) -> list[Policy]:
        """All that are in memory."""
        with self._lock:
            return [revision.policy for revision in self._loaded.values()]

    def describe(self) -> dict[str, Any]:
        """Return what is served to whom, in terms of JSON."""
        given, standing = self._given, self._standing
        counts = self._sessions()
        with self._lock:
            loaded = set(self._loaded)
        rows: list[dict[str, Any]] = [{"id": BASE}, *(asdict(revision) for revision in standing.revisions)]
        facts = [
            {
                "loaded": row["id"] in loaded,
                "sessions": counts[row["id"]],
                "refused": self._refused.get(row["id"]),
            }
            for row in rows
        ]
        return {
            "model": self._args.name,
            "current": given.stable.id,
            "newest": given.newest.id,
            "share_of_newest": given.share,
            "pinned": standing.pin.revision,
            "revisions": [row | fact for row, fact in zip(rows, facts, strict=True)],
        }

    def watch(self) -> None:
        """Look at the folder from a thread of its own, again and again, until `stop`."""
        if self._settings is not None:
            threading.Thread(target=self._watch, args=(self._settings.poll_s,), name="revisions", daemon=True).start()

    def stop(self) -> None:
        """Stop looking; a load that runs is not waited for."""
        self._stop.set()

    def look(self) -> None:
        """Take in what changed in the folder, if anything did: load, refuse, let go."""
        if self._store is None:
            return
        self._end_idle_sessions()
        stamp = self._store.stamp()
        if stamp != self._seen or not self._settled:
            try:
                self._standing = self._store.read()
                self._settled = self._move_to(self._standing, self._store)
            except ValueError as error:
                self._settled = True
                self._report("revisions cannot be read", str(error))
            self._seen = stamp
        self._metrics.on_revisions(dict(self._sessions()), loaded=len(self._loaded))

    def _watch(self, poll_s: float) -> None:
        while not self._stop.wait(poll_s):
            try:
                self.look()
            except OSError as error:  # a shared file system that is away for a while must not end the watch
                self._report("revisions cannot be looked at", str(error))

    def _move_to(self, standing: Standing, store: RevisionStore) -> bool:
        """Load what sessions should get and let them have it; False where room must be made first by sessions."""
        stable, newest, share = self._plan(standing)
        self._wanted = frozenset((stable, newest))
        found: dict[str, LoadedRevision | None] = {}
        for name in dict.fromkeys((stable, newest)):
            try:
                found[name] = self._loaded.get(name) or self._load(name, standing, store)
            except Exception as error:  # noqa: BLE001  whatever is wrong with a revision, the others go on being served
                self._refused[name] = f"{type(error).__name__}: {error}"
                self._report("revision refused", self._refused[name], revision=name)
                return self._move_to(standing, store)
        given = self._given
        self._given = _Given(stable=found[stable] or given.stable, newest=found[newest] or given.newest, share=share)
        return None not in found.values()

    def _plan(self, standing: Standing) -> tuple[str, str, float]:
        """Return stable, newest and the share of the newest; what was refused is passed over."""
        share = standing.share_of_newest(None if self._settings is None else self._settings.canary)
        known = (BASE, *(revision.id for revision in standing.revisions))
        newest = next((name for name in reversed(known) if name not in self._refused), self._given.newest.id)
        stable = standing.pin.revision or BASE
        if stable in self._refused:
            stable = self._given.stable.id
        if share >= 1.0:
            return newest, newest, share
        return (stable, stable, share) if share <= 0.0 else (stable, newest, share)

    def _load(self, name: str, standing: Standing, store: RevisionStore) -> LoadedRevision | None:
        """Load a revision; None where all room is held by sessions."""
        if not self._make_room():
            return None
        started = time.perf_counter()
        revision = standing.find(name)
        if revision is None:
            loaded = load_base(self._args)
        else:
            loaded = load_revision(self._args, revision, store.folder(revision), self.spec)
        with self._lock:
            self._loaded[name] = loaded
        milliseconds = round((time.perf_counter() - started) * 1e3, 1)
        logger.info("revision loaded", extra={"model": self._args.name, "revision": name, "load_ms": milliseconds})
        return loaded

    def _make_room(self) -> bool:
        most = 1 if self._settings is None else self._settings.in_memory
        with self._lock:
            kept = {seat.revision.id for seat in self._seats.values()} | self._wanted
            kept |= {self._given.stable.id, self._given.newest.id}
            while len(self._loaded) >= most:
                least_recent = next((name for name in self._loaded if name not in kept), None)
                if least_recent is None:
                    return False
                del self._loaded[least_recent]
        return True

    def _end_idle_sessions(self) -> None:
        """Forget sessions that asked for nothing for as long as a connection may be silent."""
        before = self._clock() - self._args.limits.idle_timeout_s
        with self._lock:
            while self._seats and next(iter(self._seats.values())).seen < before:
                self._seats.popitem(last=False)

    def _sessions(self) -> Counter[str]:
        with self._lock:
            return Counter(seat.revision.id for seat in self._seats.values())

    def _report(self, what: str, reason: str, *, revision: str | None = None) -> None:
        logger.error(what, extra={"model": self._args.name, "revision": revision, "reason": reason})
        self._metrics.on_refused_revision()
