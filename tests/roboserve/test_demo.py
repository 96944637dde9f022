"""A small demo, whole: platform, two simulated robots, embedded policy, report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_the_demo_does_its_tasks_and_writes_its_page(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "egl", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "roboserve", "demo", "--tasks", "handle-press,button-press", "--out", str(out)]
    done = subprocess.run(
        [*command, "--episodes", "1"], env=environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all tasks" in done.stdout
    summaries = [json.loads(path.read_text("utf-8")) for path in out.glob("episodes/*/*/episode.json")]
    assert {summary["task"] for summary in summaries} == {"handle-press", "button-press"}
    for summary in summaries:
        assert summary["requests"]["played"] >= 1
        assert summary["missed_ticks"] <= summary["ticks"]
        assert summary["model"] == "metaworld"
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:video/mp4;base64,") == 2
    curves = [json.loads(path.read_text("utf-8")) for path in out.glob("episodes/*/*/reward.json")]
    for curve in curves:
        assert curve["model"] == "robometer"
        assert 0 < len(curve["values"]) <= curve["offered"] - curve["dropped"]
        assert all(0 <= value["progress"] <= 1 and 0 <= value["success"] <= 1 for value in curve["values"])
    assert page.count("data-values=") == len(curves) == 2
