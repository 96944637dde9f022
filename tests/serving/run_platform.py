"""A platform in a process of its own, for tests: `python -m tests.serving.run_platform CONFIG`.

It says `ready` on standard output, deploys a further configuration for each line `deploy CONFIG` that it reads, and
ends when standard input closes or on SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from serving.config import load_config
from serving.launch import _deploy, platform

PATIENCE_S = 270.0
"""Three platforms may start at once on two cores."""


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run."""
    config = load_config(Path(sys.argv[1]))
    with platform(config, report=lambda line: print(line, flush=True), timeout_s=PATIENCE_S) as running:
        signal.signal(signal.SIGTERM, _leave)
        print(f"logs {running.logs}", flush=True)
        print(f"ready {running.url}", flush=True)
        for line in sys.stdin:
            _deploy(load_config(Path(line.removeprefix("deploy ").strip())))
            print("deployed", flush=True)


if __name__ == "__main__":
    main()
