"""`roboserve up`: check, start, wait until every model answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from roboserve import state
from roboserve.preflight import report_checks
from serving.config import ConfigError, PlatformConfig, load_config
from serving.preflight import run_checks

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

_READY = "ready:"
_START_LIMIT_S = 240.0
_SAID_LINES = 15


def run_foreground(config_path: Path, port: int | None) -> int:
    """Run the platform in this process until Ctrl-C or SIGTERM."""
    console = Console()
    try:
        config = _load(config_path, port)
    except ConfigError as error:
        console.print(f"[red]{config_path}[/red]\n{error}", highlight=False)
        return 2
    from serving.launch import platform

    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, _leave)
    try:
        with platform(
            config, report=lambda line: print(line, flush=True), logs=state.state_folder() / "logs"
        ) as running:
            print(f"logs: {running.logs}", flush=True)
            for number in (signal.SIGINT, signal.SIGTERM):  # only now: Ray takes them over when it starts
                signal.signal(number, on_signal)
            print(f"{_READY} {running.url}", flush=True)
            stop.wait()
            print("stopping", flush=True)
    except RuntimeError as error:
        print(f"failed: {error}", flush=True)
        return 1
    return 0


def _leave(_signal: int, _frame: FrameType | None) -> None:
    """End while starting, through every clean-up."""
    raise SystemExit(1)


def run_background(config_path: Path, port: int | None) -> int:
    """Start the platform in a process of its own and return once it is ready."""
    console = Console()
    running = state.read()
    if running is not None:
        console.print(f"The platform runs already at {running.url} (roboserve status, roboserve down).")
        return 1
    if not report_checks(console, run_checks(config_path, starting=port is None), only_failures=True):
        return 2
    log = state.state_folder() / "platform.log"
    command = [sys.executable, "-m", "roboserve", "up", "--foreground", "--config", str(config_path)]
    command += ["--port", str(port)] if port is not None else []
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and arguments, no shell
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ,
        )
    return _wait(console, process, log, config_path)


def _load(config_path: Path, port: int | None) -> PlatformConfig:
    config = load_config(config_path)
    return config if port is None else config.with_port(port)


def _wait(console: Console, process: subprocess.Popen[bytes], log: Path, config_path: Path) -> int:
    """Show what the platform says until it is ready, or why it is not."""
    born = psutil.Process(process.pid).create_time()
    deadline = time.monotonic() + _START_LIMIT_S
    shown = 0
    with console.status("starting Ray and HAProxy"):
        while time.monotonic() < deadline:
            ended = process.poll() is not None  # asked first, so that the lines below are all that it said
            lines = log.read_text("utf-8", errors="replace").splitlines()
            for line in lines[shown:]:
                if line.startswith(_READY):
                    url = line.removeprefix(_READY).strip()
                    state.write(
                        state.PlatformState(pid=process.pid, born=born, url=url, config=str(config_path), log=str(log))
                    )
                    _print_ready(console, url, config_path)
                    return 0
                if line.startswith(("logs", "policy", "reward", "preference", "path", "vlm")):
                    console.print(f"  {line}", highlight=False)
            shown = len(lines)
            if ended:
                console.print(f"[red]The platform did not start[/red]; its log: {log}; the end of it:")
                console.print("\n".join(_reason(lines)), highlight=False, markup=False, soft_wrap=True)
                return 1
            time.sleep(0.1)
    process.terminate()
    console.print(f"[red]Not ready after {_START_LIMIT_S:g} s[/red]; its log: {log}")
    return 1


def _reason(lines: list[str]) -> list[str]:
    """Return what a platform that ended gave as its reason, or the last that it said."""
    failed = [at for at, line in enumerate(lines) if line.startswith("failed")]
    return lines[failed[-1] :] if failed else lines[-_SAID_LINES:]


def _print_ready(console: Console, url: str, config_path: Path) -> None:
    websocket = "ws" + url.removeprefix("http")
    console.print(f"[green]ready[/green]  {url}  ({config_path.name})", highlight=False)
    console.print(f"  robots and stock openpi clients connect to {websocket}", highlight=False)
    console.print("  roboserve status | roboserve act 'open the drawer' | roboserve down", highlight=False)
