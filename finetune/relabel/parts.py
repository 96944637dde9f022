"""The ledger of a job: one parquet file for every finished episode, named by its index and what it depends on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from clients.errors import RoboserveError
from finetune.relabel import files
from finetune.relabel.schema import WRITING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from finetune.relabel.sources import EpisodeItem

_KEY = b"part_key"


def part_key(item: EpisodeItem, cameras: Mapping[str, str]) -> str:
    """Return the SHA-256, hex, of what the rows of an episode depend on.

    Args:
        cameras: content key of each camera's labels.
    """
    parts = {"index": item.index, "first_frame": item.first_frame, "frames": item.frames, "cameras": dict(cameras)}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Parts:
    """The folder of finished episodes.

    A kill at any moment leaves every finished episode and none in part. Two processes that finish the same episode
    write the same rows, so whose file stays does not matter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other jobs out while the block lasts, and clear away what a killed one left unfinished.

        Raises:
            RoboserveError: `invalid_request` where another job is at it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RoboserveError("invalid_request", "out: another job is writing this file") from error
            for path in self._folder.iterdir():
                if files.TEMPORARY in path.name or path.suffix == ".attempts":
                    path.unlink(missing_ok=True)
            yield

    def attempt(self, episode: int) -> int:
        """Note that work on an episode begins; return how often it began before without an end, in this run."""
        path = self._attempts(episode)
        before = len(path.read_bytes()) if path.exists() else 0
        with path.open("ab") as sink:
            sink.write(b".")
        return before

    def attempted(self, episode: int) -> None:
        """Note that work on an episode ended, well or not."""
        self._attempts(episode).unlink(missing_ok=True)

    def path(self, episode: int, key: str) -> Path:
        """Return where the rows of an episode lie."""
        return self._folder / f"episode-{episode:06d}-{key[:24]}.parquet"

    def holds(self, episode: int, key: str, rows: int) -> bool:
        """Whether the rows are there and whole."""
        path = self.path(episode, key)
        if not path.is_file():
            return False
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError):
            return False
        return table.num_rows == rows and (table.schema.metadata or {}).get(_KEY) == key.encode()

    def write(self, episode: int, key: str, rows: pa.Table) -> None:
        """Put the rows of an episode on disk, in one step."""
        sink = pa.BufferOutputStream()
        parquet.write_table(rows.replace_schema_metadata({_KEY: key.encode()}), sink, **WRITING)
        files.write(self.path(episode, key), sink.getvalue().to_pybytes())

    def remove(self) -> None:
        """Remove the ledger, after its rows were merged."""
        shutil.rmtree(self._folder)

    def _attempts(self, episode: int) -> Path:
        return self._folder / f"episode-{episode:06d}.attempts"
