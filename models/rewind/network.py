"""ReWiND's network: one text vector and up to sixteen frame vectors in, one progress value a frame out.

Layout as in github.com/rewind-reward/ReWiND: linear projections of both encoders' vectors, a learned position on the
first frame alone (a position on every frame would let the model read a clock), a causal transformer encoder, and one
head for every frame. Its class token, which nothing reads there, is left out. The defaults are the published sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RewindSizes:
    """The network's numbers.

    Attributes:
        image_width, text_width: of the frozen encoders' vectors.
        width, layers, heads, feed_forward, dropout: of the transformer.
        frames: most frames of a clip.
    """

    image_width: int = 768
    text_width: int = 384
    width: int = 512
    layers: int = 4
    heads: int = 8
    feed_forward: int = 2048
    frames: int = 16
    dropout: float = 0.1

    def __post_init__(self) -> None:
        counts = (self.image_width, self.text_width, self.layers, self.heads, self.feed_forward, self.frames)
        if min(counts) < 1 or self.width % (2 * self.heads) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"sizes: all must be positive, width {self.width} a multiple of twice the {self.heads} heads, dropout "
                f"{self.dropout:g} from 0 to below 1"
            )


class RewindNetwork(nn.Module):
    """The trained part of ReWiND; `sizes` are its numbers."""

    def __init__(self, sizes: RewindSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text = nn.Linear(sizes.text_width, sizes.width)
        self.image = nn.Linear(sizes.image_width, sizes.width)
        self.first = nn.Parameter(0.02 * torch.randn(sizes.width))
        layer = nn.TransformerEncoderLayer(
            sizes.width, sizes.heads, sizes.feed_forward, sizes.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, sizes.layers, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(sizes.width, sizes.width // 2),
            nn.LayerNorm(sizes.width // 2),
            nn.GELU(),
            nn.Dropout(sizes.dropout),
            nn.Linear(sizes.width // 2, 1),
        )

    def forward(self, text: Tensor, frames: Tensor) -> Tensor:
        """Return the progress at every frame, (B, T), 0 to 1; a value depends on the text and the frames up to its own.

        Args:
            text: (B, text_width); `frames`: (B, T, image_width), T from 1 to `sizes.frames`. Since values are causal,
                a batch of clips of several lengths is padded at the end with anything.

        Raises:
            ValueError: T is out of range.
        """
        count = frames.shape[1]
        if not 1 <= count <= self.sizes.frames:
            raise ValueError(f"frames: {count}, must be 1 to {self.sizes.frames}")
        shown = self.image(frames)
        shown = torch.cat([shown[:, :1] + self.first, shown[:, 1:]], dim=1)
        sequence = torch.cat([self.text(text).unsqueeze(1), shown], dim=1)
        ahead = torch.ones(count + 1, count + 1, dtype=torch.bool, device=frames.device).triu(1)
        read = self.encoder(sequence, mask=ahead, is_causal=True)[:, 1:]
        values: Tensor = self.head(read).squeeze(-1).sigmoid()
        return values
