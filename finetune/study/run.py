"""Run what of a study is not done: each run in a process of its own, a few at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune.study.config import Cell, Study

DONE, LOG = "done.json", "output.log"
_LOOK_S = 0.5


class RunError(RuntimeError):
    """A run ended with an error; its output is in its folder."""


def run_study(study: Study, *, jobs: int, report: Callable[[int, int, str], None]) -> None:
    """Run every cell that is not done, `jobs` at a time; what was killed before goes on where its method can.

    Args:
        report: told runs that are done, runs in all, and what is running.

    Raises:
        RunError: naming the run; those beside it are ended too.
    """
    cells = study.cells()
    waiting = [cell for cell in cells if not is_done(study, cell)]
    running: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[_start(study, cell)] = (cell, time.monotonic())
            done = len(cells) - len(waiting) - len(running)
            report(done, len(cells), ", ".join(cell.folder.name for cell, _ in running.values()))
            time.sleep(_LOOK_S)
            for process in [process for process in running if process.poll() is not None]:
                cell, started = running.pop(process)
                _finish(study, cell, process.returncode, time.monotonic() - started)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    report(len(cells), len(cells), "")


def is_done(study: Study, cell: Cell) -> bool:
    """Say whether a run was finished with these very options.

    Raises:
        ValueError: it was finished with others.
    """
    file = cell.folder / DONE
    if not file.exists():
        return False
    if json.loads(file.read_text("utf-8"))["command"] != study.command(cell):
        raise ValueError(f"{cell.folder.name}: was run with other options; remove it, or choose another `out`")
    return True


def _start(study: Study, cell: Cell) -> subprocess.Popen[bytes]:
    cell.folder.mkdir(parents=True, exist_ok=True)
    with (cell.folder / LOG).open("ab") as log:
        command = [sys.executable, "-m", *study.command(cell)]  # one of this package's modules: `Method` sees to it
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603


def _finish(study: Study, cell: Cell, code: int, seconds: float) -> None:
    if code:
        raise RunError(f"{cell.folder.name}: ended with code {code}; see {LOG} in its folder")
    facts = {"command": study.command(cell), "seconds": round(seconds, 1)}
    (cell.folder / DONE).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
