"""Where checkpoints lie."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ZOO = Path(__file__).parent / "zoo"


def checkpoint_folder(name: str) -> Path:
    """Return the folder that a name stands for: "zoo:NAME" is one that ships with the package, all else is a path."""
    return ZOO / name.removeprefix("zoo:") if name.startswith("zoo:") else Path(name)


def files_hash(paths: Iterable[Path]) -> str:
    """Return the SHA-256, hex, of the names, sizes and bytes of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()
