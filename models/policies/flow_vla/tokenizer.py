"""Instructions to token ids without a vocabulary file: each word hashes to a bucket."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PADDING = 0
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class HashTokenizer:
    """Lower-cased words, each the CRC-32 of its UTF-8 bytes modulo the buckets; id 0 pads.

    Attributes:
        buckets: number of word ids, 1 to `buckets`.
        length: words that are kept, from the start.
    """

    buckets: int = 1024
    length: int = 16

    def __post_init__(self) -> None:
        if min(self.buckets, self.length) < 1:
            raise ValueError(f"tokenizer: buckets {self.buckets} and length {self.length} must be 1 or more")

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return ids, int64 (len(texts), length)."""
        ids = np.full((len(texts), self.length), PADDING, dtype=np.int64)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())[: self.length]
            ids[row, : len(words)] = [1 + zlib.crc32(word.encode()) % self.buckets for word in words]
        return ids
