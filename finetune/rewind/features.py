"""Vectors of every training frame from a frozen image encoder, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune.robometer.embedded import make_config
from models.folders import files_hash
from models.rewind.dinov2 import Dinov2Encoder
from models.rewind.encoders import DinoSettings, TowerSettings, deciding_files
from models.rewind.tower import TowerEncoder, flattened, save_tower
from models.robometer.network import RobometerNetwork

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from finetune.rewards.data import RewardFrames
    from finetune.robometer.recipe import Recipe as RobometerRecipe
    from models.rewind.encoders import ImageEncoder

TOWER = "robometer_tower"


@dataclass(frozen=True, kw_only=True)
class SeenFrames:
    """Frames as an encoder sees them.

    Attributes:
        settings: the encoder's, for the checkpoint.
        width: of a frame's vector.
        vectors: rows of frames to their vectors, float32 (n, width).
        carry: writes what a checkpoint's folder carries of the encoder.
    """

    settings: DinoSettings | TowerSettings
    width: int
    vectors: Callable[[NDArray[np.int64]], Tensor]
    carry: Callable[[Path], None]


def seen_by_tower(recipe: RobometerRecipe, data: RewardFrames) -> SeenFrames:
    """Return frames as the embedded Robometer's trained tower sees them; its features are shared with that recipe.

    Raises:
        FileNotFoundError: the tower is not trained.
    """
    network = RobometerNetwork(make_config(recipe.tokenizer(), recipe.sizes))
    features = recipe.seen(network, data).features
    settings = TowerSettings(image_size=recipe.sizes.image)
    visual = network.model.visual
    return SeenFrames(
        settings=settings,
        width=TowerEncoder(visual, image_size=settings.image_size).width,
        vectors=lambda rows: flattened(features[rows]),
        carry=lambda folder: save_tower(folder / settings.folder, visual, dtype=torch.float16),
    )


def seen_by_dinov2(
    folder: Path, data: RewardFrames, cache: Path, *, progress: Callable[[int, int], None] | None = None
) -> SeenFrames:
    """Return frames as a DINOv2 on disk sees them.

    Args:
        cache: folder of the decoded frames; it keeps their vectors too, float16 (frames, width).
        progress: told (frames seen, frames in all).
    """
    settings = DinoSettings(folder=str(folder.resolve()))
    encoder = Dinov2Encoder(folder, crop=settings.crop)
    path = cache / f"dinov2-{files_hash([*deciding_files(folder), cache / 'key.json'])[:16]}.npy"
    if not path.is_file():
        _encode_all(encoder, data.frames.images[:, 0], path, progress)
    kept = torch.from_numpy(np.load(path, mmap_mode="r+", allow_pickle=False))
    return SeenFrames(
        settings=settings, width=encoder.width, vectors=lambda rows: kept[rows].float(), carry=lambda _: None
    )


def _encode_all(
    encoder: ImageEncoder,
    images: NDArray[np.uint8],
    path: Path,
    progress: Callable[[int, int], None] | None,
    *,
    batch: int = 64,
) -> None:
    part = path.with_suffix(".new")
    kept = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        part, mode="w+", dtype=np.float16, shape=(len(images), encoder.width)
    )
    for start in range(0, len(images), batch):
        frames = [encoder.prepare(frame) for frame in images[start : start + batch]]
        kept[start : start + len(frames)] = encoder.encode(frames).cpu().numpy()
        if progress is not None:
            progress(start + len(frames), len(images))
    kept.flush()
    part.replace(path)
