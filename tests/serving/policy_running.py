"""A policy server behind a real socket, without Ray."""

from __future__ import annotations

from typing import Any

from serving.config import PolicyArgs
from serving.policy_server import PolicyServer
from tests.serving.preference_running import RunningPreference


class RunningPolicy(RunningPreference):
    """Serves until `stop`; `start` again on the same port."""

    @classmethod
    def serving(cls, factory: str, config: dict[str, Any]) -> RunningPolicy:
        args = PolicyArgs.model_validate({"name": "mine", "policy": {"factory": factory, "config": config}})

        async def make() -> PolicyServer:
            return PolicyServer(args)

        return cls(make)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"
