"""Each benchmark runs and writes rows that can be compared; nothing here looks at a time."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def lines(name: str, tmp_path: Path, *flags: str) -> list[dict]:
    target = tmp_path / f"{name}.jsonl"
    assert importlib.import_module(f"benchmarks.{name}").main(["--quick", "--results", str(target), *flags]) == 0
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    for row in rows:
        assert {"machine", "versions", "commit", "flags", "load_before"} <= set(row)
    return rows


def test_client_cost(tmp_path: Path) -> None:
    rows = lines("client_cost", tmp_path)
    sizes = {(row["contender"], row["cameras"]): row["bytes"] for row in rows}
    for cameras in (1, 2):
        assert sizes["ours, jpeg", cameras] < sizes["openpi-client, raw", cameras] / 3
        assert sizes["ours, raw", cameras] >= 224 * 224 * 3 * cameras


@pytest.mark.slow
def test_control_loop(tmp_path: Path) -> None:
    rows = lines("control_loop", tmp_path)
    assert {row["codec"] for row in rows} == {"jpeg", "raw"}
    for row in rows:
        assert row["ticks"] + row["missed_ticks"] >= 95
        assert row["requests"]["played"] >= 1


@pytest.mark.slow
def test_overhead(tmp_path: Path) -> None:
    rows = lines("overhead", tmp_path, "--variants", "raw")
    assert len({row["contender"] for row in rows}) >= 5
    assert all(row["round_trip_ms"]["count"] > 0 for row in rows)


@pytest.mark.slow
def test_fleet_runs_no_work_whose_deadline_has_passed(tmp_path: Path) -> None:
    rows = lines("fleet", tmp_path, "--robots", "4", "--patterns", "closed,cadence200")
    assert rows
