from __future__ import annotations

import json

from benchmarks import tmrl


def test_the_loops_compute_the_losses_of_the_batched_update(tmp_path):
    assert tmrl.main(["--quick", "--results", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()]
    contenders = [row["contender"] for row in rows if "contender" in row]
    assert sorted(contenders) == sorted([tmrl.OURS, tmrl.HEADS, tmrl.ONE_BY_ONE])
    assert sum(rows[-1]["profile"].values()) <= 1.0
