"""Starting servers as processes of our own, and ending exactly those."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks.support import baselines, platforms

if TYPE_CHECKING:
    from collections.abc import Iterator

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_START_S = 180.0
_STOP_S = 30.0
_SHOWN = 4000


@contextlib.contextmanager
def baseline(style: str, factory: str, config: dict[str, Any] | None = None) -> Iterator[int]:
    """Run a server of `benchmarks.support.baselines`; yields its port."""
    arguments = [style, "--factory", factory, "--config", json.dumps(config or {})]
    with _server("benchmarks.support.baselines", arguments, baselines.READY) as port:
        yield port


@contextlib.contextmanager
def evalserver(factory: str, config: dict[str, Any]) -> Iterator[int]:
    """Run the server of `benchmarks.support.evalserver` on a reward model; yields its port."""
    arguments = ["--factory", factory, "--config", json.dumps(config)]
    with _server("benchmarks.support.evalserver", arguments, baselines.READY) as port:
        yield port


@contextlib.contextmanager
def our_platform(applications: list[dict[str, Any]]) -> Iterator[int]:
    """Run the platform (Ray Serve behind HAProxy) with these applications; yields its port."""
    from serving.ports import free_port

    with tempfile.TemporaryDirectory(prefix="roboserve-bench-") as folder:
        path = Path(folder) / "platform.yaml"
        path.write_text(yaml.safe_dump(platforms.configuration(applications)), "utf-8")
        arguments = [str(path), str(free_port())]
        with _server("benchmarks.support.platforms", arguments, platforms.READY) as port:
            yield port


@contextlib.contextmanager
def _server(module: str, arguments: list[str], ready: str) -> Iterator[int]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and arguments, no shell
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=_REPOSITORY,
            env=environment(),
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it in order
        )
        watchdog = threading.Timer(_START_S, process.kill)
        watchdog.start()
        try:
            port = _wait_ready(process, ready)
            watchdog.cancel()
            if port is None:
                errors.seek(0)
                raise RuntimeError(f"{module} {arguments[0]} did not start: {errors.read()[-_SHOWN:]}")
            yield port
        finally:
            watchdog.cancel()
            _end(process)


def environment() -> dict[str, str]:
    """Return the environment of what a benchmark starts."""
    path = os.pathsep.join([str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread each: the servers and the client share few cores, and none of them computes anything.
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _wait_ready(process: subprocess.Popen[str], ready: str) -> int | None:
    assert process.stdout is not None  # noqa: S101  asked for above
    for line in process.stdout:
        if line.startswith(ready):
            # The rest of its output must go somewhere, or it would block on a full pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return int(line.removeprefix(ready))
    return None


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
