"""A predicted path as an SVG that lies over its film."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIDE = 100.0


def film_path(path: Mapping[str, Any]) -> Markup:
    """Draw a path over its film: a line that fades in along the way, a ring at its start and where the gripper changes.

    Args:
        path: `points`, (x, y) from 0 to 1 of the image; `gripper_open` from each of them on.
    """
    points = [(_SIDE * float(x), _SIDE * float(y)) for x, y in path["points"]]
    opened = [bool(value) for value in path["gripper_open"]]
    steps = max(1, len(points) - 1)
    lines = [
        f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" '
        f'style="stroke:hsl({20 + 180 * place / steps:.0f} 95% 60%)"/>'
        for place, (a, b) in enumerate(itertools.pairwise(points))
    ]
    for place, (point, state) in enumerate(zip(points, opened, strict=True)):
        if place == 0 or state != opened[place - 1]:
            kind = "open" if state else "closed"
            lines.append(f'<circle class="{kind}" cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="2.6"/>')
    head = f'<svg class="plan" viewBox="0 0 {_SIDE:g} {_SIDE:g}" aria-hidden="true">'
    return Markup(head + "".join(lines) + "</svg>")  # noqa: S704  drawn here, from numbers
