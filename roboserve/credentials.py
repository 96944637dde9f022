"""Where a command finds its API key: a file, or the environment; never the command line, which other users can read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def api_key(file: Path | None) -> str | None:
    """Return the key in `file`, else that of ROBOSERVE_API_KEY, else None."""
    if file is not None:
        return file.read_text("utf-8").strip()
    return os.environ.get("ROBOSERVE_API_KEY") or None
