"""`roboserve demo`: the platform, a fleet of simulated robots that do their tasks through it, and a report."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from roboserve.demo_robot import Job, Progress, Services, drive
from roboserve.report import write_report
from roboserve.report.table import print_table
from robot_client.robots.metaworld_tasks import TASKS, find_task

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY = "ready:"
_START_LIMIT_S = 240.0


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What to show.

    Attributes:
        config: platform configuration.
        server: ws:// address of a running platform; None starts one on a free port.
        tasks: MetaWorld tasks; `episodes` of each, with seeds from `seed`.
        robots: simulated robots that run at once, so that the server has something to batch.
        reward: served reward model that watches every episode; None for no curves.
        path: served path predictor that is shown every first frame; None for no paths.
        out: report folder; None names it after the time.
    """

    config: Path
    server: str | None = None
    tasks: tuple[str, ...] = tuple(TASKS)
    episodes: int = 3
    robots: int = 2
    reward: str | None = "robometer"
    path: str | None = "metaworld"
    seed: int = 10_000
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in self.tasks:
            find_task(name)
        if min(self.episodes, self.robots) < 1:
            raise ValueError(f"episodes {self.episodes} and robots {self.robots} must be 1 or more")


def run_demo(settings: DemoSettings) -> int:
    """Run the demo.

    Returns:
        0 when at least one episode succeeded and nothing failed; 1 otherwise. A report is written of whatever was done.
    """
    console = Console()
    started = time.time()
    folder = settings.out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    (folder / "episodes").mkdir(parents=True, exist_ok=True)
    fleet_failures: list[str] = []
    try:
        with _platform(settings, folder, console) as server:
            fleet_failures = _run_fleet(settings, folder, server, console)
    except KeyboardInterrupt:
        console.print("stopped; writing the report of what was done")
        fleet_failures = ["interrupted"]
    except RuntimeError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    about = {"started_unix": started, "seconds": time.time() - started, "command": _command(settings)}
    (folder / "demo.json").write_text(json.dumps(about, indent=2), "utf-8")
    page = write_report(folder)
    succeeded = print_table(console, folder)
    for failure in fleet_failures:
        console.print(f"[red]{failure}[/red]", highlight=False)
    console.print(f"report: {page}  ({time.time() - started:.0f} s in all)", highlight=False)
    return 0 if succeeded and not fleet_failures else 1


def _command(settings: DemoSettings) -> str:
    chosen = "" if settings.tasks == tuple(TASKS) else f" --tasks {','.join(settings.tasks)}"
    chosen += "" if settings.reward == DemoSettings.reward else f" --reward {settings.reward or 'none'}"
    chosen += "" if settings.path == DemoSettings.path else f" --path {settings.path or 'none'}"
    return f"roboserve demo --episodes {settings.episodes} --robots {settings.robots} --seed {settings.seed}{chosen}"


@contextlib.contextmanager
def _platform(settings: DemoSettings, folder: Path, console: Console) -> Iterator[str]:
    """Give the address of the platform: the one that runs, or one of our own that ends with the block."""
    if settings.server is not None:
        yield settings.server
        return
    from serving.ports import free_port

    command = [sys.executable, "-m", "roboserve", "up", "--foreground", "--port", str(free_port())]
    command += ["--config", str(settings.config)]
    log = folder / "platform.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and arguments, no shell
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours to pass on, after the robots have stopped
            env={**os.environ, "ROBOSERVE_STATE_DIR": str((folder / "platform").resolve())},
        )
    try:
        with console.status("starting the platform (Ray Serve, HAProxy, the models)"):
            yield "ws" + _wait_ready(process, log).removeprefix("http")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        for line in log.read_text("utf-8", errors="replace").splitlines():
            if line.startswith(_READY):
                return line.removeprefix(_READY).strip()
        if process.poll() is not None:
            raise RuntimeError(f"the platform did not start: {log.read_text('utf-8', errors='replace')[-1500:]}")
        time.sleep(0.1)
    raise RuntimeError(f"the platform was not ready after {_START_LIMIT_S:g} s; its log: {log}")


def _run_fleet(settings: DemoSettings, folder: Path, server: str, console: Console) -> list[str]:
    """Let the robots work, show how they fare, and return what went wrong."""
    context = multiprocessing.get_context("spawn")
    jobs: Any = context.Queue()
    told: Any = context.Queue()
    for task in settings.tasks:
        jobs.put(Job(task=task, seeds=tuple(range(settings.seed, settings.seed + settings.episodes))))
    for _ in range(settings.robots):
        jobs.put(None)
    services = Services(server=server, reward=settings.reward, path=settings.path)
    robots = [
        context.Process(target=drive, args=(services, folder / "episodes", jobs, told), name=f"robot-{number}")
        for number in range(settings.robots)
    ]
    for robot in robots:
        robot.start()
    try:
        failures = _watch(settings, robots, told, console)
        for robot in robots:
            robot.join(timeout=20)
        return failures
    finally:
        for robot in robots:
            robot.terminate()
            robot.join(timeout=20)
            if robot.is_alive():
                robot.kill()


def _watch(settings: DemoSettings, robots: list[Any], told: Any, console: Console) -> list[str]:
    failures: list[str] = []
    succeeded = done = 0
    total = settings.episodes * len(settings.tasks)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console) as bars:
        bar = bars.add_task("episodes", total=total)
        while done < total:
            try:
                news: Progress = told.get(timeout=0.5)
            except queue.Empty:
                dead = [robot.name for robot in robots if not robot.is_alive() and robot.exitcode]
                if dead or not any(robot.is_alive() for robot in robots):
                    return [*failures, f"robots ended early: {', '.join(dead) or 'all'}"]
                continue
            if news.error is not None:
                failures.append(f"{news.task}: {news.error}")
                done += settings.episodes
            elif news.ended is not None:
                done += 1
                succeeded += bool(news.success)
                bars.update(bar, completed=done, description=_line(news, succeeded, done))
            else:
                bars.update(bar, description=f"{news.task}, scene {news.seed}")
    return failures


def _line(news: Progress, succeeded: int, done: int) -> str:
    verdict = "[green]success[/green]" if news.success else f"[red]{news.ended}[/red]"
    figures = f"{news.rate_hz:.1f} Hz, latency {news.latency_p50_ms:.0f} ms"
    figures += "" if news.progress is None else f", progress {news.progress:.2f}"
    return f"{succeeded}/{done} succeeded; {news.task} {news.seed}: {verdict}, {figures}"
