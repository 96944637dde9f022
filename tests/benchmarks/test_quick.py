from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import client_cost, control_loop, fleet, overhead, rewards

ROOT = Path(__file__).resolve().parents[2]


def run_from_the_readme(name, path):
    """Run the benchmark's line of the README, as a user does."""
    command = f"roboserve bench {name} --quick"
    assert command in (ROOT / "README.md").read_text("utf-8").splitlines()
    words = [sys.executable, "-m", *command.split(), "--results", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        assert {"benchmark", "machine", "versions", "commit", "flags", "load_before", "started"} <= set(row)
        assert row["flags"]["quick"] is True
    return rows


def ordered(summary):
    return 0 < summary["p50"] <= summary["p90"] <= summary["p99"] <= summary["p999"] <= summary["worst"]


@pytest.mark.slow
def test_overhead(tmp_path):
    path = tmp_path / "overhead.jsonl"
    table = run_from_the_readme("overhead", path)
    rows = rows_of(path)
    names = {row["contender"] for row in rows}
    payloads = {row["payload"] for row in rows}
    assert (len(names), len(payloads), len(rows)) == (9, 3, 27)
    assert min(row["payload_bytes"] for row in rows) < 224 * 224 * 3  # JPEG
    for row in rows:
        assert row["round_trip_ms"]["count"] == 40
        assert ordered(row["round_trip_ms"])
        assert row["contender"] != overhead.BARE or row["overhead_p50_ms"] == 0.0
        assert row["contender"] != overhead.REFERENCE or row["ratio_to_reference"] == 1.0
    for name in names:
        assert name in table


@pytest.mark.slow
def test_fleet(tmp_path):
    path = tmp_path / "fleet.jsonl"
    run_from_the_readme("fleet", path)
    rows = rows_of(path)
    cases = {(row["pattern"], row["robots"], row["server"]) for row in rows}
    assert len(cases) == len(rows) == 2 * 2 * 2
    for row in rows:
        assert row["outcomes"]["ok"] > 0
        assert sum(row["outcomes"].values()) == row["requests"]
        assert ordered(row["latency_ms"])
        assert row["latency_ms"]["p50"] >= 32.0  # the policy sleeps that long
        assert sum(int(size) * count for size, count in row["batches"].items()) > 0
        if row["server"] == fleet.SERIAL:
            assert set(row["batches"]) == {"1"}
        else:
            assert max(map(int, row["batches"])) <= row["robots"]


def test_client_cost(tmp_path):
    path = tmp_path / "client_cost.jsonl"
    assert client_cost.main(["--quick", "--results", str(path)]) == 0
    rows = rows_of(path)
    compared = [row for row in rows if row["case"] != "steps"]
    assert {row["case"].partition(":")[0] for row in compared} == {"prepare", "round trip"}
    for case in {row["case"] for row in compared}:
        size = {row["contender"].rpartition(" ")[2]: row["wire_bytes"] for row in compared if row["case"] == case}
        assert size["jpeg"] < size["png"] < size["raw"]
    assert all(row["cpu_ms"] > 0 and ordered(row["wall_ms"]) for row in compared)


@pytest.mark.slow
def test_control_loop(tmp_path):
    path = tmp_path / "control_loop.jsonl"
    assert control_loop.main(["--quick", "--results", str(path)]) == 0
    rows = rows_of(path)
    assert len({row["loop"] for row in rows}) == len(rows) == 2 * len(control_loop.CODECS)
    for row in rows:
        assert 0 <= row["within_2ms"] <= 1
        assert row["ticks"] > 0
        assert row["requests"]["played"] >= 1
        assert row["act_ms"]["p50"] >= 200  # the policy sleeps that long
        if row["loop"].startswith("robot_client"):
            assert row["network_calls_in_control_thread"] == 0
            assert row["network_calls_in_other_threads"] > 0  # or the count would say nothing
        else:
            assert row["network_calls_in_control_thread"] > 0
            assert row["missed_ticks"] > 0  # 200 ms are ten ticks


@pytest.mark.slow
def test_rewards(tmp_path):
    path = tmp_path / "rewards.jsonl"
    assert rewards.main(["--quick", "--model", "random", "--results", str(path)]) == 0
    rows = rows_of(path)
    cases = {case: [row for row in rows if row["case"] == case] for case in ("memory", "prefix", "callers")}
    both = {rewards.OURS, rewards.USUAL}
    assert {row["contender"]: row["labels"] for row in cases["memory"]} == dict.fromkeys(both, 48)
    assert {(row["contender"], row["policy"]) for row in cases["prefix"]} == {
        (name, policy) for name in both for policy in rewards.POLICIES
    }
    served = [row for row in cases["callers"] if row["contender"] != rewards.BARE]
    assert {(row["contender"], row["callers"]) for row in served} == {(name, n) for name in both for n in (1, 4)}
    for row in served:
        assert row["labels_per_s"] == pytest.approx(8 * row["clips_per_s"], rel=0.01)
        assert ordered(row["latency_ms"])
        assert row["contender"] != rewards.USUAL or row["ratio_to_usual"] == 1.0
    assert {row["batch"] for row in cases["callers"] if row["contender"] == rewards.BARE} == {1, 8}


@pytest.mark.parametrize(
    ("run", "arguments"), [(overhead.main, ["--variants", "raw,bogus"]), (fleet.main, ["--patterns", "closed,bogus"])]
)
def test_an_unknown_choice_is_refused_before_anything_starts(run, arguments, tmp_path, capsys):
    path = tmp_path / "none.jsonl"
    with pytest.raises(SystemExit) as caught:
        run([*arguments, "--results", str(path)])
    assert caught.value.code == 2
    assert "bogus" in capsys.readouterr().err
    assert not path.exists()
