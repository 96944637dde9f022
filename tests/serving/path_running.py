"""A path server behind a real socket, without Ray."""

from __future__ import annotations

from tests.serving.preference_running import RunningPreference


class RunningPath(RunningPreference):
    """Serves until `stop`; `start` again on the same port."""

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/path/mine"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}/path/mine"
