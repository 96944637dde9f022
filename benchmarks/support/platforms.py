"""The platform in a process of its own: `python -m benchmarks.support.platforms FILE PORT`; and its configurations.

Of its own, so that Ray's threads are not the client's.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

READY = "listening on port "


def application(
    name: str, factory: str, config: dict[str, Any] | None = None, batching: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the entry of one served policy, at /policy/NAME."""
    policy = {"factory": factory, "config": config or {}}
    return {
        "name": f"policy-{name}",
        "route_prefix": f"/policy/{name}",
        "import_path": "serving.policy:build",
        "args": {"name": name, "policy": policy, "batching": batching or {}},
    }


def reward_application(
    name: str, factory: str, config: dict[str, Any], *, replicas: int = 1, rewards: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the entry of one served reward model, at /reward/NAME; `rewards`: settings of its service."""
    return {
        "name": f"reward-{name}",
        "route_prefix": f"/reward/{name}",
        "import_path": "serving.reward:build",
        "args": {"name": name, "reward": {"factory": factory, "config": config}, "rewards": rewards or {}},
        "deployments": [{"name": "RewardService", "num_replicas": replicas, "ray_actor_options": {"num_cpus": 0.5}}],
    }


def configuration(applications: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a platform configuration for loopback, with the logging of `serving/configs/embedded.yaml`."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": applications,
    }


def main() -> None:
    """Run the platform until SIGTERM or SIGINT; prints its port once every application answers."""
    from serving.config import load_config
    from serving.launch import platform

    path, port = Path(sys.argv[1]), int(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, _leave)
    with platform(load_config(path).with_port(port), report=lambda line: print(line, flush=True)):
        for number in (signal.SIGINT, signal.SIGTERM):  # only now: Ray takes them over when it starts
            signal.signal(number, lambda *_: stop.set())
        print(f"{READY}{port}", flush=True)
        stop.wait()


def _leave(_number: int, _frame: Any) -> None:
    raise SystemExit(1)


if __name__ == "__main__":
    main()
