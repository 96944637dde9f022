"""A labeller's calibration as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from models.preference.metrics import THIRDS

if TYPE_CHECKING:
    from models.preference.metrics import Calibration

_INK, _RIGHT, _TIES, _GRID = "#4a5260", "#2a9d8f", "#e0a458", "#e8eaee"


def calibration_figure(found: Calibration, name: str) -> Figure:
    """Draw accuracy and ties by the gap in true progress, and how often answers of a confidence are right."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(found.thirds))
    for axis in (left, right):
        _dress(axis)
    left.bar([at - 0.2 for at in places], [100 * third.accuracy for third in found.thirds], 0.38, color=_RIGHT)
    left.bar([at + 0.2 for at in places], [100 * third.tie_rate for third in found.thirds], 0.38, color=_TIES)
    left.axhline(50, color="#b0b7c3", linestyle="--", linewidth=1.2)
    spans = [
        f"{label} gaps\n{third.low:.2g} to {third.high:.2g}" for label, third in zip(THIRDS, found.thirds, strict=True)
    ]
    left.set_xticks(list(places), spans)
    left.set(ylim=(0, 103), ylabel="%", title=f"{name}: {found.pairs} pairs")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
    left.legend(["chance", "right, of the decided", "ties"], fontsize=8, frameon=False, labelcolor=_INK, **below)
    right.plot((0.5, 1.0), (0.5, 1.0), color="#b0b7c3", linestyle="--", linewidth=1.2)
    for confidence, share, pairs in found.reliability:
        size = 20 + 180 * pairs / max(1, found.pairs)
        right.scatter(confidence, share, s=size, color=_RIGHT, alpha=0.85, linewidths=0)
    right.set(xlim=(0.48, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share right")
    right.set_title(f"calibration error {found.ece:.3f}")
    return figure


def _dress(axis: Any) -> None:
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
