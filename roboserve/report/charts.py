"""The report's charts, as SVG that reads on light and dark pages alike: no background, grey ink."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from roboserve.report.episodes import batch_sizes

if TYPE_CHECKING:
    from roboserve.report.episodes import EpisodeData

_INK = "#808890"
_PARTS = {
    "encode": "#7b8cde",
    "network": "#b0b7c3",
    "decode": "#e0a458",
    "queue": "#d1495b",
    "batch_wait": "#9a6fb0",
    "forward": "#2a9d8f",
}


def latency_chart(episodes: list[EpisodeData]) -> str:
    """Draw where each request's time went, request by request, in order of time."""
    requests = [line for item in episodes for line in item.requests if line["round_trip_ms"] is not None]
    figure, axes = _figure(9, 3.2)
    bottom = np.zeros(len(requests))
    for part, colour in _PARTS.items():
        heights = np.array([_part(line, part) for line in requests])
        axes.bar(
            np.arange(len(requests)), heights, bottom=bottom, width=1.0, color=colour, label=part.replace("_", " ")
        )
        bottom += heights
    axes.set(xlabel="request", ylabel="ms", xlim=(-0.5, max(0.5, len(requests) - 0.5)))
    axes.set_ylim(0, float(np.percentile(bottom, 99.5)) * 1.1 if requests else 1)
    axes.legend(ncols=len(_PARTS), fontsize=8, frameon=False, labelcolor=_INK, loc="upper right")
    return _svg(figure)


def _part(line: dict[str, Any], part: str) -> float:
    timings = line["timings"]
    if part == "encode":
        return float(line["encode_ms"])
    if part == "network":
        return max(0.0, float(line["round_trip_ms"]) - float(timings.get("total", 0.0)))
    return float(timings.get(part, 0.0))


def timeline_chart(episodes: list[EpisodeData]) -> str:
    """Draw, for each episode, how old the observation behind each command was; held ticks are marked."""
    figure, axes = _figure(9, 3.2)
    for item in episodes:
        played = [(line["actual_s"], line["age_ms"]) for line in item.ticks if line["age_ms"] is not None]
        if played:
            axes.plot(*zip(*played, strict=True), color="#2a9d8f", alpha=0.25, linewidth=0.8)
        held = [line["actual_s"] for line in item.ticks if line["source"] == "hold"]
        axes.plot(held, np.zeros(len(held)), "|", color="#d1495b", markersize=9)
    axes.plot([], [], "|", color="#d1495b", label="held tick")
    axes.plot([], [], color="#2a9d8f", label="age of the observation played")
    axes.set(xlabel="seconds into the episode", ylabel="ms", ylim=(-20, None))
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK, loc="upper right")
    return _svg(figure)


def lateness_chart(episodes: list[EpisodeData]) -> str:
    """Draw how late ticks began, as a share of all ticks."""
    late = np.array([line["lateness_ms"] for item in episodes for line in item.ticks])
    figure, axes = _figure(4.4, 2.8)
    axes.hist(
        np.clip(late, 0, 5),
        bins=np.linspace(0, 5, 51),
        color="#7b8cde",
        weights=np.full(len(late), 100 / max(1, len(late))),
    )
    axes.axvline(2.0, color="#d1495b", linewidth=1, linestyle="--")
    axes.set(xlabel="ms after the tick was due (5: or more)", ylabel="% of ticks", yscale="log")
    return _svg(figure)


def batch_chart(episodes: list[EpisodeData]) -> str:
    """Draw how many answers rode in batches of each size."""
    sizes = batch_sizes(episodes)
    figure, axes = _figure(4.4, 2.8)
    largest = max(sizes, default=1)
    axes.bar(range(1, largest + 1), [sizes.get(size, 0) for size in range(1, largest + 1)], color="#2a9d8f", width=0.7)
    axes.set(xlabel="batch size", ylabel="answers", xticks=range(1, largest + 1))
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)
        spine.set_alpha(0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=_INK, alpha=0.15)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
