"""Answers on disk as they come, so that an evaluation that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Journal:
    """Answers by stage and number, one JSON line each.

    Args:
        folder: where it lies; None keeps nothing.
        key: plain values that pin the questions and who is asked: another key is another journal.
    """

    def __init__(self, folder: Path | None, key: Any) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._path = None if folder is None else folder / f"answers-{digest[:16]}.jsonl"
        self._known: dict[tuple[str, int], Any] = {}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._read(self._path)

    def get(self, stage: str, number: int) -> Any | None:
        """Return an answer as it was put, if it is known."""
        return self._known.get((stage, number))

    def put(self, stage: str, number: int, answer: Any) -> None:
        """Write an answer."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as sink:
                sink.write(json.dumps([stage, number, answer]) + "\n")

    def remove(self) -> None:
        """Forget everything: the evaluation is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        """Read what is there; a last line that a kill cut short is dropped."""
        text = path.read_text("utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            fresh = path.with_suffix(".new")
            fresh.write_text(whole, "utf-8")
            fresh.replace(path)
        for line in whole.splitlines():
            stage, number, answer = json.loads(line)
            self._known[stage, number] = answer
