"""Paths judged: what is asked, what comes of it, and what whoever looks at nothing would draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.rewards.collect import HELD_OUT_TASKS, TRAINING_TASKS
from finetune.vlm.collect import ALL, PLAIN, VARIATIONS
from finetune.vlm.words import held_out, instructions
from models.hamster.answer import parse_answer
from models.hamster.metrics import frechet, gripper_changes, parse_rate, point_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from finetune.vlm.answering import Answering
    from finetune.vlm.material import FrameInfo, Frames
    from models.hamster.path import Path as GripperPath

_BOOTSTRAPS = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is asked.

    Attributes:
        data: frames, as `collect` writes them.
        trained, held_out: tasks that the checkpoint was taught, and those that no model is.
        frames: most frames of a task in one look that paths are asked for.
        pairs: pairs of each task in each look, of one scene and of two.
        seed: of the choice of words, frames and pairs.
    """

    data: Path
    trained: tuple[str, ...] = TRAINING_TASKS
    held_out: tuple[str, ...] = HELD_OUT_TASKS
    frames: int = 20
    pairs: int = 20
    seed: int = 0


def chosen(frames: Frames, config: EvaluateConfig, looks: str) -> list[int]:
    """Return the frames that have a way in some looks, at most `config.frames` of a task."""
    random = np.random.default_rng([config.seed, VARIATIONS.index(looks)])
    found: list[int] = []
    for task in frames.tasks:
        rows = [
            index
            for index, info in enumerate(frames.infos)
            if info.task == task and info.looks == looks and info.path is not None
        ]
        found += sorted(random.permutation(rows)[: config.frames].tolist())
    return found


@dataclass(frozen=True, kw_only=True)
class PathRow:
    """One question for a path and what came of it; errors are None where the free answer is no path."""

    task: str
    looks: str
    words: str
    start: bool
    free: str
    formed: str
    error: float
    frechet: float
    changes: tuple[int, int, int]


def path_rows(
    asked: Answering, frames: Frames, config: EvaluateConfig, adapter: str | None, report: Callable[[int], None]
) -> list[PathRow]:
    """Ask for paths in every look, in taught words and, in plain and wholly varied looks, in new ones.

    Args:
        adapter: who answers; None is the base, which is asked in taught words alone.
        report: told how many more questions are answered.
    """
    rows: list[PathRow] = []
    for looks in VARIATIONS:
        index = chosen(frames, config, looks)
        for words in ("taught", "new") if looks in (PLAIN, ALL) and adapter else ("taught",):
            random = np.random.default_rng([config.seed, 5])
            quests = [_quest(frames.infos[row].task, words, random) for row in index]
            images = [frames.image(row) for row in index]
            free = asked.paths(images, quests, adapter=adapter, constrain=False, report=report)
            formed = asked.paths(images, quests, adapter=adapter, constrain=True)
            rows += [
                _path_row(frames.infos[row], looks, words, answers)
                for row, *answers in zip(index, free, formed, strict=True)
            ]
    return rows


def _quest(task: str, words: str, random: np.random.Generator) -> str:
    taught = instructions(task)
    return held_out(task)[0] if words == "new" else taught[int(random.integers(len(taught)))]


def _path_row(info: FrameInfo, looks: str, words: str, answers: Sequence[str]) -> PathRow:
    free, formed = answers
    if info.path is None or info.way is None:
        raise RuntimeError("frames: one without a path was asked about")
    predicted = parse_answer(formed).path
    changes = gripper_changes(predicted, info.path)
    return PathRow(
        task=info.task,
        looks=looks,
        words=words,
        start=info.progress < 0.1,
        free=free,
        formed=formed,
        error=point_error(predicted, info.way),
        frechet=frechet(predicted, info.way),
        changes=(changes.matched, changes.predicted, changes.true),
    )


def summary(rows: Sequence[PathRow]) -> dict[str, Any]:
    """Return the figures of every look, and of all single cells together."""
    groups: dict[str, list[PathRow]] = {}
    for row in rows:
        groups.setdefault(row.looks if row.words == "taught" else f"{row.looks}, new words", []).append(row)
        if row.words == "taught" and row.looks not in (PLAIN, ALL):
            groups.setdefault("one cell", []).append(row)
    return {name: _figures(part) for name, part in groups.items()}


def _figures(rows: Sequence[PathRow]) -> dict[str, Any]:
    free = parse_rate([row.free for row in rows])
    formed = parse_rate([row.formed for row in rows])
    matched, predicted, true = (sum(row.changes[place] for row in rows) for place in range(3))
    starts = [row.error for row in rows if row.start]
    errors = np.array([row.error for row in rows])
    low, high = _interval([row.task for row in rows], errors)
    return {
        "questions": len(rows),
        "parsed_free": free.rate,
        "clean_free": free.clean / free.total,
        "parsed_formed": formed.rate,
        "same_answer": float(np.mean([row.free == row.formed for row in rows])),
        "point_error": float(errors.mean()),
        "interval": [low, high],
        "median": float(np.median(errors)),
        "below_0.05": float((errors < 0.05).mean()),
        "from_start": float(np.mean(starts)) if starts else math.nan,
        "frechet": float(np.mean([row.frechet for row in rows])),
        "change_f1": 2 * matched / (predicted + true) if predicted + true else 1.0,
    }


def _interval(tasks: Sequence[str], values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over questions, tasks drawn with replacement."""
    parts = [values[[name == task for name in tasks]] for task in dict.fromkeys(tasks)]
    sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    drawn = np.random.default_rng(0).integers(len(parts), size=(_BOOTSTRAPS, len(parts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def by_task(rows: Sequence[PathRow]) -> dict[str, dict[str, float]]:
    """Return each task's mean point error in plain and in wholly varied looks."""
    found: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task and row.words == "taught"]
        found[task] = {
            looks: float(np.mean([row.error for row in own if row.looks == looks])) for looks in (PLAIN, ALL)
        }
    return found


def mean_paths(frames: Frames) -> dict[str, GripperPath]:
    """Return each task's mean way, which whoever knows the task and sees nothing would draw."""
    found: dict[str, list[GripperPath]] = {}
    for info in frames.infos:
        if info.way is not None and info.progress < 0.1:
            found.setdefault(info.task, []).append(info.way.resampled(50))
    return {
        task: type(ways[0])(
            points=np.mean([way.points for way in ways], axis=0),
            gripper_open=np.mean([way.gripper_open for way in ways], axis=0) > 0.5,
        )
        for task, ways in found.items()
    }


def blind(frames: Frames, means: dict[str, GripperPath], config: EvaluateConfig) -> dict[str, Any]:
    """Return the mean point error of each task's mean way in every look, and from scenes' starts alone."""
    errors = {}
    for looks in VARIATIONS:
        infos = [frames.infos[row] for row in chosen(frames, config, looks)]
        errors[looks] = float(
            np.mean([point_error(means[info.task], info.way) for info in infos if info.way is not None])
        )
        starts = [info for info in infos if info.progress < 0.1 and info.way is not None]
        errors[f"{looks}, from start"] = float(
            np.mean([point_error(means[info.task], info.way) for info in starts if info.way is not None])
        )
    return errors
