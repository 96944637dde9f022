"""A real platform (Ray, HAProxy, replicas) in processes of its own, and the applications that the tests attack."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 300.0
SIZE = 32
"""Images of the test policies are so high and wide."""


def application(name: str, policy: str, *, route: str | None = None, config: Any = None, **args: Any) -> dict[str, Any]:
    settings = {"interface": {"image_size": SIZE}, **(config or {})}
    return {
        "name": f"policy-{name}",
        "route_prefix": route or f"/policy/{name}",
        "import_path": "serving.policy:build",
        "args": {
            "name": name,
            "policy": {"factory": f"models.policies.scripted:{policy}", "config": settings},
            **args,
        },
        # Twelve replicas must fit on the eight logical CPUs that a platform on one machine has.
        "deployments": [{"name": "PolicyService", "ray_actor_options": {"num_cpus": 0.5}}],
    }


def configuration(port: int, applications: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": applications,
    }


@dataclass
class Platform:
    """A platform that answers."""

    port: int
    process: subprocess.Popen[str]
    lines: queue.Queue[str] = field(default_factory=queue.Queue)
    said: list[str] = field(default_factory=list)
    logs: Path = Path()
    keys: dict[str, str] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def websocket(self, path: str = "/") -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    def wait_for(self, word: str, limit_s: float = START_LIMIT_S) -> str:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no {word!r} within {limit_s} s; it said: {self.said[-20:]}") from None
            if line == "":
                raise RuntimeError(f"the platform ended before {word!r}; it said: {self.said[-30:]}")
            self.said.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()

    def deploy(self, configuration: dict[str, Any]) -> None:
        """Hand a new configuration to the running platform, as `serve deploy` does."""
        path = self.folder / f"deploy-{time.monotonic_ns()}.yaml"
        path.write_text(yaml.safe_dump(configuration), "utf-8")
        assert self.process.stdin is not None
        self.process.stdin.write(f"deploy {path}\n")
        self.process.stdin.flush()
        self.wait_for("deployed", 60.0)

    def replicas(self, name: str) -> list[psutil.Process]:
        """Processes that serve one policy."""
        return self.processes(f"ray::ServeReplica:policy-{name}:")

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes whose command holds a text."""
        return [process for process in psutil.Process(self.process.pid).children(recursive=True) if _is(process, title)]


def _is(process: psutil.Process, title: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(title in part for part in process.cmdline())
    except psutil.Error:
        return False


def start(folder: Path, configuration: dict[str, Any], port: int) -> Platform:
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump(configuration), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving.run_platform", str(path)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    platform = Platform(port=port, process=process, configuration=configuration, folder=folder)
    threading.Thread(target=_read, args=(platform,), daemon=True).start()
    platform.logs = Path(platform.wait_for("logs"))
    platform.wait_for("ready")
    return platform


def _read(platform: Platform) -> None:
    assert platform.process.stdout is not None
    for line in platform.process.stdout:
        platform.lines.put(line.rstrip() or " ")
    platform.lines.put("")


def stop(platform: Platform) -> list[str]:
    """End the platform by SIGTERM; return what of it is still alive afterwards."""
    family = [psutil.Process(platform.process.pid), *psutil.Process(platform.process.pid).children(recursive=True)]
    platform.process.terminate()
    try:
        platform.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        platform.process.kill()
    _, alive = psutil.wait_procs(family, timeout=5)
    left = [" ".join(process.cmdline())[:120] for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        process.kill()
    return left


def running(folder: Path, applications: list[dict[str, Any]], port: int) -> Iterator[Platform]:
    platform = start(folder, configuration(port, applications), port)
    yield platform
    assert stop(platform) == []
