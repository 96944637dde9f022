"""Frames for the vision tower: brought to size, normalised, and cut into patches as Qwen's image processor does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MIN_TOKENS = 4


def letterbox(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (bilinear) without distortion and centre on black.

    Args:
        frame: uint8 (h, w, 3); one of that size already is returned as it is.
        size: (height, width).
    """
    if frame.shape[:2] == size:
        return frame
    ratio = max(frame.shape[1] / size[1], frame.shape[0] / size[0])
    inner = (max(1, int(frame.shape[0] / ratio)), max(1, int(frame.shape[1] / ratio)))
    padded = np.zeros((*size, 3), dtype=np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    padded[top : top + inner[0], left : left + inner[1]] = _resized(frame, inner, Image.Resampling.BILINEAR)
    return padded


def snapped(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """Return the size that the reference brings a native frame to: multiples of `unit`, at least four tokens.

    Rounds half to even and, for frames of fewer than four tokens, grows both sides by the same factor, rounded up
    (qwen-vl-utils, smart_resize).
    """
    height, width = (max(unit, round(side / unit) * unit) for side in size)
    if height * width < _MIN_TOKENS * unit * unit:
        factor = (_MIN_TOKENS * unit * unit / (size[0] * size[1])) ** 0.5
        height, width = (int(np.ceil(side * factor / unit)) * unit for side in size)
    return height, width


def snap(frame: NDArray[np.uint8], unit: int) -> NDArray[np.uint8]:
    """Resize (bicubic) a frame to `snapped` size; uint8 (h, w, 3) in and out."""
    size = snapped((frame.shape[0], frame.shape[1]), unit)
    return frame if frame.shape[:2] == size else _resized(frame, size, Image.Resampling.BICUBIC)


def fitted(frame: NDArray[np.uint8], size: tuple[int, int] | None, unit: int) -> NDArray[np.uint8]:
    """Bring a frame to a checkpoint's size, or to whole patches where it keeps each frame's own.

    Args:
        size: (height, width), or None; `unit`: side of a language-model token's patch, pixels.
    """
    return snap(frame, unit) if size is None else letterbox(frame, size)


def patchify(frames: Sequence[NDArray[np.uint8]], *, patch: int, merge: int, temporal: int) -> Tensor:
    """Cut frames of one size into normalised patches, ordered so that each merge block is contiguous.

    Pixels are scaled to [-1, 1]; a still image fills the temporal patch by repetition (transformers,
    Qwen2VLImageProcessor).

    Args:
        frames: uint8 (h, w, 3), h and w multiples of patch x merge.

    Returns:
        float32 (frames x rows x columns, 3 x temporal x patch x patch).
    """
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    count, channels, height, width = pixels.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = pixels.reshape(count, channels, rows, merge, patch, columns, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = blocks.reshape(count * rows * columns * merge * merge, channels, 1, patch, patch)
    return flat.expand(-1, -1, temporal, -1, -1).reshape(len(flat), -1)


def _resized(frame: NDArray[np.uint8], size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), resample=resample))
