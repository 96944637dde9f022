"""A Ray head with a dashboard on 127.0.0.1, for `serve deploy` and jobs: `python -m tests.ray_head DASHBOARD_PORT`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from serving.launch import serve_environment
from serving.ports import free_port


def command(folder: Path, dashboard_port: int) -> list[str]:
    """Return what starts it. `ray.init` has no say in the agent's port, which is 52365 for all Rays of a machine."""
    settings = {
        "node-ip-address": "127.0.0.1",
        "port": free_port(),
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard_port,
        "dashboard-agent-listen-port": free_port(),
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 8,
        "object-store-memory": 150 * 2**20,
        "temp-dir": folder,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *options]


def main() -> None:
    """Run until standard input closes."""
    folder = Path(tempfile.mkdtemp(prefix="ray-head-"))
    environment = {**os.environ, **serve_environment(folder)}
    starting = command(folder, int(sys.argv[1]))
    with subprocess.Popen(starting, env=environment, stdout=subprocess.PIPE, text=True) as head:
        threading.Thread(target=_tell_when_ready, args=(head,), daemon=True).start()
        sys.stdin.read()
        head.terminate()  # with --block it ends all that it started
    shutil.rmtree(folder, ignore_errors=True)


def _tell_when_ready(head: subprocess.Popen[str]) -> None:
    assert head.stdout is not None
    for line in head.stdout:
        if "Ray runtime started" in line:
            print("ready", flush=True)


if __name__ == "__main__":
    main()
