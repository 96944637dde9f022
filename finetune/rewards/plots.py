"""Plots of reward models' values. Each gives a figure of its own; nothing is shared with pyplot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from finetune.rewards.pairs import AGAINST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from finetune.rewards.figures import Row

INK, PROGRESS, SUCCESS = "#4a5260", "#2a9d8f", "#d1495b"
MODELS = ("#2a9d8f", "#7b8cde", "#b0b7c3")
"""Colours of the model, of a second one, and of the clock."""
_LINES = {
    "expert": "#1f7a6e",
    "noisy": "#6cc3b7",
    "successful": "#1f7a6e",
    "near_miss": "#e0a458",
    "half_done": "#b5793a",
    "suboptimal": "#e0a458",
    "stalled": "#d1495b",
    "wrong_object": "#9a6fb0",
    "idle": "#5b6675",
    "failure": "#d1495b",
}
_MORE = ("#7b8cde", "#b0b7c3", "#8d99ae", "#e07a5f", "#81b29a")
_SCALE = LinearSegmentedColormap.from_list("progress", ["#f6f7f9", "#9fd3cb", "#2a9d8f", "#12504a"])
_GRID = np.linspace(0.0, 1.0, 41)


Curve = tuple["NDArray[np.floating]", "NDArray[np.float32]"]
"""Shares of time gone by, 0 to 1, and the progress there, (n,) each."""


def curves_by_kind(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Figure:
    """Draw mean progress over the share of time gone by: a panel for each group, a line for each kind of rollout.

    Args:
        panels: group to kind to the curves of its rollouts.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    kinds = list(dict.fromkeys(kind for panel in panels.values() for kind in panel))
    colours = line_colours(kinds)
    for axis, (name, panel) in zip(axes, panels.items(), strict=True):
        _dress(axis)
        axis.plot((0, 100), (0, 1), color="#b0b7c3", linestyle="--", linewidth=1.2, label="clock")
        for kind, found in panel.items():
            lines = np.stack([np.interp(_GRID, shares, progress) for shares, progress in found])
            mean, spread = lines.mean(axis=0), lines.std(axis=0) / np.sqrt(len(lines))
            label = f"{kind.replace('_', ' ')} ({len(found)})"
            axis.plot(100 * _GRID, mean, color=colours[kind], linewidth=2, label=label)
            axis.fill_between(100 * _GRID, mean - spread, mean + spread, color=colours[kind], alpha=0.15, linewidth=0)
        axis.set(title=name.replace("_", " "), xlabel="% of the rollout", xlim=(0, 100), ylim=(-0.02, 1.02))
        axis.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc="upper left")
    axes[0].set_ylabel("progress (mean, standard error)")
    return figure


def line_colours(kinds: Sequence[str]) -> dict[str, str]:
    """Return a colour for each kind of rollout."""
    unknown = [kind for kind in kinds if kind not in _LINES]
    return {kind: _LINES.get(kind) or _MORE[unknown.index(kind) % len(_MORE)] for kind in kinds}


def confusion_map(matrix: NDArray[np.float64], tasks: Sequence[str]) -> Figure:
    """Draw mean final progress by instruction (rows) and video (columns)."""
    side = 2.4 + 0.3 * len(tasks)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(matrix, vmin=0.0, vmax=1.0, cmap=_SCALE)
    axes.set_xticks(range(len(tasks)), tasks, rotation=90)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.set_xlabel("video of a success", color=INK)
    axes.set_ylabel("instruction", color=INK)
    axes.spines[:].set_visible(False)
    if len(tasks) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else INK
            )
    bar = figure.colorbar(picture, ax=axes, shrink=0.7)
    bar.set_label("final progress", color=INK)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure


def preference_bars(models: Mapping[str, Row]) -> Figure:
    """Draw preference accuracy by what a success is set against, a bar for each model, with its interval."""
    known = [row for row in models.values() if row.preference]
    sorts = [sort for sort in (*AGAINST, "all") if any(sort in row.preference for row in known)]
    figure = Figure(figsize=(1.6 + 1.25 * len(sorts), 3.4), layout="constrained")
    axes = figure.subplots()
    _dress(axes)
    width = 0.8 / max(1, len(models))
    for number, (name, row) in enumerate(models.items()):
        found = [(at, row.preference[sort].accuracy) for at, sort in enumerate(sorts) if sort in row.preference]
        if not found:
            continue
        places = np.array([at for at, _ in found]) + (number - (len(models) - 1) / 2) * width
        heights = np.array([each.value for _, each in found])
        errors = np.array([[each.value - each.low, each.high - each.value] for _, each in found]).T
        colour = MODELS[-1] if name == "clock" else MODELS[min(number, 1)]
        axes.bar(places, heights, width=0.92 * width, color=colour, label=name, yerr=np.maximum(errors, 0), ecolor=INK)
    axes.axhline(0.5, color=INK, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(sorts)), [sort.replace("_", " ") for sort in sorts])
    axes.set(ylabel="preference accuracy", ylim=(0, 1.02), xlim=(-0.6, len(sorts) - 0.4))
    figure.legend(fontsize=8, frameon=False, labelcolor=INK, loc="outside upper center", ncols=len(models))
    return figure


def clip_curve(
    seconds: NDArray[np.float64], progress: NDArray[np.float32], success: NDArray[np.float32] | None, title: str
) -> Figure:
    """Draw one clip's values over time.

    Args:
        seconds: (n,); `progress`, `success`: (n,), 0 to 1.
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    clip_axes(axes, seconds, title)
    axes.plot(seconds, progress, color=PROGRESS, linewidth=2.2, marker="o", markersize=3, label="progress")
    if success is not None:
        axes.plot(seconds, success, color=SUCCESS, linewidth=1.8, label="success")
    axes.legend(fontsize=9, frameon=False, labelcolor=INK, loc="upper left")
    return figure


def clip_axes(axes: Any, seconds: NDArray[np.float64], title: str) -> None:
    """Prepare axes for the values of a clip over time."""
    _dress(axes)
    end = max(float(seconds[-1]), 1e-3)
    axes.set(xlabel="seconds", ylabel="value", xlim=(0, end * 1.02), ylim=(-0.03, 1.05))
    axes.set_title(title, fontsize=10, color=INK, loc="left", wrap=True)


def _dress(axes: Any) -> None:
    axes.tick_params(colors=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
        spine.set_alpha(0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=INK, alpha=0.12)
    axes.set_axisbelow(True)
