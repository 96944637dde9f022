"""How well a reward model judges rollouts of known quality, with a clock beside it that looks at nothing."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from finetune.relabel.config import Plan
from finetune.rewards import plots
from finetune.rewards.examine import Answers, examine
from finetune.rewards.figures import Row, confusion_matrix, make_row
from finetune.rewards.journal import Journal
from finetune.rewards.judges import Clock
from finetune.rewards.pairs import known_pairs
from robot_client.robots.metaworld_more_tasks import HELD_OUT, TRAINED
from robot_client.robots.metaworld_tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from finetune.relabel.labeller import ModelFacts
    from finetune.rewards.judges import Judge
    from finetune.rewards.material import Material

DEFAULT_GROUPS = {"trained": (*TASKS, *TRAINED), "held_out": tuple(HELD_OUT)}
"""Groups of MetaWorld's tasks, as the embedded models are trained on them."""
CLOCK = "clock"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How to evaluate.

    Attributes:
        groups: name to tasks; None for trained and held-out MetaWorld tasks where the material has them.
        frame_policy: frames shown; None for each judge's own.
        every: a value for every n-th frame only, and the last.
        seed: of the pairs and of the intervals.
    """

    groups: Mapping[str, tuple[str, ...]] | None = None
    frame_policy: str | None = None
    every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.seed < 0:
            raise RoboserveError("invalid_request", f"every: {self.every}, at least 1; seed: {self.seed}, at least 0")


@dataclass(frozen=True, kw_only=True)
class JudgeResult:
    """One judge's figures: a row for each group and for all tasks, then one for each task."""

    answers: Answers
    groups: tuple[Row, ...]
    tasks: tuple[Row, ...]

    @property
    def overall(self) -> Row:
        """The row of all tasks."""
        return self.groups[-1]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation's outcome.

    Attributes:
        judges: name to result, in the order in which they were asked, the clock last.
        drift: where two models were asked, how far the second's values lie from the first's.
    """

    config: EvaluateConfig
    material: Material
    judges: Mapping[str, JudgeResult]
    drift: Mapping[str, float] | None


def evaluate(
    judges: Sequence[Callable[[], Judge]],
    material: Material,
    config: EvaluateConfig,
    *,
    journals: Path | None = None,
    report: Callable[[str, str, int, int], None] = lambda *_: None,
) -> Evaluation:
    """Put every judge and the clock through the same questions.

    Args:
        judges: what opens each; one is closed before the next is opened. They go by their models' ids.
        journals: folder that keeps answers until all are there: killed, the same call goes on where it was.
        report: told (judge, stage, done, total).

    Raises:
        RoboserveError: a group names a task that is not there, or as `examine`.
    """
    groups = _groups(config.groups, material.tasks)
    pairs = known_pairs(material, seed=config.seed)
    found: dict[str, JudgeResult] = {}
    kept: list[Journal] = []
    for opened in (*judges, Clock):
        with closing(opened()) as judge:
            name = _free_name(judge.facts, found)
            policy = config.frame_policy or judge.facts.frame_policy
            plan = Plan(mode="prefix", frame_policy=policy, every=config.every)
            kept.append(Journal(journals, [judge.facts.to_map(), asdict(plan), config.seed, material.to_map()]))
            answers = examine(
                judge,
                material,
                pairs,
                plan,
                journal=kept[-1],
                report=lambda stage, done, total, name=name: report(name, stage, done, total),  # type: ignore[misc]
            )
        rows = [make_row(group, tasks, material, answers, seed=config.seed) for group, tasks in groups.items()]
        single = [make_row(task, (task,), material, answers, seed=config.seed) for task in material.tasks]
        found[name] = JudgeResult(answers=answers, groups=tuple(rows), tasks=tuple(single))
    models = [result for name, result in found.items() if name != CLOCK]
    drift = _drift(models[0].answers, models[1].answers) if len(models) > 1 else None
    for journal in kept:
        journal.remove()
    return Evaluation(config=config, material=material, judges=found, drift=drift)


def _free_name(facts: ModelFacts, taken: Mapping[str, JudgeResult]) -> str:
    names = (facts.id, f"{facts.id} {facts.dtype}", f"{facts.id} {facts.revision} ({len(taken) + 1})")
    return next(name for name in names if name not in taken)


def _groups(given: Mapping[str, tuple[str, ...]] | None, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    if given is None:
        for name, members in DEFAULT_GROUPS.items():
            present = tuple(task for task in tasks if task in members)
            if present:
                found[name] = present
    else:
        for name, members in given.items():
            unknown = [task for task in members if task not in tasks]
            if unknown or not members or name == ALL:
                text = f"group {name}: {', '.join(unknown) or 'its name or its tasks'}; the data's tasks are "
                raise RoboserveError("invalid_request", text + ", ".join(tasks))
            found[name] = members
    return {**found, ALL: tuple(tasks)}


def _drift(first: Answers, second: Answers) -> dict[str, float]:
    """Return how far two judges' values of the same rollouts lie apart: progress at every frame, and at the last."""
    apart = [
        np.abs(a.progress - b.progress)
        for a, b in zip(first.curves, second.curves, strict=True)
        if np.array_equal(a.frames, b.frames)
    ]
    values = np.concatenate(apart)
    found = {"progress_mean": float(values.mean()), "progress_max": float(values.max())}
    found["final_mean"] = float(np.mean([each[-1] for each in apart]))
    if first.pairs and second.pairs:
        both = [
            (a.better_first - b.better_first, a.better_second - b.better_second)
            for a, b in zip(first.pairs, second.pairs, strict=True)
        ]
        found["preference_mean"] = float(np.abs(both).mean())
    return found


