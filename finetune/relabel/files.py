"""Files that are there in full or not at all, whatever moment the process is killed at."""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY = ".tmp-"
"""What the names of unfinished files contain."""


@contextlib.contextmanager
def finished_or_absent(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; where the block ends well, its file takes `path`'s place, and is on disk.

    Two processes may write the same path at once: each has a temporary file of its own, the later rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{TEMPORARY}{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file in one step."""
    with finished_or_absent(path) as temporary:
        temporary.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
