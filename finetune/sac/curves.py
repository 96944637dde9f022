"""Success over steps of several runs: gathered by reward, written down, drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from finetune.sac.run_folder import evaluations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_INK = "#4a5260"
_COLOURS = {"served": "#2a9d8f", "sparse": "#d1495b", "env": "#b0b7c3"}
_WORDS = {"served": "served reward", "sparse": "sparse success", "env": "simulator's own dense reward"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Runs that differ in nothing but their seed.

    Attributes:
        task: name of the task.
        reward: "served", "sparse" or "env".
        settings: the rest of their settings, with the reward model's identity where one was asked.
        steps: control steps of the simulator at which they were evaluated, (n,).
        success: share of fresh scenes solved, 0 to 1, of each seed: (n,).
    """

    task: str
    reward: str
    settings: Mapping[str, Any]
    steps: tuple[int, ...]
    success: Mapping[int, tuple[float, ...]]

    @property
    def values(self) -> Any:
        """Success as an array, (seeds, n)."""
        return np.array(list(self.success.values()))

    @property
    def areas(self) -> Any:
        """Each seed's mean success over its run, (seeds,)."""
        return self.values.mean(axis=1)


def gather(runs: Sequence[Path]) -> list[Curve]:
    """Read run folders and group them by reward.

    Raises:
        ValueError: a folder without evaluations, two runs of one reward with other settings or of one seed.
    """
    groups: dict[str, list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
    for path in runs:
        rows = evaluations(path)
        if not rows:
            raise ValueError(f"runs: {path.name} holds no evaluations")
        config = json.loads((path / "config.json").read_text("utf-8"))
        groups.setdefault(config["reward"], []).append((config, rows))
    return [_curve(reward, group) for reward, group in sorted(groups.items())]


def _curve(reward: str, group: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Curve:
    settings = [{name: value for name, value in config.items() if name != "seed"} for config, _ in group]
    seeds = [int(config["seed"]) for config, _ in group]
    if any(each != settings[0] for each in settings) or len(set(seeds)) != len(seeds):
        raise ValueError(f"runs: those with the reward {reward} must differ in their seed, and in nothing else")
    count = min(len(rows) for _, rows in group)
    rest = {name: value for name, value in settings[0].items() if name not in ("task", "reward")}
    return Curve(
        task=str(settings[0]["task"]),
        reward=reward,
        settings=rest,
        steps=tuple(int(row["step"]) * int(rest["repeat"]) for row in group[0][1][:count]),
        success={
            seed: tuple(float(row["success"]) for row in rows[:count])
            for seed, (_, rows) in sorted(zip(seeds, group, strict=True))
        },
    )


def save(curves: Sequence[Curve], out: Path) -> Path:
    """Write curves.json: for each reward its settings, steps and success by seed."""
    out.mkdir(parents=True, exist_ok=True)
    told = [
        {
            "task": curve.task,
            "reward": curve.reward,
            "control_steps": list(curve.steps),
            "success": {str(seed): list(values) for seed, values in curve.success.items()},
            "settings": dict(curve.settings),
        }
        for curve in curves
    ]
    path = out / "curves.json"
    path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return path


def table(curves: Sequence[Curve]) -> str:
    """Return a Markdown table: success in the last quarter of the evaluations and over all, by seed."""
    lines = ["| reward | seeds | success, last quarter | by seed | over the run |", "| --- | --- | --- | --- | --- |"]
    for curve in curves:
        last = curve.values[:, -max(1, len(curve.steps) // 4) :].mean(axis=1)
        each = ", ".join(f"{value:.2f}" for value in last)
        words = _WORDS.get(curve.reward, curve.reward)
        lines.append(f"| {words} | {len(last)} | {last.mean():.2f} | {each} | {curve.areas.mean():.2f} |")
    return "\n".join(lines)


def draw(curves: Sequence[Curve]) -> Figure:
    """Draw mean success over control steps, with the range over seeds."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        steps, values = np.array(curve.steps) / 1e3, curve.values
        colour = _COLOURS.get(curve.reward, _INK)
        label = f"{_WORDS.get(curve.reward, curve.reward)} ({len(values)} seeds)"
        axes.plot(steps, values.mean(axis=0), color=colour, linewidth=2.2, label=label)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="control steps of the simulator, thousands", ylabel="success on fresh scenes", ylim=(-0.02, 1.02))
    axes.set_title(f"{curves[0].task}: SAC from state, mean and range over seeds", fontsize=10, loc="left", color=_INK)
    axes.legend(fontsize=9, frameon=False, labelcolor=_INK, loc="best")
    axes.tick_params(colors=_INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=_INK, alpha=0.12)
    return figure
