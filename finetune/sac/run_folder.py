"""The folder of a run: settings, evaluations as JSON lines, the newest checkpoint."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.common.run import claim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RunFolder:
    """A run on disk.

    Args:
        path: made when absent.
        identity: what makes the run what it is, as JSON has it.

    Raises:
        ValueError: the folder belongs to a run with another identity, whose differing settings are named; or another
            process is at it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = claim(path)
        config = path / "config.json"
        if config.exists():
            kept = json.loads(config.read_text("utf-8"))
            differing = sorted(name for name in {*identity, *kept} if identity.get(name) != kept.get(name))
            if differing:
                text = f"out: {path.name} holds a run with other {', '.join(differing)}; choose another folder"
                raise ValueError(text)
        config.write_text(json.dumps(identity, indent=2) + "\n", "utf-8")

    @property
    def _evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    def restore(self) -> Path | None:
        """Return the newest checkpoint, if there is one, and drop the evaluations after it."""
        pointer = self.path / "checkpoint.json"
        step = json.loads(pointer.read_text("utf-8"))["step"] if pointer.exists() else 0
        kept = [row for row in evaluations(self.path) if row["step"] <= step]
        self._evaluations.write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
        return self.path / f"checkpoint-{step}" if step else None

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """Give a folder to write to, and make it the newest checkpoint; a kill leaves the old one or the new one."""
        place = self.path / f"checkpoint-{step}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place
        new = self.path / "checkpoint.new"
        new.write_text(json.dumps({"step": step}), "utf-8")
        new.replace(self.path / "checkpoint.json")
        for other in self.path.glob("checkpoint-*"):
            if other != place:
                shutil.rmtree(other)

    def log(self, row: dict[str, Any]) -> None:
        """Add an evaluation."""
        with self._evaluations.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(row) + "\n")


def evaluations(path: Path) -> list[dict[str, Any]]:
    """Return a run folder's evaluations.

    Each: `step` (decisions made), `success` (0 to 1, of `episodes` fresh scenes), `reward` (mean of what was paid for a
    decision since the last evaluation), `seconds` (since the run was started, or started again).
    """
    file = path / "evaluations.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
