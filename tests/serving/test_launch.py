"""A platform that cannot start says why, however early it ended."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

from serving.ports import free_port
from tests.serving.platforms import ROOT, application, configuration

if TYPE_CHECKING:
    from pathlib import Path

FAKE = """#!/bin/sh
for word in "$@"; do
  case "$word" in --stderr_filepath=*) echo "no room on the disk" > "${word#--stderr_filepath=}" ;; esac
done
exit 1
"""
SCRIPT = """
import sys
from pathlib import Path

import ray._private.services

ray._private.services.GCS_SERVER_EXECUTABLE = sys.argv[2]

from roboserve.up import run_foreground

sys.exit(run_foreground(Path(sys.argv[1]), None))
"""


pytestmark = pytest.mark.slow


def written(folder: Path) -> Path:
    path = folder / "platform.yaml"
    path.write_text(yaml.safe_dump(configuration(free_port(), [application("zero", "ZeroPolicy", route="/")])), "utf-8")
    return path


def run(*command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    state = {"PYTHONPATH": str(ROOT), "ROBOSERVE_STATE_DIR": str(folder / "state"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **state, **more},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_a_process_of_rays_said_before_it_died_is_told(tmp_path: Path) -> None:
    fake = tmp_path / "gcs_server"
    fake.write_text(FAKE, "utf-8")
    fake.chmod(stat.S_IRWXU)
    done = run("-c", SCRIPT, str(written(tmp_path)), str(fake), folder=tmp_path, RAY_gcs_server_port_wait_time_s="2")
    assert done.returncode == 1
    assert "failed: Ray did not start" in done.stdout, done.stdout + done.stderr
    assert "gcs_server: no room on the disk" in done.stdout
    assert "FileNotFoundError" not in done.stdout + done.stderr


def test_up_shows_why_a_platform_ended_that_made_no_logs(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)  # Ray's sockets lie below it, and a socket's path is short
    deep.mkdir()
    done = run("-m", "roboserve", "up", "-c", str(written(tmp_path)), folder=tmp_path, TMPDIR=str(deep))
    assert done.returncode == 1
    assert "AF_UNIX path length" in done.stdout, done.stdout + done.stderr
    assert "FileNotFoundError" not in done.stdout + (tmp_path / "state" / "platform.log").read_text("utf-8")
