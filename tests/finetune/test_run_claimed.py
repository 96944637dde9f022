"""Two jobs on one run folder would mix their metrics: the second is refused while the first lives, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from finetune.bc.run_folder import RunFolder as CloningFolder
from finetune.common.run import Run
from finetune.sac.run_folder import RunFolder as SacFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPENED: dict[str, Callable[[Path], object]] = {
    "finetune.common.run import Run; run = Run(folder=path, identity={'seed': 0})": lambda path: Run(
        folder=path, identity={"seed": 0}
    ),
    "finetune.bc.run_folder import RunFolder; run = RunFolder(path, {})": lambda path: CloningFolder(path, {}),
    "finetune.sac.run_folder import RunFolder; run = RunFolder(path, {})": lambda path: SacFolder(path, {}),
}


@pytest.mark.parametrize("words", OPENED)
def test_a_second_process_is_refused_until_the_first_is_gone(words: str, tmp_path: Path) -> None:
    program = (
        f"import sys; from pathlib import Path; path = Path(sys.argv[1]); from {words}; print('ready', flush=True)"
    )
    command = [sys.executable, "-c", f"{program}; sys.stdin.read()", str(tmp_path / "run")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ})
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    with pytest.raises(ValueError, match="out: another process is writing the run run"):
        OPENED[words](tmp_path / "run")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert OPENED[words](tmp_path / "run") is not None
    again = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert "ready" in again.stdout  # what was opened here and dropped is free
