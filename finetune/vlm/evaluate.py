"""How well a checkpoint draws paths and tells which frame is nearer a goal, on scenes and looks that it never saw."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.rewards.collect import HELD_OUT_TASKS, TRAINING_TASKS
from finetune.vlm.answering import Answering
from finetune.vlm.collect import ALL, PLAIN, VARIATIONS
from finetune.vlm.lessons import label_of
from finetune.vlm.material import load_frames
from finetune.vlm.words import goals, held_out, instructions
from models.hamster.answer import parse_answer
from models.hamster.metrics import frechet, gripper_changes, parse_rate, point_error
from models.preference.contract import TIE, Pair
from models.preference.metrics import Labelled, calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from finetune.vlm.material import FrameInfo, Frames
    from models.hamster.path import Path as GripperPath

_BOOTSTRAPS = 1000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is asked.

    Attributes:
        data: frames, as `collect` writes them; `training`: where those that were trained on lie.
        frames: most frames of a task in one look that paths are asked for.
        pairs: pairs of each task in each look, of one scene and of two.
        seed: of the choice of words, frames and pairs.
    """

    data: Path
    frames: int = 20
    pairs: int = 20
    seed: int = 0


def evaluate(
    folder: Path, config: EvaluateConfig, *, report: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Ask a checkpoint, and return what came of it, ready for JSON.

    Args:
        report: told (stage, how many more questions are answered).
    """
    asked = Answering(folder)

    def tell(stage: str) -> Callable[[int], None]:
        return lambda count: report(stage, count) if report is not None else None

    found: dict[str, Any] = {"content_hash": asked.content_hash, "paths": {}, "preferences": {}, "tasks": {}}
    for group, tasks in (("trained", TRAINING_TASKS), ("held_out", HELD_OUT_TASKS)):
        frames = load_frames(config.data, tasks, "validation")
        adapters = ("path", None) if group == "trained" else ("path",)
        for adapter in adapters:
            name = f"{group}/{adapter or 'base'}"
            rows = _path_rows(asked, frames, config, adapter, tell(f"paths, {name}"))
            found["paths"][name] = _path_summary(rows)
            if adapter:
                found["tasks"] |= _by_task(rows)
        for adapter in ("preference", None) if group == "trained" else ("preference",):
            name = f"{group}/{adapter or 'base'}"
            found["preferences"][name] = _preferences(asked, frames, config, adapter, tell(f"preferences, {name}"))
    means = mean_paths(load_frames(config.data, TRAINING_TASKS, "train"))
    found["paths"]["trained/blind"] = _blind(load_frames(config.data, TRAINING_TASKS, "validation"), means, config)
    return found


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


def _path_rows(
    asked: Answering, frames: Frames, config: EvaluateConfig, adapter: str | None, report: Callable[[int], None]
) -> list[PathRow]:
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


def _path_summary(rows: Sequence[PathRow]) -> dict[str, Any]:
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


def _interval(tasks: Sequence[str], values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over questions, tasks drawn with replacement."""
    parts = [values[[name == task for name in tasks]] for task in dict.fromkeys(tasks)]
    sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    drawn = np.random.default_rng(0).integers(len(parts), size=(_BOOTSTRAPS, len(parts)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return float(low), float(high)


def _by_task(rows: Sequence[PathRow]) -> dict[str, dict[str, float]]:
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


def _blind(frames: Frames, means: dict[str, GripperPath], config: EvaluateConfig) -> dict[str, Any]:
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


def pairs_of(frames: Frames, config: EvaluateConfig, looks: str, *, one_scene: bool) -> list[tuple[int, int]]:
    """Draw pairs of frames of one task, of one scene or of two."""
    random = np.random.default_rng([config.seed, 7, VARIATIONS.index(looks), one_scene])
    found: list[tuple[int, int]] = []
    for task in frames.tasks:
        rows = [index for index, info in enumerate(frames.infos) if info.task == task and info.looks == looks]
        possible = [
            (one, other)
            for one in rows
            for other in rows
            if one != other and (frames.infos[one].scene == frames.infos[other].scene) == one_scene
        ]
        found += [possible[int(place)] for place in random.permutation(len(possible))[: config.pairs]]
    return found


def _preferences(
    asked: Answering, frames: Frames, config: EvaluateConfig, adapter: str | None, report: Callable[[int], None]
) -> dict[str, Any]:
    found = {}
    for looks in (PLAIN, ALL):
        for one_scene in (True, False):
            drawn = pairs_of(frames, config, looks, one_scene=one_scene)
            scenes = "one scene" if one_scene else "two scenes"
            words = ("taught", "new") if adapter else ("taught",)
            for said in words:
                name = f"{looks}, {scenes}" + (", new words" if said == "new" else "")
                found[name] = _judged(asked, frames, drawn, config, adapter, said, report)
    return found


def _judged(
    asked: Answering,
    frames: Frames,
    drawn: Sequence[tuple[int, int]],
    config: EvaluateConfig,
    adapter: str | None,
    words: str,
    report: Callable[[int], None],
) -> dict[str, Any]:
    from models.preference.combine import label_of as decided
    from models.preference.prompt import chances_of

    random = np.random.default_rng([config.seed, 9])
    pairs = []
    for one, other in drawn:
        task = frames.infos[one].task
        taught = goals(task)
        goal = held_out(task)[1] if words == "new" else taught[int(random.integers(len(taught)))]
        pairs.append(Pair(goal=goal, first=(frames.image(one),), second=(frames.image(other),)))
    given = asked.labels(pairs, adapter=adapter, report=report)
    swapped = asked.labels([pair.swapped for pair in pairs], adapter=adapter)
    judged, masses, ties = [], [], []
    for (one, other), *both in zip(drawn, given, swapped, strict=True):
        read = [chances_of(logprobs) for logprobs in both]
        if read[0] is None or read[1] is None:
            raise RuntimeError("labels: a checkpoint that is here tells all of them")
        (chances, mass), (back, _) = read[0], read[1]
        values = (frames.infos[one].progress, frames.infos[other].progress)
        label = decided(chances, 0.0)
        masses.append(mass)
        ties.append((label_of(*values) == TIE, label == TIE))
        judged.append(
            Labelled(
                first_value=values[0],
                second_value=values[1],
                label=label,
                chances=chances,
                towards_first_shown=0.5 * (chances[0] - chances[1] + back[0] - back[1]),
                order_gap=0.5 * (abs(chances[0] - back[1]) + abs(chances[1] - back[0]) + abs(chances[2] - back[2])),
            )
        )
    apart = [item for item, (same, _) in zip(judged, ties, strict=True) if not same]
    figures = asdict(calibration(apart))
    strict = [item.label == label_of(item.first_value, item.second_value) for item in apart]
    alike = [said for same, said in ties if same]
    return figures | {
        "strict": float(np.mean(strict)),
        "alike": len(alike),
        "alike_tie_rate": float(np.mean(alike)) if alike else math.nan,
        "least_label_mass": float(min(masses)),
    }


def write(found: dict[str, Any], path: Path) -> Path:
    """Write what was found; a figure that nothing was counted for is null."""
    text = json.dumps(_plain(found), indent=2, allow_nan=False)
    path.write_text(text + "\n", "utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
