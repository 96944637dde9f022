"""DINOv2 as ReWiND's image encoder: the normalised class token of a frame's middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


class Dinov2Encoder:
    """Sees frames through a DINOv2 of a folder on disk.

    Args:
        folder: as transformers saves it.
        crop: side of the square that is cut from a frame's middle, the rest of a smaller frame being black; pixels
            are scaled to [-1, 1] (github.com/rewind-reward/ReWiND).
    """

    image_size: tuple[int, int] | None = None

    def __init__(self, folder: Path, *, crop: int = 224) -> None:
        from transformers import Dinov2Model

        # Only safetensors: the other format is a pickle.
        load: Any = Dinov2Model.from_pretrained
        self._model: Any = load(folder, local_files_only=True, use_safetensors=True).eval()
        self._crop = crop

    @property
    def width(self) -> int:
        """Size of a frame's vector."""
        return int(self._model.config.hidden_size)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut the middle out; uint8 (crop, crop, 3)."""
        side = self._crop
        if frame.shape[:2] == (side, side):
            return frame
        cut = np.zeros((side, side, 3), dtype=np.uint8)
        source, target = zip(*(_overlap(length, side) for length in frame.shape[:2]), strict=True)
        cut[target] = frame[source]
        return cut

    @torch.inference_mode()
    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return the class tokens after the last layer norm, float32 (n, width)."""
        pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        seen: Tensor = self._model(pixels.to(self._model.device, self._model.dtype)).pooler_output
        return seen.float()

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it."""
        self._model.to(device, dtype)


def _overlap(length: int, side: int) -> tuple[slice, slice]:
    """Return the middle `side` of a `length`, and the place that it takes in `side`."""
    kept = min(length, side)
    begin, at = (length - kept) // 2, (side - kept) // 2
    return slice(begin, begin + kept), slice(at, at + kept)
