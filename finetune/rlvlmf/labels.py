"""Labels on disk: a run that is repeated asks for none of them again, and needs no labeller then.

One JSON line a label, after a first line that says who gave them and how they were asked. Keys are of the pictures as
they were sent.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.preference.alike import side_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clients.preference_messages import LabelPair
    from finetune.preference.judges import AskOptions, PairJudge


@dataclass(kw_only=True)
class LabelCounts:
    """Pairs by where their label came from, and those that came to nothing."""

    asked: int = 0
    replayed: int = 0
    ties: int = 0


class LabelBook:
    """Labels that were given, and who is asked for others.

    Args:
        path: the file; made when absent.
        judge: who is asked; None replays only.
        options: how.

    Raises:
        ValueError: the file holds labels of another model, of another wording, or asked otherwise.
    """

    def __init__(self, path: Path, judge: PairJudge | None, options: AskOptions) -> None:
        self._path, self._judge, self._options = path, judge, options
        self._known: dict[str, int] = {}
        self.counts = LabelCounts()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()
        elif judge is None:
            raise ValueError(f"labels: {path.name} is not there, and nobody is to be asked")
        else:
            self._append([{"labels": self._facts(judge)}])

    def label(self, pairs: Sequence[LabelPair]) -> list[int]:
        """Return a label for each pair, asking for those that are new.

        Raises:
            RoboserveError: the labeller's refusal; `not_found` where only known labels may be used, and one is not.
        """
        keys = [pair_key(pair) for pair in pairs]
        new = [index for index, key in enumerate(keys) if key not in self._known]
        if new and self._judge is None:
            raise RoboserveError("not_found", f"labels: {len(new)} of {len(pairs)} pairs are not in {self._path.name}")
        self.counts.replayed += len(keys) - len(new)
        step = self._judge.batch if self._judge is not None else 1
        for start in range(0, len(new), step):
            self._ask([pairs[index] for index in new[start : start + step]])
        found = [self._known[key] for key in keys]
        self.counts.ties += found.count(-1)
        return found

    def _ask(self, pairs: Sequence[LabelPair]) -> None:
        if self._judge is None:
            return
        rows: list[dict[str, Any]] = []
        for pair, label in zip(pairs, self._judge.label(pairs, self._options), strict=True):
            key = pair_key(pair)
            self._known[key] = label.label
            row = {"key": key, "label": label.label, "chances": list(label.chances), "sides": list(label.keys)}
            rows.append(row | ({"replies": [asdict(reply) for reply in label.replies]} if label.replies else {}))
        self._append(rows)
        self.counts.asked += len(rows)

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as sink:
            sink.write("".join(json.dumps(row) + "\n" for row in rows))

    def _facts(self, judge: PairJudge) -> dict[str, Any]:
        return {"model": asdict(judge.model), "options": asdict(self._options)}

    def _read(self) -> None:
        text = self._path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a run that was killed may have left half a line
        if whole != text:
            self._path.write_text(whole, "utf-8")
        try:
            head, *rows = map(json.loads, whole.splitlines())
            self.facts = head["labels"]
            self._known = {row["key"]: int(row["label"]) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"labels: {self._path.name} is damaged") from error
        pinned = ("revision", "content_hash", "prompt_version")
        if self.facts["options"] != asdict(self._options):
            raise ValueError(f"labels: {self._path.name} holds labels that were asked otherwise")
        if self._judge is not None:
            model = asdict(self._judge.model)
            differing = [name for name in pinned if model[name] != self.facts["model"].get(name)]
            if differing:
                raise ValueError(f"labels: {self._path.name} is of a model with another {', '.join(differing)}")


def pair_key(pair: LabelPair) -> str:
    """Return what a label is filed under: both pictures, the goal, and the true values where there are any."""
    digest = hashlib.blake2b(digest_size=16)
    for side in (pair.first, pair.second):
        if not isinstance(side, np.ndarray):
            raise TypeError("pair: must be of two pictures as arrays")
        digest.update(side_key((side,)))
    digest.update(repr((pair.goal, pair.values)).encode())
    return digest.hexdigest()
