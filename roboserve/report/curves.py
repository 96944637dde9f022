"""What the reward model saw in each episode, and its curves as SVG that the page's own colours draw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from roboserve.report.episodes import EpisodeData

_WIDTH, _HEIGHT = 320.0, 106.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 28.0, 310.0, 8.0, 86.0
_SMALL_WIDTH, _SMALL_HEIGHT, _SMALL_MARGIN = 160.0, 56.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One episode's values.

    Attributes:
        times: seconds into the film at which a judged frame stands, ascending; `seconds`: length of the film.
        progress: 0 to 1, one a time; `success`: probability, the same; empty where the model gives none.
        unjudged: frames that were offered and have no value.
        fault: why no frame after the last time was judged; "" where all went well.
    """

    times: tuple[float, ...]
    seconds: float
    progress: tuple[float, ...]
    success: tuple[float, ...]
    unjudged: int
    fault: str

    @property
    def data(self) -> str:
        """The values as the page's script reads them: JSON, a list of [seconds, progress, success or null]."""
        chances = self.success or (None,) * len(self.times)
        return json.dumps([list(row) for row in zip(self.times, self.progress, chances, strict=True)])


def curve_of(item: EpisodeData) -> Curve | None:
    """Return an episode's curve; None where no reward model was asked, or the robot's rate is not known."""
    found, rate_hz = item.reward, item.summary.get("control_hz") or item.summary["rate_hz"]
    if found is None or not rate_hz:
        return None
    # The film has a frame for every tick that was played; a slot that the loop missed has none.
    place = {line["tick"]: number for number, line in enumerate(item.ticks)}
    values = [value for value in found["values"] if value["tick"] in place]
    return Curve(
        times=tuple(round(place[value["tick"]] / rate_hz, 3) for value in values),
        seconds=max(len(place), 1) / rate_hz,
        progress=tuple(round(value["progress"], 4) for value in values),
        success=tuple(round(value["success"], 4) for value in values if value["success"] is not None),
        unjudged=found["offered"] - len(found["values"]),
        fault=found["fault"] or "",
    )


def film_curve(curve: Curve) -> Markup:
    """Draw a curve for below its film: progress, success probability, and a cursor that the page's script moves."""

    def across(seconds: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * min(1.0, seconds / curve.seconds)

    def up(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * value

    lines = [
        f'<line class="grid" x1="{_LEFT:g}" x2="{_RIGHT:g}" y1="{up(level):g}" y2="{up(level):g}"/>'
        f'<text x="{_LEFT - 5:g}" y="{up(level) + 3:g}" text-anchor="end">{level:g}</text>'
        for level in (0.0, 0.5, 1.0)
    ]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if curve.seconds / step <= 6)
    lines += [
        f'<text x="{across(second):.1f}" y="{_BOTTOM + 14:g}" text-anchor="middle">{second} s</text>'
        for second in range(0, int(curve.seconds) + 1, step)
    ]
    at = [across(seconds) for seconds in curve.times]
    floor = f"{at[-1]:.1f},{up(0):g} {at[0]:.1f},{up(0):g}"
    lines += [
        f'<polygon class="under" points="{_points(at, map(up, curve.progress))} {floor}"/>',
        f'<polyline class="success" points="{_points(at, map(up, curve.success))}"/>' if curve.success else "",
        f'<polyline class="progress" points="{_points(at, map(up, curve.progress))}"/>',
        f'<line class="cursor" x1="{at[-1]:.1f}" x2="{at[-1]:.1f}" y1="{_TOP:g}" y2="{_BOTTOM:g}"/>',
    ]
    plot = f'data-left="{_LEFT:g}" data-right="{_RIGHT:g}" data-seconds="{curve.seconds:.3f}"'
    return _svg(f'<svg class="curve" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" {plot}>', lines)


def small_curves(curves: Sequence[tuple[Curve, bool]]) -> Markup:
    """Draw the progress of all episodes of a task over one another; each comes with whether it succeeded."""
    longest = max(curve.seconds for curve, _ in curves)
    inner = _SMALL_HEIGHT - 2 * _SMALL_MARGIN

    def up(value: float) -> float:
        return _SMALL_HEIGHT - _SMALL_MARGIN - inner * value

    lines = [f'<line class="grid" x1="0" x2="{_SMALL_WIDTH:g}" y1="{up(v):g}" y2="{up(v):g}"/>' for v in (0.0, 1.0)]
    for curve, success in curves:
        at = [_SMALL_WIDTH * seconds / longest for seconds in curve.times]
        kind = "won" if success else "lost"
        lines.append(f'<polyline class="{kind}" points="{_points(at, map(up, curve.progress))}"/>')
    return _svg(f'<svg class="small" viewBox="0 0 {_SMALL_WIDTH:g} {_SMALL_HEIGHT:g}">', lines)


def _points(across: Iterable[float], up: Iterable[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))


def _svg(head: str, lines: Iterable[str]) -> Markup:
    return Markup(head + "".join(lines) + "</svg>")  # noqa: S704  drawn here, from numbers
