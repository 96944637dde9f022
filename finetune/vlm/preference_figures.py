"""Preferences judged: pairs of frames whose true progress is known, asked in both orders."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.vlm.collect import ALL, PLAIN, VARIATIONS
from finetune.vlm.lessons import label_of
from finetune.vlm.words import goals, held_out
from models.preference.combine import label_of as decided
from models.preference.contract import TIE, Pair
from models.preference.metrics import Labelled, calibration
from models.preference.prompt import chances_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from finetune.vlm.answering import Answering
    from finetune.vlm.material import Frames
    from finetune.vlm.path_figures import EvaluateConfig


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


def preferences(
    asked: Answering, frames: Frames, config: EvaluateConfig, adapter: str | None, report: Callable[[int], None]
) -> dict[str, Any]:
    """Ask about pairs of one scene and of two, in plain and in wholly varied looks, in taught and in new words.

    Args:
        adapter: who answers; None is the base, which is asked in taught words alone.
        report: told how many more questions are answered.
    """
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
