"""Drawn patterns in the place of a scene's textures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

if TYPE_CHECKING:
    from robot_client.robots.metaworld import Simulation

Array = np.ndarray[Any, Any]

TRAINING_PATTERNS = ("noise", "stripes", "gradient", "planks")
HELD_OUT_PATTERNS = ("checker", "dots")
_CELLS = 64


def pattern(kind: str, random: np.random.Generator, height: int, width: int, colours: Array) -> Array:
    """Return a pattern of two colours, uint8 (height, width, 3).

    Args:
        kind: one of `TRAINING_PATTERNS` or `HELD_OUT_PATTERNS`.
        colours: float64 (2, 3), 0 to 1.
    """
    rows, columns = np.mgrid[0:_CELLS, 0:_CELLS] / _CELLS
    period = int(random.integers(3, 11))
    if kind == "noise":
        coarse = random.random((_CELLS // 4, _CELLS // 4))
        share = 0.6 * np.kron(coarse, np.ones((4, 4))) + 0.4 * random.random((_CELLS, _CELLS))
    elif kind == "stripes":
        share = (np.floor((columns if random.random() < 0.5 else rows) * period * 2) % 2).astype(float)
    elif kind == "gradient":
        angle = random.uniform(0.0, 2 * np.pi)
        share = 0.5 + 0.5 * (np.cos(angle) * (columns - 0.5) + np.sin(angle) * (rows - 0.5)) * 1.4
    elif kind == "planks":
        tones = random.random(period)
        share = tones[np.minimum((rows * period).astype(int), period - 1)] * 0.7 + 0.3 * random.random((1, _CELLS))
    elif kind == "checker":
        share = (np.floor(columns * period) + np.floor(rows * period)) % 2
    else:
        share = (np.hypot((columns * period) % 1 - 0.5, (rows * period) % 1 - 0.5) < 0.3).astype(float)
    mixed = colours[0] + np.clip(share, 0.0, 1.0)[..., None] * (colours[1] - colours[0])
    tile = np.clip(255 * mixed, 0, 255).astype(np.uint8)
    across = np.arange(height) * _CELLS // height, np.arange(width) * _CELLS // width
    return np.asarray(tile[across[0]][:, across[1]])


def upload(simulation: Simulation, textures: Sequence[int]) -> None:
    """Bring changed textures to the renderer, whose public interface has no way to."""
    import mujoco

    if not textures:
        return
    renderer = simulation.renderer
    if renderer._gl_context:  # noqa: SLF001
        renderer._gl_context.make_current()  # noqa: SLF001
    for index in textures:
        mujoco.mjr_uploadTexture(simulation.model, renderer._mjr_context, index)  # noqa: SLF001
