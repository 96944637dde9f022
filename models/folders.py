"""Where checkpoints lie."""

from __future__ import annotations

from pathlib import Path

ZOO = Path(__file__).parent / "zoo"


def checkpoint_folder(name: str) -> Path:
    """Return the folder that a name stands for: "zoo:NAME" is one that ships with the package, all else is a path."""
    return ZOO / name.removeprefix("zoo:") if name.startswith("zoo:") else Path(name)
