"""ReWiND behind the contract of reward models: progress alone, read from vectors of frames that are seen once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from models.folders import checkpoint_folder
from models.rewards.contract import FrameValues, RewardSpec
from models.rewind.checkpoint import ARCHITECTURE, load_checkpoint, require_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from models.rewards.contract import FrameFeatures, Pair, Query


@dataclass(frozen=True, kw_only=True)
class FrameVector:
    """What the image encoder made of one frame: float32 (image width,)."""

    vector: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory of the vector, in bytes."""
        return self.vector.nbytes


class RewindReward:
    """A ReWiND checkpoint that answers.

    It is taught no value for a clip's first frame, which stands for what progress is counted from; under the padding
    policy that it is trained with, even a clip of one frame is read at its last copy.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration.

        Attributes:
            checkpoint: folder, or "zoo:NAME" for one that ships with the package.
            device: "cpu", "cuda" or "auto" (a GPU where there is one); instructions are read on the CPU.
            dtype: of the computation.
            frames_at_once, queries_at_once: most of a run of the image encoder, and of the transformer.
        """

        checkpoint: str
        device: Literal["auto", "cpu", "cuda"] = "auto"
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        frames_at_once: int = 64
        queries_at_once: int = 256

    def __init__(self, config: Config) -> None:
        checkpoint = load_checkpoint(checkpoint_folder(config.checkpoint))
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._config = config
        self._device, self._dtype = torch.device(device), getattr(torch, config.dtype)
        self._network = checkpoint.network.to(self._device, self._dtype)
        self._image, self._text = checkpoint.image, checkpoint.text
        self._image.to(self._device, self._dtype)
        settings = checkpoint.settings
        self.spec = RewardSpec(
            id=settings.id,
            revision=settings.revision,
            content_hash=checkpoint.content_hash,
            architecture=ARCHITECTURE,
            image_size=self._image.image_size,
            max_frames=self._network.sizes.frames,
            frame_policy=settings.frame_policy,
            dtype=config.dtype,
            supports_success=False,
            supports_compare=False,
            instruction_chars=settings.instruction_chars,
        )

    @staticmethod
    def check_folder(folder: Path) -> None:
        """Check, before a start, that a checkpoint folder can be loaded; raises as `checkpoint.require_files`."""
        require_files(folder)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame to what the image encoder takes."""
        return self._image.prepare(frame)

    def cost(self, frame: NDArray[np.uint8]) -> int:
        """Return 1: a frame is one token of the transformer."""
        del frame
        return 1

    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> list[FrameFeatures]:
        """Run the image encoder."""
        found: list[FrameFeatures] = []
        for start in range(0, len(frames), self._config.frames_at_once):
            seen = self._image.encode(frames[start : start + self._config.frames_at_once])
            # A row keeps the whole batch's memory alive; what a cache holds must be what it counts.
            found += [FrameVector(vector=vector.clone()) for vector in seen]
        return found

    def score(self, queries: Sequence[Query]) -> list[FrameValues]:
        """Read progress at every frame."""
        found: list[FrameValues] = []
        for start in range(0, len(queries), self._config.queries_at_once):
            found += self._read(queries[start : start + self._config.queries_at_once])
        return found

    @torch.inference_mode()
    def _read(self, queries: Sequence[Query]) -> list[FrameValues]:
        clips = [torch.stack([_own(frame) for frame in query.frames]) for query in queries]
        frames = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).to(self._device, self._dtype)
        text = self._text.encode([query.instruction for query in queries]).to(self._device, self._dtype)
        values = self._network(text, frames).float().cpu()
        return [
            FrameValues(progress=row[: len(clip)].numpy(), success=None)
            for row, clip in zip(values, clips, strict=True)
        ]

    def compare(self, pairs: Sequence[Pair]) -> list[float]:
        """Raise NotImplementedError: it judges clips one by one."""
        raise NotImplementedError("compare: ReWiND gives progress only; compare final values instead")


def load(folder: Path) -> RewindReward:
    """Return the model of a checkpoint folder, on the device there is, in float32.

    Raises:
        FileNotFoundError, ValueError: see `checkpoint.load_checkpoint`.
    """
    return RewindReward(RewindReward.Config(checkpoint=str(folder)))


def _own(frame: FrameFeatures) -> torch.Tensor:
    if not isinstance(frame, FrameVector):
        raise TypeError(f"features: {type(frame).__name__}, must come from this model's encode")
    return frame.vector
