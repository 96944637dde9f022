"""Ways to teach one more task, side by side: a small comparison on real demonstrations, killed and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from finetune.bc.collect import CollectConfig, collect
from finetune.lora.compare import WAYS, Cell, CompareConfig, as_markdown, compare, write

if TYPE_CHECKING:
    from pathlib import Path

LORA, FULL = next(way for way in WAYS if way.name == "lora-2"), WAYS[0]


def test_each_way_is_trained_and_judged_once(tmp_path: Path) -> None:
    collect(CollectConfig(out=tmp_path / "data", tasks=("handle-press",), episodes=1))
    config = CompareConfig(
        base="zoo:metaworld-flow",
        data=tmp_path / "data" / "handle-press",
        out=tmp_path / "runs",
        task="handle-press",
        known=("drawer-close",),
        ways=(LORA,),
        seeds=(0,),
        steps=2,
        batch=4,
        episodes=1,
        known_episodes=1,
    )
    said: list[tuple[int, str]] = []
    first = compare(config, report=lambda done, name: said.append((done, name)))
    assert said == [(0, "base"), (1, "lora-2-0"), (2, "")]
    assert (first[0].way, first[0].trained, first[0].new, first[0].old) == ("base", 0, 1, 1)
    assert (first[1].seed, first[1].new_episodes, first[1].old_episodes) == (0, 1, 1)
    assert 0 < first[1].share < 0.05
    written = (tmp_path / "runs" / "lora-2-0" / "cell.json").stat().st_mtime_ns
    more = compare(replace(config, ways=(LORA, FULL)), report=lambda *_: None)
    assert more[:2] == first
    assert (tmp_path / "runs" / "lora-2-0" / "cell.json").stat().st_mtime_ns == written
    assert (more[2].way, more[2].share) == ("full", 1.0)
    with pytest.raises(ValueError, match="is of another comparison"):
        compare(replace(config, steps=3), report=lambda *_: None)
    text = write(tmp_path / "out", more, title="handle-press")
    assert (tmp_path / "out" / "table.md").read_text("utf-8") == text
    assert [row["way"] for row in json.loads((tmp_path / "out" / "cells.json").read_text("utf-8"))] == [
        "base",
        "lora-2",
        "full",
    ]
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_are_pooled() -> None:
    cells = [
        Cell(
            way="lora-2",
            seed=seed,
            trained=1234,
            share=0.05,
            seconds=60,
            new=new,
            new_episodes=10,
            old=9,
            old_episodes=10,
        )
        for seed, new in ((0, 4), (1, 8))
    ]
    row = as_markdown(cells).splitlines()[2]
    assert row == "| lora-2 | 1,234 | 5.0 % | 0.60 | 0.39 to 0.78 | 0.40, 0.80 | 0.90 | 0.70 to 0.97 | 1.0 |"
