"""`roboserve down`: stop the platform that `up` started."""

from __future__ import annotations

import psutil
from rich.console import Console

from roboserve import state

_PATIENCE_S = 60.0


def run() -> int:
    """Ask the platform to stop, wait, and end what is left of its process tree."""
    console = Console()
    running = state.read()
    process = None if running is None else running.process()
    if process is None:
        state.clear()
        console.print("No platform runs.")
        return 0
    family = [process, *process.children(recursive=True)]
    with console.status("stopping"):
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_PATIENCE_S)
        for leftover in alive:
            leftover.kill()
    state.clear()
    console.print("stopped" if not alive else f"stopped; {len(alive)} processes had to be killed")
    return 0
