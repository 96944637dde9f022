"""Changes of frames at load: moved, turned and zoomed a little, with the coordinates, and seen in another light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Largest changes.

    Attributes:
        shift, zoom: shares of the side; `turn`: degrees.
        light, tint: shares, of all colours and of each; `noise`: standard deviation, of 255.
        hues: share of pictures whose colours are turned about grey, by any angle.
    """

    shift: float = 0.05
    zoom: float = 0.06
    turn: float = 3.0
    light: float = 0.25
    tint: float = 0.12
    noise: float = 3.0
    hues: float = 0.4


def drawn_map(random: np.random.Generator, jitter: Jitter) -> NDArray[np.float64]:
    """Draw an affine map of normalised coordinates, float64 (2, 3), from the image to the changed one."""
    angle = np.deg2rad(random.uniform(-jitter.turn, jitter.turn))
    scale = 1.0 + random.uniform(-jitter.zoom, jitter.zoom)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = random.uniform(-jitter.shift, jitter.shift, 2)
    return np.concatenate([turn, (0.5 - turn @ np.array([0.5, 0.5]) + shift)[:, None]], axis=1)


def mapped(image: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the image (h, w, 3) under a map of its normalised coordinates; what it does not show is grey."""
    height, width = image.shape[:2]
    whole = np.concatenate([matrix, [[0.0, 0.0, 1.0]]])
    pixels = np.diag([width, height, 1.0])
    back = np.linalg.inv(pixels @ whole @ np.linalg.inv(pixels))
    changed = Image.fromarray(image).transform(
        (width, height),
        Image.Transform.AFFINE,
        tuple(back[:2].ravel().tolist()),
        resample=Image.Resampling.BILINEAR,
        fillcolor=(128, 128, 128),
    )
    return np.asarray(changed)


def relit(image: NDArray[np.uint8], random: np.random.Generator, jitter: Jitter) -> NDArray[np.uint8]:
    """Return the image with another brightness, contrast and tint, and a little noise."""
    colours = np.eye(3)
    if random.random() < jitter.hues:
        colours = _turned_hues(random.uniform(-np.pi, np.pi))
    gain = (1.0 + random.uniform(-jitter.light, jitter.light)) * (1.0 + random.uniform(-jitter.tint, jitter.tint, 3))
    offset = 128.0 * random.uniform(-jitter.light, jitter.light) * 0.5
    changed = image.astype(np.float32) @ (colours * gain).astype(np.float32) + np.float32(offset)
    if jitter.noise:
        changed += random.normal(0.0, jitter.noise * random.random(), (*image.shape[:2], 1)).astype(np.float32)
    return np.clip(changed, 0, 255).astype(np.uint8)


def _turned_hues(angle: float) -> NDArray[np.float64]:
    """Return the rotation of red, green and blue about grey, float64 (3, 3) (Rodrigues' formula)."""
    axis = np.full(3, 3**-0.5)
    across = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * across + (1.0 - np.cos(angle)) * across @ across)
