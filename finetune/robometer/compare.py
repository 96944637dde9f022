"""The paper's claim in miniature: the same data and steps, with and without preference (Robometer, arXiv 2603.02115).

Runs differ in the preference term of the loss and in nothing else: they see the same pairs in the same order. What is
asked of each is whether it ranks rollouts of mixed quality that it never saw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.rewards.evaluate import CLOCK, EvaluateConfig, Evaluation, evaluate, to_map
from finetune.rewards.judges import open_judge
from finetune.robometer.train import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from finetune.rewards.material import Material
    from finetune.robometer.recipe import Recipe

ARMS = {"both": True, "progress": False}
"""Arm to whether preference is taught beside progress and success."""
FIGURES = ("kendall", "pairs", "gap_failure", "gap_suboptimal", "voc_pearson", "confusion")
_FEW_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What is compared.

    Attributes:
        out: folder that gets a run folder for each arm and seed, and the table.
        seeds: runs of each arm; `steps`, `batch`: of each run.
    """

    out: Path
    seeds: int = 3
    steps: int = 300
    batch: int = 16
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told how far it is: `training` (run, step), `judging` (run, stage, done, total)."""

    training: Callable[[str, int], None] = lambda _run, _step: None
    judging: Callable[[str, str, int, int], None] = lambda _run, _stage, _done, _total: None


def compare(recipe: Recipe, material: Material, config: CompareConfig, watch: Watch) -> dict[str, Any]:
    """Train and judge every arm and seed; what is done already is kept.

    Returns:
        the content of `comparison.json`: group to arm to figure to the value of every seed.
    """
    evaluations = {run: _judged(recipe, material, config, run, watch) for run in _runs(config)}
    groups = next(iter(evaluations.values()))["judges"][CLOCK]["groups"]
    table: dict[str, Any] = {}
    for at, group in enumerate(groups):
        arms = {arm: _values([evaluations[f"{arm}-{seed}"] for seed in range(config.seeds)], at) for arm in ARMS}
        clock = {name: found["value"] for name, found in group["figures"].items() if name in FIGURES}
        table[group["name"]] = {**arms, CLOCK: {name: [value] for name, value in clock.items()}}
    result = {"steps": config.steps, "batch": config.batch, "seeds": config.seeds, "groups": table}
    (config.out / "comparison.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (config.out / "comparison.md").write_text(markdown(result), "utf-8")
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table: a row for each group, figure and arm, the mean of the seeds and each of them."""
    lines = ["| tasks | figure | " + " | ".join((*ARMS, CLOCK)) + " |", "|---|---|" + "---|" * (len(ARMS) + 1)]
    for group, arms in result["groups"].items():
        for figure in FIGURES:
            cells = [_cell(arms[arm].get(figure, [])) for arm in (*ARMS, CLOCK)]
            lines.append(f"| {group} | {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _runs(config: CompareConfig) -> Iterator[str]:
    """Give the runs seed by seed, so that what is there after a while can be compared."""
    for seed in range(config.seeds):
        for arm in ARMS:
            yield f"{arm}-{seed}"


def _judged(recipe: Recipe, material: Material, config: CompareConfig, run: str, watch: Watch) -> dict[str, Any]:
    folder = config.out / run
    kept = folder / "evaluation.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return found
    arm, _, seed = run.rpartition("-")
    training = TrainConfig(
        out=folder,
        steps=config.steps,
        batch=config.batch,
        threads=config.threads,
        seed=int(seed),
        preference=ARMS[arm],
    )
    checkpoint = recipe.run(
        training, lambda step, _losses: watch.training(run, step), model_id=f"robometer-{run}", revision="1"
    )
    judged: Evaluation = evaluate(
        [lambda: open_judge(str(checkpoint))],
        material,
        EvaluateConfig(every=_FEW_FRAMES),
        journals=folder,
        report=lambda _judge, stage, done, total: watch.judging(run, stage, done, total),
    )
    values = to_map(judged)
    kept.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return values


def _values(evaluations: Sequence[Mapping[str, Any]], group: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for evaluation in evaluations:
        model = next(judge for name, judge in evaluation["judges"].items() if name != CLOCK)
        for name, estimate in model["groups"][group]["figures"].items():
            if name in FIGURES:
                found.setdefault(name, []).append(estimate["value"])
    return found


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"**{np.mean(values):.2f}** ({', '.join(f'{value:.2f}' for value in values)})"
