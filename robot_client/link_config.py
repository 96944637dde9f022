"""How a robot reaches its policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from clients.errors import RoboserveError


@dataclass(frozen=True)
class LinkConfig:
    """How a robot reaches its policy.

    Attributes:
        server: "host:port" or a ws:// or wss:// address.
        policy: name of the policy; None for the server's default.
        api_key: the robot's key.
        codec: of images on the wire: "jpeg" (smallest), "png" or "raw" (exact); `quality` is JPEG's, 1 to 95.
        deadline_s: age of an observation at which its answer is of no use any more.
        connect_timeout_s: limit on one attempt to connect.
        give_up_s: seconds without a connection after which the link stops trying.
        first_pause_s: pause after a failed attempt; it doubles up to `longest_pause_s`, less up to half at random.
        failures: requests in a row that may fail by the server's fault before the link gives up.
        adapter: adapter of the policy.
        integration_steps: steps of the flow; None takes the policy's default.
        execution_horizon: RTC: row up to which the chunk in force guides; None takes the policy's default.
        leftover_from: RTC: who keeps the chunk in force: "client" sends its rest in model space with each request,
            "server" relies on the server's memory of the session.
    """

    server: str
    policy: Optional[str] = None
    api_key: Optional[str] = field(default=None, repr=False)
    codec: str = "jpeg"
    quality: int = 90
    deadline_s: float = 2.0
    connect_timeout_s: float = 5.0
    give_up_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0
    failures: int = 10
    adapter: Optional[str] = None
    integration_steps: Optional[int] = None
    execution_horizon: Optional[int] = None
    leftover_from: str = "client"

    def __post_init__(self) -> None:
        if self.leftover_from not in ("client", "server"):
            raise RoboserveError(
                "invalid_request", f"leftover_from: {self.leftover_from!r}; allowed are client, server"
            )
        if self.codec not in ("jpeg", "png", "raw"):
            raise RoboserveError("invalid_request", f"codec: {self.codec!r}; allowed are jpeg, png, raw")
        limits = (self.deadline_s, self.connect_timeout_s, self.give_up_s, self.first_pause_s, self.longest_pause_s)
        if not all(value > 0 for value in limits) or self.failures < 1:
            raise RoboserveError("invalid_request", "link: times must be above 0 and failures 1 or more")
