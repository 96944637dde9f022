"""The contract that every reward model keeps.

Seeing a frame and reading a clip are two calls, since a frame's features depend on its pixels alone: whoever asks about
many prefixes of one episode encodes each frame once and reads as often as needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What a reward model is, wants and gives: the part of the server's contract that the model decides.

    Attributes:
        id: name of the model.
        revision: version of the weights, as its author names it.
        content_hash: SHA-256 of the weights, configuration and prompt, hex.
        architecture: "robometer", "rewind" or another family's name.
        image_size: (height, width) that a frame is brought to by `prepare`; None keeps each frame's own size.
        max_frames: most frames that one query may show.
        frame_policy: name of the frame policy it was trained for (see `models.rewards.frames`).
        prompt_version: SHA-256 of the prompt template, hex, or "none".
        dtype: of the computation ("float32", "bfloat16"), or the quantisation ("int8", "nf4").
        supports_success: gives success probabilities beside progress.
        supports_compare: tells which of two clips is better.
        instruction_chars: longest instruction.
    """

    id: str
    revision: str
    content_hash: str
    architecture: str
    image_size: tuple[int, int] | None
    max_frames: int
    frame_policy: str
    prompt_version: str = "none"
    dtype: str = "float32"
    supports_success: bool = True
    supports_compare: bool = True
    instruction_chars: int = 512


class FrameFeatures(Protocol):
    """What a model has seen of one frame; opaque to all but the model that made it."""

    @property
    def nbytes(self) -> int:
        """Memory that it holds, in bytes: what a cache counts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Query:
    """Frames that are shown together, in their order in time, and the instruction that they are judged by."""

    instruction: str
    frames: tuple[FrameFeatures, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two clips of equal frame counts under one instruction."""

    instruction: str
    first: tuple[FrameFeatures, ...]
    second: tuple[FrameFeatures, ...]


@dataclass(frozen=True, kw_only=True)
class FrameValues:
    """One value for each shown frame; causal: a value depends on the frames up to its own.

    Attributes:
        progress: float32 (T,), 0 to 1.
        success: float32 (T,), probability that the task is done; None where the model gives none.
    """

    progress: NDArray[np.float32]
    success: NDArray[np.float32] | None


class RewardModel(Protocol):
    """A reward model: batched, synchronous; `encode`, `score` and `compare` are called from one thread at a time.

    A batch of n gives the same values as n batches of one, to float tolerance. Each may raise; the caller then asks
    again for each item alone, so that only the item at fault fails.
    """

    @property
    def spec(self) -> RewardSpec:
        """What it wants and gives; constant over its life."""
        ...

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring a frame, RGB (h, w, 3), to the size that `encode` takes; pure, idempotent, called from any thread."""
        ...

    def cost(self, frame: NDArray[np.uint8]) -> int:
        """Return the tokens that a prepared frame takes in a query: what a batch's budget counts."""
        ...

    def encode(self, frames: Sequence[NDArray[np.uint8]]) -> Sequence[FrameFeatures]:
        """Return the features of prepared frames, in order; they depend on each frame's own pixels alone."""
        ...

    def score(self, queries: Sequence[Query]) -> Sequence[FrameValues]:
        """Return progress and success for every shown frame of each query; 1 to `spec.max_frames` frames each."""
        ...

    def compare(self, pairs: Sequence[Pair]) -> Sequence[float]:
        """Return P(first is better than second) for each pair; equality with 1 - P(swapped) is not promised.

        Raises:
            NotImplementedError: where the spec says that it cannot.
        """
        ...
