"""Paths drawn: for a person to look at as HAMSTER's demo does, or for a policy to follow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw

from models.hamster.path import resample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from models.hamster.path import Path

ChannelOrder = Literal["rgb", "bgr"]
Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Strokes:
    """Sizes in pixels for one image: width of the line, radius of rings to the middle of their stroke, its width."""

    line: int
    radius: int
    ring: int


@dataclass(frozen=True, kw_only=True)
class DrawStyle:
    """How a path is drawn: a line that changes colour on its way, a ring at the start and where the gripper acts.

    Sizes are truncated to whole pixels after scaling by max(min(width, height) / `reference`, `smallest_scale`); no
    stroke is thinner than one pixel.

    Attributes:
        reference: shorter side, in pixels, of the image that `line`, `radius` and `ring` are meant for.
        smallest_scale: smaller images are drawn on as if they had this scale.
        line, radius, ring: as in `Strokes`, at scale 1.
        colours: `jet` from dark blue to dark red, or `red` from dark to bright.
        closed, opened: RGB of a ring at a point with that gripper state.
        rings_first: whether the line is drawn over the rings, or they over it.
        samples: places at equal steps of arc length, measured in pixels, that the line goes through.
    """

    reference: int
    smallest_scale: float
    line: float
    radius: float
    ring: float
    colours: Literal["jet", "red"]
    closed: Colour
    opened: Colour
    rings_first: bool
    samples: int = 100

    def strokes(self, width: int, height: int) -> Strokes:
        """Return the sizes for an image of that many pixels."""
        scale = max(min(width, height) / self.reference, self.smallest_scale)
        return Strokes(
            line=max(1, int(self.line * scale)), radius=int(self.radius * scale), ring=max(1, int(self.ring * scale))
        )

    def line_colours(self) -> NDArray[np.uint8]:
        """Return RGB, uint8 (samples - 1, 3), of the line's parts, each in the colour of the sample it begins at."""
        along = np.linspace(0.0, 1.0, self.samples)[:-1]
        if self.colours == "jet":
            return jet(along)
        red = _DARKEST_RED + (255 - _DARKEST_RED) * along
        return np.stack([red, np.zeros_like(red), np.zeros_like(red)], axis=1).astype(np.uint8)


DEMO = DrawStyle(
    reference=512,
    smallest_scale=1.0,
    line=2,
    radius=7,
    ring=2,
    colours="jet",
    closed=(0, 0, 255),
    opened=(255, 0, 0),
    rings_first=True,
)
"""HAMSTER's demo (HAMSTER_beta, gradio_server_example.py). Its line has 99 parts in matplotlib's jet, from jet(0) to
jet(98/99)."""

POLICY = DrawStyle(
    reference=112,
    smallest_scale=0.0,
    line=1,
    radius=3.5,
    ring=1,
    colours="red",
    closed=(0, 0, 255),
    opened=(0, 255, 0),
    rings_first=False,
)
"""A choice of ours for images of 96 to 224 pixels: one pixel of line for every 112 of the image, so that it covers
little of what the policy has to see (the demo's rings are 14 pixels wide in any small image). Brightness alone tells
the direction, hue is left to the gripper: green rings open, blue ones closed, on top. HAMSTER's figures show its
policies' paths in these hues; which ring means what there, and how wide its strokes are, is not published."""

STYLES: Mapping[str, DrawStyle] = MappingProxyType({"demo": DEMO, "policy": POLICY})

_DARKEST_RED = 96
_RED = ((0.0, 0.35, 0.66, 0.89, 1.0), (0.0, 0.0, 1.0, 1.0, 0.5))
_GREEN = ((0.0, 0.125, 0.375, 0.64, 0.91, 1.0), (0.0, 0.0, 1.0, 1.0, 0.0, 0.0))
_BLUE = ((0.0, 0.11, 0.34, 0.65, 1.0), (0.5, 1.0, 1.0, 0.0, 0.0))
_STEPS = 256


def jet(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the colours of matplotlib's `jet`, a table of 256 steps between its corner points.

    Args:
        values: (n,), 0 to 1.

    Returns:
        RGB uint8 (n, 3), truncated from 0 to 255.
    """
    step = np.minimum((np.asarray(values) * _STEPS).astype(np.int64), _STEPS - 1) / (_STEPS - 1)
    channels = [np.interp(step, *corners) for corners in (_RED, _GREEN, _BLUE)]
    return (np.stack(channels, axis=1) * 255).astype(np.uint8)


def overlay(
    image: NDArray[np.uint8], path: Path, *, style: DrawStyle, order: ChannelOrder = "rgb"
) -> NDArray[np.uint8]:
    """Return a copy of an image with the path on it.

    Args:
        image: uint8 (h, w, 3), its channels in the order that is declared; the result keeps it.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image: {image.dtype} {image.shape}, needs uint8 (h, w, 3)")
    canvas = Image.fromarray(np.ascontiguousarray(image))
    draw = ImageDraw.Draw(canvas)
    strokes = style.strokes(canvas.width, canvas.height)
    if style.rings_first:
        _rings(draw, path, style, strokes, order)
    _line(draw, path, style, strokes, order)
    if not style.rings_first:
        _rings(draw, path, style, strokes, order)
    return np.array(canvas)


def concat(image: NDArray[np.uint8], path: Path, *, style: DrawStyle, order: ChannelOrder = "rgb") -> NDArray[np.uint8]:
    """Return uint8 (h, w, 6): the image untouched, then the path on black, both in the declared order.

    For policies whose view of the image an overlay would damage, as RVT-2's virtual cameras (HAMSTER's "Concat").
    Arguments and errors as for `overlay`.
    """
    return np.concatenate([image, overlay(np.zeros_like(image), path, style=style, order=order)], axis=2)


def _line(draw: ImageDraw.ImageDraw, path: Path, style: DrawStyle, strokes: Strokes, order: ChannelOrder) -> None:
    vertices = np.array(_pixels(draw, path), dtype=np.float64)
    places = [(x, y) for x, y in resample(vertices, style.samples)[0].astype(np.int64).tolist()]
    reach = strokes.line / 2
    for (start, end), colour in zip(pairwise(places), style.line_colours().tolist(), strict=True):
        if start == end:
            continue
        fill = _ordered((colour[0], colour[1], colour[2]), order)
        draw.line([start, end], fill=fill, width=strokes.line)
        if strokes.line > 2:  # Pillow's parts have square ends, which leave notches where a thick line turns
            x, y = end
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)


def _rings(draw: ImageDraw.ImageDraw, path: Path, style: DrawStyle, strokes: Strokes, order: ChannelOrder) -> None:
    places = _pixels(draw, path)
    reach = strokes.radius + strokes.ring // 2
    for index in (0, *path.changes().tolist()):
        x, y = places[index]
        colour = style.opened if path.gripper_open[index] else style.closed
        box = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse(box, outline=_ordered(colour, order), width=strokes.ring)


def _pixels(draw: ImageDraw.ImageDraw, path: Path) -> list[tuple[int, int]]:
    return [(x, y) for x, y in path.pixels(*draw.im.size).tolist()]


def _ordered(colour: Colour, order: ChannelOrder) -> Colour:
    return colour if order == "rgb" else (colour[2], colour[1], colour[0])
