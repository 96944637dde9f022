"""The revisions of a policy on disk: immutable checkpoint folders, an index that only grows, and which one is pinned.

A job writes, servers and the operator read. Whatever is killed, a reader sees whole revisions only: a checkpoint is
copied beside the others under a name that nobody reads, takes its place by one rename, and counts once its line in the
index has its newline. Writers take turns by a lock on a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from models.folders import files_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

BASE = "base"
"""The name of the checkpoint that the configuration gives: what is served where there is no revision."""

INDEX, PIN, LOCK = "index.jsonl", "pin.json", ".lock"
_SUFFIXES = frozenset((".safetensors", ".json", ".md"))
_STAGED = ".staged"


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One line of the index.

    Attributes:
        id: its folder: a number, and the first of its hash.
        content_hash: SHA-256, hex, of the names, sizes and bytes of all files but the card.
        parent: the revision, or "base", that it was to improve.
        metrics: of the evaluation that it was chosen by, `success` (0 to 1) among them where it was evaluated.
        when: ISO 8601, UTC. `job`: what made it.
    """

    id: str
    content_hash: str
    parent: str
    metrics: dict[str, float]
    when: str
    job: str


@dataclass(frozen=True, kw_only=True)
class Pin:
    """What the operator chose: a revision, and the share of sessions that try the newest (None: as configured)."""

    revision: str | None = None
    canary: float | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The revisions of a policy, oldest first, and the pin."""

    revisions: tuple[Revision, ...] = ()
    pin: Pin = field(default_factory=Pin)

    @property
    def current(self) -> str:
        """The revision that sessions get where no canary share is configured."""
        return self.pin.revision or self.newest

    @property
    def newest(self) -> str:
        """The revision that was published last."""
        return self.revisions[-1].id if self.revisions else BASE

    def share_of_newest(self, configured: float | None) -> float:
        """Return the share of new sessions that get the newest revision; the others get the pinned one, or the base.

        Args:
            configured: canary share of the policy's configuration; None: all until a revision is pinned, then none.
        """
        share = configured if self.pin.canary is None else self.pin.canary
        if share is not None:
            return share
        return 1.0 if self.pin.revision is None else 0.0

    def find(self, revision: str) -> Revision | None:
        """Return a revision by its id; None for the base.

        Raises:
            ValueError: there is no such revision.
        """
        if revision == BASE:
            return None
        for known in self.revisions:
            if known.id == revision:
                return known
        names = ", ".join([BASE, *(known.id for known in self.revisions[-5:])])
        raise ValueError(f"revision: {revision!r} is not known; the latest are {names}")


_REVISION, _PIN = TypeAdapter(Revision), TypeAdapter(Pin)


class RevisionStore:
    """A folder of revisions; it need not be there before the first is published.

    Args:
        folder: on a file system with locks and atomic renames.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def folder(self, revision: Revision) -> Path:
        """Return the checkpoint folder of a revision."""
        return self.path / revision.id

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return what changes whenever the store does, for two looks at the file system."""
        return tuple(_stamp(self.path / name) for name in (INDEX, PIN))

    def read(self) -> Standing:
        """Return revisions and pin; a line without its newline is one that was never finished.

        Raises:
            ValueError: the index or the pin is not what this class writes.
        """
        text = _text(self.path / INDEX)
        lines = text[: text.rfind("\n") + 1].splitlines()
        pin = _text(self.path / PIN)
        try:
            revisions = tuple(_REVISION.validate_json(line) for line in lines)
            return Standing(revisions=revisions, pin=_PIN.validate_json(pin) if pin else Pin())
        except ValidationError as error:
            raise ValueError(f"revisions of {self.path.name}: not valid: {error.errors()[0]['msg']}") from error

    def publish(
        self, make: Callable[[Path], None], *, metrics: Mapping[str, float], job: str, parent: str | None = None
    ) -> Revision:
        """Add a revision.

        A checkpoint with the content of the newest revision is that revision: a job that was killed after it published
        publishes again when it goes on.

        Args:
            make: writes the checkpoint into the folder that it is given.
            parent: the current revision when left out.

        Raises:
            ValueError: the folder holds something other than safetensors, JSON and Markdown files.
        """
        with self._locked():
            standing = self.read()
            staged = self.path / _STAGED
            self._clear_what_was_left(standing)
            make(staged)
            content_hash = content_of(staged)
            if standing.revisions and standing.revisions[-1].content_hash == content_hash:
                shutil.rmtree(staged)
                return standing.revisions[-1]
            revision = Revision(
                id=f"{len(standing.revisions) + 1:06d}-{content_hash[:8]}",
                content_hash=content_hash,
                parent=parent or standing.current,
                metrics={name: float(value) for name, value in metrics.items()},
                when=datetime.now(UTC).isoformat(timespec="seconds"),
                job=job,
            )
            for path in [*staged.rglob("*"), staged]:
                _flush(path)
            staged.rename(self.folder(revision))
            _flush(self.path)
            self._append(revision)
            return revision

    def pin(self, revision: str | None, *, canary: float | None = None) -> None:
        """Pin a revision, or none: then the newest is served.

        Args:
            canary: share of new sessions that get the newest all the same; None: as configured.

        Raises:
            ValueError: there is no such revision, or the share is not within 0 to 1.
        """
        if canary is not None and not 0.0 <= canary <= 1.0:
            raise ValueError(f"canary: {canary:g}, must be within 0 to 1")
        with self._locked():
            if revision is not None:
                self.read().find(revision)
            fresh = self.path / f"{PIN}.new"
            fresh.write_text(json.dumps(asdict(Pin(revision=revision, canary=canary))) + "\n", "utf-8")
            _flush(fresh)
            fresh.replace(self.path / PIN)

    def roll_back(self, revision: str | None = None) -> str:
        """Pin a revision, the current one's parent when left out, and let no session try the newest; return its id.

        Raises:
            ValueError: there is no such revision, or the current one is the base and has no parent.
        """
        standing = self.read()
        if revision is None:
            current = standing.find(standing.current)
            if current is None:
                raise ValueError("revision: the configured checkpoint is current, and has no parent to go back to")
            revision = current.parent
        self.pin(revision, canary=0.0)
        return revision

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the file's end, a kill's too, gives it back
            yield

    def _clear_what_was_left(self, standing: Standing) -> None:
        """Remove what a killed writer left: half a copy, a folder that came to no line, a line that has no end."""
        known = {revision.id for revision in standing.revisions}
        for entry in self.path.iterdir():
            if entry.is_dir() and entry.name not in known:
                shutil.rmtree(entry)
        index = self.path / INDEX
        if index.exists():
            data = index.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(index, whole)

    def _append(self, revision: Revision) -> None:
        with (self.path / INDEX).open("ab") as index:
            index.write(json.dumps(asdict(revision)).encode() + b"\n")
            index.flush()
            os.fsync(index.fileno())


def content_of(folder: Path) -> str:
    """Return the content hash of a checkpoint folder.

    Raises:
        ValueError: it holds no files, or something other than safetensors, JSON and Markdown files.
    """
    files = sorted(path for path in folder.rglob("*") if not (path.is_dir() and not path.is_symlink()))
    for path in files:
        if path.is_symlink() or not path.is_file() or path.suffix not in _SUFFIXES:
            allowed = ", ".join(sorted(_SUFFIXES))
            raise ValueError(f"checkpoint: {path.relative_to(folder)} is not allowed; files are {allowed}")
    weighed = [path for path in files if path.suffix != ".md"]
    if not weighed:
        raise ValueError("checkpoint: the folder holds neither weights nor configuration")
    return files_hash(weighed)


def copied(checkpoint: Path) -> Callable[[Path], None]:
    """Return what writes a copy of a checkpoint folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"checkpoint: there is no folder {checkpoint}")

    def copy(folder: Path) -> None:
        shutil.copytree(checkpoint, folder, symlinks=True)

    return copy


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
