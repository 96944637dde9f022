"""What Robometer's network takes and gives, without the network: to know this much needs no transformers library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

BINS = 10


@dataclass(frozen=True, kw_only=True)
class VisionFeatures:
    """What the vision tower made of one frame.

    Attributes:
        layers: (1 + deepstack layers, tokens, text hidden size): the merged output first, then the features that are
            added to the hidden states after the first text layers.
        grid: (rows, columns) of language-model tokens.
    """

    layers: Tensor
    grid: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory of the features, in bytes."""
        return self.layers.nbytes


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Raw outputs at the tokens that ask, all in the order of the batch.

    Attributes:
        progress: logits (n, bins) at every progress token; `success`: logits (n,) at the same tokens.
        preference: logits (m,) at every preference token, that the first clip is better.
        counts: progress tokens of each sequence.
    """

    progress: Tensor
    success: Tensor
    preference: Tensor
    counts: tuple[int, ...]


def to_dtype(network: nn.Module, dtype: torch.dtype) -> None:
    """Bring the parameters to a dtype, in place; rotary frequencies stay float32, rounded they would blur positions."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


def decode_progress(logits: Tensor) -> Tensor:
    """Return the expected progress, float32 (...,), of bin logits (..., bins): sum of softmax_k x k / (bins - 1)."""
    bins = torch.linspace(0.0, 1.0, logits.shape[-1], device=logits.device)
    return logits.float().softmax(-1) @ bins
