"""`roboserve train`: a finetuning job on this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from roboserve.jobs import JobError, command_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def run(method: str, arguments: Sequence[str], *, publish: str | None, config: Path | None) -> int:
    """Become the job, so that signals and exit status are its own; return 2 where it cannot be started."""
    try:
        words = command_of(method, arguments, publish=publish, config=config)
    except JobError as error:
        print(error, file=sys.stderr)
        return 2
    return _become([sys.executable, "-m", *words])


def _become(command: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606  our own module, no shell
