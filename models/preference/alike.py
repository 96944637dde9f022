"""Whether two observations differ at all: of two that do not, nobody need be asked."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.preference.contract import Pair

ALIKE = 1e-3
"""Pixel distance under which RL-VLM-F drops a pair; there of raw pixels, so that only equal pictures fall under it."""


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the root mean square difference of two pictures' pixels, 0 to 1; 1 where their sizes differ."""
    if first.shape != second.shape:
        return 1.0
    if not first.size or np.array_equal(first, second):
        return 0.0
    difference = first.astype(np.float32) - second.astype(np.float32)
    return float(np.sqrt(np.mean(np.square(difference)))) / 255.0


def alike(pair: Pair, limit: float = ALIKE) -> bool:
    """Whether both sides show equally many frames, and each is as good as the other's: its distance under `limit`."""
    if len(pair.first) != len(pair.second):
        return False
    return all(distance(one, other) < limit for one, other in zip(pair.first, pair.second, strict=True))


def side_key(frames: tuple[NDArray[np.uint8], ...]) -> bytes:
    """Return 16 bytes that stand for the frames of one side: BLAKE2b over shapes and pixels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(repr(frame.shape).encode())
        digest.update(np.ascontiguousarray(frame).tobytes())
    return digest.digest()
