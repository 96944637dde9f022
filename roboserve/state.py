"""Which platform `up` started on this machine, so that `status` and `down` find it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class PlatformState:
    """A platform started in the background. `born` tells its process from a later one with the same id."""

    pid: int
    born: float
    url: str
    config: str
    log: str

    def process(self) -> psutil.Process | None:
        """Return its process if it still runs."""
        try:
            process = psutil.Process(self.pid)
            alive = abs(process.create_time() - self.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


def state_folder() -> Path:
    """Return the folder for state and logs (ROBOSERVE_STATE_DIR, or XDG's state folder), private to the user."""
    base = os.environ.get("ROBOSERVE_STATE_DIR")
    folder = Path(base) if base else Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "roboserve"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def read() -> PlatformState | None:
    """Return the platform that runs, if one does."""
    path = state_folder() / "platform.json"
    if not path.exists():
        return None
    state = PlatformState(**json.loads(path.read_text("utf-8")))
    return state if state.process() is not None else None


def write(state: PlatformState) -> None:
    """Remember a platform; readers see the whole file or none of it."""
    path = state_folder() / "platform.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state)), "utf-8")
    fresh.replace(path)


def clear() -> None:
    """Forget the platform."""
    (state_folder() / "platform.json").unlink(missing_ok=True)