def to_map(evaluation: Evaluation) -> dict[str, Any]:
    """Return all figures as plain values."""
    config, material = evaluation.config, evaluation.material
    return {
        "data": {
            "tasks": {task: len(material.of(task)) for task in material.tasks},
            "rollouts": len(material.rollouts),
            "datasets": sorted({rollout.dataset for rollout in material.rollouts}),
        },
        "config": {"frame_policy": config.frame_policy, "every": config.every, "seed": config.seed},
        "judges": {
            name: {
                "model": result.answers.facts.to_map(),
                "frame_policy": result.answers.plan.frame_policy,
                "groups": [asdict(row) for row in result.groups],
                "tasks": [asdict(row) for row in result.tasks],
                "confusion": _listed(confusion_matrix(material.tasks, material, result.answers)),
            }
            for name, result in evaluation.judges.items()
        },
        "drift": evaluation.drift,
    }


def write(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write `evaluation.json`, `rollouts.jsonl` (every value) and the plots; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "evaluation.json", out / "rollouts.jsonl"]
    files[0].write_text(json.dumps(to_map(evaluation), indent=2) + "\n", "utf-8")
    files[1].write_text("".join(json.dumps(line) + "\n" for line in _lines(evaluation)), "utf-8")
    for name, figure in _plots(evaluation).items():
        files.append(out / f"{name}.png")
        figure.savefig(files[-1], dpi=150, facecolor="white")
    return files


def _lines(evaluation: Evaluation) -> list[dict[str, Any]]:
    found = []
    for index, rollout in enumerate(evaluation.material.rollouts):
        line: dict[str, Any] = {
            "dataset": rollout.dataset,
            "episode": rollout.episode.index,
            "task": rollout.task,
            "instruction": rollout.instruction,
            "quality": rollout.quality,
            "kind": rollout.kind,
            "frames": rollout.length,
        }
        for name, result in evaluation.judges.items():
            curve = result.answers.curves[index]
            line[name] = {"frames": curve.frames.tolist(), "progress": _rounded(curve.progress)}
            if curve.success is not None:
                line[name]["success"] = _rounded(curve.success)
        found.append(line)
    return found


def _plots(evaluation: Evaluation) -> dict[str, Any]:
    material = evaluation.material
    first = next(iter(evaluation.judges.values()))
    found = {"curves": plots.curves_by_kind(_panels(first, material))}
    order = tuple(dict.fromkeys(task for row in first.groups for task in row.tasks))
    matrix = confusion_matrix(order, material, first.answers)
    if matrix is not None:
        found["confusion"] = plots.confusion_map(matrix, order)
    if first.answers.pairs:
        bars = {name: result.overall for name, result in evaluation.judges.items()}
        found["preference"] = plots.preference_bars(bars)
    return found


def _panels(result: JudgeResult, material: Material) -> dict[str, dict[str, list[Any]]]:
    rows = result.groups[:-1] or result.groups
    panels: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        panel: dict[str, list[Any]] = {}
        for rollout, curve in zip(material.rollouts, result.answers.curves, strict=True):
            if rollout.task in row.tasks:
                shares = curve.frames / max(1, rollout.length - 1)
                panel.setdefault(rollout.kind or rollout.quality, []).append((shares, curve.progress))
        panels[row.name] = panel
    return panels


def _listed(matrix: Any) -> list[list[float]] | None:
    return None if matrix is None else [_rounded(row) for row in matrix]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
