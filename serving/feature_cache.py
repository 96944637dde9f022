"""Features of frames that were seen lately, by the frames' content: the same pixels are never encoded twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.rewards.contract import FrameFeatures


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A prepared frame and the key of its content: equal keys are equal pixels."""

    pixels: NDArray[np.uint8]
    key: bytes

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Frame:
        """Return a frame with its key: BLAKE2b over shape and bytes."""
        digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
        digest.update(pixels.tobytes())
        return cls(pixels=pixels, key=digest.digest())


class FeatureCache:
    """Keeps features up to a number of bytes and drops the least lately used first; for one thread.

    Args:
        limit: bytes of features, as each tells them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[bytes, FrameFeatures] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> FrameFeatures | None:
        """Return the features of a frame, if they are kept."""
        features = self._kept.get(key)
        if features is not None:
            self._kept.move_to_end(key)
        return features

    def put(self, key: bytes, features: FrameFeatures) -> None:
        """Keep features; those that are larger than the whole cache are not kept."""
        if key in self._kept or features.nbytes > self._limit:
            return
        self._kept[key] = features
        self.bytes += features.nbytes
        while self.bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.nbytes
