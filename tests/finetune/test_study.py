"""Studies: what is done is not done again, other options are refused, and the table says what the curves say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from finetune.study.config import Study, read_study
from finetune.study.results import as_markdown, read_curves, table, write
from finetune.study.run import DONE, RunError, run_study

STUDIES = [
    path
    for path in sorted((Path(__file__).parent.parent.parent / "finetune").glob("*/results/*.yaml"))
    if "methods" in yaml.safe_load(path.read_text("utf-8"))
]
FILE = """
title: Two seeds
out: {out}
seeds: [0, 1]
tasks: {{goals: "eight-goals:named=0,shift=4"}}
methods:
  tmrl:
    module: finetune.tmrl
    options:
      policy: zoo:eight-goals
      steps: 90
      warmup: 8
      updates: 1
      batch: 8
      hidden: 16
      evaluate-every: 45
      episodes: 2
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(FILE.format(out=tmp_path / "runs"), "utf-8")
    return read_study(file)


def test_every_run_is_made_once(study: Study, tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    run_study(study, jobs=2, report=lambda *words: said.append(words))
    assert said[-1] == (2, 2, "")
    made = {cell.seed: (cell.folder / DONE).stat().st_mtime_ns for cell in study.cells()}
    run_study(study, jobs=2, report=lambda *words: None)
    assert made == {cell.seed: (cell.folder / DONE).stat().st_mtime_ns for cell in study.cells()}
    text = write(study, tmp_path / "found")
    assert "| goals | tmrl |" in text
    assert (tmp_path / "found" / "curves.png").stat().st_size > 5000
    assert [curve["seed"] for curve in json.loads((tmp_path / "found" / "curves.json").read_text())] == [0, 1]
    method = study.methods["tmrl"].model_copy(update={"options": {**study.methods["tmrl"].options, "steps": 91}})
    with pytest.raises(ValueError, match="was run with other options"):
        run_study(study.model_copy(update={"methods": {"tmrl": method}}), jobs=1, report=lambda *words: None)


def test_a_run_that_fails_is_named(study: Study) -> None:
    method = study.methods["tmrl"].model_copy(update={"options": {"policy": "nowhere"}})
    with pytest.raises(RunError, match=r"goals-tmrl-0: ended with code 1; see output\.log"):
        run_study(study.model_copy(update={"methods": {"tmrl": method}}), jobs=1, report=lambda *words: None)


def test_the_table_is_of_the_last_part_and_says_where_the_level_was_reached(study: Study) -> None:
    for cell, values in zip(study.cells(), ([0.0, 0.5, 0.9, 1.0], [0.0, 0.2, 0.4, 0.6]), strict=True):
        cell.folder.mkdir(parents=True)
        (cell.folder / DONE).write_text(json.dumps({"command": study.command(cell), "seconds": 60.0}), "utf-8")
        rows = [{"step": step, "env_steps": 10 * step, "success": value} for step, value in enumerate(values)]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (row,) = table(study, read_curves(study))
    assert row.finals == (1.0, 0.6)
    assert row.final == pytest.approx(0.8)
    assert (row.low, row.high) == (0.6, 1.0)
    assert (row.reached, row.seeds_reached) == (None, 1)
    assert "| 0.80 | 0.60 to 1.00 | 1.00, 0.60 | 1 of 2 seeds | 1.0 |" in as_markdown(study, [row])
    text = write(study.model_copy(update={"also": ["env_steps"]}), study.out / "found")
    assert [line for line in text.splitlines() if line.startswith("| goals")] == [
        "| goals | tmrl | 0.80 | 0.60 to 1.00 | 1.00, 0.60 | 1 of 2 seeds | 1.0 |",
        "| goals | tmrl | 30.00 | 30.00 to 30.00 | 30.00, 30.00 | 10 | 1.0 |",
    ]
    assert (study.out / "found" / "table-env_steps.md").read_text() in text
    assert (study.out / "found" / "curves-env_steps.png").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("module: finetune.tmrl", "module: os"),
        ("seeds: [0, 1]", "seeds: []"),
        ("title: Two seeds", "titel: Two seeds"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(FILE.format(out=tmp_path).replace(change, message), "utf-8")
    with pytest.raises(ValueError, match=r"study\.yaml: (methods\.tmrl\.module|seeds|title)"):
        read_study(file)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_a_study_that_ships_asks_its_methods_for_what_they_take(path: Path) -> None:
    for method in read_study(path).methods.values():
        train = get_command(importlib.import_module(f"{method.module}.__main__").app).commands["train"]
        known = {option.removeprefix("--") for parameter in train.params for option in parameter.opts}
        assert set(method.options) <= known, method.title
    told = "".join(line for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    assert f"python -m finetune.study run {path.relative_to(path.parents[3])}" in told
