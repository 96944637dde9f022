"""A Robometer's vision tower as ReWiND's image encoder, where no pre-trained one of its size is to be had.

All of its tokens are kept, side by side, the features that enter deeper text layers among them: an average over
tokens would lose where in the frame hand and object are, which is what progress is about. Each frame's vector is
brought to mean 0 and variance 1, for the layers differ in scale.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from models.robometer.images import letterbox, patchify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class TowerEncoder:
    """Sees frames through a Qwen3-VL vision tower.

    Args:
        visual: transformers' Qwen3VLVisionModel.
        image_size: side of the square that frames are brought to, a multiple of patch x merge.

    Raises:
        ValueError: another side.
    """

    def __init__(self, visual: Any, *, image_size: int) -> None:
        self._visual, config = visual.eval(), visual.config
        self._patch, self._merge, self._temporal = (
            config.patch_size,
            config.spatial_merge_size,
            config.temporal_patch_size,
        )
        if image_size < 1 or image_size % (self._patch * self._merge):
            raise ValueError(f"image_size {image_size}: must be a multiple of {self._patch * self._merge}")
        self._grid = image_size // self._patch
        self._layers = 1 + len(config.deepstack_visual_indexes)
        self.image_size: tuple[int, int] | None = (image_size, image_size)
        self.width: int = self._layers * (self._grid // self._merge) ** 2 * config.out_hidden_size

    @classmethod
    def load(cls, folder: Path, *, image_size: int) -> TowerEncoder:
        """Load a folder that `save_tower` wrote.

        Raises:
            ValueError: the files are damaged or do not fit each other.
        """
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        make: Any = Qwen3VLVisionModel
        try:
            visual = make(Qwen3VLVisionConfig(**json.loads((folder / CONFIG).read_text("utf-8"))))
            visual.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"tower: {CONFIG} and {WEIGHTS} are damaged or do not fit: {error!s:.300}") from error
        return cls(visual, image_size=image_size)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame to the square, without distortion, on black."""
        side = self._grid * self._patch
        return letterbox(frame, (side, side))

    @torch.inference_mode()
    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return the vectors of frames, float32 (n, width)."""
        patches = patchify(frames, patch=self._patch, merge=self._merge, temporal=self._temporal)
        grids = torch.tensor([[1, self._grid, self._grid]] * len(frames))
        device, dtype = self._visual.device, self._visual.dtype
        seen = self._visual(patches.to(device, dtype), grid_thw=grids.to(device))
        layers = torch.stack([seen.pooler_output, *seen.deepstack_features])
        return flattened(layers.reshape(self._layers, len(frames), -1, layers.shape[-1]).transpose(0, 1))

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it."""
        self._visual.to(device, dtype)


def flattened(layers: Tensor) -> Tensor:
    """Return the vectors, float32 (n, layers x tokens x width), of features (n, layers, tokens, width)."""
    flat = layers.flatten(1).float()
    return functional.layer_norm(flat, flat.shape[1:])


def save_tower(folder: Path, visual: Any, *, dtype: torch.dtype) -> None:
    """Write a tower's configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in visual.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(visual.config.to_dict(), indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
